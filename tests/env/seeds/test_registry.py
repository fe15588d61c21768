"""Registry: names and values are unique, and a custom module trains like any other."""

import gymnasium
import numpy as np
import pytest
import torch
from esper_env.rules.heads import NUM_BLUEPRINTS, Blueprint, Op, Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import (
    blueprint_entry,
    offered_blueprints,
    register_blueprint,
    register_topology,
    unregister_blueprint,
)
from plain_rules import action as build_action
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("own_tables")


class Mixer(nn.Module):
    """Module without a batching rule: constant blur kernel, scalar parameter, two normalisation groups."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.norm = nn.GroupNorm(min(channels, 2), channels)
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
    for entry in offered_blueprints("cnn"):
        if entry.value == 12:
            unregister_blueprint(entry.name, "cnn")
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


def test_register_blueprint_uses_standard_values_or_the_highest_free_one():
    register_topology("elsewhere", (16, 8))
    assert register_blueprint("norm", "elsewhere", lambda width: nn.Linear(width, width)).value == Blueprint.NORM


@pytest.mark.parametrize(("topology", "standard"), [("cnn", 7), ("transformer", 7)])
def test_topology_has_room_for_seven_standard_and_five_custom_blueprints(topology, standard):
    """The number is part of the action space, so a new standard blueprint must not change it."""

    def factory(size):
        return nn.Conv2d(size, size, 1) if topology == "cnn" else nn.Linear(size, size)

    assert NUM_BLUEPRINTS == 13
    assert max(Blueprint) < NUM_BLUEPRINTS
    assert [entry.built_in for entry in offered_blueprints(topology)] == [True] * standard
    values = [register_blueprint(f"mine {index}", topology, factory).value for index in range(5)]
    assert values == sorted(values, reverse=True)
    assert [entry.value for entry in offered_blueprints(topology)] == list(range(1, NUM_BLUEPRINTS))
    with pytest.raises(ValueError, match="'one more' exceeds the 12 that a topology may have; unregister one of 'mine"):
        register_blueprint("one more", topology, factory)
    unregister_blueprint("mine 2", topology)
    assert register_blueprint("one more", topology, factory).value == values[2]


# Topologies


def test_custom_topology_is_registered_before_its_blueprints():
    with pytest.raises(ValueError, match=r"topology 'graph' of blueprint 'mine' is not known; .*register_topology"):
        register_blueprint("mine", "graph", nn.LayerNorm)
    for _ in range(2):  # a notebook cell runs again
        register_topology("graph", [5, 3])
    entry = register_blueprint("mine", "graph", nn.LayerNorm)
    assert offered_blueprints("graph") == (entry,)
    with pytest.raises(ValueError, match=r"blueprint 'conv' turns \(3, 5, 3\)"):
        register_blueprint("conv", "graph", lambda width: nn.Conv2d(width, width, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("CNN", (8, 4, 4)), ValueError, "topology 'CNN' differs only in case from 'cnn'"),
        (("cnn", (8, 8, 8)), ValueError, r"topology 'cnn' is already registered with other shapes: \(8, 4, 4\), "),
        ((3, (8, 8)), TypeError, "topology is 3; expected a text"),
        (("", (8, 8)), TypeError, "topology is ''; expected a text"),
        (("graph",), TypeError, "register_topology got no shape; expected .channels"),
        (("graph", (8, 4), (8,)), TypeError, r"shape is \(8,\); expected"),
        (("graph", 8), TypeError, r"shape is 8; expected \(channels, height, width\) or \(length, width\)"),
        (("graph", (8,)), TypeError, r"shape is \(8,\); expected"),
        (("graph", (8, 0)), TypeError, r"shape is \(8, 0\); expected"),
        (("graph", (8, 2.0)), TypeError, r"shape is \(8, 2.0\); expected"),
    ],
)
def test_register_topology_rejects(arguments, error, message):
    with pytest.raises(error, match=message):
        register_topology(*arguments)


# Replacing and unregistering


def scaled(factor):
    """A blueprint that multiplies by a constant at birth."""

    class Scale(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.scale = nn.Parameter(torch.full((channels, 1, 1), float(factor)))

        def forward(self, x):
            return x * self.scale

    return Scale


def born(env, slot, value):
    """The first weight of a seed that is planted now."""
    env.step(build_action(Op.GERMINATE, slot, blueprint=value))
    stack = env._vector._growth._population.shards[0].seed_stack(slot, value)
    return float(stack.parameters["scale"][0, 0])


@pytest.mark.parametrize("change", ["unregister", "replace"])
def test_existing_environment_keeps_the_blueprints_it_was_made_with(make_digits, change):
    entry = register_blueprint("mine", "cnn", scaled(2))
    env = make_digits().unwrapped
    env.reset(seed=0)
    register_blueprint("late", "cnn", scaled(2))
    with pytest.raises(ValueError, match="blueprint 'late' was registered after this environment was made; expected"):
        env.reset(options={"topology": {"r0c0": "late"}})
    if change == "unregister":
        unregister_blueprint("mine", "cnn")
    else:
        assert register_blueprint("mine", "cnn", scaled(3), replace=True).value == entry.value
    assert born(env, 0, entry.value) == 2
    state = env.get_state()
    _, info = env.reset(seed=0, options={"topology": {"r0c1": "mine"}})
    assert info["parameters_added"] > 0
    env.set_state(state)
    assert (env.blueprint_names[12], 12 in env.offered_blueprints) == ("mine", True)
    later = make_digits().unwrapped
    later.reset(seed=0)
    if change == "unregister":
        assert 12 not in later.offered_blueprints
        with pytest.raises(ValueError, match="blueprint 'mine' does not fit a cnn host"):
            later.reset(options={"topology": {"r0c0": "mine"}})
    else:
        assert born(later, 0, entry.value) == 3


@pytest.mark.parametrize("name", ["norm", "Norm", "conv_heavy"])
def test_blueprints_of_the_package_stay(name):
    before = offered_blueprints("cnn")
    with pytest.raises(ValueError, match=f"'{name.lower()}' of .* belongs to the package and cannot be replaced"):
        register_blueprint(name, "cnn", Mixer, replace=True)
    with pytest.raises(ValueError, match=r"cannot be unregistered|is not registered for topology"):
        unregister_blueprint(name, "cnn")
    assert offered_blueprints("cnn") == before


def test_replacing_needs_the_flag_and_a_blueprint_that_works():
    first = register_blueprint("mine", "cnn", Mixer)
    with pytest.raises(ValueError, match=r"blueprint 'mine' is already registered .*, or pass replace=True"):
        register_blueprint("mine", "cnn", Mixer)
    with pytest.raises(ValueError, match="blueprint 'mine' of topology 'cnn' differs only in case; choose another"):
        register_blueprint("Mine", "cnn", Mixer, replace=True)
    with pytest.raises(ValueError, match="blueprint 'mine' writes into its buffer"):
        register_blueprint("mine", "cnn", nn.BatchNorm2d, replace=True)
    assert blueprint_entry("mine", "cnn") is first
    moved = register_blueprint("mine", "cnn", Mixer, value=9, replace=True)
    assert [entry.name for entry in offered_blueprints("cnn") if entry.value in (9, 12)] == ["mine"]
    assert moved.value == 9
    assert register_blueprint("new", "cnn", Mixer, replace=True).value == 12


@pytest.mark.parametrize(
    ("name", "topology", "message"),
    [
        ("mne", "cnn", r"'mne' is not registered for topology 'cnn'; the custom ones are mine; did you mean 'mine'"),
        ("mine", "cn", "topology 'cn' has no blueprints; .*did you mean 'cnn'"),
    ],
)
def test_unregister_blueprint_rejects_unknown_names(name, topology, message):
    register_blueprint("mine", "cnn", Mixer)
    with pytest.raises(ValueError, match=message):
        unregister_blueprint(name, topology)


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
