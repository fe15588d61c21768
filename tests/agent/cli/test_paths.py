"""Paths of the command: one rule for ``~``, and outputs that cannot be written are found before anything is played."""

import errno
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from command_line import SMALL, bad, text_of
from esper_agent import TrainSettings, load_run, make_sb3_env, resume, train
from esper_agent.cli.main import BAD_INPUT, OK, main
from esper_agent.demo import main as demo_main
from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.settings.config_file import read_config
from esper_agent.training.run_folder import PolicyByName
from resuming import Crash, small_settings


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder; the current folder is another one and stays empty."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    yield home
    assert list(here.iterdir()) == []


def test_flags_expand_the_home_folder(home, toy_id, capsys):
    (home / "c.yaml").write_text(f"env: {toy_id}\nout: ~/runs/a\n")
    assert main(["train", "--config=~/c.yaml", *SMALL]) == OK
    assert yaml.safe_load((home / "runs/a/config.yaml").read_text())["out"] == str(home / "runs/a")
    assert main(["evaluate", "--policy=~/runs/a", "--episodes", "1", "--json=~/e.json"]) == OK
    assert main(["benchmark", "--policies", "~/runs/a", "wait", "--episodes", "1", "--out=~/b"]) == OK
    assert demo_main(["--out=~/demo", "--env", toy_id, "--episodes", "1", "--total-timesteps", "640"]) == OK
    assert " timesteps/s, " in text_of(capsys)[0]
    assert "is finished" in bad(["train", "--resume=~/runs/a"], capsys)
    assert {path.name for path in home.iterdir()} == {"c.yaml", "runs", "e.json", "b", "demo"}


def test_python_interface_expands_the_home_folder(home, toy_id):
    settings = small_settings("~/run", toy_id)
    with pytest.raises(Crash.Killed):
        train(settings, [Crash(30)])
    assert resume("~/run", progress=False).folder == home / "run"
    assert load_run("~/run").path == home / "run"
    assert PolicyByName("~/run", toy_id).is_run
    assert read_config("~/run/config.yaml")["out"] == str(home / "run")
    assert FactoredRecurrentPPO.load("~/run/model.zip", device="cpu").num_timesteps == 72
    make_sb3_env(toy_id, monitor_file="~/monitor.csv").close()
    assert {path.name for path in home.iterdir()} == {"run", "monitor.csv"}


NOT_UTF8 = "bad\udce9"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--out", NOT_UTF8],
        ["train", "--resume", NOT_UTF8],
        ["train", "--out", "x", "--config", NOT_UTF8],
        ["train", "--out", "x", "--env", "Esper-Text-v0", "--env-settings", f"dataset={NOT_UTF8}"],
        ["evaluate", "--policy", "wait", "--json", NOT_UTF8],
        ["evaluate", "--policy", NOT_UTF8],
        ["benchmark", "--policies", "wait", "--out", NOT_UTF8],
        ["data", "list", "--data-dir", NOT_UTF8],
        ["data", "fetch", "cifar10", "--data-dir", NOT_UTF8],
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_path_that_is_not_utf8_is_rejected_before_anything_is_made(home, arguments, capsys):
    err = bad(arguments, capsys)
    assert "bad" in err
    assert "is not UTF-8 text" in err
    assert err.count("\n") == 1
    assert list(home.iterdir()) == []


def test_demo_rejects_path_that_is_not_utf8(home, capsys):
    assert demo_main(["--out", NOT_UTF8]) == BAD_INPUT
    assert text_of(capsys)[1].startswith("Error: the path 'bad")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--out", ""],
        ["train", "--out="],
        ["train", "--resume", ""],
        ["train", "--out", "x", "--config", ""],
        ["train", "--config", "{config}"],
        ["train", "--out", "x", "--env", "Esper-Text-v0", "--env-settings", "dataset=''"],
        ["train", "--out", "x", "--env-settings", "data_dir=''"],
        ["evaluate", "--policy", "wait", "--json", ""],
        ["evaluate", "--policy", ""],
        ["evaluate", "--policy", "wait", "--config", ""],
        ["benchmark", "--policies", "wait", "--out", ""],
        ["benchmark", "--policies", "", "--out", "x"],
        ["benchmark", "--policies", "wait", "--config", "{config}"],
        ["data", "list", "--data-dir", ""],
        ["data", "fetch", "cifar10", "--data-dir="],
        ["data", "verify", "--data-dir", ""],
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_empty_path_is_rejected_before_anything_is_made(home, arguments, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("out: ''\n")
    err = bad([argument.format(config=config) for argument in arguments], capsys)
    assert " is ''; expected " in err
    assert err.count("\n") == 1
    assert list(home.iterdir()) == []


def test_demo_rejects_an_empty_path(home, capsys):
    assert demo_main(["--out", ""]) == BAD_INPUT
    assert text_of(capsys)[1] == "Error: --out is ''; expected a path\n"
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("use", [load_run, resume, lambda path: TrainSettings(out=path), FactoredRecurrentPPO.load])
def test_python_interface_rejects_an_empty_path(home, use):
    with pytest.raises(ValueError, match="the path is ''; expected a path that is not empty"):
        use("")
    assert list(home.iterdir()) == []


@pytest.fixture
def unplayed(monkeypatch):
    """Fail if an episode is played or a rollout is collected."""

    def played(*_arguments, **_more):
        pytest.fail("it was played")

    monkeypatch.setattr("esper_agent.cli.play.run_episodes", played)
    monkeypatch.setattr(FactoredRecurrentPPO, "learn", played)


def commands(toy_id, place):
    return {
        "train": ["train", "--env", toy_id, "--out", place],
        "evaluate": ["evaluate", "--env", toy_id, "--policy", "wait", "--json", place],
        "benchmark": ["benchmark", "--env", toy_id, "--policies", "wait", "--out", place],
    }


@pytest.mark.usefixtures("unplayed")
@pytest.mark.parametrize("name", ["train", "evaluate", "benchmark", "demo"])
@pytest.mark.parametrize("kind", ["below a file", "read-only"])
def test_output_that_cannot_be_written_is_found_before_anything_is_played(
    toy_id, tmp_path, capsys, monkeypatch, name, kind
):
    (tmp_path / "file").touch()
    place = tmp_path / ("file/out" if kind == "below a file" else "new/out")
    if kind == "read-only":

        def touch(self, **_options):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

        monkeypatch.setattr(Path, "touch", touch)
    if name == "demo":
        assert demo_main(["--env", toy_id, "--out", str(place)]) == BAD_INPUT
        err = text_of(capsys)[1]
    else:
        err = bad(commands(toy_id, str(place))[name], capsys)
    assert f"{place} cannot be written" in err
    assert ("Not a directory" if kind == "below a file" else "Read-only file system") in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_run_that_cannot_be_written_to_is_not_resumed(run_folder, tmp_path, capsys):
    for name, make, said in (
        ("train.lock", Path.mkdir, "train.lock cannot be locked: Is a directory; remove it"),
        ("checkpoints", Path.touch, "checkpoints is a file; expected the folder of the checkpoints: move it away"),
    ):
        run = shutil.copytree(run_folder, tmp_path / name)
        shutil.rmtree(run / name) if name == "checkpoints" else (run / name).unlink()
        make(run / name)
        assert said in bad(["train", "--resume", str(run)], capsys)


def test_read_only_run_is_not_resumed(run_folder, monkeypatch, capsys):
    def touch(self, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "touch", touch)
    assert f"the folder {run_folder} cannot be written to: Read-only" in bad(
        ["train", "--resume", str(run_folder)], capsys
    )


def test_printed_commands_can_be_copied(toy_id, tmp_path, capsys):
    out = tmp_path / "my runs" / "it's"
    assert main(["train", "--env", toy_id, "--out", str(out), *SMALL]) == OK
    said = text_of(capsys)[0]
    (line,) = (line for line in said.splitlines() if "to evaluate it" in line)
    program, *arguments = shlex.split(line.partition("to evaluate it")[2])
    assert Path(program).name == "esper"
    assert main([*arguments, "--episodes", "1", "--json", str(tmp_path / "e.json")]) == OK
    assert json.loads((tmp_path / "e.json").read_text())["summary"]["policy"] == str(out)
    (line,) = (line for line in said.splitlines() if "to see their curves" in line)
    tensorboard, *arguments = shlex.split(line.partition("curves")[2])
    assert (Path(tensorboard).name, arguments) == ("tensorboard", ["--logdir", str(out)])
    assert shutil.which(tensorboard)
    text_of(capsys)
    missing = tmp_path / "not here"
    err = bad(["train", "--resume", str(missing)], capsys)
    assert f"train one with `{program} train --out '{missing}'`" in err


def test_settings_with_path_of_another_type_are_rejected():
    with pytest.raises(ValueError, match="`out` is 3; expected a path"):
        TrainSettings(out=3).checked()
