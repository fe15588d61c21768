"""The policy study and the headroom benchmark: settings, reuse of training runs, and result files."""

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import headroom
import pytest
import report
import rows
import study
import tyro
import yaml
from esper_agent.cli.main import BAD_INPUT, FAILED, OK
from esper_agent.settings.config_file import plain
from esper_agent.settings.named_values import ConfigError
from esper_agent.training.run_folder import RunError

TINY = ["--env-settings", "horizon=4", "batches_per_step=1", "--episodes", "2", "--baselines", "wait", "--seeds", "0"]
FLAGS = "--train-flags=--num-envs 2 --n-steps 8 --batch-size 16 --n-epochs 1"


@pytest.fixture
def settings(tmp_path):
    return study.StudySettings(out=tmp_path / "out", runs=tmp_path / "runs", seeds=(0,), total_timesteps=640)


def leave_run(settings):
    """Files of a training run of seed 0 that did not complete."""
    folder = study.run_folder(settings, 0)
    folder.mkdir(parents=True)
    config = plain(study.train_settings(settings, 0))
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for name in ("model.zip", "episodes.csv"):
        (folder / name).touch()
    return folder


def test_run_is_complete_only_after_training_with_the_same_settings(settings):
    folder = leave_run(settings)

    def complete(**changes):
        return study.is_complete(folder, study.train_settings(replace(settings, **changes), 0))

    assert not complete()
    (folder / "complete").touch()
    assert complete()
    for changes, message in (
        ({"total_timesteps": 999_999}, "total_timesteps 640 instead of 999999"),
        ({"train_flags": "--n-steps 8 --ent-coef 0.02"}, "n_steps 40 instead of 8, ent_coef 0.03 instead of 0.02"),
        ({"env_settings": ("horizon=4",)}, "env_settings {} instead of {'horizon': 4}"),
    ):
        with pytest.raises(RunError, match=f"{message}; give another folder with --runs"):
            complete(**changes)


def test_train_flags_are_split_as_in_a_shell(settings):
    flags = "--logit-bias op.WAIT=-1 'op.PRUNE= 2' --n-steps 8"
    wanted = study.train_settings(replace(settings, train_flags=flags, seeds=(3,)), 3)
    assert (wanted.ppo.logit_bias, wanted.ppo.n_steps, wanted.seed) == ({"op.WAIT": -1, "op.PRUNE": 2}, 8, 3000)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--logit-bias 'op.WAIT=-1", "close all quotation marks"),
        ("--env-settings horizon=4", "contain --env-settings, which the study sets"),
        ("--env_settings=horizon=4", "contain --env-settings, which the study sets"),
        ("--seed 3", "contain --seed, which the study sets"),
    ],
)
def test_train_flags_reject_flags_of_the_study(settings, flags, message):
    with pytest.raises(ConfigError, match=message):
        study.train_settings(replace(settings, train_flags=flags), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, r"`seeds` is \[\]; expected distinct numbers"),
        ({"seeds": (1, 1)}, "expected distinct numbers"),
        ({"seeds": (1000,)}, "from 0 to 999"),
        ({"episodes": 0}, "`episodes` is 0; expected a positive integer"),
        ({"baselines": ("wait", "wait")}, "`baselines` is .*; expected distinct names"),
        ({"baselines": ("learned",)}, "other than learned"),
        ({"runs": Path("runs"), "out": Path("runs/seed-0")}, "`out` is runs/seed-0, the folder of a training run"),
        ({"out": Path("/dev/null/out")}, "the folder /dev/null/out cannot be written to: Not a directory"),
    ],
)
def test_study_rejects_bad_settings(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(settings, **changes).checked()


def test_study_locks_the_folder_of_runs(settings):
    with study.locked(settings.runs), pytest.raises(RunError, match="another study"), study.locked(settings.runs):
        pass
    with study.locked(settings.runs):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "Esper-Nothing-v0"], "not a registered environment"),
        (["--baselines", "waits"], "did you mean 'wait'"),
    ],
)
def test_study_rejects_bad_input_before_it_writes(tmp_path, capsys, arguments, message):
    code = study.main(["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), *arguments])
    assert code == BAD_INPUT
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_study_resumes_and_records_its_results(tmp_path, capsys, monkeypatch):
    out, runs = tmp_path / "out", tmp_path / "runs"
    command = ["--out", str(out), "--runs", str(runs), *TINY, FLAGS, "--total-timesteps", "32"]
    stale = leave_run(tyro.cli(study.StudySettings, args=command)) / "stale"
    stale.touch()
    assert study.main(command) == OK
    assert not stale.exists()
    assert sorted(path.name for path in runs.iterdir()) == [".lock", "seed-0"]

    text = (out / "summary.json").read_text(encoding="utf-8")
    summary = json.loads(text)
    assert "NaN" not in text
    assert summary["estimates"]["return"]["learned"]["low"] is None
    assert summary["training"]["n_steps"] == 8
    assert summary["training"]["env_settings"] == {"horizon": 4, "batches_per_step": 1}
    assert "'--train-flags=--num-envs 2 --n-steps 8 --batch-size 16 --n-epochs 1'" in summary["command"]
    with (out / "episodes.csv").open(encoding="utf-8") as file:
        assert {row["length"] for row in csv.DictReader(file)} == {"4"}
    assert "nan" not in capsys.readouterr().out

    section = report.study(out)
    assert "1 training run of 32 steps" in section
    assert "so learned cannot be compared with wait." in section
    assert "nan" not in section

    def trained_again(_settings, missing, _lock):
        raise study.TrainingFailedError(f"asked for {missing}")

    monkeypatch.setattr(study, "train_seeds", trained_again)
    assert study.main(command) == FAILED
    assert "asked for []" in capsys.readouterr().err
    assert study.main([*command[:-1], "640"]) == BAD_INPUT
    assert "total_timesteps 32 instead of 640" in capsys.readouterr().err
    assert (out / "summary.json").read_text(encoding="utf-8") == text


def exits(codes, started):
    """Stand-in for ``start_training``: a process for each seed, which exits with its code."""

    def start(settings, seed, _lock):
        started.append(seed)
        (settings.runs / f"seed-{seed}").mkdir(parents=True)
        return subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({codes[seed]})"])

    return start


def test_study_reports_a_failed_run_after_the_others(settings, monkeypatch, capsys):
    monkeypatch.setattr("seeds.start_training", exits([1, 0], []))
    with pytest.raises(study.TrainingFailedError, match=r"no model from seed 0 \(exit code 1\)") as failed:
        study.train_seeds(replace(settings, workers=1), [0, 1], 0)
    assert [(study.run_folder(settings, seed) / "complete").exists() for seed in (0, 1)] == [False, True]

    def fails(*_):
        raise failed.value

    monkeypatch.setattr(study, "study", fails)
    assert study.main(["--out", str(settings.out)]) == FAILED
    assert "Training failed: no model from seed 0" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "name"), [(130, "SIGINT"), (143, "SIGTERM")])
def test_interrupted_run_ends_the_study_and_is_named(settings, monkeypatch, capsys, code, name):
    started = []
    monkeypatch.setattr("seeds.start_training", exits([code, 0], started))
    with pytest.raises(KeyboardInterrupt, match=f"^{name} stopped the training of seed 0$") as interrupted:
        study.train_seeds(replace(settings, workers=1), [0, 1], 0)
    assert started == [0]

    def stops(*_):
        raise interrupted.value

    monkeypatch.setattr(study, "study", stops)
    assert study.main(["--out", str(settings.out)]) == code
    assert capsys.readouterr().err.endswith(
        f"Interrupted: {name} stopped the training of seed 0; repeat the command to resume with the complete runs\n"
    )


@pytest.mark.parametrize("missing", [None, math.nan])
def test_missing_values_are_absent_in_tables(missing):
    assert rows.interval({"iqm": 0.5, "low": missing, "high": missing}) == "0.500"
    assert rows.interval({"iqm": 0.5, "low": 0.4, "high": 0.6}) == "0.500 [0.400, 0.600]"
    assert rows.number(missing, ".1f") == ""
    assert study.mean_where_measured([None, 2.0, 4.0]) == 3.0
    assert math.isnan(study.mean_where_measured([None]))


def test_verdict_compares_the_learned_policy():
    known, unknown = {"low": 0.1, "high": 0.2}, {"low": None, "high": None}
    others = {"wait": known, "random": {"low": -0.1, "high": 0.1}, "heuristic": {"low": -0.2, "high": -0.1}}
    expected = "Learned is better than wait; worse than heuristic; indistinguishable from random."
    assert report.verdict(others) == expected
    assert report.verdict({"wait": unknown, "random": unknown}).endswith("cannot be compared with wait, random.")
    assert report.verdict({}) == "Learned was compared with no other policy."


@pytest.mark.numeric
def test_headroom_plays_the_requested_episodes(tmp_path, monkeypatch, capsys):
    made, quick = headroom.make_vector, {"horizon": 4, "batches_per_step": 1, "shard_size": 1}
    monkeypatch.setattr(headroom, "make_vector", lambda *a, **k: made(*a, **k, **quick))
    contents = {}
    for at_once in (2, 3):
        monkeypatch.setattr(headroom, "AT_ONCE", at_once)
        out = tmp_path / f"{at_once}.json"
        assert headroom.main(["--out", str(out), "--episodes", "3", "--plans", "", "r0c0=norm,r0c1=norm"]) == OK
        contents[at_once] = json.loads(out.read_text(encoding="utf-8"))
    assert [row["episodes"] for row in contents[2]["plans"].values()] == [3, 3]
    assert list(contents[2]["plans"]) == ["host alone", "r0c0=norm,r0c1=norm"]
    for name, row in contents[2]["plans"].items():  # the batch size does not change the episodes
        assert row["test_accuracy_mean"] == pytest.approx(contents[3]["plans"][name]["test_accuracy_mean"])
        assert row["val_accuracy_curve"] == pytest.approx(contents[3]["plans"][name]["val_accuracy_curve"])
    assert contents[2]["command"].endswith("--plans '' r0c0=norm,r0c1=norm")
    assert "3 episodes each" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "-3"], "--episodes is '-3'; expected a positive integer"),
        (["--seed", "-1"], "--seed is '-1'; expected an integer in [0, 4294967295]"),
        (["--plans", "r0c0"], "plan 'r0c0' has 'r0c0'; expected SLOT=BLUEPRINT"),
        (["--plans", "r0c0=norm,r0c0=conv_light"], "each slot once"),
        (["--plans", "", ""], "expected one or more distinct plans"),
        (["--plans", "", "r0c0=conv_heavi"], "plan 'r0c0=conv_heavi': blueprint 'conv_heavi' does not fit"),
        (["--plans", "r9c9=norm"], "names slot 'r9c9'"),
        (["--dataset", "nothing"], "nothing"),
        (["--out", "."], "`out`: '.' is a folder; expected the path of a file"),
    ],
)
def test_headroom_rejects_bad_input_before_it_plays(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(headroom, "measure", lambda *_: pytest.fail("an episode was played"))
    assert headroom.main(["--out", str(tmp_path / "out.json"), *arguments]) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
