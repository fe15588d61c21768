"""Errors about malformed input of environments name the value, what was expected, and the remedy.

Each row is (id, input, error, parts of the message: value, expectation, remedy if there is one). There is a row for
each place of an input; the tests of the modules have further values. Rejected input changes nothing.
"""

from contextlib import closing

import gymnasium
import numpy as np
import pytest
from esper_env import EsperEnv, EsperVectorEnv, register_blueprint
from esper_env.population import build
from esper_env.rules.heads import HEAD_DEFAULTS, Head, Op
from esper_env.seeds import registry
from esper_env.tasks import TASK_KWARGS
from gymnasium.error import NameNotFound, ResetNeeded, VersionNotFound
from malformed import refused, table
from torch import nn

ID = "Esper-Digits-v0"
CIFAR = "Esper-CIFAR-v0"
TINY = {"horizon": 4, "batches_per_step": 1, "batch_size": 8}
NAN = float("nan")
COUNT = "expected a positive integer"
RATE = "expected a positive number"
UNEXPECTED = "got an unexpected keyword argument"
MODES = "expected one of 'NextStep', 'SameStep', 'Disabled'"
DEVICES = "expected 'auto', 'cpu', 'cuda' or 'cuda:N'"


@pytest.fixture
def no_data(monkeypatch):
    """Fail the test when a dataset is loaded."""
    monkeypatch.setattr(build, "load_data", lambda *_, **__: pytest.fail("data was loaded"))


@table(
    ("num_envs-zero", {"num_envs": 0}, ValueError, "`num_envs` is 0", COUNT),
    ("num_envs-huge", {"num_envs": 10**12}, ValueError, "`num_envs` is 1000000000000", "GiB of memory", "use fewer"),
    ("autoreset", {"autoreset_mode": "Never"}, ValueError, "autoreset_mode is 'Never'", MODES),
    ("render", {"render_mode": "human"}, ValueError, "render_mode is 'human'", "['ansi', 'rgb_array']"),
    ("steps", {"max_episode_steps": 0}, ValueError, "`max_episode_steps` is 0", f"{COUNT} or None"),
    ("kwarg-misspelt", {"horizn": 5}, TypeError, f"{UNEXPECTED} 'horizn'", "did you mean 'horizon'?"),
    ("horizon", {"horizon": 0}, ValueError, "`horizon` is 0", COUNT),
    ("batch-of-one", {"batch_size": 1}, ValueError, "`batch_size` is 1", "expected an integer of at least 2"),
    ("seed_lr", {"seed_lr": NAN}, ValueError, "`seed_lr` is nan", RATE),
    ("slots-empty", {"slots": []}, ValueError, "`slots` is []", "expected at least one slot id"),
    ("slots-twice", {"slots": ["r0c0", "r0c0"]}, ValueError, "`slots` is ['r0c0', 'r0c0']", "slot id, each once"),
    ("gates", {"gates": "loose"}, ValueError, "`gates` is 'loose'", "expected one of 'permissive', 'strict'"),
    ("weight-unknown", {"reward_weights": {"rent": 1}}, ValueError, "has ['rent']", "reads gamma, scale"),
    ("dataset-unknown", {"dataset": "mnist"}, ValueError, "dataset is 'mnist'", "accepts 'auto', 'cifar10'"),
    ("device", {"device": "warp"}, ValueError, "`device` is 'warp'", DEVICES),
    ("device-absent", {"device": "cuda:99"}, ValueError, "`device` is 'cuda:99'", DEVICES, "of this machine"),
    ("async", {"vectorization_mode": "async", "horizon": 0}, ValueError, "`horizon` is 0", COUNT),
    *((f"{name}-zero", {name: 0}, ValueError, f"{name}", "is 0", "expected") for name in TASK_KWARGS),
)
@pytest.mark.usefixtures("no_data")
def test_settings_are_rejected_before_data_is_loaded(what, error, says):
    refused(lambda: gymnasium.make_vec(ID, **({"num_envs": 2} | TINY | what)), error, says)


@table(
    ("id-misspelt", lambda: gymnasium.make("Esper-Digit-v0"), NameNotFound, "Esper-Digit", "Did you mean"),
    ("id-of-another-version", lambda: gymnasium.make("Esper-Digits-v7"), VersionNotFound, "v7", "`v0`"),
    ("id-not-a-text", lambda: EsperVectorEnv(["x"]), ValueError, "environment ['x'] is not known", f"one of {CIFAR}"),
    ("steps-of-one", lambda: gymnasium.make(ID, max_episode_steps=0), ValueError, "max_episode_steps", "actually: 0"),
    ("single-num_envs", lambda: gymnasium.make(ID, num_envs=2), TypeError, f"{UNEXPECTED} 'num_envs'"),
    ("single-steps", lambda: EsperEnv(ID, max_episode_steps=1), TypeError, f"{UNEXPECTED} 'max_episode_steps'"),
    ("single-horizon", lambda: EsperEnv(ID, horizon=0), ValueError, "`horizon` is 0", COUNT),
    ("single-id", lambda: EsperEnv("Esper-X-v0"), ValueError, "'Esper-X-v0' is not known", f"one of {CIFAR}"),
    ("slot-unknown", lambda: EsperEnv(ID, slots=["r7c7"]), ValueError, "['r7c7'] do not exist", "as in r0c0"),
    ("seeds-beyond-slots", lambda: EsperEnv(ID, max_seeds=4), ValueError, "max_seeds is 4", "1 to 3, the number of sl"),
)
def test_make_rejects_unknown_ids_slots_and_keyword_arguments(what, error, says):
    refused(what, error, says)


# Environments that run


def command(**heads):
    action = np.array(HEAD_DEFAULTS)
    for name, value in heads.items():
        action[Head[name.upper()]] = value
    return action


WAIT = command()
BOTH = np.stack([WAIT] * 2)
SHAPE = "expected (2, 8): one row per environment, one column per head (slot, blueprint"
INTEGERS = "expected integers such as int64"


def second(**heads):
    """WAIT for the first environment, and another action for the second."""
    return np.stack([WAIT, command(**heads)])


@pytest.fixture(scope="module")
def running():
    """Environments in the middle of an episode, by kind."""
    made = {
        "vector": gymnasium.make_vec(ID, num_envs=2, max_seeds=2, **TINY),
        "single": gymnasium.make(ID, max_seeds=2, **TINY).unwrapped,
        "sync": gymnasium.make_vec(ID, num_envs=2, vectorization_mode="sync", max_seeds=2, **TINY),
        "NextStep": gymnasium.make_vec(ID, num_envs=2, autoreset_mode="NextStep", **TINY),
        "Disabled": gymnasium.make_vec(ID, num_envs=2, autoreset_mode="Disabled", **TINY),
    }
    for kind, env in made.items():
        env.reset(seed=5)
        env.step(command(op=Op.GERMINATE, blueprint=1) if kind == "single" else second(op=Op.GERMINATE, blueprint=1))
    yield made
    for env in made.values():
        env.close()


def refused_without_change(env, call, error, says):
    """Check that ``call(env)`` raises this error and leaves the state as it was."""
    parts = [each.unwrapped for each in getattr(env, "envs", [env])]
    before = [part.get_state() for part in parts]
    refused(lambda: call(env), error, says)
    np.testing.assert_equal([part.get_state() for part in parts], before)


@table(
    ("float", BOTH * 1.0, ValueError, "actions have dtype float64", INTEGERS),
    ("text", [["0"] * 8] * 2, ValueError, "actions have dtype <U1", INTEGERS),
    ("too-few-heads", BOTH[:, :7], ValueError, "actions have shape (2, 7)", SHAPE),
    ("of-one-environment", WAIT, ValueError, "actions have shape (8,)", SHAPE),
    ("none", None, ValueError, "actions have shape ()", SHAPE),
    ("ragged", [[0] * 8, [0] * 7], ValueError, "actions are [[0, 0", "expected (2, 8) integers, rows of one length"),
    ("negative", second(blueprint=-1), ValueError, "environment 1 has -1 for head blueprint", "expected 0 to 12"),
    *(
        (f"{head.name}-{size}", second(**{head.name.lower(): size}), ValueError, f"has {size} for head", f"{size - 1}")
        for head, size in zip(Head, (3, 13, 4, 3, 3, 4, 5, 6), strict=True)
    ),
)
@pytest.mark.parametrize("kind", ["vector", "NextStep", "Disabled"])
def test_step_rejects_malformed_actions(running, kind, what, error, says):
    refused_without_change(running[kind], lambda env: env.step(what), error, says)


@table(
    ("float", WAIT * 1.0, ValueError, "actions have dtype float64", INTEGERS),
    ("too-few-heads", WAIT[:7], ValueError, "action has shape (7,)", "expected (8,)"),
    ("batched", WAIT[None], ValueError, "action has shape (1, 8)", "expected (8,)"),
    ("out-of-range", command(op=9), ValueError, "has 9 for head op", "expected 0 to 5"),
)
@pytest.mark.parametrize("kind", ["single", "sync"])
def test_step_of_a_single_environment_rejects_malformed_actions(running, kind, what, error, says):
    given = what if kind == "single" else (what, WAIT)
    refused_without_change(running[kind], lambda env: env.step(given), error, says)


NAMES = "expected one of conv_light, attention"
THREE_SEEDS = dict.fromkeys(["r0c0", "r0c1", "r0c2"], "norm")
ONE_EACH = "expected an integer, one integer per environment, or None"


def topology(given):
    return {"options": {"topology": given}}


NO_MASK = {"options": {"reset_mask": np.zeros(2, bool)}}


@table(
    ("seed-negative", {"seed": -1}, ValueError, "seed is -1", "seeds must be 0 or greater"),
    ("seeds-too-many", {"seed": [1, 2, 3]}, ValueError, "seed has 3 values", "one for each of the 2 environments"),
    ("options-number", {"options": 3}, TypeError, "options is 3", "expected a dict or None"),
    ("option-unknown", {"options": {"mask": 1}}, ValueError, "reset options ['mask']", "expected reset_mask, topology"),
    ("mask-empty", NO_MASK, ValueError, "False everywhere", "at least one"),
    ("topology-blueprint", topology({"r0c0": "zip"}), ValueError, "blueprint 'zip'", NAMES),
    ("topology-full", topology(THREE_SEEDS), ValueError, "plants 3 seeds", "max_seeds is 2"),
)
def test_reset_rejects_malformed_input(running, what, error, says):
    refused_without_change(running["vector"], lambda env: env.reset(**what), error, says)


@table(
    ("seed-list", {"seed": [1]}, TypeError, "seed is [1]", "expected an integer or None, as this is one environment"),
    ("mask", NO_MASK, ValueError, "['reset_mask'] are not known", "topology"),
)
def test_reset_of_a_single_environment_rejects_malformed_input(running, what, error, says):
    refused_without_change(running["single"], lambda env: env.reset(**what), error, says)


ROW = "expected the number of an environment, 0 to 1"
OPS = "expected a member of esper_env.rules.Op or its number: WAIT 0, GERMINATE 1"


@table(
    ("split-beyond", lambda env: env.split_mask(2), IndexError, "index is 2", ROW),
    ("masks-negative", lambda env: env.conditional_masks(0, -1), IndexError, "index is -1", ROW),
    ("masks-illegal", lambda env: env.conditional_masks(Op.FOSSILIZE, 0), ValueError, "FOSSILIZE is not", "WAIT, GERM"),
    ("sample-seed", lambda env: env.sample_valid_actions(3), TypeError, "rng is 3", "numpy.random.default_rng(0)"),
    ("generators", lambda env: setattr(env, "np_random", [1, 2]), TypeError, "np_random is [1, 2]", "numpy.random.Gen"),
)
def test_queries_reject_malformed_input(running, what, error, says):
    refused_without_change(running["vector"], what, error, says)


@pytest.mark.parametrize(
    ("make", "kwargs", "rows"),
    [(gymnasium.make_vec, {"num_envs": 2, "autoreset_mode": "Disabled"}, "[0, 1]"), (gymnasium.make, {}, "[0]")],
    ids=["vector", "single"],
)
def test_step_needs_a_reset_before_and_after_an_episode(make, kwargs, rows):
    action = BOTH if kwargs else WAIT
    with closing(make(ID, **(TINY | kwargs | {"horizon": 1})).unwrapped) as env:
        first = [f"environments {rows}", "call reset() first, in a vector without a reset_mask"]
        refused(lambda: env.step(action), ResetNeeded, first)
        env.reset(seed=0)
        env.step(action)
        again = [f"the episodes of environments {rows} are over", "reset(), in a vector with options['reset_mask']"]
        refused_without_change(env, lambda env: env.step(action), ResetNeeded, again)


# Custom blueprints

REMEDY = "change the blueprint's factory"


@table(
    ("name-number", {"name": 3}, TypeError, "name is 3", "expected a text such as 'conv_light'"),
    ("topology-empty", {"topology": ""}, TypeError, "topology is ''", "expected a text"),
    ("factory-number", {"factory": 3}, TypeError, "factory of blueprint 'mine' is 3", "a function from the number"),
    ("topology-misspelt", {"topology": "cmn"}, ValueError, "topology 'cmn'", "'cnn', 'transformer'", "mean 'cnn'?"),
    ("topology-case", {"topology": "CNN"}, ValueError, "topology 'CNN'", "expected one of 'cnn'", "mean 'cnn'?"),
    ("value-float", {"value": 2.0}, ValueError, "value 2.0 is out of range", "expected 1 to 12"),
)
@pytest.mark.usefixtures("own_tables")
def test_register_blueprint_rejects_malformed_input(what, error, says):
    before = {topology: dict(entries) for topology, entries in registry._REGISTRY.items()}
    mine = {"name": "mine", "topology": "cnn", "factory": nn.Identity}
    refused(lambda: register_blueprint(**(mine | what)), error, says)
    assert before == registry._REGISTRY


@table(
    ("no-module", lambda _channels: 3, ValueError, "'mine' makes 3", "a torch.nn.Module with parameters", REMEDY),
    ("nothing-to-train", lambda _channels: nn.Identity(), ValueError, "makes Identity()", "with parameters", REMEDY),
    ("statistics", nn.BatchNorm2d, ValueError, "writes into its buffer 'running_mean'", "GroupNorm"),
)
@pytest.mark.usefixtures("own_tables")
def test_register_blueprint_rejects_unusable_blueprints(what, error, says):
    before = {topology: dict(entries) for topology, entries in registry._REGISTRY.items()}
    refused(lambda: register_blueprint("mine", "cnn", what), error, says)
    assert before == registry._REGISTRY
