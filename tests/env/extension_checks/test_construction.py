"""Modules built from a seed: the global generator stays where it was, and the seed decides everything."""

import numpy as np
import pytest
import torch
from esper_env.extension_checks.construction import MOST_CUTS, TRIAL_SEED, build_reproducibly, cuts, seeded_construction
from hypothesis import given
from hypothesis import strategies as st
from torch import nn


def test_the_global_generator_is_put_back_even_after_an_error():
    def broken():
        torch.rand(5)
        raise RuntimeError("broken")

    state = torch.default_generator.get_state()
    with pytest.raises(RuntimeError, match="broken"), seeded_construction(3):
        broken()
    assert torch.equal(torch.default_generator.get_state(), state)


def test_the_module_is_that_of_its_seed():
    built = build_reproducibly(lambda: nn.Linear(3, 4))
    torch.manual_seed(TRIAL_SEED)
    assert torch.equal(built.weight, nn.Linear(3, 4).weight)


class Scaled(nn.Module):
    """A buffer or parameter with values of one's own."""

    def __init__(self, values, *, buffer=False):
        super().__init__()
        tensor = torch.as_tensor(values, dtype=torch.float32)
        self.weight = nn.Parameter(torch.ones(1))
        if buffer:
            self.register_buffer("own", tensor)
        else:
            self.own = nn.Parameter(tensor)


@pytest.mark.parametrize("buffer", [False, True])
def test_values_drawn_from_numpy_are_refused(buffer):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="a Scaled built twice from the same seed has other values in own; its constr"):
        build_reproducibly(lambda: Scaled(rng.random(3), buffer=buffer))


def test_shapes_and_names_that_change_are_refused():
    sizes = iter([2, 3])
    with pytest.raises(ValueError, match="has other values in"):
        build_reproducibly(lambda: nn.Linear(next(sizes), 1))
    kinds = iter([nn.Linear(1, 1), nn.Linear(1, 1, bias=False)])
    with pytest.raises(ValueError, match="a Linear built twice"):
        build_reproducibly(lambda: next(kinds))


def test_a_module_that_is_given_out_twice_is_refused():
    once = nn.Linear(2, 2)
    part = nn.Linear(2, 2)
    for build in (lambda: once, lambda: nn.Sequential(nn.Linear(2, 2), part)):
        with pytest.raises(ValueError, match="has the same parameters twice; what builds it has to make a new module"):
            build_reproducibly(build)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_constructor_with_a_seed_of_its_own_is_refused(seed):
    def build():
        torch.manual_seed(seed)
        return nn.Linear(2, 2)

    state = torch.default_generator.get_state()
    with pytest.raises(ValueError, match=r"building a Linear seeds PyTorch's default generator.*leave torch.manual_se"):
        build_reproducibly(build)
    assert torch.equal(torch.default_generator.get_state(), state)


def test_layers_without_parameters_may_be_shared():
    shared = nn.ReLU()
    assert build_reproducibly(lambda: nn.Sequential(nn.Linear(1, 1), shared))[1] is shared


@given(st.integers(2, 300))
def test_a_sequence_is_cut_behind_its_first_position_and_evenly(length):
    places = cuts(length)
    assert places[0] == 1
    assert places[-1] < length
    assert len(places) == min(length - 1, MOST_CUTS)
    gaps = np.diff([*places, length])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_values_that_are_not_a_number_are_the_same_values():
    assert build_reproducibly(lambda: Scaled([1.0, float("nan")])).own.isnan().any()


def test_what_is_no_module_is_a_type_error():
    with pytest.raises(TypeError, match="what builds a network returned None"):
        build_reproducibly(lambda: None)
