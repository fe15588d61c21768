"""Construction of modules from a seed, which determines everything and leaves the global generator unchanged."""

import numpy as np
import pytest
import torch
from esper_env.extension_checks.construction import TRIAL_SEED, build_reproducibly, seeded_construction
from torch import nn


def test_seeded_construction_restores_generator_after_error():
    def broken():
        torch.rand(5)
        raise RuntimeError("broken")

    state = torch.default_generator.get_state()
    with pytest.raises(RuntimeError, match="broken"), seeded_construction(3):
        broken()
    assert torch.equal(torch.default_generator.get_state(), state)


def test_module_has_values_of_trial_seed():
    built = build_reproducibly(lambda: nn.Linear(3, 4))
    torch.manual_seed(TRIAL_SEED)
    assert torch.equal(built.weight, nn.Linear(3, 4).weight)


class Scaled(nn.Module):
    """Has a buffer or parameter with given values."""

    def __init__(self, values, *, buffer=False):
        super().__init__()
        tensor = torch.as_tensor(values, dtype=torch.float32)
        self.weight = nn.Parameter(torch.ones(1))
        if buffer:
            self.register_buffer("own", tensor)
        else:
            self.own = nn.Parameter(tensor)


@pytest.mark.parametrize("buffer", [False, True])
def test_build_rejects_values_drawn_from_numpy(buffer):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="a Scaled built twice from the same seed has other values in own; its constr"):
        build_reproducibly(lambda: Scaled(rng.random(3), buffer=buffer))


def test_build_rejects_changing_shapes_and_names():
    sizes = iter([2, 3])
    with pytest.raises(ValueError, match="has other values in"):
        build_reproducibly(lambda: nn.Linear(next(sizes), 1))
    kinds = iter([nn.Linear(1, 1), nn.Linear(1, 1, bias=False)])
    with pytest.raises(ValueError, match="a Linear built twice"):
        build_reproducibly(lambda: next(kinds))


def test_build_rejects_shared_parameters():
    once = nn.Linear(2, 2)
    inner = nn.Linear(2, 2)
    for build in (lambda: once, lambda: nn.Sequential(nn.Linear(2, 2), inner)):
        with pytest.raises(
            ValueError, match="has the same parameters twice; the function that builds it must create a new"
        ):
            build_reproducibly(build)


@pytest.mark.parametrize("seed", [0, 3])
def test_build_rejects_constructors_with_their_own_seed(seed):
    def build():
        torch.manual_seed(seed)
        return nn.Linear(2, 2)

    state = torch.default_generator.get_state()
    with pytest.raises(
        ValueError, match=r"constructor of Linear seeds PyTorch's default generator.*remove torch.manual_se"
    ):
        build_reproducibly(build)
    assert torch.equal(torch.default_generator.get_state(), state)


def test_build_accepts_shared_layers_without_parameters():
    shared = nn.ReLU()
    assert build_reproducibly(lambda: nn.Sequential(nn.Linear(1, 1), shared))[1] is shared


def test_build_accepts_equal_nan_values():
    assert build_reproducibly(lambda: Scaled([1.0, float("nan")])).own.isnan().any()


def test_build_rejects_results_other_than_modules():
    with pytest.raises(TypeError, match="the function that builds a network returned None"):
        build_reproducibly(lambda: None)
