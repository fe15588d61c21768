"""The demonstration: its table, its files and its folder."""

import csv

import pytest
from command_line import SMALL, text_of
from esper_agent.cli.demo import PLANS, clear
from esper_agent.cli.main import BAD_INPUT, OK, main
from esper_agent.demo import main as demo_main
from esper_agent.policies.baselines import POLICIES


def test_help_is_as_wide_as_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert demo_main(["--help"]) == OK
    assert max(map(len, text_of(capsys)[0].splitlines())) == 40


def test_demo_compares_the_trained_policy_and_prints_its_files(toy_id, tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--env", toy_id, "--episodes", "4", "--no-progress"]
    for _ in range(2):  # a second demo takes the place of the first
        assert demo_main([*arguments, "--total-timesteps", "640"]) == OK
        out, _ = text_of(capsys)
        assert " timesteps/s, " not in out
        assert "Playing" not in out
    policies = ["learned", "heuristic", "conv_light", "conv_heavy", "random", "wait"]
    first_words = [line.split()[0] for line in out.splitlines() if line.split()]
    assert [word for word in first_words if word in policies] == policies
    for name in ("parameters", "model.zip", "training.png"):
        assert name in out
    for name in ("run/model.zip", "episodes.csv", "summary.csv", "training.png"):
        assert (tmp_path / name).stat().st_size > 0
    with (tmp_path / "episodes.csv").open(newline="") as file:
        assert [row["policy"] for row in csv.DictReader(file)] == [name for name in policies for _ in range(4)]


def test_fixed_plans_of_every_topology_are_policies():
    assert set(PLANS) == {"cnn", "transformer"}
    assert {name for plans in PLANS.values() for name in plans} <= set(POLICIES)


def test_demo_rejects_a_folder_of_something_else(toy_id, tmp_path, capsys):
    assert main(["train", "--env", toy_id, "--out", str(tmp_path / "run"), *SMALL]) == OK
    assert demo_main(["--out", str(tmp_path), "--env", toy_id]) == BAD_INPUT
    assert "is not the folder of a demo" in text_of(capsys)[1]
    assert (tmp_path / "run" / "model.zip").exists()


def test_demo_accepts_a_folder_in_which_one_was_killed_at_its_start(tmp_path):
    (tmp_path / ".demo.4321.yaml").touch()
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [["--env", "Esper-Nowhere-v0"], ["--episodes", "0"], ["--env-settings", "horzon=3"]])
def test_demo_with_bad_settings_keeps_the_last_results(toy_id, tmp_path, capsys, wrong):
    (tmp_path / "demo.yaml").touch()
    (tmp_path / "run").mkdir()
    assert demo_main(["--out", str(tmp_path), "--env", toy_id, "--total-timesteps", "640", *wrong]) == BAD_INPUT
    assert (tmp_path / "run").exists()
    text_of(capsys)
