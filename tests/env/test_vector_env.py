"""Vector environment: spaces, seeds, and independence of the environments."""

import gymnasium
import numpy as np
import pytest
import torch
from esper_env import EsperVectorEnv
from esper_env.rules.heads import Blueprint, Op
from growing import built_with
from gymnasium.vector import AutoresetMode
from plain_rules import slot_index

pytestmark = pytest.mark.numeric

#: Tolerance for float32 features of float64 networks. Stacked networks use other kernels than a single one.
ROUNDING = 1e-6
COUNT = 4


def play(vector, steps, rng, actions=None):
    """Play random legal actions, or the given ones (steps, N, 8); return the actions and the results."""
    chosen, results = [], []
    for step in range(steps):
        chosen.append(vector.unwrapped.sample_valid_actions(rng) if actions is None else actions[step])
        results.append(vector.step(chosen[-1]))
    return np.array(chosen), results


def row_of(tree, row):
    """Observations of one environment."""
    return {key: value[row] for key, value in tree.items()}


def test_make_vec_returns_the_native_vector(make_digits_vec):
    envs = make_digits_vec(COUNT)
    assert type(envs.unwrapped) is EsperVectorEnv
    assert envs.num_envs == COUNT
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert envs.single_action_space.nvec.tolist() == [3, 13, 4, 3, 3, 4, 5, 6]
    assert envs.action_space.shape == (COUNT, 8)
    observations, infos = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert row_of(observations, 2) in envs.single_observation_space
    assert infos["action_mask"].shape == (COUNT, 41)
    observations, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert observations in envs.observation_space
    assert (rewards.dtype, rewards.shape) == (np.float64, (COUNT,))
    for flags in (terminated, truncated):
        assert (flags.dtype, flags.shape) == (np.bool_, (COUNT,))
    assert envs.unwrapped.action_masks().dtype == np.bool_
    assert envs.unwrapped.action_masks().shape == (COUNT, 41)


@pytest.fixture
def both(make_digits_vec):
    """A native vector, and Gymnasium's vector over single environments, both after a reset and two steps."""
    settings = {"horizon": 5, "batches_per_step": 1, "batch_size": 8, "render_mode": "ansi", "shard_size": 1}
    native = make_digits_vec(3, **settings)
    sync = gymnasium.make_vec("Esper-Digits-v0", num_envs=3, vectorization_mode="sync", **settings)
    rng = np.random.default_rng(0)
    for envs in (native, sync):
        envs.reset(seed=4)
    for _ in range(2):
        actions = native.unwrapped.sample_valid_actions(rng)
        for envs in (native, sync):
            envs.step(actions)
    yield native, sync
    sync.close()


def test_call_and_get_attr_equal_those_of_sync_vector_env(both, assert_same):
    native, sync = both
    for name, *arguments in (
        ("action_masks",),
        ("split_mask",),
        ("conditional_masks", Op.WAIT),
        ("observe",),
        ("render",),
        ("dataset_name",),
        ("slot_ids",),
        ("np_random_seed",),
    ):
        assert_same(native.call(name, *arguments), sync.call(name, *arguments))
    for name in ("task", "host_parameters", "observation_space", "action_space", "render_mode", "reward_config"):
        assert native.get_attr(name) == sync.get_attr(name)
    assert [rng is own for rng, own in zip(native.get_attr("np_random"), native.np_random, strict=True)] == [True] * 3
    (mask, *_), rng = native.call("action_masks"), np.random.default_rng(0)
    actions = np.stack(native.call("sample_valid_actions", rng))
    assert actions.shape == (3, 8)
    assert mask[actions[0, 0]]


def test_call_explains_what_it_cannot_do(make_digits_vec):
    envs = make_digits_vec(2)
    with pytest.raises(AttributeError, match=r"'get_state' cannot be called for each environment .* call it on the"):
        envs.call("get_state")
    with pytest.raises(AttributeError, match="no attribute 'weight'"):
        envs.get_attr("weight")


def test_set_attr_sets_one_value_for_all(make_digits_vec):
    envs = make_digits_vec(2, render_mode="ansi")
    envs.set_attr("render_mode", "rgb_array")
    envs.reset(seed=0)
    assert envs.render()[1].shape == (120, 240, 3)
    envs.set_attr("render_mode", ["ansi", "ansi"])
    assert isinstance(envs.render()[0], str)
    rngs = [np.random.default_rng(seed) for seed in (5, 6)]
    envs.set_attr("np_random", rngs)
    assert envs.np_random == tuple(rngs)
    with pytest.raises(ValueError, match="render_mode received 3 values; expected 2, one per environment"):
        envs.set_attr("render_mode", ["ansi"] * 3)
    with pytest.raises(ValueError, match="share it, so the values must be equal"):
        envs.set_attr("render_mode", ["ansi", None])
    with pytest.raises(ValueError, match="render_mode is 'svg'; expected None or one of"):
        envs.set_attr("render_mode", "svg")
    with pytest.raises(AttributeError, match="'num_envs' cannot be set; np_random and render_mode can be set, and"):
        envs.set_attr("num_envs", 5)
    with pytest.raises(AttributeError, match="'colour' is not an attribute of the environment; np_random and"):
        envs.set_attr("colour", 1)


@pytest.mark.parametrize("mode", ["rgb_array_list", "human", "svg"])
def test_other_render_modes_are_rejected_with_alternatives(mode):
    with pytest.raises(ValueError, match=rf"render_mode is '{mode}'; expected .* vectorization_mode=\"sync\""):
        gymnasium.make_vec("Esper-Digits-v0", num_envs=2, render_mode=mode)


def test_frames_are_collected_by_the_wrapper_of_single_environments():
    tiny = {"horizon": 3, "batches_per_step": 1, "batch_size": 8}
    envs = gymnasium.make_vec(
        "Esper-Digits-v0", num_envs=2, vectorization_mode="sync", render_mode="rgb_array_list", **tiny
    )
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    assert [len(frames) for frames in envs.render()] == [2, 2]
    envs.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_autoreset_mode_may_be_a_member_a_value_or_a_name(make_digits_vec, mode):
    for form in (mode, mode.value, mode.name):
        assert make_digits_vec(2, autoreset_mode=form).metadata["autoreset_mode"] is mode
    assert "autoreset_mode" not in EsperVectorEnv.metadata


@pytest.mark.parametrize("shard_size", [1, 3])
def test_environments_equal_single_environments_with_consecutive_seeds(
    make_digits, make_digits_vec, assert_same, shard_size
):
    """Bit for bit in shards of one network; in larger ones float64 networks agree within rounding."""
    dtype, tolerance = (torch.float32, 0.0) if shard_size == 1 else (torch.float64, ROUNDING)
    with built_with(dtype):
        vector = make_digits_vec(COUNT, shard_size=shard_size)
        singles = [make_digits() for _ in range(COUNT)]
    observations, _ = vector.reset(seed=20)
    first = {key: value.copy() for key, value in observations.items()}
    actions, results = play(vector, 5, np.random.default_rng(1))
    for row, single in enumerate(singles):
        observation, _ = single.reset(seed=20 + row)
        assert_same(observation, row_of(first, row), tolerance)
        for action, (observations, rewards, *_, infos) in zip(actions[:, row], results, strict=True):
            observation, reward, _, _, info = single.step(action)
            assert_same(observation, row_of(observations, row), tolerance)
            assert reward == pytest.approx(rewards[row], rel=0, abs=tolerance)
            assert info["val_loss"] == pytest.approx(infos["val_loss"][row], rel=0, abs=tolerance)


@pytest.mark.slow
def test_cifar_environments_equal_single_ones_bit_for_bit(tiny, assert_same):
    """The networks run serially, in the layout of a single network."""
    env_id = "Esper-CIFAR-Impaired-v0"
    vector = gymnasium.make_vec(env_id, num_envs=2, **(tiny(env_id) | {"horizon": 5}))
    vector.reset(seed=0)
    actions, results = play(vector, 4, np.random.default_rng(1))
    single = gymnasium.make(env_id, **(tiny(env_id) | {"horizon": 5}))
    single.reset(seed=1)
    for action, (observations, rewards, *_) in zip(actions[:, 1], results, strict=True):
        observation, reward, *_ = single.step(action)
        assert_same(observation, row_of(observations, 1))
        assert reward == rewards[1]
    vector.close()
    single.close()


def test_masked_reset_keeps_the_others(make_digits_vec, assert_same):
    """Environment 1 has contributions, interactions and their ages at the time of the reset."""
    vector, twin = (make_digits_vec(2, horizon=30, shard_size=1) for _ in range(2))
    topology = {"r0c0": "conv_light", "r0c1": "conv_light", "r0c2": "conv_light"}
    for each in (vector, twin):
        each.reset(seed=0, options={"topology": topology})
    column, wait = [slot_index("interaction_sum", slot) for slot in range(3)], np.zeros((2, 8), dtype=np.int64)
    for _ in range(20):
        observations, _ = vector.step(wait)[0], twin.step(wait)
        if observations["features"][1, column].any():
            break
    assert observations["features"][1, column].any()
    after, infos = vector.reset(options={"reset_mask": np.array([True, False])})
    assert_same(row_of(after, 1), row_of(observations, 1))
    assert after["features"][0, 0] == 0.0
    assert infos["_val_loss"].tolist() == [True, False]
    ours, theirs = vector.step(wait), twin.step(wait)
    assert_same(row_of(ours[0], 1), row_of(theirs[0], 1))
    assert ours[1][1] == theirs[1][1]


def test_seed_list_with_none_continues_generators(make_digits_vec, assert_same):
    vector = make_digits_vec(3)
    first, _ = vector.reset(seed=[3, 1, 2])
    second, _ = vector.reset()
    again, _ = vector.reset(seed=[3, None, 2])
    assert_same(row_of(first, 0), row_of(again, 0))
    assert_same(row_of(first, 2), row_of(again, 2))
    vector.reset(seed=[3, 1, 2])
    third, _ = vector.reset()
    assert_same(third, second)


def test_generators_equal_those_of_gymnasium(make_digits_vec):
    vector = make_digits_vec(2)
    assert all(isinstance(rng, np.random.Generator) for rng in vector.np_random)
    vector.reset(seed=8)
    assert vector.unwrapped.np_random_seed == (8, 9)
    fresh = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))) for seed in (8, 9)]
    expected, _ = vector.reset(seed=8)
    vector.unwrapped.np_random = fresh
    observed, _ = vector.reset()
    np.testing.assert_array_equal(observed["features"], expected["features"])
    assert vector.unwrapped.np_random_seed == (-1, -1)
    with pytest.raises(ValueError, match="1 generators; expected one for each of 2"):
        vector.unwrapped.np_random = fresh[:1]


def test_topology_applies_to_the_environments_of_the_reset(make_digits_vec):
    vector = make_digits_vec(3)
    vector.reset(seed=0)
    options = {"reset_mask": np.array([False, True, False]), "topology": {"r0c1": "conv_light"}}
    observations, infos = vector.reset(options=options)
    assert observations["blueprints"].tolist() == [[13] * 3, [13, Blueprint.CONV_LIGHT, 13], [13] * 3]
    assert infos["parameters_added"].tolist() == [0, 9 * 64 + 24, 0]
    assert list(options) == ["reset_mask", "topology"]


def test_results_are_copies(make_digits_vec, assert_same):
    def copied(tree):
        if isinstance(tree, dict):
            return {key: copied(value) for key, value in tree.items()}
        if isinstance(tree, tuple):
            return tuple(copied(value) for value in tree)
        return tree.copy()

    vector = make_digits_vec(3, horizon=3)
    rng = np.random.default_rng(0)
    kept = [vector.reset(seed=0)]
    copies = [copied(kept[0])]
    for _ in range(7):
        kept.append(vector.step(vector.unwrapped.sample_valid_actions(rng)))
        copies.append(copied(kept[-1]))
    assert_same(kept, copies)


def test_results_are_independent_of_worker_threads(make_digits_vec, assert_same, use_threads):
    """Shards of one network, on one thread and on two."""
    traces = []
    for count in (1, 2):
        use_threads(count)
        vector = make_digits_vec(4, shard_size=1)
        vector.reset(seed=0)
        traces.append(play(vector, 5, np.random.default_rng(0))[1])
        assert vector.unwrapped._growth._population._lanes == count
        assert torch.get_num_threads() == count
        vector.close()
    assert_same(traces[0], traces[1])


def test_close_twice_is_allowed(make_digits_vec):
    vector = make_digits_vec(2)
    vector.reset(seed=0)
    vector.close()
    vector.close()


@pytest.mark.parametrize("cls", ["RecordEpisodeStatistics", "DictInfoToList"])
def test_vector_wrappers_of_gymnasium_work(make_digits_vec, cls):
    vector = getattr(gymnasium.wrappers.vector, cls)(make_digits_vec(2, horizon=2))
    vector.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        *_, infos = vector.step(vector.unwrapped.sample_valid_actions(rng))
    assert infos


@pytest.mark.slow
def test_async_vectorization_works_with_spawn():
    envs = gymnasium.make_vec(
        "Esper-Digits-v0",
        num_envs=1,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
        horizon=2,
        batches_per_step=1,
        batch_size=8,
    )
    observations, infos = envs.reset(seed=0)
    assert observations["features"].shape == (1, 121)
    observations, rewards, *_ = envs.step(envs.action_space.sample())
    assert observations["features"][:, 0].tolist() == [0.5]
    assert infos["val_loss"].dtype == np.float64
    assert envs.get_attr("dataset_name") == ("digits",)
    assert rewards.shape == (1,)
    envs.close()


def test_actions_apply_per_environment(make_digits_vec, action):
    vector = make_digits_vec(3)
    vector.reset(seed=0)
    *_, infos = vector.step(np.array([action(), action(Op.GERMINATE, 1), action(Op.FOSSILIZE, 0)]))
    assert infos["op"].tolist() == [Op.WAIT, Op.GERMINATE, Op.WAIT]
    assert infos["action_valid"].tolist() == [True, True, False]
    assert (infos["parameters_added"] > 0).tolist() == [False, True, False]
