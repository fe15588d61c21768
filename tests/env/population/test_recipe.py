"""A recipe gives a module the values with which it is built."""

from functools import partial

import pytest
import torch
from esper_env.population.recipe import Recipe, built_tensors
from esper_env.seeds import offered_blueprints
from esper_env.seeds.blend import GATES
from torch import nn

WIDTHS = {"cnn": 8, "transformer": 16}
BUILDERS = {
    f"{kind} {entry.name}": partial(entry.build, width)
    for kind, width in WIDTHS.items()
    for entry in offered_blueprints(kind)
} | {f"gate {dims}": partial(gate, 8) for dims, gate in GATES.items()}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_values_are_those_of_a_module_built_from_the_seed(build):
    recipe = Recipe.of(build)
    assert recipe is not None
    for seed in (0, 2**40 + 1):
        own, expected = recipe.values(seed), built_tensors(build, seed)
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], expected[name]) for name in expected)


def scaled():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.mul_(2.0)
    return layer


def orthogonal():
    layer = nn.Linear(3, 3)
    nn.init.orthogonal_(layer.weight)
    return layer


class Chosen(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2) if torch.rand(1) < 0.5 else torch.ones(2))


@pytest.mark.parametrize("build", [scaled, orthogonal, Chosen])
def test_values_that_are_computed_from_draws_have_no_recipe(build):
    assert Recipe.of(build) is None
