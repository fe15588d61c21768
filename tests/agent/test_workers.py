"""Training and evaluation with worker processes equal those in one process, bit for bit in equal shards."""

import pytest
import yaml
from esper_agent.cli.main import main, parse
from esper_agent.evaluation.play import run_episodes
from esper_agent.policies.heuristic import HeuristicPolicy
from esper_agent.sb3 import make_sb3_env
from esper_agent.settings.named_values import ConfigError
from esper_agent.training.run import resume, train
from esper_agent.vectors import spread_over
from esper_env.workers import resolve_workers
from resuming import NUM_ENVS, REAL, ROLLOUT, Crash, differences, small_settings

TASK, SETTINGS = REAL
#: Of the worker's vectors with ``NUM_ENVS`` environments.
SHARDS = (*SETTINGS, f"shard_size={NUM_ENVS // 2}")


@pytest.mark.slow
def test_killed_run_with_workers_resumes_bit_for_bit_and_equals_one_process(tmp_path):
    evaluated = {"eval_every": 3 * ROLLOUT, "eval_episodes": NUM_ENVS, "total_timesteps": 4 * ROLLOUT}
    whole = train(small_settings(tmp_path / "whole", TASK, SHARDS, **evaluated))
    with pytest.raises(Crash.Killed):
        train(small_settings(tmp_path / "killed", TASK, SETTINGS, workers=2, **evaluated), [Crash(3 * ROLLOUT + 1)])
    resumed = resume(tmp_path / "killed", progress=False)
    assert resumed.resumed_from == 3 * ROLLOUT
    assert differences(resumed.folder, whole.folder) == []


@pytest.mark.slow
def test_heuristic_plays_equal_episodes_with_workers():
    settings = {"horizon": 25, "batches_per_step": 2, "device": "cpu"}
    play = [
        run_episodes(HeuristicPolicy.for_env, TASK, 4, seed=5, env_kwargs=settings | shards, workers=workers)
        for shards, workers in (({}, 2), ({"shard_size": 2}, 1))
    ]
    assert play[0] == play[1]
    assert any(record.germinated for record in play[0])


def test_adapter_takes_workers():
    env = make_sb3_env(TASK, 2, seed=0, workers=2, horizon=5, batches_per_step=2)
    try:
        assert env.get_attr("workers") == [2, 2]
        env.reset()
        _, _, _, infos = env.step(env.action_space.sample()[None].repeat(2, axis=0))
        assert [int(info["op"] >= 0) for info in infos] == [1, 1]
    finally:
        env.close()


def test_automatic_number_of_workers_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("esper_env.workers.available_cores", lambda: 1)
    train(small_settings(tmp_path / "run", TASK, SETTINGS, workers="auto", total_timesteps=ROLLOUT))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["workers"] == 1
    assert resolve_workers("auto", 9, "cpu") == 1


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [(["train", "--out", "x"], "2", 2), (["evaluate", "--policy", "wait"], "auto", "auto")],
    ids=["train", "evaluate"],
)
def test_commands_take_a_number_or_auto(command, given, expected):
    assert parse([*command, "--workers", given]).workers == expected
    assert parse(command).workers == 1


@pytest.mark.parametrize("value", ["0", "1.5", "many"])
def test_commands_reject_other_numbers(value):
    with pytest.raises(ConfigError, match=f"--workers is '{value}'; expected a positive integer or 'auto'"):
        parse(["benchmark", "--policies", "wait", "--out", "x", "--workers", value])


def test_more_workers_than_environments_are_rejected_before_training(tmp_path, capsys):
    code = main(["train", "--out", str(tmp_path / "run"), "--num-envs", "2", "--workers", "3", "--no-progress"])
    assert code == 2
    assert "`workers` is 3, for 2 environments; expected at most one for each" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluation_uses_at_most_one_worker_for_each_episode():
    assert spread_over(8, 3) == {"workers": 3}
    assert spread_over("auto", 3) == {"workers": "auto"}
    assert spread_over(1, 3) == {}


def test_environment_settings_have_no_workers(tmp_path):
    with pytest.raises(ConfigError, match="`env_settings` has 'workers', which is not a setting of the environment"):
        train(small_settings(tmp_path / "run", TASK, {"workers": 2}))
