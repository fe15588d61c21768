"""Runs on a custom text: evaluated and resumed from any folder, with a note if the text differs."""

import json
import shutil

import pytest
import yaml
from command_line import bad, text_of
from esper_agent.cli.main import OK, main
from esper_agent.settings.named_values import parse_assignments
from esper_agent.settings.train import absolute_paths
from esper_agent.training.run import train
from esper_env.data import DataFamily, load_data
from resuming import ROLLOUT, Crash, small_settings

TEXT = "Esper-Text-v0"
TINY = ["horizon=2", "batches_per_step=1", "batch_size=2", "device=cpu"]
SMALLEST = ["--num-envs", "1", "--n-steps", "4", "--batch-size", "4", "--total-timesteps", "4", "--no-progress"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a text, book.txt, and a run on its relative path."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "book.txt").write_text("It was a bright cold day in April.\n" * 60, encoding="utf-8")
    arguments = ["train", "--env", TEXT, "--out", "run", "--device", "cpu", *SMALLEST]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*arguments, "--env-settings", "dataset=book.txt", *TINY]) == OK
    return folder


def evaluated(run, capsys, *more):
    assert main(["evaluate", "--policy", str(run), "--env", TEXT, "--episodes", "1", *more]) == OK
    return text_of(capsys)[0]


def test_run_records_absolute_path_and_digest(trained):
    path = str(trained / "book.txt")
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    task = json.loads((trained / "run" / "task.json").read_text())
    assert config["env_settings"] == {"dataset": path} | parse_assignments(TINY)
    assert (task["dataset"], task["dataset_name"]) == (path, "text:book.txt")
    assert task["data_digest"] == load_data(path, family=DataFamily.TEXT).digest


def test_evaluate_from_another_folder_uses_the_text_of_the_run(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "book.txt").write_text("all of it is other\n" * 100, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    out = evaluated(trained / "run", capsys)
    assert f"dataset={trained / 'book.txt'}" in "".join(out.split())
    assert "other data" not in out


def test_evaluate_notes_a_different_text(trained, tmp_path, capsys):
    other = tmp_path / "book.txt"
    other.write_text("all of it is other\n" * 100, encoding="utf-8")
    digests = [load_data(str(folder / "book.txt"), family=DataFamily.TEXT).digest[:8] for folder in (trained, tmp_path)]
    said = "was trained on other data: text:book.txt with the digest {}, here it is text:book.txt with {}"
    run, settings = trained / "run", ["--env-settings", f"dataset={other}"]
    out = evaluated(run, capsys, *settings)
    assert f"Note: {run} {said.format(*digests)}\n" in out
    assert f"settings of the run: {' '.join(TINY)}; given here: dataset={other}\n" in out
    assert str(trained / "book.txt") not in out
    benchmark = ["benchmark", "--env", TEXT, "--policies", str(run), "wait", "--episodes", "1"]
    assert main([*benchmark, "--out", str(tmp_path / "b"), *settings, *TINY]) == OK
    assert text_of(capsys)[0].count(said.format(*digests)) == 1


def test_evaluate_names_a_moved_text_with_the_remedy(trained, tmp_path, capsys):
    run, moved = shutil.copytree(trained / "run", tmp_path / "run"), tmp_path / "moved.txt"
    shutil.copy(trained / "book.txt", moved)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["env_settings"]["dataset"] = str(tmp_path / "gone.txt")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    err = bad(["evaluate", "--policy", str(run), "--episodes", "1"], capsys)
    assert f"no longer at {tmp_path / 'gone.txt'}; give its new path with --env-settings dataset=NEWPATH\n" in err
    assert "other data" not in evaluated(run, capsys, "--env-settings", f"dataset={moved}")


@pytest.mark.parametrize("task", ["{}", "damaged"])
def test_evaluate_plays_a_run_without_recorded_data(trained, tmp_path, capsys, task):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    (run / "task.json").write_text(task)
    assert "other data" not in evaluated(run, capsys)


def test_resume_works_from_another_folder(trained, tmp_path, monkeypatch, capsys):
    settings = small_settings(tmp_path / "r", TEXT, ("dataset=book.txt", *TINY), total_timesteps=2 * ROLLOUT)
    monkeypatch.chdir(trained)
    with pytest.raises(Crash.Killed):
        train(settings, [Crash(ROLLOUT + 1)])
    (tmp_path / "w").mkdir()
    monkeypatch.chdir(tmp_path / "w")
    assert main(["train", "--resume", str(tmp_path / "r"), "--no-progress"]) == OK
    assert f"Trained for {2 * ROLLOUT} timesteps, resumed from {ROLLOUT}" in text_of(capsys)[0]


@pytest.mark.parametrize(
    ("env_id", "given", "changed"),
    [
        (TEXT, {"dataset": "grammar", "horizon": 3}, {}),
        (TEXT, {"dataset": 3}, {}),
        (TEXT, {"dataset": "~/a.txt"}, {"dataset": "/somebody/a.txt"}),
        ("Esper-CIFAR-v0", {"dataset": "cifar10", "data_dir": "data"}, {"data_dir": "{here}/data"}),
        ("Esper-CIFAR-v0", {"data_dir": ""}, {}),
        ("Acrobot-v1", {"dataset": "book.txt"}, {}),
    ],
)
def test_only_paths_become_absolute(tmp_path, monkeypatch, env_id, given, changed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somebody")
    expected = given | {name: path.format(here=tmp_path) for name, path in changed.items()}
    assert absolute_paths(env_id, given) == expected
