"""The policy study and the headroom benchmark: settings, reuse of training runs, and result files."""

import csv
import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tyro
import yaml
from esper_agent.cli.main import BAD_INPUT, FAILED, OK
from esper_agent.settings.config_file import plain
from esper_agent.settings.named_values import ConfigError
from esper_agent.training.run_folder import RunError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ["--env-settings", "horizon=4", "batches_per_step=1", "--episodes", "2", "--baselines", "wait", "--seeds", "0"]
FLAGS = "--train-flags=--num-envs 2 --n-steps 8 --batch-size 16 --n-epochs 1"


def load(script: str):
    spec = importlib.util.spec_from_file_location(Path(script).stem, BENCHMARKS / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "policies"))
    return load("policies/study.py")


@pytest.fixture
def seeds(study):
    return sys.modules[study.train_seeds.__module__]


@pytest.fixture
def settings(study, tmp_path):
    return study.StudySettings(out=tmp_path / "out", runs=tmp_path / "runs", seeds=(0,), total_timesteps=640)


def leave_run(study, settings, *, complete, **changes):
    """Files of a training run of seed 0, without training."""
    folder = study.run_folder(settings, 0)
    folder.mkdir(parents=True)
    config = plain(study.train_settings(settings, 0)) | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for name in ("model.zip", "episodes.csv", *(["complete"] if complete else [])):
        (folder / name).touch()
    return folder


def complete(study, settings):
    return study.is_complete(study.run_folder(settings, 0), study.train_settings(settings, 0))


def test_run_is_complete_only_after_training(study, settings):
    folder = leave_run(study, settings, complete=False)
    assert not complete(study, settings)
    (folder / "complete").touch()
    assert complete(study, settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_timesteps": 999_999}, "total_timesteps 640 instead of 999999"),
        ({"train_flags": "--n-steps 8 --ent-coef 0.02"}, "n_steps 40 instead of 8, ent_coef 0.03 instead of 0.02"),
        ({"env_settings": ("horizon=4",)}, "env_settings {} instead of {'horizon': 4}"),
    ],
)
def test_run_with_other_settings_is_rejected(study, settings, changes, message):
    folder = leave_run(study, settings, complete=False)
    with pytest.raises(RunError, match=f"{message}; give another folder with --runs"):
        complete(study, replace(settings, **changes))
    assert (folder / "model.zip").exists()


@pytest.mark.parametrize("flag", ["--env-settings horizon=4", "--env_settings=horizon=4", "--seed 3", "--no-progress"])
def test_train_flags_reject_flags_of_the_study(study, settings, flag):
    with pytest.raises(
        ConfigError, match=f"train_flags contain {flag.partition(' ')[0].partition('=')[0]}".replace("_", ".")
    ):
        study.train_settings(replace(settings, train_flags=flag), 0)


def test_train_flags_are_split_as_in_a_shell(study, settings):
    flags = "--logit-bias op.WAIT=-1 'op.PRUNE= 2' --n-steps 8"
    wanted = study.train_settings(replace(settings, train_flags=flags, seeds=(3,)), 3)
    assert (wanted.ppo.logit_bias, wanted.ppo.n_steps, wanted.seed) == ({"op.WAIT": -1, "op.PRUNE": 2}, 8, 3000)
    with pytest.raises(ConfigError, match="close every quotation"):
        study.train_settings(replace(settings, train_flags="--logit-bias 'op.WAIT=-1"), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"seeds": (-1,)},
        {"seeds": (1000,)},
        {"episodes": 0},
        {"workers": 0},
        {"baselines": ("wait", "wait")},
        {"baselines": ("learned",)},
    ],
)
def test_study_rejects_bad_settings(settings, changes):
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} (is|are) .*; expected"):
        replace(settings, **changes).checked()


def test_study_rejects_a_run_or_a_file_as_output(settings, tmp_path):
    with pytest.raises(ConfigError, match="folder of a training run"):
        replace(settings, out=settings.runs / "seed-0").checked()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a folder"):
        replace(settings, out=tmp_path / "file" / "out").checked()


def test_study_locks_the_folder_of_runs(study, settings):
    with study.locked(settings.runs), pytest.raises(RunError, match="another study"), study.locked(settings.runs):
        pass
    with study.locked(settings.runs):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "Esper-Nothing-v0"], "not a registered environment"),
        (["--env-settings", "horizont=4"], "did you mean 'horizon'"),
        (["--baselines", "waits"], "did you mean 'wait'"),
    ],
)
def test_study_rejects_bad_input_before_it_writes(study, tmp_path, capsys, arguments, message):
    code = study.main(["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), *arguments])
    assert code == BAD_INPUT
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_study_resumes_and_records_its_results(study, tmp_path, capsys):
    command = [
        "--out",
        str(tmp_path / "out"),
        "--runs",
        str(tmp_path / "runs"),
        *TINY,
        FLAGS,
        "--total-timesteps",
        "32",
    ]
    wanted = tyro.cli(study.StudySettings, args=command)
    stale = leave_run(study, wanted, complete=False) / "stale"
    stale.touch()
    assert study.main(command) == OK
    assert not stale.exists()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [".lock", "seed-0"]

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "out" / "summary.json").read_text(encoding="utf-8")
    summary = json.loads(text, parse_constant=refuse)
    assert summary["estimates"]["return"]["learned"]["low"] is None
    assert summary["training"]["n_steps"] == 8
    assert summary["training"]["env_settings"] == {"horizon": 4, "batches_per_step": 1}
    assert "'--train-flags=--num-envs 2 --n-steps 8 --batch-size 16 --n-epochs 1'" in summary["command"]
    with (tmp_path / "out" / "episodes.csv").open(encoding="utf-8") as file:
        assert {row["length"] for row in csv.DictReader(file)} == {"4"}
    assert "nan" not in capsys.readouterr().out

    report = load("report.py")
    section = report.study(tmp_path / "out")
    assert "1 training run of 32 steps" in section
    assert "so learned cannot be compared with wait." in section
    assert "nan" not in section

    model = tmp_path / "runs" / "seed-0" / "model.zip"
    trained = model.stat().st_mtime_ns
    assert study.main(command) == OK
    assert model.stat().st_mtime_ns == trained
    assert study.main([*command[:-1], "640"]) == BAD_INPUT
    assert "total_timesteps 32 instead of 640" in capsys.readouterr().err
    assert model.stat().st_mtime_ns == trained
    assert (tmp_path / "out" / "summary.json").read_text(encoding="utf-8") == text


def test_study_reports_a_failed_run_after_the_others(study, seeds, settings, monkeypatch, capsys):
    def start(settings, seed, _lock):
        study.run_folder(settings, seed).mkdir(parents=True)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({int(seed == 0)})"])

    monkeypatch.setattr(seeds, "start_training", start)
    with pytest.raises(study.TrainingFailedError, match=r"no model from seed 0 \(exit code 1\)"):
        study.train_seeds(replace(settings, seeds=(0, 1), workers=1), [0, 1], 0)
    assert [(study.run_folder(settings, seed) / "complete").exists() for seed in (0, 1)] == [False, True]
    monkeypatch.setattr(
        study, "study", lambda *_: study.train_seeds(replace(settings, seeds=(0,), runs=settings.out), [0], 0)
    )
    assert study.main(["--out", str(settings.out)]) == FAILED
    assert "Training failed: no model from seed 0" in capsys.readouterr().err


@pytest.mark.parametrize("code", [130, 143])
def test_interrupted_run_ends_the_study(seeds, settings, monkeypatch, code):
    started = []

    def start(_settings, seed, _lock):
        started.append(seed)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])

    monkeypatch.setattr(seeds, "start_training", start)
    with pytest.raises(KeyboardInterrupt):
        seeds.train_seeds(replace(settings, workers=1), [0, 1], 0)
    assert started == [0]


def test_missing_values_are_null_in_json_and_absent_in_tables(study, tmp_path):
    estimate = {"iqm": 0.5, "low": math.nan, "high": math.nan}
    study.write_json({"a": [estimate]}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [{"iqm": 0.5, "low": None, "high": None}]}
    assert study.interval(estimate) == "0.500"
    assert study.number(math.nan, ".1f") == ""
    assert study.mean_where_measured([None, 2.0, 4.0]) == 3.0
    assert math.isnan(study.mean_where_measured([None]))


def test_verdict_compares_the_learned_policy():
    report = load("report.py")
    known, unknown = {"low": 0.1, "high": 0.2}, {"low": None, "high": None}
    assert report.verdict({"wait": known}) == "Learned is better than wait."
    assert report.verdict({"wait": unknown, "random": unknown}).endswith("cannot be compared with wait, random.")
    assert report.verdict({}) == "Learned was compared with no other policy."
    assert report.interval({"iqm": 0.5, "low": None, "high": None}) == "0.500"


@pytest.fixture
def headroom():
    return load("tasks/headroom.py")


@pytest.mark.numeric
def test_headroom_plays_the_requested_episodes(headroom, tmp_path, monkeypatch, capsys):
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
        (["--episodes", "-3"], "episodes is -3; expected at least 1"),
        (["--seed", "-1"], "seed is -1; expected at least 0"),
        (["--plans", "r0c0"], "plan 'r0c0' has 'r0c0'; expected SLOT=BLUEPRINT"),
        (["--plans", "r0c0=norm,r0c0=conv_light"], "each slot once"),
        (["--plans", "", ""], "expected one or more distinct plans"),
        (["--plans", "", "r0c0=conv_heavi"], "plan 'r0c0=conv_heavi': blueprint 'conv_heavi' does not fit"),
        (["--plans", "r9c9=norm"], "names slot 'r9c9'"),
        (["--dataset", "nothing"], "nothing"),
        (["--env", "Esper-Nothing-v0"], "not a registered environment"),
        (["--out", "."], "out is ., a folder; expected the path of a file"),
    ],
)
def test_headroom_rejects_bad_input_before_it_plays(headroom, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(headroom, "measure", lambda *_: pytest.fail("an episode was played"))
    assert headroom.main(["--out", str(tmp_path / "out.json"), *arguments]) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
