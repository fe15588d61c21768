"""The state of an environment: everything the future depends on, put back bit for bit or not at all."""

import copy
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from esper_env.checkpoint import CheckpointError, write_checkpoint
from esper_env.env import EsperEnv
from esper_env.rules.stages import Stage
from esper_env.vector_env import EsperVectorEnv
from growing import SEEDS, built_with, choose, examples, lives
from gymnasium.error import ResetNeeded
from hypothesis import given
from hypothesis import strategies as st

ENV = "Esper-Digits-v0"
TINY = {"horizon": 9, "batches_per_step": 2, "batch_size": 8, "device": "cpu"}
MODES = ("SameStep", "NextStep", "Disabled")


def new_env(num_envs=3, **kwargs):
    """A tiny vector; ``num_envs=None``: a single environment."""
    settings = TINY | kwargs
    return EsperEnv(ENV, **settings) if num_envs is None else EsperVectorEnv(ENV, num_envs, **settings)


@pytest.fixture
def make():
    """:func:`new_env`; what it makes is closed afterwards."""
    opened = []

    def build(num_envs=3, **kwargs):
        opened.append(new_env(num_envs, **kwargs))
        return opened[-1]

    yield build
    for env in opened:
        env.close()


def growth_of(env):
    return env._growth if isinstance(env, EsperVectorEnv) else env._vector._growth


def drive(env, plan, steps):
    """All that the steps of a plan lead to; episodes that end begin anew, without a seed."""
    results = []
    for step in steps:
        actions = np.array(choose(growth_of(env), plan, step % len(plan[0].moves)))
        if isinstance(env, EsperEnv):
            results.append(env.step(actions[0]))
            if results[-1][2] or results[-1][3]:
                results.append(env.reset())
            continue
        results.append(env.step(actions))
        ended = results[-1][2] | results[-1][3]
        if env.autoreset_mode.value == "Disabled" and ended.any():
            results.append(env.reset(options={"reset_mask": ended}))
    return results


def begun(env, plan, steps):
    env.reset(seed=4)
    drive(env, plan, range(steps))
    return env


def plan_for(env, seed=0, steps=30):
    count = env.num_envs if isinstance(env, EsperVectorEnv) else 1
    return lives(seed, count, steps, len(env.slot_ids))


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def changed(state, path, change):
    """A copy of the state in which the leaf at ``path`` is ``change(leaf)``, or missing where that is None."""
    result = copy.deepcopy(state)
    node = result
    for key in path[:-1]:
        node = node[key]
    value = change(node[path[-1]])
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return result


# Round trips


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [0, 5, 9, 13])
def test_another_vector_goes_on_from_a_state_bit_for_bit(make, assert_same, mode, steps):
    env = make(autoreset_mode=mode, max_episode_steps=8)
    plan = plan_for(env)
    state = begun(env, plan, steps).get_state()
    future = drive(env, plan, range(steps, steps + 14))
    other = begun(make(autoreset_mode=mode, max_episode_steps=8), plan_for(env, 5), 3)
    other.set_state(state)
    assert_same(other.get_state(), state)
    assert_same(drive(other, plan, range(steps, steps + 14)), future)
    assert_same(other.get_state(), env.get_state())


@pytest.mark.parametrize("steps", [0, 4, 12])
def test_another_single_environment_goes_on_from_a_state_bit_for_bit(make, assert_same, steps):
    env = make(None)
    plan = plan_for(env)
    state = begun(env, plan, steps).get_state()
    future = drive(env, plan, range(steps, steps + 14))
    other = make(None)
    other.set_state(state)
    assert other.np_random is other._vector.np_random[0]
    assert_same(drive(other, plan, range(steps, steps + 14)), future)
    assert other.np_random.integers(2**60) == env.np_random.integers(2**60)
    assert other.np_random_seed == env.np_random_seed


def test_finished_episodes_that_wait_for_their_reset_are_part_of_the_state(make, assert_same):
    env = make(autoreset_mode="NextStep", max_episode_steps=4)
    plan = plan_for(env)
    state = begun(env, plan, 4).get_state()
    assert state["clock"]["finished"].all()
    other = make(autoreset_mode="NextStep", max_episode_steps=4)
    other.set_state(state)
    assert_same(drive(other, plan, range(4, 7)), drive(env, plan, range(4, 7)))


@pytest.mark.parametrize("num_envs", [None, 2])
def test_a_state_from_before_the_first_reset_holds_what_the_reset_will_draw(make, assert_same, num_envs):
    env, other = make(num_envs), make(num_envs)
    other.set_state(env.get_state())
    with pytest.raises(ResetNeeded):
        other.observe()
    assert_same(other.reset(), env.reset())


def test_a_single_environment_and_a_vector_of_one_take_each_others_states(make):
    env, vector = make(None), make(1, autoreset_mode="Disabled")
    plan = plan_for(env)
    vector.set_state(begun(env, plan, 6).get_state())
    for ours, theirs in zip(drive(env, plan, range(6, 20)), drive(vector, plan, range(6, 20)), strict=True):
        np.testing.assert_array_equal(ours[0]["features"], theirs[0]["features"][0])
    env.set_state(vector.get_state())
    np.testing.assert_array_equal(env.observe()["features"], vector.observe()["features"][0])


def test_going_back_repeats_the_future_in_the_same_environment(make, assert_same):
    """With the trainers it has kept, whose copies of the weights must not come back."""
    env = make(shard_size=1)
    plan = plan_for(env)
    state = begun(env, plan, 7).get_state()
    seen, kept = env.observe(), copy.deepcopy(state)
    futures = []
    for _ in range(3):
        futures.append((drive(env, plan, range(7, 20)), env.get_state()))
        env.set_state(state)
        assert_same(env.observe(), seen)
    assert_same(futures[1], futures[0])
    assert_same(futures[2], futures[0])
    assert_same(state, kept)


def test_look_ahead_along_one_branch_leaves_the_others_alone(make, assert_same):
    env, twin = make(), make()
    plan = plan_for(env)
    begun(env, plan, 6)
    begun(twin, plan, 6)
    state = env.get_state()
    for seed in (1, 2):
        drive(env, plan_for(env, seed), range(10))
        env.set_state(state)
    assert_same(drive(env, plan, range(6, 18)), drive(twin, plan, range(6, 18)))


def test_a_state_shares_nothing_with_the_environment(make, assert_same):
    env, twin = make(), make()
    plan = plan_for(env)
    begun(env, plan, 6)
    begun(twin, plan, 6)

    def spoil(tree):
        for key, value in tree.items():
            if isinstance(value, np.ndarray):
                value[...] = 1
            elif isinstance(value, dict):
                spoil(value)
            elif isinstance(value, list):
                value.clear()
            else:
                tree[key] = None

    spoil(env.get_state())
    state = twin.get_state()
    env.set_state(state)
    spoil(state)
    assert_same(drive(env, plan, range(6, 16)), drive(twin, plan, range(6, 16)))


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 2), (2, 3)])
def test_networks_keep_their_state_in_another_layout_of_shards(make, assert_same, before, after):
    with built_with(torch.float64):
        env, other = make(shard_size=before), make(shard_size=after)
    plan = plan_for(env)
    state = begun(env, plan, 7).get_state()
    other.set_state(state)
    assert_same(other.get_state(), state)
    for ours, theirs in zip(drive(env, plan, range(7, 13)), drive(other, plan, range(7, 13)), strict=True):
        np.testing.assert_allclose(ours[0]["features"], theirs[0]["features"], atol=1e-5)
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators_of_every_kind_go_on_through_files(make, assert_same, tmp_path, kind):
    env, other = make(3), make(3)
    first, second = (np.random.Generator(getattr(np.random, kind)(seed)) for seed in (1, 2))
    first.integers(2**30, dtype=np.uint32)  # half of a word is left over
    env.np_random = (first, second, first)
    env.save_state(tmp_path / "state")
    other.load_state(tmp_path / "state")
    rngs = other.np_random
    assert rngs[0] is rngs[2]
    assert rngs[0] is not rngs[1]
    assert other.np_random_seed == (-1, -1, -1)
    assert [type(rng.bit_generator).__name__ for rng in rngs] == [kind] * 3
    assert rngs[0].integers(2**30, dtype=np.uint32) == first.integers(2**30, dtype=np.uint32)
    assert_same(other.reset(), env.reset())


# Files

PROCESS = """
import sys, numpy as np
from esper_env.vector_env import EsperVectorEnv
folder, actions = sys.argv[1:]
envs = EsperVectorEnv("Esper-Digits-v0", 2, horizon=9, batches_per_step=2, batch_size=8, device="cpu")
envs.load_state(folder)
results = [envs.step(action) for action in np.load(actions)]
np.savez(folder + ".npz", rewards=[each[1] for each in results], features=[each[0]["features"] for each in results])
envs.save_state(folder)
"""


def test_another_process_goes_on_from_a_folder_bit_for_bit(make, assert_same, tmp_path):
    env = make(2)
    rng = np.random.default_rng(0)
    env.reset(seed=1)
    for _ in range(12):
        env.step(env.sample_valid_actions(rng))
    folder = env.save_state(tmp_path / "state")
    actions = [env.sample_valid_actions(rng) for _ in range(8)]
    np.save(tmp_path / "actions.npy", actions)
    future = [env.step(action) for action in actions]
    subprocess.run([sys.executable, "-c", PROCESS, str(folder), str(tmp_path / "actions.npy")], check=True, timeout=300)
    with np.load(f"{folder}.npz") as theirs:
        np.testing.assert_array_equal(theirs["rewards"], [each[1] for each in future])
        np.testing.assert_array_equal(theirs["features"], [each[0]["features"] for each in future])
    state = env.get_state()
    env.load_state(folder)
    assert_same(env.get_state(), state)


def test_a_folder_that_holds_something_else_is_an_error_and_changes_nothing(make, assert_same, tmp_path):
    env = begun(make(), plan_for(make()), 4)
    before = env.get_state()
    write_checkpoint(tmp_path / "run", {"a": 1}, kind="esper training run")
    with pytest.raises(CheckpointError, match="esper training run"):
        env.load_state(tmp_path / "run")
    with pytest.raises(CheckpointError, match="esper training run"):
        env.save_state(tmp_path / "run")
    write_checkpoint(tmp_path / "state", {"a": 1}, kind="esper environment")
    with pytest.raises(ValueError, match="not the state of an environment"):
        env.load_state(tmp_path / "state")
    assert_same(env.get_state(), before)


# What does not fit


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon": 12}, "horizon is 9 in the state and 12 here"),
        ({"max_episode_steps": 5}, "max_episode_steps is None in the state and 5 here"),
        ({"num_envs": 2}, "num_envs is 3 in the state and 2 here"),
        ({"slots": ["r0c0", "r0c1"]}, r"slot_ids is \['r0c0', 'r0c1', 'r0c2'\] in the state and \['r0c0', 'r0c1'\]"),
        ({"reward_mode": "sparse"}, "reward_mode is 'accuracy' in the state and 'sparse' here"),
        ({"reward_weights": {"gamma": 0.5}}, r"reward_weights is {} in the state and {'gamma': 0.5} here"),
        ({"host_lr": 0.5, "gates": "strict"}, "gates is 'permissive'.*; host_lr is 0.008 in the state and 0.5 here"),
        ({"isolation": "straight_through"}, "isolation"),
        ({"precision": "bfloat16"}, "precision"),
        ({"param_budget": 7}, "param_budget"),
    ],
)
def test_a_state_of_another_environment_is_refused_with_what_differs(make, assert_same, kwargs, message):
    state = make().get_state()
    other = begun(make(**kwargs), plan_for(make(**kwargs)), 2)
    before = other.get_state()
    with pytest.raises(ValueError, match=f"{message}.*Make the environment with the state's values"):
        other.set_state(state)
    assert_same(other.get_state(), before)


def test_the_task_the_data_and_the_device_kind_are_part_of_the_identity(make):
    env = make()
    state = env.get_state()
    for name, value in (("env_id", "Esper-CIFAR-v0"), ("dataset_name", "procedural"), ("device_kind", "cuda")):
        with pytest.raises(ValueError, match=f"{name} is '{value}' in the state and '.*' here"):
            env.set_state(changed(state, ("identity", name), lambda _, value=value: value))


def test_where_a_task_runs_is_no_part_of_its_identity(make, tmp_path):
    state = make(shard_size=2).get_state()
    make(shard_size=1, capture="off", data_dir=str(tmp_path), dataset="digits").set_state(state)


@pytest.mark.parametrize("state", [None, 5, {}, [], {"identity": 3}])
def test_what_is_no_state_is_refused(make, state):
    with pytest.raises(ValueError, match="not the state of an environment"):
        make().set_state(state)


def test_another_format_is_refused(make):
    env = make()
    with pytest.raises(ValueError, match="format 2; this version of esper-env knows format 1"):
        env.set_state(changed(env.get_state(), ("format",), lambda _: 2))


@pytest.fixture(scope="module")
def rich():
    """A vector with seeds in many stages, its state, the lives it leads, and what comes of them."""
    env = EsperVectorEnv(ENV, 3, **(TINY | {"horizon": 14, "reward_mode": "contribution"}))
    plan = plan_for(env, 11, 40)
    begun(env, plan, 8)
    state = env.get_state()
    assert len({*state["table"]["stage"].ravel().tolist()} & {*Stage}) >= 4
    yield env, state, plan, future_of(env, plan)
    env.close()


def future_of(env, plan):
    return env.np_random_seed, drive(env, plan, range(8, 24)), env.get_state()["population"]


def differs(left, right, assert_same):
    try:
        assert_same(left, right)
    except AssertionError:
        return True
    return False


BAD = {
    "another shape": lambda leaf: leaf[:-1] if isinstance(leaf, np.ndarray) and leaf.ndim else np.zeros((7, 7)),
    "another dtype": lambda leaf: leaf.astype(np.complex64) if isinstance(leaf, np.ndarray) else np.float32(3),
    "text": lambda leaf: "x",  # noqa: ARG005
    "a dict": lambda leaf: {"a": leaf},
    "an empty dict": lambda leaf: {},  # noqa: ARG005
    "missing": lambda leaf: None,  # noqa: ARG005
}


@pytest.mark.parametrize("what", BAD)
def test_a_state_with_any_leaf_missing_or_misshapen_is_refused_and_nothing_changes(rich, assert_same, what):
    env, state, plan, future = rich
    env.set_state(state)
    for path in leaves(state):
        if (path, what) == (("identity", "reward_weights"), "an empty dict"):
            continue  # it is one
        with pytest.raises(ValueError, match="state"):
            env.set_state(changed(state, path, BAD[what]))
    assert_same(env.get_state(), state)
    assert_same(future_of(env, plan), future)


def test_a_part_too_many_is_refused(rich):
    env, state, *_ = rich
    for path in ((), ("table",), ("signals",), ("reward", "ledger"), ("generators",), ("population", "host")):
        extra = copy.deepcopy(state)
        node = extra
        for key in path:
            node = node[key]
        node["surplus"] = np.zeros(3)
        with pytest.raises(ValueError, match="state"):
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
def test_values_that_no_life_leads_to_are_refused(rich, assert_same, path, value):
    env, state, *_ = rich
    env.set_state(state)
    with pytest.raises(ValueError, match=r"state|blueprint"):
        env.set_state(changed(state, path, lambda leaf: np.full_like(leaf, value)))
    assert_same(env.get_state(), state)


def altered(leaf):
    """Another value of the same kind, where possible one that could be."""
    if isinstance(leaf, np.ndarray):
        by_kind = {"b": lambda: ~leaf, "f": lambda: leaf * 0.5 + 0.25, "u": lambda: leaf ^ 1, "i": lambda: leaf + 1}
        return by_kind[leaf.dtype.kind]()
    if isinstance(leaf, list):
        return [altered(item) for item in leaf] or ["x"]
    if isinstance(leaf, dict):
        return {"x": 1.0}
    return {str: lambda: leaf + "x", type(None): lambda: 1}.get(type(leaf), lambda: leaf + 1)()


#: What may change without a trace, whatever happens later, and why.
WITHOUT_EFFECT = {
    **{
        ("population", "host", "buffers", f"segments.{k}.1.num_batches_tracked"): "BatchNorm only counts it up"
        for k in range(3)
    },
}
#: Steps taken, lives and reward mode of the moments at which the leaves are altered.
MOMENTS = [
    (8, 11, "contribution"),
    (6, 2, "accuracy"),
    (5, 3, "sparse"),
    (10, 7, "contribution"),
    (9, 4, "contribution"),
]


def pattern(path):
    """A leaf's place without the numbers of slots, blueprints and generators."""
    return tuple("*" if key.isdigit() else key for key in path)


def silent_leaves(env, plan, steps, suspects, assert_same):
    """Those of the ``suspects`` (None: all there are) that can be altered without changing the future."""

    def future():
        seen = env.observe()
        results = drive(env, plan, range(steps, steps + 18))
        return seen, results, env.get_state()["population"], env.np_random_seed, draws_of(env)

    begun(env, plan, steps)
    draws_of(env)  # leaves half a word over
    state = env.get_state()
    expected, found, heard = future(), set(), set()
    for path in leaves(state):
        if suspects is not None and pattern(path) not in suspects:
            continue
        try:
            env.set_state(changed(state, path, altered))
            matters = differs(future(), expected, assert_same)
        except (ValueError, RuntimeError, ResetNeeded):
            matters = True
        (heard if matters else found).add(pattern(path))
    absent = set() if suspects is None else suspects - found - heard
    return found - heard | absent


def draws_of(env):
    return [int(rng.integers(2**20, dtype=np.uint32)) for rng in env.np_random]


@pytest.mark.slow
def test_every_leaf_of_a_state_matters(make, assert_same):
    suspects = None
    for steps, seed, mode in MOMENTS:
        env = make(horizon=16, reward_mode=mode, max_episode_steps=14)
        suspects = silent_leaves(env, plan_for(env, seed, 40), steps, suspects, assert_same)
        print(sorted(suspects))
    assert suspects == WITHOUT_EFFECT.keys()


# Whatever happens


@pytest.mark.slow
@given(
    seed=SEEDS,
    steps=st.integers(0, 20),
    mode=st.sampled_from(MODES),
    num_envs=st.sampled_from([None, 1, 3]),
    kwargs=st.fixed_dictionaries(
        {
            "isolation": st.sampled_from(["shadow", "straight_through"]),
            "reward_mode": st.sampled_from(["accuracy", "sparse", "contribution"]),
            "precision": st.sampled_from(["float32", "float32", "bfloat16"]),
            "shard_size": st.sampled_from(["auto", 1, 2]),
            "gates": st.sampled_from(["permissive", "strict"]),
        }
    ),
)
@examples(30)
def test_any_growth_goes_on_from_any_step(assert_same, tmp_path_factory, seed, steps, mode, num_envs, kwargs):
    if num_envs is not None:
        kwargs = {**kwargs, "autoreset_mode": mode}
    env, other = new_env(num_envs, **kwargs), new_env(num_envs, **kwargs)
    plan = plan_for(env, seed, 36)
    begun(env, plan, steps)
    other.load_state(env.save_state(tmp_path_factory.mktemp("states") / "state"))
    ahead = range(steps, steps + 12)
    assert_same(drive(other, plan, ahead), drive(env, plan, ahead))
    assert_same(other.get_state(), env.get_state())
    env.close()
    other.close()


@pytest.mark.slow
def test_a_convolutional_task_on_colour_images_goes_on_too(assert_same, tmp_path):
    kwargs = {"horizon": 9, "batches_per_step": 1, "batch_size": 8, "dataset": "procedural", "device": "cpu"}
    env, other = (gymnasium.make_vec("Esper-CIFAR-Surfaces-v0", 1, **kwargs) for _ in range(2))
    plan = plan_for(env, 3, 12)
    begun(env, plan, 5)
    assert env.get_state()["population"].keys() >= {"seeds", "gates"}
    other.load_state(env.save_state(tmp_path / "state"))
    assert_same(drive(other, plan, range(5, 8)), drive(env, plan, range(5, 8)))
    assert_same(other.get_state(), env.get_state())
    env.close()
    other.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("capture", ["auto", "off"])
def test_on_a_cuda_device_a_state_comes_back_exactly_and_the_future_within_rounding(make, assert_same, capture):
    with built_with(torch.float64):
        env, other = (make(device="cuda", capture=capture) for _ in range(2))
    plan = plan_for(env)
    state = begun(env, plan, 6).get_state()
    futures = []
    for each in (env, env, other):
        each.set_state(state)
        assert_same(each.get_state(), state)
        futures.append(drive(each, plan, range(6, 9)))
    assert_same(futures[1], futures[0], atol=1e-5)
    assert_same(futures[2], futures[0], atol=1e-5)
    with pytest.raises(ValueError, match="device_kind is 'cuda' in the state and 'cpu' here"):
        make().set_state(state)
