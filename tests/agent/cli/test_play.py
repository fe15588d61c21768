"""`esper evaluate` and `esper benchmark`."""

import csv
import errno
import json
import os

import pytest
from command_line import SMALL, bad, text_of
from esper_agent.cli.main import FAILED, OK, main
from esper_agent.training.run_folder import package_versions


def test_evaluate_prints_and_writes_the_same_numbers(run_folder, toy_id, tmp_path, capsys):
    file = tmp_path / "e.json"
    arguments = ["evaluate", "--policy", str(run_folder), "--env", toy_id, "--episodes", "3", "--seed", "7"]
    assert main([*arguments, "--json", str(file)]) == OK
    out, _ = text_of(capsys)
    content = json.loads(file.read_text())
    assert [episode["seed"] for episode in content["episodes"]] == [7, 8, 9]
    mean = sum(episode["return"] for episode in content["episodes"]) / 3
    assert content["summary"]["return_mean"] == pytest.approx(mean)
    assert f"{mean:.2f}" in out
    assert "on toy, episodes with seeds 7 to 9" in out
    assert main([*arguments[:-4], "--episodes", "1", "--seed", "7"]) == OK
    out, _ = text_of(capsys)
    assert "on toy, episode with seed 7" in out


def test_evaluate_writes_what_the_results_depend_on(toy_id, tmp_path, capsys):
    run, file = tmp_path / "r", tmp_path / "e.json"
    assert main(["train", "--env", toy_id, "--out", str(run), *SMALL, "--env-settings", "horizon=5"]) == OK
    for flags in (["--deterministic"], []):
        given = ["--episodes", "2", "--seed", "7", "--num-envs", "1", "--env-settings", "max_episode_steps=3", *flags]
        assert main(["evaluate", "--policy", str(run), *given, "--json", str(file)]) == OK
        content = json.loads(file.read_text())
        assert content["settings"] == {
            "policy": str(run),
            "env": toy_id,
            "env_settings": {"horizon": 5, "max_episode_steps": 3},
            "episodes": 2,
            "seed": 7,
            "num_envs": 1,
            "workers": 1,
            "deterministic": flags != [],
            "device": "auto",
        }
        assert content["versions"] == package_versions()
    text_of(capsys)


def test_benchmark_writes_what_the_results_depend_on(toy_id, tmp_path, capsys):
    settings = ["--env-settings", "horizon=2", "--seed", "7", "--episodes", "1"]
    benchmark = ["benchmark", "--policies", "wait", "--env", toy_id, *settings, "--out", str(tmp_path / "b")]
    assert main(benchmark) == OK
    content = json.loads((tmp_path / "b" / "settings.json").read_text())
    assert content["versions"] == package_versions()
    expected = {"policies": ["wait"], "env": toy_id, "env_settings": {"horizon": 2}, "seed": 7, "deterministic": False}
    assert content["settings"] == expected | {"num_envs": 10, "workers": 1, "episodes": 1, "device": "auto"}
    assert str(tmp_path / "b" / "settings.json") in text_of(capsys)[0]
    (tmp_path / "b" / "episodes.csv").unlink()
    (tmp_path / "b" / "summary.csv").unlink()
    assert "already holds a file settings.json" in bad(benchmark, capsys)


def test_evaluate_writes_json_and_nothing_else_to_standard_output(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate = ["evaluate", "--policy", str(run_folder), "--episodes", "2", "--deterministic", "--json"]
    assert main([*evaluate, "e.json"]) == OK
    printed, _ = text_of(capsys)
    assert main([*evaluate, "-"]) == OK
    out, err = text_of(capsys)
    assert json.loads(out) == json.loads((tmp_path / "e.json").read_text())
    assert printed == f"{err}Written to e.json\n"
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]


def test_benchmark_plays_the_same_episodes(run_folder, toy_id, tmp_path, capsys):
    out = tmp_path / "bench"
    policies = ["wait", "heuristic", "random", str(run_folder)]
    arguments = ["benchmark", "--env", toy_id, "--policies", *policies, "--episodes", "4", "--out", str(out)]
    assert main(arguments) == OK
    with (out / "episodes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in rows] == [name for name in policies for _ in range(4)]
    last = {row["policy"]: row["seed"] for row in rows if row["episode"] == "3"}
    assert last == dict.fromkeys(policies, "1000003")
    assert {row["dataset"] for row in rows} == {"toy"}
    with (out / "summary.csv").open(newline="") as file:
        assert [(row["policy"], row["dataset"]) for row in csv.DictReader(file)] == [(name, "toy") for name in policies]
    assert "return minus" in text_of(capsys)[0]
    before = (out / "episodes.csv").read_bytes()
    assert "already holds a file episodes.csv" in bad(arguments, capsys)
    assert (out / "episodes.csv").read_bytes() == before


def test_benchmark_rejects_the_folder_of_a_run_and_one_run_under_two_names(run_folder, toy_id, tmp_path, capsys):
    before = (run_folder / "episodes.csv").read_bytes()
    benchmark = ["benchmark", "--env", toy_id, "--policies"]
    assert "already holds a run" in bad([*benchmark, "wait", "--out", str(run_folder)], capsys)
    assert (run_folder / "episodes.csv").read_bytes() == before
    names = [str(run_folder), f"{run_folder.parent}/./{run_folder.name}"]
    assert "expected at least one, each once" in bad([*benchmark, *names, "--out", str(tmp_path / "b")], capsys)


def test_evaluate_rejects_a_folder_as_json_file(tmp_path, capsys):
    assert "is a folder; expected the path of a file" in bad(
        ["evaluate", "--policy", "wait", "--json", str(tmp_path)], capsys
    )


def test_benchmark_checks_all_policies_before_playing(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("esper_agent.cli.play.run_episodes", lambda *_all, **_more: pytest.fail("it was played"))
    policies = ["wait", str(run_folder)]
    out = tmp_path / "b"
    bad(["benchmark", "--env", "Esper-Digits-v0", "--policies", *policies, "--out", str(out)], capsys)
    assert not out.exists()


def test_full_disk_exits_with_one(toy_id, tmp_path, capsys):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "progress.json").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esper_agent.training.run.save_model", full_disk)
        assert main(["train", "--env", toy_id, "--out", str(tmp_path / "r"), *SMALL]) == FAILED
    assert "No space left on device" in text_of(capsys)[1]


def full_disk(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.numeric
def test_actions_are_sampled_unless_deterministic(run_folder, toy_id, tmp_path, capsys):
    def ops(*flags):
        """Seed, rounded return and number of each op, of each of eight episodes of twelve steps."""
        file = tmp_path / "e.json"
        arguments = ["evaluate", "--policy", str(run_folder), "--env", toy_id, "--episodes", "8", "--json", str(file)]
        assert main([*arguments, *flags]) == OK
        episodes = json.loads(file.read_text())["episodes"]
        counts = [{key: count for key, count in each.items() if key.startswith("op_")} for each in episodes]
        return [(each["seed"], round(each["return"], 6), ops) for each, ops in zip(episodes, counts, strict=True)]

    assert ops("--deterministic") == ops("--deterministic", "--num-envs", "2")
    assert ops() == ops()
    assert ops() != ops("--deterministic")
    assert ops("--num-envs", "1") != ops("--num-envs", "3")  # draws fall to other episodes
    text_of(capsys)


def test_evaluate_uses_the_environment_settings_of_the_run_by_default(toy_id, tmp_path, capsys):
    out, file = tmp_path / "r", tmp_path / "e.json"
    assert main(["train", "--env", toy_id, "--out", str(out), *SMALL, "--env-settings", "horizon=5"]) == OK
    evaluate = ["evaluate", "--policy", str(out), "--env", toy_id, "--episodes", "1", "--json", str(file)]
    weights = "reward_weights={rent: 1}"
    kept = "Played with the environment settings of the run: horizon=5"
    for extra, length, said in (
        ([], 5, f"{kept}\n"),
        (["--env-settings", "horizon=7"], 7, None),
        (["--env-settings", weights], 5, f"{kept}; given here: reward_weights={{'rent': 1}}\n"),
        (["--env-settings", weights, "horizon=7"], 7, None),
    ):
        assert main([*evaluate, *extra]) == OK
        assert json.loads(file.read_text())["episodes"][0]["length"] == length
        out_text = text_of(capsys)[0]
        assert "settings of the run" not in out_text if said is None else said in out_text
    benchmark = ["benchmark", "--env", toy_id, "--policies", str(out), "--episodes", "1", "--out", str(tmp_path / "b")]
    assert main(benchmark) == OK
    assert f"Note: {out} was trained with other settings: horizon=5; here horizon=12\n" in text_of(capsys)[0]


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        ([], None),
        (["horizon=12"], None),
        (["horizon=7"], "horizon=12; here horizon=7"),
        (["max_episode_steps=3"], "max_episode_steps=None; here max_episode_steps=3"),
    ],
)
def test_evaluate_and_benchmark_note_settings_of_no_training(run_folder, tmp_path, capsys, given, noted):
    out = tmp_path / "b"
    settings = ["--env-settings", *given] if given else []
    for command in (
        ["evaluate", "--policy", str(run_folder)],
        ["benchmark", "--policies", str(run_folder), "--out", str(out)],
    ):
        assert main([*command, "--episodes", "1", *settings]) == OK
        said = text_of(capsys)[0]
        assert ("was trained with other settings" in said) == (noted is not None)
        assert noted is None or f"Note: {run_folder} was trained with other settings: {noted}\n" in said


@pytest.mark.parametrize(
    ("horizon", "said"), [(17, "heuristic plants nothing with horizon=17: it plants from epoch 5"), (18, None)]
)
def test_heuristic_that_can_never_commit_a_seed_is_noted(toy_id, capsys, horizon, said):
    settings = ["--env-settings", f"horizon={horizon}"]
    assert main(["evaluate", "--policy", "heuristic", "--env", toy_id, "--episodes", "2", *settings]) == OK
    out = text_of(capsys)[0]
    assert ("Note: heuristic planted no seed: " in out) or horizon == 18
    assert (
        said is None or f"Note: {said}, and commits a seed 13 epochs later; it needs a horizon of at least 18\n" in out
    )
    assert (said is None) == ("heuristic plants nothing" not in out)


@pytest.mark.parametrize("horizon", [10, 11])
def test_fixed_plan_that_can_never_commit_a_seed_is_noted(toy_id, capsys, horizon):
    settings = ["--env-settings", f"horizon={horizon}"]
    assert main(["evaluate", "--policy", "conv_light", "--env", toy_id, "--episodes", "1", *settings]) == OK
    note = "Note: conv_light commits nothing with horizon=10: it needs a horizon of at least 11\n"
    assert (note in text_of(capsys)[0]) == (horizon == 10)


def test_default_task_is_the_task_of_the_run(run_folder, toy_id, tmp_path, capsys):
    file = tmp_path / "e.json"
    assert main(["evaluate", "--policy", str(run_folder), "--episodes", "1", "--json", str(file)]) == OK
    assert text_of(capsys)[0].startswith(f"Task of the run: {toy_id}\n")
    assert json.loads(file.read_text())["episodes"][0]["env_id"] == toy_id
    out = tmp_path / "b"
    assert main(["benchmark", "--policies", "wait", str(run_folder), "--episodes", "1", "--out", str(out)]) == OK
    assert text_of(capsys)[0].startswith(f"Task of the run: {toy_id}\n")
    with (out / "episodes.csv").open(newline="") as rows:
        assert {row["env_id"] for row in csv.DictReader(rows)} == {toy_id}


def test_default_task_without_a_run_is_digits(tmp_path, capsys):
    out, settings = tmp_path / "b", ["--env-settings", "horizon=1", "batches_per_step=1"]
    assert main(["evaluate", "--policy", "wait", "--episodes", "1", *settings]) == OK
    assert main(["benchmark", "--policies", "wait", "--episodes", "1", "--out", str(out), *settings]) == OK
    said = text_of(capsys)[0]
    assert said.count("Esper-Digits-v0 on digits") == 2
    assert "Task of the run" not in said


def test_benchmark_rejects_runs_of_different_tasks(run_folder, toy_id, tmp_path, capsys):
    other, out = tmp_path / "other", tmp_path / "b"
    other.mkdir()
    (other / "config.yaml").write_text("env: Esper-Text-v0\n")
    err = bad(["benchmark", "--policies", "wait", str(run_folder), str(other), "--out", str(out)], capsys)
    assert f"different tasks: {run_folder} on {toy_id}, {other} on Esper-Text-v0; evaluate the runs of one task" in err
    assert not out.exists()


@pytest.mark.parametrize("width", ["40", "60", "200"])
def test_tables_are_complete_on_a_terminal_of_any_width(toy_id, tmp_path, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["train", "--env", toy_id, "--out", str(tmp_path / "run"), *SMALL]) == OK
    out, _ = text_of(capsys)
    assert "training episodes" in out
    assert "last 2 of 4" in out
    assert "\u2026" not in out
    arguments = ["benchmark", "--env", toy_id, "--policies", "wait", "random", "--episodes", "4"]
    assert main([*arguments, "--out", str(tmp_path)]) == OK
    out, _ = text_of(capsys)
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert f"{float(rows[1]['return_difference_low']):+.2f}, {float(rows[1]['return_difference_high']):+.2f}]" in out
    assert "100" in out
    assert "\u2026" not in out
    for command in (["info"], ["data", "list"]):
        assert main(command) == OK
        out, _ = text_of(capsys)
        assert "\u2026" not in out
        tables = [line for line in out.splitlines() if line.startswith(("│", "┃"))]
        assert all(len(line) <= int(width) for line in tables)
