"""Callbacks: logged values match the steps, and training stops cleanly on Ctrl-C."""

import os
import signal
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from esper_agent.evaluation.play import run_episodes
from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.sb3 import make_sb3_env
from esper_agent.training.callbacks import (
    PeriodicEvaluation,
    SingleThreadedPolicy,
    StopOnInterrupt,
    TrainingMetricsCallback,
    evaluation_means,
)
from esper_env.persistence import read_checkpoint, write_checkpoint
from esper_env.rules.heads import Blueprint, Op
from esper_env.seeds import offered_blueprints
from resuming import StopAt
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecExtractDictObs, VecNormalize


class Witness(BaseCallback):
    """Records every step's infos and every rollout's logged values."""

    def __init__(self):
        super().__init__()
        self.infos, self.rollouts = [], []

    def _on_step(self):
        self.infos += self.locals["infos"]
        return True

    def _on_rollout_end(self):
        self.rollouts.append(dict(self.logger.name_to_value))


def trained(toy_id, callbacks, steps=72, **kwargs):
    settings = {"n_steps": 12, "batch_size": 24, "n_epochs": 1, "seed": 0, "device": "cpu"} | kwargs
    env = make_sb3_env(toy_id, num_envs=2, seed=0)
    model = PPO("MultiInputPolicy", env, policy_kwargs={"net_arch": [8]}, **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(steps, callback=callbacks)
    return model


def test_logged_shares_and_means_match_the_infos(toy_id):
    witness = Witness()
    trained(toy_id, [TrainingMetricsCallback(), witness], steps=48)
    first, second = witness.infos[:24], witness.infos[24:48]
    for infos, logged in ((first, witness.rollouts[0]), (second, witness.rollouts[1])):
        shares = np.bincount([info["op"] for info in infos], minlength=6) / 24
        assert logged["rollout/wait_share"] == pytest.approx(shares[Op.WAIT])
        assert logged["rollout/op_germinate"] == pytest.approx(shares[Op.GERMINATE])
        invalid = np.mean([not info["action_valid"] for info in infos])
        assert logged["rollout/invalid_share"] == pytest.approx(invalid)
        commands = [info for info in infos if info["op"] != Op.WAIT or not info["action_valid"]]
        rejected = sum(not info["action_succeeded"] for info in commands)
        assert logged["rollout/rejected_share"] == pytest.approx(rejected / len(commands))
        assert logged["rollout/rollbacks"] == sum(info["rollback"] for info in infos) > 0
    finals = [info for info in witness.infos if info["committed_measured"]]
    assert len(finals) == 4
    logged = witness.rollouts[1]
    assert logged["rollout/test_accuracy"] == pytest.approx(np.mean([info["test_accuracy"] for info in finals]))
    added = np.mean([info["committed_parameters_added"] for info in finals])
    assert logged["rollout/parameters_added"] == pytest.approx(added)


@pytest.mark.parametrize(
    "wrap", [lambda env: env, lambda env: VecNormalize(env, norm_obs_keys=["features"])], ids=["plain", "normalised"]
)
def test_fossilized_seeds_are_counted_by_blueprint_and_slot(toy_id, monkeypatch, wrap):
    env = make_sb3_env(toy_id, num_envs=8, seed=0)
    toy, fossilized = type(env.venv.vec_env.rows[0].unwrapped), []
    apply, commands = toy._apply, []

    def recorded(self, op, slot, blueprint):
        if op == Op.FOSSILIZE:
            fossilized.append((Blueprint(self.blueprint[slot]).name.lower(), self.slot_ids[slot]))
        apply(self, op, slot, blueprint)

    class Collect(BaseCallback):
        def _on_step(self):
            commands.extend(info for info in self.locals["infos"] if info["op"] != Op.WAIT or not info["action_valid"])
            return True

        def _on_rollout_end(self):
            counted = Counter()
            for blueprint, slot in fossilized:
                counted[f"lifecycle/fossilized_blueprint/{blueprint}"] += 1
                counted[f"lifecycle/fossilized_slot/{slot}"] += 1
            shares.append(np.mean([not info["action_succeeded"] for info in commands]))
            expected.append(counted)
            fossilized.clear()
            commands.clear()

    monkeypatch.setattr(toy, "_apply", recorded)
    expected, shares, witness = [], [], Witness()
    policy = {"logit_bias": {"op": {"WAIT": -2.0, "PRUNE": -1.0}}, "lstm_hidden_size": 8, "features_dim": 8}
    model = FactoredRecurrentPPO(
        "FactoredLstmPolicy", wrap(env), n_steps=30, seed=0, device="cpu", policy_kwargs=policy
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(480, callback=[TrainingMetricsCallback(), Collect(), witness])
    logged = [{name: value for name, value in each.items() if name[:4] == "life"} for each in witness.rollouts]
    names = [f"blueprint/{entry.name}" for entry in offered_blueprints("cnn")] + ["slot/r0c0", "slot/r0c1"]
    zeros = {f"lifecycle/fossilized_{name}": 0 for name in names}
    assert logged == [zeros | counted for counted in expected]
    assert all(sum(counted.values()) > 4 for counted in expected)
    assert [each["rollout/rejected_share"] for each in witness.rollouts] == pytest.approx(shares)
    assert max(shares) > 0


def test_counts_of_an_interrupted_rollout_survive_a_checkpoint(toy_id, tmp_path):
    """The rollout has fossilized seeds, whose counts have "/" in their names."""
    metrics, stop = TrainingMetricsCallback(), StopAt(100)
    policy = {"logit_bias": {"op": {"WAIT": -2.0, "PRUNE": -1.0}}, "lstm_hidden_size": 8, "features_dim": 8}
    env = make_sb3_env(toy_id, num_envs=4, seed=0)
    model = FactoredRecurrentPPO("FactoredLstmPolicy", env, n_steps=60, seed=0, device="cpu", policy_kwargs=policy)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(240, callback=[metrics, stop])
    assert sum(count for name, count in metrics._counts.items() if name.startswith("fossilized_slot/")) > 0
    path = write_checkpoint(tmp_path / "counts", {"metrics": metrics.get_state()}, kind="test")
    restored = TrainingMetricsCallback()
    restored.set_state(read_checkpoint(path, kind="test")["metrics"])
    assert restored._counts == metrics._counts
    assert restored._op_counts.tolist() == metrics._op_counts.tolist()


def test_metrics_need_no_space_of_the_environment(toy_id):
    env, witness = VecExtractDictObs(make_sb3_env(toy_id, num_envs=2, seed=0), "features"), Witness()
    model = PPO("MlpPolicy", env, n_steps=12, batch_size=24, n_epochs=1, seed=0, device="cpu")
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(24, callback=[TrainingMetricsCallback(), witness])
    assert "rollout/wait_share" in witness.rollouts[0]
    assert "lifecycle/fossilized_slot/r0c0" in witness.rollouts[0]


def test_evaluation_plays_the_greedy_policy_on_the_same_held_out_episodes(toy_id):
    evaluation, witness = PeriodicEvaluation(toy_id, every=40, episodes=3, seed=500), Witness()
    model = trained(toy_id, [evaluation, witness], steps=96, learning_rate=0.0)
    assert ["eval/wait_share" in logged for logged in witness.rollouts] == [False, True, False, True]
    records = run_episodes(model, toy_id, 3, seed=500)
    means = evaluation_means(records)
    for name in ("mean_reward", "wait_share", "test_accuracy", "parameters_added"):
        assert witness.rollouts[-1][f"eval/{name}"] == pytest.approx(means[name])
    assert [record.seed for record in evaluation.records] == [500, 501, 502]


def test_evaluation_rejects_an_interval_of_zero(toy_id):
    with pytest.raises(ValueError, match="`every` is 0"):
        PeriodicEvaluation(toy_id, every=0, episodes=1, seed=0)


class InterruptAt(BaseCallback):
    def __init__(self, *timesteps):
        super().__init__()
        self.timesteps = timesteps

    number = signal.SIGINT

    def _on_step(self):
        if self.num_timesteps in self.timesteps:
            os.kill(os.getpid(), self.number)
        return True


@pytest.fixture(autouse=True)
def interrupts_arrive():
    """Handle SIGINT, which a process in the background of a shell ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_training_at_the_next_step(toy_id, number):
    sender, before = InterruptAt(10), signal.getsignal(signal.SIGTERM)
    sender.number = number
    with StopOnInterrupt() as stop:
        model = trained(toy_id, [sender, stop])
    assert (stop.interrupted, stop.signal) == (True, number)
    assert model.num_timesteps == 10
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is before


def test_interrupt_aborts_a_running_evaluation(toy_id):
    with StopOnInterrupt() as stop:
        evaluation = PeriodicEvaluation(toy_id, every=24, episodes=1000, seed=0, stop=stop)
        model = trained(toy_id, [stop, InterruptAt(24), evaluation])
    assert model.num_timesteps == 26
    assert evaluation.records == []


@pytest.mark.parametrize("second", StopOnInterrupt.SIGNALS)
def test_second_interrupt_raises_at_once_with_its_number(second):
    with StopOnInterrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.interrupted
        with pytest.raises(KeyboardInterrupt) as caught:
            os.kill(os.getpid(), second)
    assert caught.value.signal == second
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_handlers_stay_unchanged_outside_the_main_thread():
    before, seen = signal.getsignal(signal.SIGINT), []

    def enter():
        with StopOnInterrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    worker = threading.Thread(target=enter)
    worker.start()
    worker.join()
    assert seen == [before]


def test_policy_trains_on_one_thread_and_restores_the_thread_count(toy_id):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []

    class Look(BaseCallback):
        def _on_step(self):
            seen.append(torch.get_num_threads())
            return True

    try:
        trained(toy_id, [SingleThreadedPolicy(), Look()], steps=24)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
