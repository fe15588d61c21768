"""Misfit states of environments are rejected with the reason, and change nothing."""

import copy

import numpy as np
import pytest
from esper_env.rules.stages import Stage
from esper_env.tasks.identity import LAYOUT
from stepping import begun, changed, drive, leaves, new_env, plan_for

#: Reasons for which a tree of another form is rejected.
MISFIT = "expected|lacks|unknown keys|in the state|not the state|layout|identity|sum to|impossible"
#: Reasons for which values are rejected.
IMPOSSIBLE_VALUE = "expected|impossible|blueprint|negative|sum to|not the state of a generator"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon": 12}, "horizon is 9 in the state and 12 here"),
        ({"num_envs": 2}, "num_envs is 3 in the state and 2 here"),
        ({"slots": ["r0c0", "r0c1"]}, r"slot_ids is \['r0c0', 'r0c1', 'r0c2'\] in the state and \['r0c0', 'r0c1'\]"),
        ({"reward_weights": {"gamma": 0.5}}, r"reward_weights is {} in the state and {'gamma': 0.5} here"),
        ({"host_lr": 0.5, "gates": "strict"}, "gates is 'permissive'.*; host_lr is 0.008 in the state and 0.5 here"),
        ({"precision": "bfloat16", "max_episode_steps": 5}, "max_episode_steps is None .*; precision is 'float32' in"),
    ],
)
def test_set_state_rejects_another_environment_with_the_difference(make, assert_same, kwargs, message):
    state = make().get_state()
    other = begun(make(**kwargs), plan_for(make(**kwargs)), 2)
    before = other.get_state()
    with pytest.raises(ValueError, match=f"{message}.*Make the environment with the state's values") as caught:
        other.set_state(state)
    assert "the state was saved in another environment: " in str(caught.value)  # and not "on other data"
    assert_same(other.get_state(), before)


def test_identity_includes_task_data_and_device_kind(make):
    env = make()
    state = env.get_state()
    for name, value in (("env_id", "Esper-CIFAR-v0"), ("dataset_name", "procedural"), ("device_kind", "cuda")):
        with pytest.raises(ValueError, match=f"{name} is '{value}' in the state and '.*' here"):
            env.set_state(changed(state, ("identity", name), lambda _, value=value: value))
    with pytest.raises(ValueError, match=r"saved on other data \(.*\), so in another environment: data_digest is '0"):
        env.set_state(changed(state, ("identity", "data_digest"), lambda _: "0" * 32))
    with pytest.raises(ValueError, match="was saved in another environment: data_digest is 'missing' in the state"):
        env.set_state(changed(state, ("identity", "data_digest"), lambda _: None))


def test_identity_excludes_where_a_task_runs(make, tmp_path):
    state = make(shard_size=2).get_state()
    make(shard_size=1, capture="off", data_dir=str(tmp_path), dataset="digits").set_state(state)


@pytest.mark.parametrize("state", [None, {}, {"identity": 3}])
def test_set_state_rejects_other_objects(make, state):
    with pytest.raises(ValueError, match="not the state of an environment"):
        make().set_state(state)


def test_set_state_rejects_another_layout(make):
    env = make()
    for other in (LAYOUT - 1, LAYOUT + 1):
        with pytest.raises(ValueError, match=f"layout {other}; this version of esper-env reads layout {LAYOUT}"):
            env.set_state(changed(env.get_state(), ("layout",), lambda _, other=other: other))


@pytest.fixture(scope="module")
def rich():
    """A vector with seeds in many stages, its state, the plan of its lives, and its future under the plan."""
    env = new_env(horizon=14, reward_mode="contribution")
    plan = plan_for(env, 11, 40)
    begun(env, plan, 8)
    state = env.get_state()
    assert len({*state["table"]["stage"].ravel().tolist()} & {*Stage}) >= 4
    yield env, state, plan, future_of(env, plan)
    env.close()


def future_of(env, plan):
    return env.np_random_seed, drive(env, plan, range(8, 24)), env.get_state()["population"]


BAD = {
    "another shape": lambda leaf: leaf[:-1] if isinstance(leaf, np.ndarray) and leaf.ndim else np.zeros((7, 7)),
    "another dtype": lambda leaf: leaf.astype(np.complex64) if isinstance(leaf, np.ndarray) else np.float32(3),
    "a dict": lambda leaf: {"a": leaf},
    "missing": lambda leaf: None,  # noqa: ARG005
}


@pytest.mark.parametrize("what", BAD)
def test_set_state_rejects_missing_or_misshapen_leaves(rich, assert_same, what):
    env, state, plan, future = rich
    env.set_state(state)
    for path in leaves(state):
        with pytest.raises(ValueError, match=MISFIT):
            env.set_state(changed(state, path, BAD[what]))
    assert_same(env.get_state(), state)
    assert_same(future_of(env, plan), future)


@pytest.mark.parametrize(
    "path",
    [
        ("clock", "steps"),
        ("generators", "rows"),
        ("table", "age"),
        ("reward", "ledger", "mean"),
        ("governor", "history"),
        ("population", "streams", "generator"),
    ],
    ids="/".join,
)
def test_set_state_changes_nothing_if_one_part_is_misshapen(make, assert_same, path):
    """Every other part of that state fits, and differs from what the environment holds."""
    env, ahead = make(), make()
    begun(env, plan_for(env), 3)
    later = begun(ahead, plan_for(ahead), 7).get_state()
    before = env.get_state()
    with pytest.raises(ValueError, match=MISFIT):
        env.set_state(changed(later, path, lambda leaf: leaf[:-1]))
    assert_same(env.get_state(), before)


def test_set_state_rejects_unknown_keys(rich):
    env, state, *_ = rich
    for path in ((), ("table",), ("reward", "ledger"), ("generators",), ("population", "host")):
        extra = copy.deepcopy(state)
        node = extra
        for key in path:
            node = node[key]
        node["surplus"] = np.zeros(3)
        with pytest.raises(ValueError, match=MISFIT):
            env.set_state(extra)


IMPOSSIBLE = [
    (("table", "stage"), 8),
    (("table", "blueprint"), 12),
    (("table", "operator"), 3),
    (("table", "alpha_curve"), -1),
    (("table", "first_curve"), 5),
    (("table", "contribution_age"), -2),
    (("table", "alpha"), np.nan),
    (("steps", "last_op"), 6),
    (("steps", "epoch"), -1),
    (("population", "episode_seeds"), -1),
    (("population", "births"), -1),
    (("population", "streams", "left"), 10**6),
    (("population", "streams", "left"), 0),
    (("population", "streams", "left_lengths"), 1),
    (("population", "streams", "generator"), 255),
]


@pytest.mark.parametrize(("path", "value"), IMPOSSIBLE, ids=str)
def test_set_state_rejects_impossible_values(rich, assert_same, path, value):
    env, state, *_ = rich
    env.set_state(state)
    with pytest.raises(ValueError, match=IMPOSSIBLE_VALUE):
        env.set_state(changed(state, path, lambda leaf: np.full_like(leaf, value)))
    assert_same(env.get_state(), state)
