"""Callbacks: logged values match the steps, and training stops cleanly on Ctrl-C."""

import csv
import os
import signal
import threading

import numpy as np
import pytest
import torch
from esper_agent.evaluation.play import run_episodes
from esper_agent.sb3 import GymVecEnv, make_sb3_env
from esper_agent.training.callbacks import (
    CURVE_COLUMNS,
    CurvesRecorder,
    PeriodicEvaluation,
    SingleThreadedPolicy,
    StopOnInterrupt,
    TrainingMetricsCallback,
    evaluation_means,
)
from esper_agent.vectors import make_vector
from esper_env.rules.heads import Op
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize


def small_ppo(env, **kwargs):
    settings = {"n_steps": 12, "batch_size": 24, "n_epochs": 1, "seed": 0, "device": "cpu"} | kwargs
    return PPO("MultiInputPolicy", env, policy_kwargs={"net_arch": [8]}, **settings)


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


def trained(toy_id, callbacks, steps=72, wrap=lambda env: env, **kwargs):
    model = small_ppo(wrap(make_sb3_env(toy_id, num_envs=2, seed=0)), **kwargs)
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
        assert logged["rollout/rollbacks"] == sum(info["rollback"] for info in infos) > 0
    finals = [info for info in witness.infos if "test_accuracy" in info]
    assert len(finals) == 4
    logged = witness.rollouts[1]
    assert logged["rollout/test_accuracy"] == pytest.approx(np.mean([info["test_accuracy"] for info in finals]))
    added = np.mean([info["committed_parameters_added"] for info in finals])
    assert logged["rollout/parameters_added"] == pytest.approx(added)


def test_curves_have_one_line_per_episode_in_unnormalised_units(toy_id, tmp_path):
    witness, curves = Witness(), CurvesRecorder(tmp_path / "deep" / "episodes.csv")
    trained(toy_id, [curves, witness], wrap=lambda env: VecNormalize(env, norm_obs=False))
    with curves.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CURVE_COLUMNS
    assert len(rows) == len(curves.rows) == 6
    assert [int(row["timesteps"]) for row in rows] == [24, 24, 48, 48, 72, 72]
    finals = [info for info in witness.infos if "episode" in info]
    for row, info in zip(rows, finals, strict=True):
        assert float(row["return"]) == pytest.approx(info["episode"]["r"])
        assert float(row["test_accuracy"]) == info["test_accuracy"]
        assert row["truncated"] == "False"
    for episode in range(3):
        waits = [info["op"] == Op.WAIT for info in witness.infos[24 * episode : 24 * (episode + 1) : 2]]
        assert float(rows[2 * episode]["wait_share"]) == pytest.approx(np.mean(waits))


def test_curves_are_on_disk_during_training(toy_id, tmp_path):
    curves = CurvesRecorder(tmp_path / "episodes.csv")

    class Killed(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 26:
                raise KeyboardInterrupt
            return True

    with pytest.raises(KeyboardInterrupt):
        trained(toy_id, [curves, Killed()])
    assert len(curves.path.read_text().splitlines()) == 3
    curves.close()


def test_full_disk_stops_the_curves_but_not_training(toy_id, tmp_path):
    (tmp_path / "episodes.csv").symlink_to("/dev/full")
    curves = CurvesRecorder(tmp_path / "episodes.csv")
    with pytest.warns(RuntimeWarning, match=r"episodes\.csv cannot be written \(No space left on device\)"):
        model = trained(toy_id, curves)
    assert model.num_timesteps == 72
    assert len(curves.rows) == 6


def test_truncated_episode_reports_no_final_values(tmp_path):
    witness, curves = Witness(), CurvesRecorder(tmp_path / "episodes.csv")
    model = small_ppo(make_sb3_env("Esper-Digits-v0", 2, seed=0, horizon=9, batches_per_step=1, max_episode_steps=4))
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(24, callback=[TrainingMetricsCallback(), curves, witness])
    assert [(row["truncated"], row["length"], row["test_accuracy"]) for row in curves.rows] == [(True, 4, None)] * 6
    assert "rollout/wait_share" in witness.rollouts[0]
    assert "rollout/test_accuracy" not in witness.rollouts[0]


def test_curves_without_a_monitor_are_an_error(toy_id, tmp_path):
    model = small_ppo(GymVecEnv(make_vector(toy_id, 2, AutoresetMode.SAME_STEP)))
    # SB3 sets model._logger up itself when none is given.
    curves = CurvesRecorder(tmp_path / "episodes.csv")
    with pytest.raises(RuntimeError, match="wrap the environment in VecMonitor"):
        model.learn(24, callback=curves)
    curves.close()


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
    with pytest.raises(ValueError, match="every is 0"):
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


def test_second_interrupt_raises_at_once():
    with StopOnInterrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.interrupted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
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
