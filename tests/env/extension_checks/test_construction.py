"""Construction of modules from a seed, which determines everything and leaves the global generator unchanged."""

import cProfile
import threading

import numpy as np
import pytest
import torch
from esper_env.extension_checks.construction import TRIAL_SEED, build_reproducibly
from torch import nn

SHARED = nn.Linear(2, 2)
NUMPY = np.random.default_rng(0)
SIZES = iter([2, 3])
KINDS = iter([nn.Linear(1, 1), nn.Linear(1, 1, bias=False)])


class Scaled(nn.Module):
    """Has a buffer with given values."""

    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("own", torch.as_tensor(values, dtype=torch.float32))


def seeded_by_itself():
    torch.manual_seed(3)
    return nn.Linear(2, 2)


class Fixed(nn.Module):
    """Draws a constant from the default generator, and then puts that back."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.register_buffer("constant", torch.randn(3))


def covered():
    try:
        torch.default_generator.manual_seed(1)
    except ValueError:
        return nn.Linear(2, 2)


def broken():
    torch.rand(5)
    raise ValueError("broken")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Scaled(NUMPY.random(3)), "a Scaled built twice from the same seed has other values in own; its const"),
        (lambda: nn.Linear(next(SIZES), 1), "has other values in"),
        (lambda: next(KINDS), "a Linear built twice"),
        (lambda: SHARED, "has the same parameters twice; the function that builds it must create a new"),
        (lambda: nn.Sequential(nn.Linear(2, 2), SHARED), "has the same parameters twice"),
        (seeded_by_itself, "seeded_by_itself seeds PyTorch's default generator.*remove torch.manual_seed"),
        (Fixed, r"Fixed.__init__ seeds PyTorch's default generator.*draw constants from a torch.Generator"),
        (lambda: torch.seed(), "<lambda> seeds PyTorch's default generator"),
        (covered, "covered seeds PyTorch's default generator"),
        (broken, "broken"),
        (lambda: nn.LazyLinear(1), r"a LazyLinear has frozen, complex or lazy parameters \(weight, bias\); every"),
        (lambda: nn.Linear(1, 1).requires_grad_(False), "a Linear has frozen, complex or lazy parameters"),
        (lambda: nn.Linear(1, 1, dtype=torch.complex64), "a Linear has frozen, complex or lazy parameters"),
    ],
)
def test_build_rejects_irreproducible_or_untrainable_modules(build, message):
    state = torch.default_generator.get_state()
    with pytest.raises(ValueError, match=message):
        build_reproducibly(build)
    assert torch.equal(torch.default_generator.get_state(), state)


def test_module_has_values_of_trial_seed_and_may_share_layers_without_parameters():
    act = nn.ReLU()
    built = build_reproducibly(lambda: nn.Sequential(nn.Linear(3, 4), act, Scaled([1.0, float("nan")])))
    torch.manual_seed(TRIAL_SEED)
    assert torch.equal(built[0].weight, nn.Linear(3, 4).weight)


def test_build_rejects_results_other_than_modules():
    with pytest.raises(TypeError, match="the function that builds a network returned None"):
        build_reproducibly(lambda: None)


def test_build_works_and_rejects_seeding_while_a_profiler_runs():
    profiler = cProfile.Profile()
    profiler.enable()
    threading.setprofile(lambda *_: None)
    try:
        build_reproducibly(lambda: nn.Linear(2, 2))
        with pytest.raises(ValueError, match="seeded_by_itself seeds"):
            build_reproducibly(seeded_by_itself)
    finally:
        threading.setprofile(None)
        profiler.disable()
