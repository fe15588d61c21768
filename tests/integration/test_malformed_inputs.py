"""Errors about malformed input of environments name the value, what was expected, and the remedy.

Each row is (id, input, error, parts of the message: value, expectation, remedy if there is one). Rejected input
changes nothing: the environment continues exactly like its twin, which never received it.
"""

from contextlib import closing

import gymnasium
import numpy as np
import pytest
from esper_env import EsperEnv, EsperVectorEnv, register_blueprint
from esper_env.population import build
from esper_env.rules.heads import HEAD_DEFAULTS, Head, Op
from esper_env.seeds import registry
from gymnasium.error import NameNotFound, ResetNeeded, VersionNotFound
from gymnasium.utils.env_checker import data_equivalence
from malformed import refused, table
from torch import nn

ID = "Esper-Digits-v0"
CIFAR = "Esper-CIFAR-v0"
TINY = {"horizon": 4, "batches_per_step": 1, "batch_size": 8}
NAN, INF = float("nan"), float("inf")
WHOLE = "expected a whole number of at least 1"
COUNT = "expected a positive integer"
RATE = "expected a positive number"
WEIGHT = "expected a non-negative number"
SLOTS = "expected a list of slot ids such as ['r0c0', 'r0c1']"
UNEXPECTED = "got an unexpected keyword argument"
MODES = "expected one of 'NextStep', 'SameStep', 'Disabled'"
DEVICES = "expected 'auto', 'cpu', 'cuda' or 'cuda:N'"


@pytest.fixture
def no_data(monkeypatch):
    """Fail the test when a dataset is loaded."""
    monkeypatch.setattr(build, "load_data", lambda *_, **__: pytest.fail("data was loaded"))


@table(
    ("num_envs-zero", {"num_envs": 0}, ValueError, "num_envs is 0", WHOLE),
    ("num_envs-float", {"num_envs": 1.5}, ValueError, "num_envs is 1.5", WHOLE),
    ("num_envs-bool", {"num_envs": True}, ValueError, "num_envs is True", WHOLE),
    ("autoreset-unknown", {"autoreset_mode": "Never"}, ValueError, "autoreset_mode is 'Never'", MODES),
    ("autoreset-none", {"autoreset_mode": None}, ValueError, "autoreset_mode is None", MODES),
    ("render-unknown", {"render_mode": "human"}, ValueError, "render_mode is 'human'", "['ansi', 'rgb_array']"),
    ("steps-zero", {"max_episode_steps": 0}, ValueError, "max_episode_steps is 0", "expected None or at least 1"),
    ("steps-float", {"max_episode_steps": 2.5}, ValueError, "max_episode_steps is 2.5", "expected None or at least 1"),
    ("kwarg-misspelt", {"horizn": 5}, TypeError, f"{UNEXPECTED} 'horizn'", "did you mean 'horizon'?"),
    ("kwarg-unknown", {"colour": 5}, TypeError, f"{UNEXPECTED} 'colour'", "known: dataset, data_dir"),
    ("horizon-zero", {"horizon": 0}, ValueError, "`horizon` is 0", COUNT),
    ("horizon-text", {"horizon": "x"}, ValueError, "`horizon` is 'x'", COUNT),
    ("horizon-bool", {"horizon": True}, ValueError, "`horizon` is True", COUNT),
    ("batches-negative", {"batches_per_step": -3}, ValueError, "`batches_per_step` is -3", COUNT),
    ("batch-of-one", {"batch_size": 1}, ValueError, "`batch_size` is 1", "expected an integer of at least 2"),
    ("batch-float", {"batch_size": 2.0}, ValueError, "`batch_size` is 2.0", "expected an integer of at least 2"),
    ("lr-zero", {"host_lr": 0}, ValueError, "`host_lr` is 0", RATE),
    ("lr-nan", {"host_lr": NAN}, ValueError, "`host_lr` is nan", RATE),
    ("lr-inf", {"seed_lr": INF}, ValueError, "`seed_lr` is inf", RATE),
    ("lr-beyond-float", {"seed_lr": 10**400}, ValueError, "`seed_lr` is 1000", RATE),
    ("slots-empty", {"slots": []}, ValueError, "`slots` is empty", "expected at least one slot id"),
    ("slots-twice", {"slots": ["r0c0", "r0c0"]}, ValueError, "`slots` is ['r0c0', 'r0c0']", "each slot id once"),
    ("slots-text", {"slots": "r0c0"}, ValueError, "`slots` is 'r0c0'", SLOTS),
    ("slots-numbers", {"slots": [0]}, ValueError, "`slots` is [0]", SLOTS),
    ("max_seeds-zero", {"max_seeds": 0}, ValueError, "`max_seeds` is 0", "expected a positive integer or None"),
    ("max_seeds-float", {"max_seeds": 1.0}, ValueError, "`max_seeds` is 1.0", "expected a positive integer or None"),
    ("gates-unknown", {"gates": "loose"}, ValueError, "`gates` is 'loose'", "expected one of 'permissive', 'strict'"),
    ("gates-list", {"gates": ["strict"]}, ValueError, "`gates` is ['strict']", "one of 'permissive', 'strict'"),
    ("isolation", {"isolation": None}, ValueError, "`isolation` is None", "one of 'shadow', 'straight_through'"),
    ("precision", {"precision": "half"}, ValueError, "`precision` is 'half'", "one of 'float32', 'bfloat16'"),
    ("capture", {"capture": None}, ValueError, "`capture` is None", "expected one of 'auto', 'off'"),
    ("reward-mode", {"reward_mode": "loss"}, ValueError, "`reward_mode` is 'loss'", "'accuracy', 'sparse'"),
    ("weight-unknown", {"reward_weights": {"rent": 1}}, ValueError, "has ['rent']", "reads gamma, scale"),
    ("weight-nan", {"reward_weights": {"rent_weight": NAN}}, ValueError, "weights.rent_weight` is nan", WEIGHT),
    ("weight-negative", {"reward_weights": {"op_cost": -1}}, ValueError, "weights.op_cost` is -1", WEIGHT),
    ("weight-gamma", {"reward_weights": {"gamma": 1.5}}, ValueError, "weights.gamma` is 1.5", "in (0, 1]"),
    ("weight-beyond-float", {"reward_weights": {"scale": 10**400}}, ValueError, "weights.scale` is 1000", RATE),
    ("weights-list", {"reward_weights": [1]}, ValueError, "`reward_weights` is [1]", "a mapping from names"),
    ("weights-none", {"reward_weights": None}, ValueError, "`reward_weights` is None", "a mapping from names"),
    ("dataset-unknown", {"dataset": "mnist"}, ValueError, "dataset is 'mnist'", "accepts 'auto', 'cifar10'"),
    ("dataset-none", {"dataset": None}, ValueError, "dataset is None", "expected one of 'auto'", "'digits'"),
    ("dataset-of-text", {"dataset": "grammar"}, ValueError, "dataset is 'grammar'", "'fashion-mnist', 'digits'"),
    ("data_dir-number", {"data_dir": 5}, ValueError, "`data_dir` is 5", "expected a path or None"),
    ("data_dir-empty", {"data_dir": ""}, ValueError, "`data_dir` is ''", "expected a path or None"),
    ("device-unknown", {"device": "warp"}, ValueError, "`device` is 'warp'", DEVICES),
    ("device-absent", {"device": "cuda:99"}, ValueError, "`device` is 'cuda:99'", DEVICES, "of this machine"),
    ("device-none", {"device": None}, ValueError, "`device` is None", DEVICES),
    ("shard-zero", {"shard_size": 0}, ValueError, "`shard_size` is 0", "expected a positive integer or 'auto'"),
    ("shard-text", {"shard_size": "all"}, ValueError, "`shard_size` is 'all'", "a positive integer or 'auto'"),
    ("shard-none", {"shard_size": None}, ValueError, "`shard_size` is None", "a positive integer or 'auto'"),
    ("budget-zero", {"param_budget": 0}, ValueError, "`param_budget` is 0", COUNT),
    ("async-horizon", {"vectorization_mode": "async", "horizon": 0}, ValueError, "`horizon` is 0", COUNT),
    ("sync-gates", {"vectorization_mode": "sync", "gates": "x"}, ValueError, "`gates` is 'x'", "'strict'"),
)
@pytest.mark.usefixtures("no_data")
def test_settings_are_rejected_before_data_is_loaded(what, error, says):
    refused(lambda: gymnasium.make_vec(ID, **({"num_envs": 2} | TINY | what)), error, says)


@table(
    ("slot-unknown", {"slots": ["r7c7"]}, ValueError, "['r7c7'] do not exist", "named r<row>c<column>, as in r0c0"),
    ("more-seeds-than-slots", {"max_seeds": 4}, ValueError, "max_seeds is 4", "expected 1 to 3, the number of slots"),
)
def test_slots_and_seeds_beyond_the_host_are_rejected(what, error, says):
    refused(lambda: gymnasium.make_vec(ID, num_envs=2, **(TINY | what)), error, says)


@table(
    ("id-misspelt", lambda: gymnasium.make("Esper-Digit-v0"), NameNotFound, "Esper-Digit", "Did you mean"),
    ("id-of-another-version", lambda: gymnasium.make("Esper-Digits-v7"), VersionNotFound, "v7", "`v0`"),
    ("id-not-a-text", lambda: EsperVectorEnv(["x"]), ValueError, "environment ['x'] is not known", f"one of {CIFAR}"),
    ("steps-of-one", lambda: gymnasium.make(ID, max_episode_steps=0), ValueError, "max_episode_steps", "actually: 0"),
    ("single-num_envs", lambda: gymnasium.make(ID, num_envs=2), TypeError, f"{UNEXPECTED} 'num_envs'"),
    ("single-autoreset", lambda: gymnasium.make(ID, autoreset_mode=1), TypeError, f"{UNEXPECTED} 'autoreset_mode'"),
    ("single-steps", lambda: EsperEnv(ID, max_episode_steps=1), TypeError, f"{UNEXPECTED} 'max_episode_steps'"),
    ("single-horizon", lambda: EsperEnv(ID, horizon=0), ValueError, "`horizon` is 0", COUNT),
    ("single-id", lambda: EsperEnv("Esper-X-v0"), ValueError, "'Esper-X-v0' is not known", f"one of {CIFAR}"),
)
def test_make_rejects_unknown_ids_and_keyword_arguments(what, error, says):
    refused(what, error, says)


# Environments that run


@pytest.fixture(scope="module")
def pairs():
    """Pairs of an environment and its twin by kind."""
    made = {
        "vector": lambda: gymnasium.make_vec(ID, num_envs=2, max_seeds=2, **TINY),
        "single": lambda: gymnasium.make(ID, max_seeds=2, **TINY).unwrapped,
        "sync": lambda: gymnasium.make_vec(ID, num_envs=2, vectorization_mode="sync", max_seeds=2, **TINY),
        "NextStep": lambda: gymnasium.make_vec(ID, num_envs=2, autoreset_mode="NextStep", **TINY),
        "Disabled": lambda: gymnasium.make_vec(ID, num_envs=2, autoreset_mode="Disabled", **TINY),
    }
    opened = {kind: (make(), make()) for kind, make in made.items()}
    yield opened
    for pair in opened.values():
        for env in pair:
            env.close()


def command(**heads):
    action = np.array(HEAD_DEFAULTS)
    for name, value in heads.items():
        action[Head[name.upper()]] = value
    return action


WAIT = command()
GERMINATE = command(op=Op.GERMINATE, blueprint=1)
SHAPE = "expected (2, 8): one row per environment, one column per head (slot, blueprint"
INTEGERS = "expected integers such as int64"


def both(action, **heads):
    """Actions of two environments; ``heads`` replace values of the second."""
    second = action.copy()
    for name, value in heads.items():
        second[Head[name.upper()]] = value
    return np.stack([action, second])


def assert_continues_like_twin(env, twin, call):
    """Step both to the same state and call ``call`` with one: the rest of the episode and a reset are equal."""
    actions = [np.stack([action] * getattr(env, "num_envs", 1)) for action in (GERMINATE, WAIT)]
    if not hasattr(env, "num_envs"):
        actions = [action[0] for action in actions]
    for each in (env, twin):
        each.reset(seed=5)
        each.step(actions[0])
    call(env)
    ours, theirs = ([*(each.step(actions[k]) for k in (1, 0, 1)), each.reset()] for each in (env, twin))
    assert np.all(ours[2][2]), "the episode is over"
    assert data_equivalence(ours, theirs, exact=True)


@table(
    ("float", WAIT * np.ones((2, 1)), ValueError, "actions have dtype float64", INTEGERS),
    ("nan", np.full((2, 8), NAN), ValueError, "actions have dtype float64", INTEGERS),
    ("bool", np.zeros((2, 8), dtype=bool), ValueError, "actions have dtype bool", INTEGERS),
    ("object", both(WAIT).astype(object), ValueError, "actions have dtype object", INTEGERS),
    ("text", [["0"] * 8] * 2, ValueError, "actions have dtype <U1", INTEGERS),
    ("too-few-heads", both(WAIT)[:, :7], ValueError, "actions have shape (2, 7)", SHAPE),
    ("too-many-heads", np.zeros((2, 9), dtype=int), ValueError, "actions have shape (2, 9)", SHAPE),
    ("of-one-environment", WAIT, ValueError, "actions have shape (8,)", SHAPE),
    ("of-three-environments", np.stack([WAIT] * 3), ValueError, "actions have shape (3, 8)", SHAPE),
    ("none", None, ValueError, "actions have shape ()", SHAPE),
    ("ragged", [[0] * 8, [0] * 7], ValueError, "actions are [[0, 0", "expected (2, 8) integers, rows of one length"),
    ("negative", both(WAIT, blueprint=-1), ValueError, "environment 1 has -1 for head blueprint", "expected 0 to 12"),
    ("slot-of-no-host", both(WAIT, slot=3), ValueError, "environment 1 has 3 for head slot", "expected 0 to 2"),
    ("blueprint-13", both(WAIT, blueprint=13), ValueError, "has 13 for head blueprint", "expected 0 to 12"),
    ("style-4", both(WAIT, style=4), ValueError, "has 4 for head style", "expected 0 to 3"),
    ("tempo-3", both(WAIT, tempo=3), ValueError, "has 3 for head tempo", "expected 0 to 2"),
    ("target-3", both(WAIT, alpha_target=3), ValueError, "has 3 for head alpha_target", "expected 0 to 2"),
    ("speed-4", both(WAIT, alpha_speed=4), ValueError, "has 4 for head alpha_speed", "expected 0 to 3"),
    ("curve-5", both(WAIT, alpha_curve=5), ValueError, "has 5 for head alpha_curve", "expected 0 to 4"),
    ("op-6", both(WAIT, op=6), ValueError, "has 6 for head op", "expected 0 to 5"),
)
def test_step_rejects_malformed_actions(pairs, what, error, says):
    assert_continues_like_twin(*pairs["vector"], lambda env: refused(lambda: env.step(what), error, says))


@table(
    ("float", WAIT * 1.0, ValueError, "actions have dtype float64", INTEGERS),
    ("too-few-heads", WAIT[:7], ValueError, "actions have shape (1, 7)", "expected (1, 8)"),
    ("out-of-range", command(op=9), ValueError, "has 9 for head op", "expected 0 to 5"),
)
@pytest.mark.parametrize("kind", ["single", "sync"])
def test_step_of_a_single_environment_rejects_malformed_actions(pairs, kind, what, error, says):
    given = what if kind == "single" else (what, WAIT)
    assert_continues_like_twin(*pairs[kind], lambda env: refused(lambda: env.step(given), error, says))


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_step_rejects_malformed_actions_in_other_autoreset_modes(pairs, mode):
    says = ["environment 1 has 3 for head slot", "expected 0 to 2"]
    assert_continues_like_twin(
        *pairs[mode], lambda env: refused(lambda: env.step(both(WAIT, slot=3)), ValueError, says)
    )


NAMES = "expected one of conv_light, attention"
THREE_SEEDS = dict.fromkeys(["r0c0", "r0c1", "r0c2"], "norm")
ONE_EACH = "expected an integer, one integer per environment, or None"


@table(
    ("seed-negative", {"seed": -1}, ValueError, "seed is -1", "seeds must be 0 or greater"),
    ("seed-float", {"seed": 1.5}, TypeError, "seed is 1.5", ONE_EACH),
    ("seed-bool", {"seed": True}, TypeError, "seed is True", ONE_EACH),
    ("seed-0d", {"seed": np.array(5)}, TypeError, "seed is array(5)", ONE_EACH),
    ("seeds-too-many", {"seed": [1, 2, 3]}, ValueError, "seed has 3 values", "one for each of the 2 environments"),
    ("seeds-one-negative", {"seed": [1, -2]}, ValueError, "seed is [1, -2]", "seeds must be 0 or greater"),
    ("options-number", {"options": 3}, TypeError, "options is 3", "expected a dict or None"),
    ("option-unknown", {"options": {"mask": 1}}, ValueError, "reset options ['mask']", "expected reset_mask, topology"),
    ("mask-list", {"options": {"reset_mask": [True, False]}}, TypeError, "[True, False]", "a numpy array of bools"),
    ("mask-long", {"options": {"reset_mask": np.ones(3, bool)}}, ValueError, "has shape (3,)", "expected (2,)"),
    ("mask-empty", {"options": {"reset_mask": np.zeros(2, bool)}}, ValueError, "False everywhere", "at least one"),
    ("topology-list", {"options": {"topology": ["r0c0"]}}, TypeError, "is ['r0c0']", "expected a mapping from slot"),
    ("topology-slot", {"options": {"topology": {"r9c9": "norm"}}}, ValueError, "slot 'r9c9'", "has r0c0, r0c1, r0c2"),
    ("topology-blueprint", {"options": {"topology": {"r0c0": "zip"}}}, ValueError, "blueprint 'zip'", NAMES),
    ("topology-bool", {"options": {"topology": {"r0c0": True}}}, ValueError, "blueprint True", NAMES),
    ("topology-array", {"options": {"topology": {"r0c0": np.ones(2)}}}, ValueError, "blueprint array([1., 1.])", NAMES),
    ("topology-full", {"options": {"topology": THREE_SEEDS}}, ValueError, "plants 3 seeds", "max_seeds is 2"),
)
def test_reset_rejects_malformed_input(pairs, what, error, says):
    assert_continues_like_twin(*pairs["vector"], lambda env: refused(lambda: env.reset(**what), error, says))


@table(
    ("seed-list", {"seed": [1]}, TypeError, "seed is [1]", "expected an integer or None, as this is one environment"),
    ("seed-negative", {"seed": -1}, ValueError, "seed is -1", "seeds must be 0 or greater"),
    ("mask", {"options": {"reset_mask": np.ones(1, bool)}}, ValueError, "['reset_mask'] are not known", "topology"),
)
def test_reset_of_a_single_environment_rejects_malformed_input(pairs, what, error, says):
    assert_continues_like_twin(*pairs["single"], lambda env: refused(lambda: env.reset(**what), error, says))


ROW = "expected the number of an environment, 0 to 1"
OPS = "expected a member of esper_env.rules.heads.Op or its number: WAIT 0, GERMINATE 1"


@table(
    ("split-beyond", lambda env: env.split_mask(2), IndexError, "index is 2", ROW),
    ("split-negative", lambda env: env.split_mask(-1), IndexError, "index is -1", ROW),
    ("split-text", lambda env: env.split_mask("0"), IndexError, "index is '0'", ROW),
    ("masks-beyond", lambda env: env.conditional_masks(0, 2), IndexError, "index is 2", ROW),
    ("masks-none", lambda env: env.conditional_masks(0, None), IndexError, "index is None", ROW),
    ("masks-of-no-op", lambda env: env.conditional_masks(6, 0), ValueError, "op is 6", OPS),
    ("masks-op-name", lambda env: env.conditional_masks("WAIT", 0), ValueError, "op is 'WAIT'", OPS),
    ("masks-illegal", lambda env: env.conditional_masks(Op.FOSSILIZE, 0), ValueError, "FOSSILIZE is not", "WAIT, GERM"),
    ("sample-seed", lambda env: env.sample_valid_actions(3), TypeError, "rng is 3", "numpy.random.default_rng(0)"),
    ("generators", lambda env: setattr(env, "np_random", [1, 2]), TypeError, "np_random is [1, 2]", "numpy.random.Gen"),
)
def test_queries_reject_malformed_input(pairs, what, error, says):
    assert_continues_like_twin(*pairs["vector"], lambda env: refused(lambda: what(env), error, says))


FIRST = "call reset() first, in a vector without a reset_mask"
HALF = np.array([True, False])
AGAIN = "call reset(), in a vector with options['reset_mask']"


@table(
    ("step-first", lambda env, _one: env.step(both(WAIT)), ResetNeeded, "environments [0, 1]", FIRST),
    ("render-first", lambda env, _one: env.render(), ResetNeeded, "environments [0, 1]", FIRST),
    ("mask-first", lambda env, _one: env.reset(options={"reset_mask": HALF}), ResetNeeded, "environments [1]", FIRST),
    ("single-step-first", lambda _env, one: one.step(WAIT), ResetNeeded, "environments [0]", FIRST),
)
def test_methods_need_a_reset_first(what, error, says):
    vector, single = gymnasium.make_vec(ID, num_envs=2, render_mode="ansi", **TINY), gymnasium.make(ID, **TINY)
    with closing(vector) as env, closing(single.unwrapped) as one:
        refused(lambda: what(env, one), error, says)


@table(
    ("vector", gymnasium.make_vec, ResetNeeded, "the episodes of environments [0, 1] are over", AGAIN),
    ("single", gymnasium.make, ResetNeeded, "the episodes of environments [0] are over", AGAIN),
)
def test_step_rejects_finished_episodes(what, error, says):
    several = what is gymnasium.make_vec
    kwargs = TINY | {"horizon": 1} | ({"num_envs": 2, "autoreset_mode": "Disabled"} if several else {})
    env, twin = what(ID, **kwargs).unwrapped, what(ID, **kwargs).unwrapped
    action = both(WAIT) if several else WAIT
    for each in (env, twin):
        each.reset(seed=0)
        each.step(action)
    refused(lambda: env.step(action), error, says)
    assert data_equivalence([env.reset(), env.step(action)], [twin.reset(), twin.step(action)], exact=True)
    env.close()
    twin.close()


# Custom blueprints


@table(
    ("name-taken", ("norm", "cnn", nn.Identity), ValueError, "'norm' is already registered", "choose another name"),
    ("name-number", (3, "cnn", nn.Identity), TypeError, "name is 3", "expected a text such as 'conv_light'"),
    ("topology-empty", ("mine", "", nn.Identity), TypeError, "topology is ''", "expected a text"),
    ("factory-number", ("mine", "cnn", 3), TypeError, "factory of blueprint 'mine' is 3", "a function from the number"),
    ("value-noop", ("mine", "cnn", nn.Identity, 0), ValueError, "value 0 is out of range", "expected 1 to 12"),
    ("value-beyond", ("mine", "cnn", nn.Identity, 13), ValueError, "value 13 is out of range", "expected 1 to 12"),
    ("value-float", ("mine", "cnn", nn.Identity, 2.0), ValueError, "value 2.0 is out of range", "expected 1 to 12"),
    ("value-taken", ("mine", "cnn", nn.Identity, 1), ValueError, "value 1 is taken by 'conv_light'"),
)
@pytest.mark.usefixtures("own_tables")
def test_register_blueprint_rejects_malformed_input(what, error, says):
    before = {topology: dict(entries) for topology, entries in registry._REGISTRY.items()}
    name, topology, factory, *value = what
    refused(lambda: register_blueprint(name, topology, factory, value=value[0] if value else None), error, says)
    assert before == registry._REGISTRY


REMEDY = "change the blueprint's factory"


@table(
    ("no-module", lambda _channels: 3, ValueError, "'mine' makes 3", "a torch.nn.Module with parameters", REMEDY),
    ("nothing-to-train", lambda _channels: nn.Identity(), ValueError, "makes Identity()", "with parameters", REMEDY),
    ("other-shape", lambda channels: nn.Conv2d(channels, 2, 1), ValueError, "turns (3, 4", "into (3, 2", REMEDY),
    ("wrong-input", lambda _channels: nn.Linear(7, 7), ValueError, "'mine' cannot run on (3, 4, ", REMEDY),
    ("statistics", nn.BatchNorm2d, ValueError, "writes into its buffer 'running_mean'", REMEDY, "GroupNorm"),
    ("dropout", lambda _channels: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout()), ValueError, "has dropout", REMEDY),
)
@pytest.mark.usefixtures("own_tables")
def test_germination_rejects_unusable_modules(what, error, says):
    register_blueprint("mine", "cnn", what)
    refused(lambda: gymnasium.make_vec(ID, num_envs=2, **TINY), error, says)
