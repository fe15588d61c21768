"""Evaluation episodes: independent of batching, with complete records."""

import csv

import gymnasium
import numpy as np
import pytest
import torch
from esper_agent.evaluation.play import run_episodes, write_csv
from esper_agent.policies.baselines import POLICIES, FixedPlanPolicy, RandomPolicy, WaitPolicy
from esper_env.rules.heads import Blueprint, Head, Op


def test_record_equals_a_hand_stepped_episode(toy_id):
    record = run_episodes(FixedPlanPolicy(Blueprint.NORM, 12), toy_id, 1, seed=31)[0]
    env, policy, state = gymnasium.make(toy_id), FixedPlanPolicy(Blueprint.NORM, 12), None
    obs, _ = env.reset(seed=31)
    total, ops, done = 0.0, [], False
    while not done:
        action, state = policy.predict(obs, state)
        obs, reward, done, _, info = env.step(action)
        total += reward
        ops.append(int(action[Head.OP]))
    assert record.episode_return == pytest.approx(total)
    assert record.length == 12
    assert record.op_counts == tuple(np.bincount(ops, minlength=6).tolist())
    assert record.wait_share == pytest.approx(ops.count(0) / 12)
    assert record.test_accuracy == info["test_accuracy"]
    assert record.committed_val_accuracy == info["committed_val_accuracy"]
    assert (record.parameters_added, record.germinated, record.fossilized, record.pruned) == (7, 1, 1, 0)
    assert (record.dataset, record.env_id, record.seed, record.truncated) == ("toy", toy_id, 31, False)


def test_record_counts_successful_actions(toy_id):
    """A prune in the toy fails one epoch after the seed entered its stage."""
    record = run_episodes(RandomPolicy(seed=1), toy_id, 1, seed=5)[0]
    env, policy, state = gymnasium.make(toy_id), RandomPolicy(seed=1), None
    obs, _ = env.reset(seed=5)
    done, tried, succeeded = False, 0, 0
    while not done:
        action, state = policy.predict(obs, state)
        obs, _, done, _, info = env.step(action)
        tried += info["op"] == Op.PRUNE
        succeeded += info["op"] == Op.PRUNE and info["action_succeeded"]
    assert 0 < succeeded < tried
    assert (record.pruned, record.op_counts[Op.PRUNE]) == (succeeded, tried)


@pytest.mark.parametrize("num_envs", [1, 3, 16])
def test_episodes_are_independent_of_num_envs(toy_id, num_envs):
    def run(num_envs):
        return run_episodes(RandomPolicy(seed=2), toy_id, 5, seed=100, num_envs=num_envs)

    assert run(num_envs) == run(4)
    assert [record.seed for record in run(num_envs)] == [100, 101, 102, 103, 104]
    assert [record.episode for record in run(num_envs)] == [0, 1, 2, 3, 4]


class UnevenToy(gymnasium.Wrapper):
    """An episode of 3 + (last digit of the seed) steps."""

    def reset(self, *, seed=None, options=None):
        self.limit, self.steps = 3 + seed % 10, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, _, truncated, info = self.env.step(action)
        self.steps += 1
        over = self.steps >= self.limit
        if over:
            info |= self.env.unwrapped._info(Op.WAIT, True, True, final=True)
        return obs, reward, over, truncated, info


def test_rows_take_the_next_episode_after_unequal_lengths(toy_id):
    gymnasium.register("UnevenToy-v0", entry_point=lambda **kwargs: UnevenToy(gymnasium.make(toy_id, **kwargs)))
    try:
        together = run_episodes(RandomPolicy(seed=2), "UnevenToy-v0", 7, seed=0, num_envs=3)
        alone = run_episodes(RandomPolicy(seed=2), "UnevenToy-v0", 7, seed=0, num_envs=1)
    finally:
        del gymnasium.registry["UnevenToy-v0"]
    assert together == alone
    assert [record.length for record in together] == [3, 4, 5, 6, 7, 8, 9]


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
    run_episodes(policy, toy_id, 4, num_envs=2, deterministic=deterministic)
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


def test_truncated_episode_is_marked(toy_id):
    gymnasium.register("CutToy-v0", entry_point=lambda **kw: CutToy(gymnasium.make(toy_id, **kw)))
    try:
        record = run_episodes(WaitPolicy(), "CutToy-v0", 1)[0]
    finally:
        del gymnasium.registry["CutToy-v0"]
    assert record.truncated
    assert record.length == 1


class CutToy(gymnasium.Wrapper):
    def step(self, action):
        obs, reward, _, _, info = self.env.step(action)
        info |= self.env.unwrapped._info(Op.WAIT, True, True, final=True)
        return obs, reward, False, True, info


def test_every_policy_plays_through_its_factory(toy_id):
    for name, make in POLICIES.items():
        if name == "mlp":  # a seed of Transformers
            continue
        records = run_episodes(lambda env, make=make: make(env, 0), toy_id, 2, name=name)
        assert [record.policy for record in records] == [name, name]
        assert sum(record.invalid_actions for record in records) == 0


def test_fixed_plan_rejects_unavailable_blueprints(toy_id):
    with pytest.raises(ValueError, match="blueprint 'mlp' does not fit a cnn host; expected one of conv_light"):
        run_episodes(lambda env: POLICIES["mlp"](env, 0), toy_id, 2)


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


def test_progress_counts_finished_episodes(toy_id):
    finished = []
    run_episodes(WaitPolicy(), toy_id, 5, num_envs=2, progress=finished.append)
    assert sum(finished) == 5


def test_write_csv_writes_one_line_per_episode(toy_id, tmp_path):
    records = run_episodes(RandomPolicy(), toy_id, 3)
    path = tmp_path / "deep" / "episodes.csv"
    write_csv(records, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["return"]) for row in rows] == [record.episode_return for record in records]
    assert sum(int(rows[0][f"op_{op.name.lower()}"]) for op in Op) == 12
    assert [entry.name for entry in path.parent.iterdir()] == ["episodes.csv"]


def test_write_csv_keeps_the_old_file_after_an_error(toy_id, tmp_path):
    path = tmp_path / "episodes.csv"
    write_csv(run_episodes(WaitPolicy(), toy_id, 1), path)
    kept = path.read_text()

    class Broken:
        def row(self):
            yield "policy"
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_csv([Broken()], path)
    assert path.read_text() == kept
    assert [entry.name for entry in tmp_path.iterdir()] == ["episodes.csv"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"episodes": 0}, "episodes is 0"),
        ({"episodes": 1, "num_envs": 0}, "num_envs is 0"),
        ({"episodes": 1, "seed": -1}, "seed is -1"),
        ({"episodes": 1, "env_id": "Esper-Nowhere-v0"}, "'Esper-Nowhere-v0' is not a registered environment"),
    ],
)
def test_run_episodes_rejects_bad_arguments(toy_id, kwargs, message):
    with pytest.raises(ValueError, match=message):
        run_episodes(WaitPolicy(), **{"env_id": toy_id, **kwargs})


def test_run_episodes_rejects_objects_without_predict(toy_id):
    with pytest.raises(TypeError, match="the policy is a int"):
        run_episodes(3, toy_id, 1)
