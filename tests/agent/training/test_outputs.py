"""The files of a run hold the logged values, in the same order in every process, and continue from a saved state."""

import csv
import os

import numpy as np
import pytest
import torch
from esper_agent.sb3 import GymVecEnv, make_sb3_env
from esper_agent.training.outputs import CurvesRecorder, ProgressFile
from esper_agent.vectors import make_vector
from esper_env.rules.heads import Op
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize

NAMES = st.sampled_from(["b", "a/x", "time, s", 'say "c"', "d\ne"])
VALUES = st.none() | st.integers() | st.floats() | st.booleans() | st.text("ab,\"'\n é", min_size=1)
DUMPS = st.lists(st.dictionaries(NAMES, VALUES, min_size=1), max_size=6)


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def put(output, dumps):
    for values in dumps:
        output.write(values, dict.fromkeys(values, ("",)))


def written(values):
    """A dump as text without empty values, because later columns are empty in earlier lines."""
    return {name: str(value) for name, value in values.items() if value is not None}


@given(DUMPS, DUMPS, DUMPS.filter(bool), st.none() | st.binary(max_size=20))
def test_continued_file_equals_uninterrupted_file_and_the_logged_values(tmp_path_factory, before, lost, after, damage):
    """The file between both parts is as it was, or holds other bytes."""
    folder = tmp_path_factory.mktemp("progress")
    whole, first, second = (ProgressFile(folder / name) for name in ("whole.csv", "cut.csv", "cut.csv"))
    put(whole, [*before, *after])
    put(first, before)
    state = first.get_state()
    put(first, lost)
    if damage is not None:
        first.path.write_bytes(damage)
    second.set_state(state)
    np.testing.assert_array_equal(second.get_state()["json"], state["json"])
    put(second, after)
    for output in (whole, first, second):
        output.close()
    lines = [{name: text for name, text in line.items() if text} for line in read(whole.path)]
    assert lines == [written(values) for values in [*before, *after]]
    assert second.path.read_bytes() == whole.path.read_bytes()
    np.testing.assert_array_equal(second.get_state()["json"], whole.get_state()["json"])


def test_numbers_are_written_exactly_unless_excluded(tmp_path):
    output = ProgressFile(tmp_path / "progress.csv")
    values = {"f": np.float32(0.1), "t": torch.tensor(2), "x": 1}
    output.write(values, {"f": ("",), "t": ("stdout",), "x": ("stdout", "csv")})
    assert read(output.path) == [{"f": "0.1", "t": "tensor(2)"}]
    output.close()


def test_kill_while_adding_a_column_keeps_the_lines(tmp_path, monkeypatch):
    output = ProgressFile(tmp_path / "progress.csv")
    put(output, [{"a": 1}])

    def killed(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        put(output, [{"b": 1}])
    assert read(output.path) == [{"a": "1"}]


@pytest.mark.parametrize("during", ["an append", "a replacement"])
def test_full_disk_warns_once_and_keeps_the_lines_in_the_state(tmp_path, during):
    path = tmp_path / "progress.csv"
    output, continued = ProgressFile(path), ProgressFile(path)
    put(output, [{"a": 1}])
    output.close()
    if during == "an append":
        output._file = open("/dev/full", "w")  # noqa: PTH123, SIM115
    else:
        path.unlink()
        path.mkdir()
    with pytest.warns(RuntimeWarning, match=r"progress\.csv cannot be written \(.*training is not affected") as caught:
        put(output, [{"a": 2}, {"a": 3}, {"b": 4}])
    assert len(caught) == 1
    if path.is_dir():
        path.rmdir()
    continued.set_state(output.get_state())
    put(continued, [{"b": 5}])
    assert [row["a"] + row["b"] for row in read(path)] == ["1", "2", "3", "4", "5"]
    continued.close()


def learner(env):
    """Stock PPO whose rollouts of 10 steps end within the toy's episodes of 12."""
    small = {"n_steps": 10, "batch_size": 20, "n_epochs": 1, "seed": 0, "device": "cpu"}
    model = PPO("MultiInputPolicy", env, policy_kwargs={"net_arch": [8]}, **small)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


class Witness(BaseCallback):
    """Records every step's infos."""

    def __init__(self):
        super().__init__()
        self.infos = []

    def _on_step(self):
        self.infos += self.locals["infos"]
        return True


def test_curves_have_one_line_per_episode_and_continue_or_restart_with_training(toy_id, tmp_path):
    witness, curves = Witness(), CurvesRecorder(tmp_path / "deep" / "episodes.csv")
    model = learner(VecNormalize(make_sb3_env(toy_id, num_envs=2, seed=0), norm_obs=False))
    model.learn(40, callback=[curves, witness])
    assert len(read(curves.log.path)) == 2
    model.learn(40, callback=[curves, witness], reset_num_timesteps=False)
    rows = read(curves.log.path)
    assert tuple(rows[0]) == CurvesRecorder.COLUMNS
    assert [int(row["timesteps"]) for row in rows] == [24, 24, 48, 48, 72, 72]
    finals = [info for info in witness.infos if "episode" in info]
    for number, (row, info) in enumerate(zip(rows, finals, strict=True)):
        assert float(row["return"]) == pytest.approx(info["episode"]["r"])  # not normalised
        assert float(row["test_accuracy"]) == info["test_accuracy"]
        assert row["truncated"] == "False"
        episode, env = divmod(number, 2)
        waits = [info["op"] == Op.WAIT for info in witness.infos[24 * episode + env : 24 * (episode + 1) : 2]]
        assert float(row["wait_share"]) == pytest.approx(np.mean(waits))
    model.learn(40, callback=curves)
    assert [row["timesteps"] for row in read(curves.log.path)] == ["24"] * 2
    assert len(curves.log.rows) == 2


def test_truncated_episode_has_no_final_values(tmp_path):
    curves = CurvesRecorder(tmp_path / "episodes.csv")
    model = learner(make_sb3_env("Esper-Digits-v0", 2, seed=0, horizon=9, batches_per_step=1, max_episode_steps=5))
    model.learn(20, callback=curves)
    assert [(row["truncated"], row["length"], row["test_accuracy"]) for row in curves.log.rows] == [(True, 5, None)] * 4


def test_curves_without_a_monitor_are_an_error(toy_id, tmp_path):
    model = learner(GymVecEnv(make_vector(toy_id, 2, AutoresetMode.SAME_STEP)))
    curves = CurvesRecorder(tmp_path / "episodes.csv")
    with pytest.raises(RuntimeError, match="wrap the environment in VecMonitor"):
        model.learn(40, callback=curves)
    curves.log.close()
