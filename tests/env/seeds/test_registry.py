"""The open registry: names and values are taken once, and a user's own module trains like any other."""

import gymnasium
import numpy as np
import pytest
import torch
from esper_env.population import Optimisation
from esper_env.rules.heads import Blueprint, Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import blueprint_entry, offered_blueprints, register_blueprint, registry
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("own_tables")


class Mixer(nn.Module):
    """Has no batching rule: a constant blur kernel, a scalar parameter, two normalisation groups and a shared layer."""

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


@pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])
@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.HOLDING], ids=lambda stage: stage.name)
def test_a_users_own_module_trains_like_in_a_plain_loop(make_population, grow, twin, batches_of, together, stage):
    register_blueprint("mixer", "cnn", Mixer)
    population = make_population(2, together=together, dtype=torch.float64)
    seeds = [(row, 1, "mixer", Operator.GATE, stage) for row in range(2)]
    structure = grow(population, 2, *seeds, (1, 2, "mixer", Operator.ADD, Stage.HOLDING))
    settings = Optimisation(0.05, 0.05)
    plain = [twin(population, row, structure) for row in range(2)]
    batches = [batches_of(100 + row, torch.float64) for row in range(2)]
    born = plain[0].seeds["1"].strength.detach().clone()
    for _ in range(2):
        losses = population.train(structure).loss
        for row in range(2):
            assert losses[row] == pytest.approx(plain[row].train_epoch(batches[row](), settings), abs=1e-9)
    for network in plain:
        assert network.distance() < 1e-9, network.distances()
    assert plain[0].seeds["1"].strength != born
    measured = population.measure(structure, np.ones(2, dtype=np.bool_))
    assert measured.measured.tolist() == [[False, True, False], [False, True, True]]


def test_a_module_that_cannot_be_a_seed_is_refused_when_it_is_planted(make_population):
    entry = register_blueprint("batchy", "cnn", nn.BatchNorm2d)
    with pytest.raises(ValueError, match="blueprint 'batchy' writes into its buffer 'running_mean'"):
        make_population().attach(0, 0, entry.value)


def with_a_blueprint_of_ones_own(name):
    """Nothing else has the highest value while it is made."""
    registry._REGISTRY["cnn"].pop(12, None)
    register_blueprint(name, "cnn", Mixer, value=12)
    return gymnasium.make_vec("Esper-Digits-v0", num_envs=1, render_mode="ansi").unwrapped


def test_pictures_and_states_call_blueprints_by_the_names_they_are_registered_under():
    first = with_a_blueprint_of_ones_own("mixer")
    first.reset(seed=0, options={"topology": {"r0c1": "mixer"}})
    (text,) = first.render()
    assert [line.split()[2:3] for line in text.splitlines()[1:]] == [[], ["mixer"], []]
    second = with_a_blueprint_of_ones_own("other")  # of the same value and the same shapes
    second.reset(seed=0)
    with pytest.raises(ValueError, match=r"offered_blueprints is .*'12': 'mixer'.* in the state and .*'12': 'other'"):
        second.set_state(first.get_state())
    first.set_state(first.get_state())
    for env in (first, second):
        env.close()


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="blueprint 'norm' is already registered for topology 'cnn'; choose another"):
        register_blueprint("norm", "cnn", Mixer)
    register_blueprint("norm", "elsewhere", Mixer)  # another topology has its own names


@pytest.mark.parametrize("topology", ["CNN", "Cnn", "TRANSFORMER"])
def test_a_topology_in_other_letters_is_no_new_one(topology):
    said = f"topology {topology!r} of blueprint 'mine' is spelled {topology.lower()!r}; write it so"
    with pytest.raises(ValueError, match=said):
        register_blueprint("mine", topology, Mixer)
    assert topology not in registry._REGISTRY


def test_a_value_is_used_once():
    with pytest.raises(ValueError, match="blueprint value 3 is taken by 'norm' in topology 'cnn'"):
        register_blueprint("mine", "cnn", Mixer, value=Blueprint.NORM)


@pytest.mark.parametrize("value", [0, -1, 13])
def test_a_value_outside_the_head_is_an_error(value):
    with pytest.raises(ValueError, match=f"blueprint value {value} is out of range; expected 1 to 12"):
        register_blueprint("mine", "cnn", Mixer, value=value)


def test_values_are_the_standard_ones_or_the_first_free_ones_from_the_end():
    assert register_blueprint("mine", "cnn", Mixer).value == 12
    assert register_blueprint("other", "cnn", Mixer).value == 11
    assert register_blueprint("norm", "elsewhere", Mixer).value == Blueprint.NORM


def test_a_full_head_is_an_error():
    for index in range(5):
        register_blueprint(f"mine {index}", "cnn", Mixer)
    with pytest.raises(ValueError, match="no value of the blueprint head is left for 'one more'; it has 12 in all"):
        register_blueprint("one more", "cnn", Mixer)


def test_entries_are_found_by_name_and_by_value():
    by_name, by_value = blueprint_entry("conv_light", "cnn"), blueprint_entry(Blueprint.CONV_LIGHT, "cnn")
    assert by_name is by_value
    assert by_name.name == "conv_light"
    assert [entry.value for entry in offered_blueprints("cnn")] == sorted(e.value for e in offered_blueprints("cnn"))


@pytest.mark.parametrize("blueprint", ["lora", 8, "NORM", 0])
def test_a_blueprint_that_does_not_fit_is_a_clear_error(blueprint):
    with pytest.raises(
        ValueError, match=f"blueprint {blueprint!r} does not fit a cnn host; expected one of .*conv_light"
    ):
        blueprint_entry(blueprint, "cnn")


@pytest.mark.parametrize(
    ("blueprint", "end"),
    [
        ("res", "; this name is registered for topology 'convnet' and 'resnet', of other hosts$"),
        ("lora", "; this name is registered for topology 'transformer', of other hosts$"),
        ("nrm", r"; did you mean 'norm'\?$"),
        (0, "conv_light, [a-z_, ]+$"),
    ],
)
def test_a_blueprint_of_another_topology_or_nearly_of_this_one_is_told(blueprint, end):
    for topology in ("resnet", "convnet"):
        register_blueprint("res", topology, Mixer)
    with pytest.raises(ValueError, match=end):
        blueprint_entry(blueprint, "cnn")


def test_a_topology_that_is_nearly_known_is_told():
    with pytest.raises(ValueError, match=r"topology 'transformr' has no .*; did you mean 'transformer'\?$"):
        offered_blueprints("transformr")


def test_an_unknown_topology_is_a_clear_error_also_after_a_failed_registration():
    with pytest.raises(ValueError, match="out of range"):
        register_blueprint("mine", "rnn", Mixer, value=99)
    with pytest.raises(ValueError, match=r"topology 'rnn' has no blueprints; known: .*'cnn'"):
        offered_blueprints("rnn")
