"""What code of other libraries needs: wrappers of Gymnasium, numbers of NumPy, refused keywords, masked gates."""

import gymnasium
import numpy as np
import pytest
from esper_env.rules import Op, Rejection, Stage
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as vector_wrappers

ENV = "Esper-Digits-v0"
TINY = {"horizon": 4, "batches_per_step": 1, "batch_size": 8}


@pytest.fixture
def make_vec():
    opened = []

    def make(count=3, **settings):
        opened.append(gymnasium.make_vec(ENV, num_envs=count, **(TINY | settings)))
        return opened[-1]

    yield make
    for envs in opened:
        envs.close()


@pytest.mark.parametrize("name", ["FlattenObservation", "RecordEpisodeStatistics", "DictInfoToList", "NormalizeReward"])
def test_vector_wrappers_of_gymnasium_run_in_the_default_mode(make_vec, name):
    envs = getattr(vector_wrappers, name)(make_vec())
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(10):
        *_, terminated, _, _ = envs.step(envs.unwrapped.sample_valid_actions(rng))
        ended += terminated.sum()
    assert ended == 6


def test_episodes_of_a_loop_that_ignores_the_mode_have_their_length(make_vec):
    """The loop adds a step to the episode of an environment until one of the flags is True."""
    envs = vector_wrappers.RecordEpisodeStatistics(make_vec())
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    envs.reset(seed=0)
    rng, lengths = np.random.default_rng(0), []
    for _ in range(15):
        *_, infos = envs.step(envs.unwrapped.sample_valid_actions(rng))
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    assert lengths == [4] * 9


def test_numbers_of_numpy_are_settings():
    env = gymnasium.make(ENV, horizon=np.int64(3), host_lr=np.float32(0.5), mask_gates=np.bool_(True))
    task = env.unwrapped.task
    assert (task.horizon, task.host_lr, task.mask_gates) == (3, 0.5, True)
    assert [type(value) for value in (task.horizon, task.host_lr, task.mask_gates)] == [int, float, bool]
    env.close()
    envs = gymnasium.make_vec(
        ENV, num_envs=np.int32(2), max_episode_steps=np.uint8(1), reward_weights={"rent_weight": np.float64(0.0)}
    )
    envs.reset(seed=np.int64(3))
    *_, truncated, infos = envs.step(np.zeros((2, 8), dtype=np.int32))
    assert truncated.tolist() == [True, True]
    assert not infos["committed_measured"].any()
    assert not np.any([infos["test_accuracy"], infos["committed_val_accuracy"]])
    envs.close()


@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
def test_unknown_keyword_is_refused_in_the_words_of_python(make):
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'frameskip'"):
        make(ENV, frameskip=1)


def test_gates_that_are_masked_reject_no_legal_command(make_vec):
    """Every legal action has its effect, and a seed that advances whenever it may reaches HOLDING."""
    envs = make_vec(2, horizon=30)
    observation, infos = envs.reset(seed=0)
    rng, rejected = np.random.default_rng(0), set()
    for step in range(20):
        actions = envs.unwrapped.sample_valid_actions(rng)
        advance = observation["op_slot_mask"].reshape(2, len(Op), 3)[0, Op.ADVANCE, 0]
        actions[0] = [0, 3, 2, 0, 2, 0, 0, Op.GERMINATE if step == 0 else Op.ADVANCE if advance else Op.WAIT]
        observation, *_, infos = envs.step(actions)
        rejected |= set(infos["rejection"].tolist())
        if infos["slot_stage"][0, 0] == Stage.HOLDING:
            break
    assert rejected <= {Rejection.NONE, Rejection.ROLLED_BACK}
    assert infos["slot_stage"][0, 0] == Stage.HOLDING


def test_gates_that_are_not_masked_reject_legal_commands(make_vec):
    envs = make_vec(2, mask_gates=False)
    envs.reset(seed=0)
    germinate = np.array([[0, 3, 2, 1, 2, 0, 0, Op.GERMINATE]] * 2)
    advance = np.array([[0, 3, 2, 1, 2, 0, 0, Op.ADVANCE]] * 2)
    for actions in (germinate, advance, advance):
        *_, infos = envs.step(actions)
    assert infos["action_valid"].all()
    assert not infos["action_succeeded"].any()
    assert infos["rejection"].tolist() == [Rejection.G2_TRAINED_LONG_ENOUGH] * 2
