"""Autoreset: equal to Gymnasium's SyncVectorEnv over single environments."""

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

pytestmark = pytest.mark.numeric

COUNT, HORIZON = 3, 4
ROUNDING = 1e-6  # tolerance for float32 features of float64 networks
SMALL = {"horizon": HORIZON, "batches_per_step": 2, "batch_size": 16}


@pytest.fixture
def pair(float64_networks):  # noqa: ARG001
    """``pair(mode, **kwargs)``: the native vector, and SyncVectorEnv over single environments."""
    opened = []

    def make(mode, **kwargs):
        settings = SMALL | kwargs
        native = gymnasium.make_vec("Esper-Digits-v0", num_envs=COUNT, autoreset_mode=mode.value, **settings)
        sync = gymnasium.make_vec(
            "Esper-Digits-v0",
            num_envs=COUNT,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": mode},
            **settings,
        )
        opened.extend([native, sync])
        return native, sync

    yield make
    for env in opened:
        env.close()


def reset_both(native, sync, seed=None, options=None):
    # SyncVectorEnv removes the mask from the dict
    return [env.reset(seed=seed, options=None if options is None else dict(options)) for env in (native, sync)]


def step_both(native, sync, rng):
    """Step both with legal actions and some illegal ones."""
    actions = native.unwrapped.sample_valid_actions(rng)
    actions[rng.random(COUNT) < 0.2] = native.action_space.sample()[0]
    return native.step(actions), sync.step(actions)


@pytest.mark.parametrize(
    ("mode", "max_episode_steps"),
    [
        (AutoresetMode.SAME_STEP, None),
        (AutoresetMode.NEXT_STEP, None),
        (AutoresetMode.SAME_STEP, 3),
        (AutoresetMode.NEXT_STEP, HORIZON),
    ],
)
def test_episodes_equal_those_of_sync_vector_env(pair, assert_same, mode, max_episode_steps):
    native, sync = pair(mode, max_episode_steps=max_episode_steps)
    native.action_space.seed(0)
    rng = np.random.default_rng(0)
    assert_same(*reset_both(native, sync, seed=30), ROUNDING)
    ends = np.zeros(2, dtype=int)
    for _ in range(2 * (HORIZON + 1)):
        ours, theirs = step_both(native, sync, rng)
        assert_same(ours, theirs, ROUNDING)
        ends += [ours[2].sum(), ours[3].sum()]
    assert (ends > 0).tolist() == [max_episode_steps != 3, max_episode_steps is not None]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_staggered_episodes_equal_those_of_sync_vector_env(pair, assert_same, mode):
    native, sync = pair(mode)
    rng = np.random.default_rng(1)
    native.action_space.seed(1)
    assert_same(*reset_both(native, sync, seed=3), ROUNDING)
    over_at = set()
    for step in range(3 * HORIZON):
        if step in (1, 2):  # reset environment 1 after one step, environment 2 after two
            options = {"reset_mask": np.arange(COUNT) == step}
            seed = [None, 100, 200] if step == 1 else None
            assert_same(*reset_both(native, sync, seed=seed, options=options), ROUNDING)
        ours, theirs = step_both(native, sync, rng)
        assert_same(ours, theirs, ROUNDING)
        over_at.add(tuple(ours[2].tolist()))
    assert {(True, False, False), (False, True, False), (False, False, True)} <= over_at


def test_mask_resets_finished_environments_without_autoreset(pair, assert_same):
    native, sync = pair(AutoresetMode.DISABLED)
    rng = np.random.default_rng(2)
    native.action_space.seed(2)
    assert_same(*reset_both(native, sync, seed=3), ROUNDING)
    ended = 0
    for step in range(3 * HORIZON):
        ours, theirs = step_both(native, sync, rng)
        assert_same(ours, theirs, ROUNDING)
        over = ours[2] | ours[3]
        if step == 1:
            over |= np.array([False, True, False])
        if over.any():
            ended += over.sum()
            assert_same(*reset_both(native, sync, options={"reset_mask": over}), ROUNDING)
    assert ended > COUNT


def test_step_rejects_finished_environments_without_autoreset(pair):
    native, _ = pair(AutoresetMode.DISABLED)
    native.reset(seed=0)
    wait = np.zeros((COUNT, 8), dtype=np.int64)
    for _ in range(HORIZON - 1):
        native.step(wait)
    last, _, terminated, _, _ = native.step(wait)
    assert terminated.all()
    native.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(ResetNeeded, match=r"\[1\] are over; call reset"):
        native.step(wait)
    observed, _ = native.reset(options={"reset_mask": np.array([True, False, False])})
    np.testing.assert_array_equal(observed["features"][1], last["features"][1])
