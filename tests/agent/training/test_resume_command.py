"""`esper train --resume`: arguments, output, and equal results after a real kill -9 at any moment."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from command_line import SMALL, bad, text_of
from esper_agent.cli.main import BAD_INPUT, OK, main
from esper_agent.training.checkpoints import checkpoint_paths
from esper_agent.training.run import train
from resuming import REAL, ROLLOUT, Crash, differences, small_settings

EVERY = ["--checkpoint-every", "24"]


@pytest.fixture
def killed(toy_id, tmp_path):
    """A run of six rollouts on the toy that was killed in its third."""
    with pytest.raises(Crash.Killed):
        train(small_settings(tmp_path / "run", toy_id), [Crash(2 * ROLLOUT + 1)])
    return tmp_path / "run"


def test_resume_finishes_a_run_and_prints_its_start(toy_id, killed, capsys):
    assert main(["train", "--resume", str(killed), "--no-progress"]) == OK
    out, err = text_of(capsys)
    assert "Trained for 72 timesteps, resumed from 24" in out
    assert f"esper evaluate --policy {killed} --env {toy_id}" in out
    assert "Warning:" not in err
    assert "is finished: all of its 72 timesteps are done" in bad(["train", "--resume", str(killed)], capsys)


def test_new_run_does_not_mention_resuming(toy_id, tmp_path, capsys):
    assert main(["train", "--env", toy_id, "--out", str(tmp_path / "r"), *SMALL, *EVERY]) == OK
    out, _ = text_of(capsys)
    assert "Trained for 48 timesteps\n" in out
    assert "--resume" not in out
    assert len(checkpoint_paths(tmp_path / "r")) == 2


@pytest.mark.filterwarnings("always::RuntimeWarning")
def test_resume_prints_warnings(killed, capsys):
    shutil.rmtree(killed / "checkpoints")
    assert main(["train", "--resume", str(killed), "--device=cpu", "--progress"]) == OK
    out, err = text_of(capsys)
    assert "has no checkpoint yet; training starts from the beginning" in err
    assert "Trained for 72 timesteps\n" in out


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--out", "x"], "--out"),
        (["--seed=1", "--total_timesteps", "5"], "--seed --total-timesteps"),
        (["--config", "nowhere.yaml"], "--config"),
        (["--env-settings", "horizon=5"], "--env-settings"),
    ],
)
def test_resume_rejects_other_settings(killed, more, named, capsys):
    error = bad(["train", "--resume", str(killed), *more], capsys)
    assert f"{named} cannot be combined with --resume, because a run resumes with its own settings" in error
    assert len(checkpoint_paths(killed)) == 2


def test_resume_rejects_a_missing_device(killed, capsys):
    assert "`device` is 'cuda:99'" in bad(["train", "--resume", str(killed), "--device", "cuda:99"], capsys)


@pytest.mark.parametrize("arguments", [["train"], ["train", "--resume"], ["train", "--out"]])
def test_train_needs_a_new_folder_or_a_run(arguments, capsys):
    assert main(arguments) == BAD_INPUT
    text_of(capsys)


def test_help_of_train_and_resume_refer_to_each_other(capsys):
    assert main(["train", "--help"]) == OK
    assert "esper train --resume RUN" in " ".join(text_of(capsys)[0].split())
    assert main(["train", "--resume", "x", "--help"]) == OK
    out, _ = text_of(capsys)
    assert "--device" in out
    assert "--seed" not in out


def test_resume_rejects_a_folder_without_a_run(tmp_path, capsys):
    assert "there is no run folder" in bad(["train", "--resume", str(tmp_path / "x")], capsys)
    (tmp_path / "x").mkdir()
    assert "is not a run" in bad(["train", "--resume", str(tmp_path / "x")], capsys)


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


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    settings = small_settings(folder, *REAL, total_timesteps=ROLLOUTS * ROLLOUT)
    train(settings)
    return folder


def command(*arguments, killed_at_fsync=False):
    start = ["-c", KILLED_AT_FSYNC] if killed_at_fsync else ["-m", "esper_agent.cli.main"]
    return subprocess.Popen(
        [sys.executable, *start, "train", *arguments, "--no-progress", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def first_arguments(folder):
    env, env_settings = REAL
    numbers = ["--num-envs", "4", "--n-steps", "3", "--batch-size", "6", "--n-epochs", "1", "--seed", "3"]
    length = ["--total-timesteps", str(ROLLOUTS * ROLLOUT), "--checkpoint-every", "1"]
    return ["--out", str(folder), "--env", env, "--env-settings", *env_settings, *numbers, *length]


def kill(process, begun):
    """Send SIGKILL as soon as something has happened; False if the process ended before."""
    deadline = time.monotonic() + 120
    while not begun() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    _, stderr = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), stderr
    return process.returncode != 0


def finish(folder):
    process = command("--resume", str(folder))
    _, err = process.communicate(timeout=300)
    assert process.returncode == OK or "is finished" in err, err
    assert "Traceback" not in err
    assert "cannot be" not in err


@pytest.mark.slow
def test_resume_after_kills_at_random_moments_gives_equal_weights(uninterrupted, tmp_path):
    rng = random.Random(0)
    folder = tmp_path / "run"
    moments = sorted(rng.sample(range(1, ROLLOUTS - 6), 2))  # rollouts after which it is killed

    def saved(rollouts):
        return any(path.stem >= f"{rollouts * ROLLOUT:012d}" for path in checkpoint_paths(folder)[:1])

    for start, moment in zip((first_arguments(folder), ("--resume", str(folder))), moments, strict=True):
        assert kill(command(*start), lambda moment=moment: saved(moment)), "it ended before it was killed"
    finish(folder)
    assert differences(folder, uninterrupted) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to recognise the file")
def test_resume_after_a_kill_during_a_save_gives_equal_weights(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    for start in (first_arguments(folder), ("--resume", str(folder))):
        process = command(*start, killed_at_fsync=True)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, stderr
        assert len(leftovers(folder)) == 1
    assert [int(path.stem) for path in checkpoint_paths(folder)] == [4 * ROLLOUT, 3 * ROLLOUT]
    finish(folder)
    assert not leftovers(folder)
    assert differences(folder, uninterrupted) == []


def leftovers(folder):
    return list((folder / "checkpoints").glob(".*"))
