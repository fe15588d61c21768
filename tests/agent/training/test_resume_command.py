"""`esper train --resume`: arguments, output, and equal results after real kills."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import SMALL, bad, text_of
from esper_agent.cli.main import BAD_INPUT, OK, main
from esper_agent.training.checkpoints import checkpoint_paths
from esper_agent.training.run import resume, train
from esper_env.suggestions import esper_command
from resuming import REAL, ROLLOUT, Crash, differences, small_settings


@pytest.fixture
def killed(toy_id, tmp_path):
    """A run of six rollouts on the toy that was killed in its third."""
    with pytest.raises(Crash.Killed):
        train(small_settings(tmp_path / "run", toy_id), [Crash(2 * ROLLOUT + 1)])
    return tmp_path / "run"


@pytest.mark.filterwarnings("always::RuntimeWarning")
def test_resume_finishes_a_run_and_prints_its_start_and_warnings(toy_id, killed, capsys):
    (killed / "versions.json").unlink()
    assert main(["train", "--resume", str(killed), "--no-progress"]) == OK
    out, err = text_of(capsys)
    assert "Trained for 72 timesteps, resumed from 24" in out
    assert esper_command("evaluate", "--policy", str(killed), "--env", toy_id) in out
    assert "Warning: " in err
    assert "its results may differ from those of an uninterrupted run" in " ".join(err.split())
    assert "is finished: all of its 72 timesteps are done" in bad(["train", "--resume", str(killed)], capsys)


def test_new_run_does_not_mention_resuming(toy_id, tmp_path, capsys):
    assert main(["train", "--env", toy_id, "--out", str(tmp_path / "r"), *SMALL, "--checkpoint-every", "24"]) == OK
    out, _ = text_of(capsys)
    assert "Trained for 48 timesteps\n" in out
    assert "--resume" not in out
    assert len(checkpoint_paths(tmp_path / "r")) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "x"], "--out cannot be combined with --resume, because a run resumes with its own settings; leave"),
        (["--seed=1", "--total_timesteps", "5"], "--seed --total-timesteps cannot be combined with --resume"),
        (["--device", "cuda:99"], "`device` is 'cuda:99'"),
    ],
)
def test_resume_rejects_other_settings(killed, more, said, capsys):
    assert said in bad(["train", "--resume", str(killed), *more], capsys)
    assert len(checkpoint_paths(killed)) == 2


@pytest.mark.parametrize("arguments", [["train"], ["train", "--resume"], ["train", "--out"]])
def test_train_needs_a_new_folder_or_a_run(arguments, capsys):
    assert main(arguments) == BAD_INPUT
    text_of(capsys)


def test_help_of_train_and_resume_refer_to_each_other(capsys):
    assert main(["train", "--help"]) == OK
    assert "--resume RUN" in " ".join(text_of(capsys)[0].split())
    assert main(["train", "--resume", "x", "--help"]) == OK
    out, _ = text_of(capsys)
    assert "--device" in out
    assert "--seed" not in out


@pytest.mark.filterwarnings("always::RuntimeWarning")
@pytest.mark.parametrize(("second", "saved"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_second_signal_during_a_save_exits_with_its_code_and_prints_how_to_resume(
    toy_id, tmp_path, capsys, monkeypatch, second, saved
):
    def signals(*_arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), second)

    out = tmp_path / "my run"
    monkeypatch.setattr("esper_agent.training.run.save_model", signals)
    checkpoints = ["--checkpoint-every", "24" if saved else "1000"]
    assert main(["train", "--env", toy_id, "--out", str(out), *SMALL, *checkpoints]) == 128 + second
    said = "resume from the checkpoint of timestep 24 with" if saved else "no checkpoint: start from the beginning with"
    assert f"{said} `{esper_command('train', '--resume', str(out))}`" in text_of(capsys)[1]
    monkeypatch.undo()
    assert main(["train", "--resume", str(out), "--no-progress"]) == OK
    assert "Trained for 48 timesteps" in text_of(capsys)[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--checkpoint-every", "24"], "Interrupted; the training in {out} is finished\n"),
        (["--checkpoint-every", "0"], "Interrupted; the model is saved as {out}/model.zip; without checkpoints"),
    ],
)
def test_interrupt_after_the_last_save_does_not_offer_to_resume(toy_id, tmp_path, capsys, monkeypatch, more, said):
    def interrupted(_self):
        raise KeyboardInterrupt

    monkeypatch.setattr("esper_env.telemetry.Telemetry.close", interrupted)
    assert main(["train", "--env", toy_id, "--out", str(tmp_path / "r"), *SMALL, *more]) == 130
    err = text_of(capsys)[1]
    assert said.format(out=tmp_path / "r") in err
    assert "--resume" not in err


#: The command, killed at a call of fsync. A save calls it for the temporary file and, once renamed, for the folder.
KILLED_AT_FSYNC = """
import os, signal, sys
from esper_agent.cli.main import main
inner, calls = os.fsync, []
def fsync(descriptor):
    if b".safetensors" in os.readlink(f"/proc/self/fd/{descriptor}").encode():
        calls.append(descriptor)
    if len(calls) == 3:  # the third save of this process is written and not renamed
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(descriptor)
os.fsync = fsync
sys.exit(main(sys.argv[1:]))
"""
ROLLOUTS = 16


def command(*start):
    return subprocess.Popen(
        [sys.executable, *start, "--no-progress", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to recognise the file")
def test_resume_after_kills_during_a_save_and_at_a_random_moment_gives_equal_weights(tmp_path):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    env, env_settings = REAL
    numbers = ["--num-envs", "4", "--n-steps", "3", "--batch-size", "6", "--n-epochs", "1", "--seed", "3"]
    length = ["--total-timesteps", str(ROLLOUTS * ROLLOUT), "--checkpoint-every", "1"]
    task = ["--out", str(folder), "--env", env, "--env-settings", *env_settings]
    first = command("-c", KILLED_AT_FSYNC, "train", *task, *numbers, *length)
    train(small_settings(whole, *REAL, total_timesteps=ROLLOUTS * ROLLOUT))
    _, stderr = first.communicate(timeout=300)
    assert first.returncode == -signal.SIGKILL, stderr
    assert [int(path.stem) for path in checkpoint_paths(folder)] == [2 * ROLLOUT, ROLLOUT]
    assert len(list((folder / "checkpoints").glob(".*"))) == 1

    second = command("-m", "esper_agent.cli.main", "train", "--resume", str(folder))
    deadline = time.monotonic() + 120
    while int(checkpoint_paths(folder)[0].stem) < 5 * ROLLOUT and second.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second.kill()
    _, stderr = second.communicate()
    assert second.returncode == -signal.SIGKILL, stderr

    assert resume(folder, progress=False).resumed_from >= 5 * ROLLOUT
    assert not list((folder / "checkpoints").glob(".*"))
    assert differences(folder, whole) == []
