"""Registry: names and values are unique, and a custom module trains like any other."""

import gymnasium
import numpy as np
import pytest
import torch
from esper_env.rules.heads import Blueprint, Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import blueprint_entry, offered_blueprints, register_blueprint, registry
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("own_tables")


class Mixer(nn.Module):
    """Module without a batching rule: constant blur kernel, scalar parameter, two normalisation groups."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.norm = nn.GroupNorm(2, channels)
        self.mix = nn.Linear(channels, channels, bias=False)
        self.strength = nn.Parameter(torch.tensor(0.05))
        self.register_buffer("blur", torch.full((channels, 1, 3, 3), 1 / 9))

    def forward(self, x):
        y = F.conv2d(self.norm(x), self.blur, padding=1, groups=self.channels)
        return x + self.strength * self.mix(y.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "single"])
@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.HOLDING], ids=lambda stage: stage.name)
def test_custom_module_trains_as_in_a_plain_loop(make_population, grow, twin, batches_of, batched, stage):
    register_blueprint("mixer", "cnn", Mixer)
    population = make_population(2, batched=batched, dtype=torch.float64)
    seeds = [(row, 1, "mixer", Operator.GATE, stage) for row in range(2)]
    structure = grow(population, 2, *seeds, (1, 2, "mixer", Operator.ADD, Stage.HOLDING))
    plain = [twin(population, row, structure) for row in range(2)]
    batches = [batches_of(100 + row, torch.float64) for row in range(2)]
    born = plain[0].seeds["1"].strength.detach().clone()
    for _ in range(2):
        losses = population.train(structure).loss
        for row in range(2):
            assert losses[row] == pytest.approx(plain[row].train_epoch(batches[row]()), abs=1e-9)
    for network in plain:
        assert network.distance() < 1e-9, network.distances()
    assert plain[0].seeds["1"].strength != born
    measured = population.measure(structure, np.ones(2, dtype=np.bool_))
    assert measured.measured.tolist() == [[False, True, False], [False, True, True]]


def env_with_blueprint_12(name):
    """Make an environment in which value 12 has the given name."""
    registry._REGISTRY["cnn"].pop(12, None)
    register_blueprint(name, "cnn", Mixer, value=12)
    return gymnasium.make_vec("Esper-Digits-v0", num_envs=1, render_mode="ansi").unwrapped


def test_rendering_and_states_use_registered_names():
    first = env_with_blueprint_12("mixer")
    first.reset(seed=0, options={"topology": {"r0c1": "mixer"}})
    (text,) = first.render()
    assert [line.split()[2:3] for line in text.splitlines()[1:]] == [[], ["mixer"], []]
    second = env_with_blueprint_12("other")  # of the same value and the same shapes
    second.reset(seed=0)
    with pytest.raises(ValueError, match=r"offered_blueprints is .*'12': 'mixer'.* in the state and .*'12': 'other'"):
        second.set_state(first.get_state())
    first.set_state(first.get_state())
    for env in (first, second):
        env.close()


@pytest.mark.parametrize(("topology", "known"), [("CNN", "cnn"), ("Transformer", "transformer")])
def test_register_blueprint_rejects_topology_that_differs_in_case(topology, known):
    with pytest.raises(ValueError, match=f"topology '{topology}' of .* differs only in case; expected '{known}'"):
        register_blueprint("mine", topology, Mixer)


def test_register_blueprint_uses_standard_values_or_the_highest_free_one():
    assert register_blueprint("norm", "elsewhere", Mixer).value == Blueprint.NORM
    values = [register_blueprint(f"mine {index}", "cnn", Mixer).value for index in range(5)]
    assert values == [12, 11, 10, 9, 8]
    with pytest.raises(ValueError, match="blueprint 'one more' exceeds the 12 that a topology may have"):
        register_blueprint("one more", "cnn", Mixer)


def test_blueprint_entry_finds_entries_by_name_and_by_value():
    by_name, by_value = blueprint_entry("conv_light", "cnn"), blueprint_entry(Blueprint.CONV_LIGHT, "cnn")
    assert by_name is by_value
    assert by_name.name == "conv_light"
    assert [entry.value for entry in offered_blueprints("cnn")] == sorted(e.value for e in offered_blueprints("cnn"))


@pytest.mark.parametrize(
    ("blueprint", "end"),
    [
        ("lora", "conv_light, [a-z_, ]+$"),
        ("nrm", r"; did you mean 'norm'\?$"),
        ("NORM", "conv_light"),
        (8, "conv_light, [a-z_, ]+$"),
        (0, "conv_light, [a-z_, ]+$"),
    ],
)
def test_blueprint_entry_names_alternatives_of_an_unknown_blueprint(blueprint, end):
    with pytest.raises(ValueError, match=f"^blueprint {blueprint!r} does not fit a cnn host; expected one of .*{end}"):
        blueprint_entry(blueprint, "cnn")


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("transformr", r"topology 'transformr' has no .*; did you mean 'transformer'\?$"),
        ([1], r"topology \[1\] has no blueprints; expected one of .*'cnn'"),
    ],
)
def test_offered_blueprints_rejects_an_unknown_topology(topology, message):
    with pytest.raises(ValueError, match=message):
        offered_blueprints(topology)
