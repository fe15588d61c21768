"""Evaluation episodes: independent of batching, with complete records."""

import csv

import gymnasium
import numpy as np
import pytest
import torch
from esper_agent.evaluation.play import run_episodes, write_csv
from esper_agent.policies.baselines import FixedPlanPolicy, RandomPolicy, WaitPolicy
from esper_env.rules.heads import Blueprint, Head, Op


@pytest.mark.parametrize(
    "make", [lambda: FixedPlanPolicy(Blueprint.NORM, 12), lambda: RandomPolicy(seed=1)], ids=["plan", "random"]
)
def test_record_equals_a_hand_stepped_episode(toy_id, make):
    """A prune in the toy fails one epoch after the seed entered its stage."""
    record = run_episodes(make(), toy_id, 1, seed=5)[0]
    env, policy, state = gymnasium.make(toy_id), make(), None
    obs, _ = env.reset(seed=5)
    total, ops, succeeded, done = 0.0, [], [], False
    while not done:
        action, state = policy.predict(obs, state)
        obs, reward, done, _, info = env.step(action)
        total += reward
        ops.append(info["op"])
        succeeded += [info["op"]] * info["action_succeeded"]
    assert record.episode_return == pytest.approx(total)
    assert record.length == 12
    assert record.op_counts == tuple(np.bincount(ops, minlength=6).tolist())
    assert record.wait_share == pytest.approx(ops.count(0) / 12)
    counted = [record.germinated, record.fossilized, record.pruned]
    assert counted == [succeeded.count(op) for op in (Op.GERMINATE, Op.FOSSILIZE, Op.PRUNE)]
    assert record.invalid_actions == 0
    for name in ("test_accuracy", "committed_val_accuracy"):
        assert getattr(record, name) == info[name]
    assert record.parameters_added == info["committed_parameters_added"]
    assert (record.dataset, record.env_id, record.seed, record.truncated) == ("toy", toy_id, 5, False)


@pytest.mark.parametrize("num_envs", [1, 3, 16])
def test_episodes_are_independent_of_num_envs(toy_id, num_envs):
    def run(num_envs):
        return run_episodes(RandomPolicy(seed=2), toy_id, 5, seed=100, num_envs=num_envs)

    assert run(num_envs) == run(4)
    assert [record.seed for record in run(num_envs)] == [100, 101, 102, 103, 104]
    assert [record.episode for record in run(num_envs)] == [0, 1, 2, 3, 4]


class UnevenToy(gymnasium.Wrapper):
    """An episode of 3 + (last digit of the seed) steps, truncated after an even number of steps."""

    def reset(self, *, seed=None, options=None):
        self.limit, self.steps = 3 + seed % 10, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, _, truncated, info = self.env.step(action)
        self.steps += 1
        over = self.steps >= self.limit
        if over:
            info |= self.env.unwrapped._info(Op.WAIT, True, True, final=True)
        cut = over and self.limit % 2 == 0
        return obs, reward, over and not cut, cut or truncated, info


def test_rows_take_the_next_episode_after_unequal_lengths(toy_id):
    gymnasium.register("UnevenToy-v0", entry_point=lambda **kwargs: UnevenToy(gymnasium.make(toy_id, **kwargs)))
    try:
        together = run_episodes(RandomPolicy(seed=2), "UnevenToy-v0", 7, seed=0, num_envs=3)
        alone = run_episodes(RandomPolicy(seed=2), "UnevenToy-v0", 7, seed=0, num_envs=1)
    finally:
        del gymnasium.registry["UnevenToy-v0"]
    assert together == alone
    assert [record.length for record in together] == [3, 4, 5, 6, 7, 8, 9]
    assert [record.truncated for record in together] == [False, True, False, True, False, True, False]


class Remembering:
    """Counts its steps in its state, and records the arguments."""

    def __init__(self):
        self.given = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        counts = np.zeros(len(episode_start)) if state is None else np.where(episode_start, 0, state)
        epochs = np.rint(observation["features"][:, 0] * 12)
        self.given.append((counts.copy(), epochs, deterministic))
        return WaitPolicy().predict(observation)[0], counts + 1


@pytest.mark.parametrize("deterministic", [True, False])
def test_policy_state_is_carried_through_one_episode(toy_id, deterministic):
    policy = Remembering()
    finished = []
    run_episodes(policy, toy_id, 4, num_envs=2, deterministic=deterministic, progress=finished.append)
    assert sum(finished) == 4
    assert len(policy.given) == 24
    for counts, epochs, flag in policy.given:
        np.testing.assert_array_equal(counts, epochs)
        assert flag is deterministic


def test_masked_policy_receives_the_masks(toy_id):
    class Masked(WaitPolicy):
        def predict(self, observation, state=None, episode_start=None, deterministic=True, action_masks=None):
            np.testing.assert_array_equal(action_masks, observation["action_mask"] == 1)
            assert action_masks.dtype == bool
            return super().predict(observation, state, episode_start, deterministic)

    assert len(run_episodes(Masked(), toy_id, 2)) == 2


def test_sampling_policies_repeat_and_keep_the_global_generator(toy_id):
    class Coin(WaitPolicy):
        def predict(self, observation, state=None, episode_start=None, deterministic=True):  # noqa: ARG002
            actions, state = super().predict(observation, state, episode_start)
            actions[:, Head.OP] = torch.randint(0, 2, (len(actions),)).numpy()
            return actions, state

    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    first, second = (run_episodes(Coin(), toy_id, 3, seed=4) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)


def test_write_csv_writes_one_line_per_episode(toy_id, tmp_path):
    records = run_episodes(RandomPolicy(), toy_id, 3)
    path = tmp_path / "deep" / "episodes.csv"
    write_csv(records, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["return"]) for row in rows] == [record.episode_return for record in records]
    assert sum(int(rows[0][f"op_{op.name.lower()}"]) for op in Op) == 12
    assert [entry.name for entry in path.parent.iterdir()] == ["episodes.csv"]
