"""The `esper` command: its output, its files and its exit codes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from command_line import SMALL, bad, text_of
from esper_agent.cli.main import BAD_INPUT, FAILED, OK, exit_code, main
from esper_agent.training.checkpoints import checkpoint_paths
from esper_env.suggestions import esper_command


def test_train_prints_the_place_of_the_model(toy_id, tmp_path, capsys):
    assert main(["train", "--env", toy_id, "--out", str(tmp_path / "r"), *SMALL]) == OK
    out, _ = text_of(capsys)
    assert "Trained for 48 timesteps" in out
    assert str(tmp_path / "r" / "model.zip") in out
    assert "last 2 of 4" in out
    assert esper_command("evaluate", "--policy", str(tmp_path / "r"), "--env", toy_id) in out


@pytest.mark.parametrize(("kind", "code"), [(ValueError, BAD_INPUT), (OSError, FAILED)])
def test_error_is_reported_in_one_line_with_its_notes(capsys, kind, code):
    def fail(_console):
        error = kind("an observation\n is not finite")
        error.add_note("the model of timestep 26 is saved as run/model.zip")
        raise error

    assert exit_code(fail) == code
    expected = "Error: an observation is not finite. the model of timestep 26 is saved as run/model.zip\n"
    assert capsys.readouterr().err == expected


def test_train_rounds_timesteps_up_to_whole_rollouts(toy_id, tmp_path, capsys):
    assert main(["train", "--env", toy_id, "--out", str(tmp_path / "r"), *SMALL, "--total-timesteps", "25"]) == OK
    assert "Trained for 48 timesteps" in text_of(capsys)[0]
    with (tmp_path / "r" / "progress.csv").open(newline="") as file:
        progress = list(csv.DictReader(file))
    assert [row["time/total_timesteps"] for row in progress] == ["24", "48", ""]
    assert [row["train/n_updates"] != "" for row in progress] == [False, True, True]


def test_names_with_brackets_and_biases_reach_the_policy_verbatim(toy_id, tmp_path, capsys):
    out, file = tmp_path / "a[b]c[/red]", tmp_path / "e.json"
    assert main(["train", "--env", toy_id, "--out", str(out), *SMALL, "--logit-bias", "op.WAIT=50"]) == OK
    assert str(out / "model.zip") in text_of(capsys)[0]
    evaluate = ["evaluate", "--policy", str(out), "--env", toy_id, "--episodes", "2", "--json", str(file)]
    assert main(evaluate) == OK
    assert "a[b]c[/red]" in "".join(text_of(capsys)[0].split())
    assert json.loads(file.read_text())["summary"]["wait_share"] == 1.0


def test_truncated_episodes_are_trained_on_and_counted(tmp_path, capsys):
    settings = ["--env-settings", "horizon=8", "batches_per_step=1", "max_episode_steps=3"]
    out, file = tmp_path / "r", tmp_path / "e.json"
    assert main(["train", "--out", str(out), *SMALL, *settings, "--eval-every", "24", "--eval-episodes", "1"]) == OK
    with (out / "episodes.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {(row["truncated"], row["length"], row["test_accuracy"]) for row in rows} == {("True", "3", "")}
    assert main(["evaluate", "--policy", str(out), "--episodes", "2", "--json", str(file)]) == OK
    content = json.loads(file.read_text())
    assert [(row["truncated"], row["test_accuracy"]) for row in content["episodes"]] == [(True, None)] * 2
    assert content["summary"]["test_accuracy_mean"] is None
    assert "not known" in text_of(capsys)[0]


def test_version_is_printed(capsys):
    assert main(["--version"]) == OK
    assert text_of(capsys)[0].startswith("esper 0.")


def test_saved_configuration_trains_the_same_run_again(run_folder, tmp_path, capsys):
    again = tmp_path / "again"
    assert main(["train", "--config", str(run_folder / "config.yaml"), "--out", str(again)]) == OK
    assert (again / "episodes.csv").read_text() == (run_folder / "episodes.csv").read_text()
    assert " timesteps/s, " in text_of(capsys)[0]  # although the first training was silent


def test_flags_override_the_file_and_the_file_overrides_defaults(toy_id, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        f"env: {toy_id}\ntotal_timesteps: 24\nnum_envs: 2\nprogress: false\nppo: {{n_steps: 12, gamma: 0.9}}\n"
    )
    out = tmp_path / "r"
    assert main(["train", f"--config={file}", "--gamma", "0.8", "--out", str(out), "--batch-size", "24"]) == OK
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["total_timesteps"] == 24
    assert config["ppo"]["gamma"] == 0.8
    assert config["ppo"]["gae_lambda"] == 0.95


def test_info_lists_tasks_heads_blueprints_and_data(capsys):
    assert main(["info"]) == OK
    out, _ = text_of(capsys)
    assert "Esper-Digits-v0" in out
    assert "390" in out
    assert "alpha_curve" in out
    assert "conv_heavy 7" in out
    assert "1,192" in out
    assert "cifar10" in out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["train", "evaluate", "benchmark", "info", "Exit codes"]),
        (["train"], ["--out", "--config", "--learning-rate", "Learning rate of Adam", "(a positive number;", "Ctrl-C"]),
        (["evaluate"], ["--policy", "--json", "--deterministic"]),
    ],
)
def test_help_is_complete(command, words, capsys):
    assert main([*command, "--help"]) == OK
    out, _ = text_of(capsys)
    assert all(word in out for word in words)
    assert "default: )" not in out


@pytest.mark.parametrize("command", [["benchmark"], ["data", "verify"], ["data", "fetch"], ["train", "--resume", "x"]])
def test_help_shows_no_empty_default(command, capsys):
    assert main([*command, "--help"]) == OK
    assert "default: )" not in text_of(capsys)[0]


@pytest.mark.parametrize("width", [40, 60])
@pytest.mark.parametrize("command", [[], ["train"], ["benchmark"], ["data", "fetch"], ["train", "--resume", "x"]])
def test_help_is_as_wide_as_the_terminal(command, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*command, "--help"]) == OK
    lines = text_of(capsys)[0].splitlines()
    assert max(map(len, lines)) == width
    assert lines[0].startswith("usage: esper")


def test_help_of_train_describes_how_to_resume(capsys):
    assert main(["train", "--help"]) == OK
    assert "--resume RUN" in text_of(capsys)[0]


TRAIN = ["train", "--out", "x"]
EVALUATE = ["evaluate", "--policy", "wait"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*EVALUATE, "--env-settings", "horzon=3"], "did you mean 'horizon'?"),
        ([*EVALUATE, "--config", "/no/such.yaml"], "cannot be read"),
        ([*EVALUATE, "--env-settings", "a=1", "--env-settings", "b=2"], "is given twice"),
        ([*TRAIN, "--seed", "-1"], "--seed is '-1'; expected an integer in [0, 4294967295]"),
        ([*TRAIN, "--num-envs", "many"], "is 'many'; expected a positive integer, for example 16\n"),
        ([*TRAIN, "--advantage-estimator", "gae"], "is 'gae'; expected 'two_step' or 'sampled_op'"),
        ([*TRAIN, "--vf-coef", "nan"], "--vf-coef is 'nan'; expected a non-negative number"),
        ([*TRAIN, "--target-kl", "-1"], "--target-kl is '-1'; expected a positive number or None"),
        ([*TRAIN, "--device", "cuda:77"], "this machine, which has"),
        ([*TRAIN, "--logit-bias", "op.GROW=1"], "`logit_bias` has the value 'GROW'"),
        ([*TRAIN, "--logit-bias", "WAIT=1"], "HEAD.VALUE=BIAS"),
        ([*TRAIN, "--dataset", "f.txt"], "is a setting of the environment: --env-settings dataset=VALUE\n"),
        ([*TRAIN, "--horizon=9"], "--env-settings horizon=9\n"),
        ([*TRAIN, "--zzz"], "esper train has no option '--zzz'; --help lists its options"),
        ([*EVALUATE, "--polcy=3"], "; did you mean --policy?\n"),
        ([*EVALUATE, "it"], "esper evaluate has no argument 'it'; --help lists"),
        (["data", "list", "--zzz"], "esper data list has no option '--zzz'; --help lists"),
        (["evaluat", "--help"], "esper has no command 'evaluat'; expected one of train, evaluate, benchmark, data"),
        (["data", "Fetch"], "has no command 'Fetch'; expected one of list, fetch, verify; did you mean 'fetch'?\n"),
    ],
)
def test_bad_input_exits_with_two_after_one_line(arguments, message, capsys):
    err = bad(arguments, capsys)
    assert message in err
    assert err.startswith("Error: ")
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Error: esper train needs --out; --help describes the options\n"),
        (["train", "--out"], "Error: --out needs a value; expected a path\n"),
        (["evaluate", "--episodes", "3"], "Error: esper evaluate needs --policy; "),
        (["benchmark"], "Error: esper benchmark needs --policies and --out; "),
        (
            ["data", "fetch", "--url", "x"],
            "Error: esper data fetch needs the NAME of a dataset; expected one of cifar10",
        ),
        (["data", "list", "--data-dir"], "Error: --data-dir needs a value; expected a string or None\n"),
        (["data"], "Error: esper data needs a command: list, fetch, verify; --help explains them\n"),
        ([], "Error: esper needs a command: train, evaluate, benchmark, data, info; --help explains them\n"),
    ],
)
def test_missing_arguments_exit_with_two(arguments, message, capsys):
    assert message in bad(arguments, capsys)


def test_memory_that_does_not_suffice_is_one_line(capsys):
    def allocate(_console):
        raise MemoryError("Unable to allocate 611. GiB")

    assert exit_code(allocate) == FAILED
    said = "Error: there is not enough memory (Unable to allocate 611. GiB); lower the number of environments, or their"
    assert text_of(capsys) == ("", f"{said} steps\n")


def test_run_is_not_overwritten(run_folder, toy_id, capsys):
    before = (run_folder / "model.zip").read_bytes()
    assert "already holds a run" in bad(["train", "--env", toy_id, "--out", str(run_folder), *SMALL], capsys)
    assert (run_folder / "model.zip").read_bytes() == before


@pytest.mark.slow
def test_signal_saves_the_model_and_sets_the_exit_code(tmp_path):
    out = tmp_path / "run"
    settings = ["--env-settings", "batches_per_step=1", "horizon=5", "--num-envs", "2", "--n-steps", "10"]
    settings += ["--checkpoint-every", "20"]
    command = [sys.executable, "-m", "esper_agent.cli.main", "train", "--total-timesteps", "1000000", "--out", str(out)]
    process = subprocess.Popen(
        [*command, *settings, "--no-progress"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    try:
        while not checkpoint_paths(out):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "Stopped after" in stdout
    assert str(out / "model.zip") in stdout
    assert f"{esper_command('train', '--resume', str(out))}\n" in stdout
    assert "Traceback" not in stderr
    assert main(["evaluate", "--policy", str(out), "--episodes", "1"]) == OK
