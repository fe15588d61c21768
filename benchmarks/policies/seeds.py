"""Training runs of a policy study: its settings, and one run folder per training seed.

A study reuses a run only if its settings match and `esper train` completed.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from esper_agent.cli.main import OK, SIGNALLED, parse
from esper_agent.settings.config_file import plain, read_config
from esper_agent.settings.named_values import ConfigError
from esper_agent.settings.train import TrainSettings
from esper_agent.training.callbacks import SignalInterruptError, StopOnInterrupt
from esper_agent.training.run import HELD_OUT_SEED
from esper_agent.training.run_folder import CONFIG, EPISODES, MODEL, VERSIONS, RunError
from esper_env.checks import POSITIVE, check
from esper_env.persistence import check_folder, write_text
from tqdm import tqdm

#: The learned policies: sampling their actions, and greedy.
LEARNED, LIKELIEST = "learned", "likeliest"
#: File that marks a complete run; an interrupted run has a model as well.
COMPLETE = "complete"
#: Lock file of a study and its training processes, in the folder of the runs.
LOCK = ".lock"
#: Distance of the seeds of two runs; environment i starts from seed + i, so runs share no episode.
SEED_DISTANCE = 1000
#: Flags that the study passes to `esper train`.
OWN_FLAGS = ("--out", "--env", "--env-settings", "--seed", "--total-timesteps", "--progress", "--no-progress")
#: Settings without influence on the result of training.
INCIDENTAL = ("out", "progress", "config")

#: Exit codes of a stopped training process, with the signals that stopped it.
STOPPED = {code: number for number in StopOnInterrupt.SIGNALS for code in (SIGNALLED + number, -number)}


class TrainingFailedError(RuntimeError):
    """Training runs failed."""


@dataclass(frozen=True)
class StudySettings:
    """Train FactoredRecurrentPPO over several seeds and compare it with fixed policies."""

    out: Path
    """Folder of the results; those of an earlier study are replaced."""
    runs: Path = Path("runs/study")
    """Folder of the training runs, one folder per seed. Complete runs with the same settings are reused, incomplete
    ones are repeated, and runs with other settings are an error."""
    env: str = "Esper-Digits-v0"
    """Task to train and evaluate on."""
    env_settings: tuple[str, ...] = ()
    """Settings of the environment as NAME=VALUE, for example horizon=20 gates=strict, in training and evaluation."""
    total_timesteps: Annotated[int, POSITIVE] = 40_960
    """Environment steps of each training run."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Training seeds."""
    episodes: Annotated[int, POSITIVE] = 100
    """Held-out episodes of each policy, the same for all."""
    baselines: tuple[str, ...] = ("heuristic", "conv_light", "conv_heavy", "random", "wait")
    """Policies to compare with."""
    workers: Annotated[int, POSITIVE] = 2
    """Parallel training processes."""
    train_flags: str = ""
    """Further flags of `esper train` for every seed, as one text after an equals sign:
    --train-flags="--n-steps 8 --ent-coef 0.02". The study's own flags win over a --config file in it."""

    def checked(self) -> StudySettings:
        """These settings, or a ``ConfigError``."""
        check(self)
        most = HELD_OUT_SEED // SEED_DISTANCE
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < most for s in self.seeds):
            raise ConfigError(f"`seeds` is {list(self.seeds)}; expected distinct numbers from 0 to {most - 1}")
        taken = [name for name in self.baselines if name.partition("-")[0] in (LEARNED, LIKELIEST)]
        if taken or len(set(self.baselines)) < len(self.baselines):
            raise ConfigError(
                f"`baselines` is {list(self.baselines)}; expected distinct names other than {LEARNED} and {LIKELIEST}"
            )
        if self.out.resolve() in [run_folder(self, seed).resolve() for seed in self.seeds]:
            raise ConfigError(f"`out` is {self.out}, the folder of a training run; give another folder")
        for folder in (self.out, self.runs):
            check_folder(folder)
        return self


def run_folder(settings: StudySettings, seed: int) -> Path:
    """Run folder of a training seed."""
    return settings.runs / f"seed-{seed}"


def train_arguments(settings: StudySettings, seed: int) -> list[str]:
    """Arguments of `esper` that train a seed."""
    try:
        flags = shlex.split(settings.train_flags)
    except ValueError as error:
        raise ConfigError(f"`train_flags` is {settings.train_flags!r}: {error}; close all quotation marks") from None
    for flag in flags:
        name = flag.partition("=")[0].replace("_", "-")
        if name in OWN_FLAGS:
            raise ConfigError(
                f"`train_flags` contain {name}, which the study sets; leave it out or use the study's own flag"
            )
    return [
        "train",
        *flags,
        *("--out", str(run_folder(settings, seed))),
        *("--env", settings.env),
        *("--env-settings", *settings.env_settings),
        *("--seed", str(SEED_DISTANCE * seed)),
        *("--total-timesteps", str(settings.total_timesteps)),
        "--no-progress",
    ]


def train_settings(settings: StudySettings, seed: int) -> TrainSettings:
    """Settings that `esper train` reads from the arguments of a seed."""
    wanted: TrainSettings = parse(train_arguments(settings, seed)).checked()
    if wanted.num_envs > SEED_DISTANCE:
        raise ConfigError(
            f"`num_envs` is {wanted.num_envs}; expected at most {SEED_DISTANCE}, the distance of the seeds"
        )
    return wanted


def learning(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run that influence training, with nested groups flattened."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and name not in ("env_settings", "logit_bias"):
            flat |= learning(value)
        elif name not in INCIDENTAL:
            flat[name] = value
    return flat


def is_complete(folder: Path, wanted: TrainSettings) -> bool:
    """True if ``folder`` holds the wanted run, and training completed.

    Changes nothing. Raises ``RunError`` for a run with other settings.
    """
    if not (folder / CONFIG).is_file():
        return False
    found, expected = learning(read_config(folder / CONFIG)), learning(plain(wanted))
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if names:
        changed = ", ".join(f"{name} {found.get(name)!r} instead of {expected.get(name)!r}" for name in names)
        raise RunError(f"{folder} was trained with {changed}; give another folder with --runs, or remove this one")
    return all((folder / name).is_file() for name in (COMPLETE, MODEL, EPISODES))


@contextmanager
def locked(runs: Path) -> Iterator[int]:
    """Lock the folder of the runs; yield the descriptor of the lock.

    Training processes inherit the descriptor, so the folder stays locked if they outlive this process.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another study, or its training process, uses {runs}; wait for it, or give another --runs"
            ) from None
        yield file.fileno()


def remove_run(folder: Path) -> None:
    """Remove the run in ``folder``, if any. Renaming it first ensures that a kill leaves no partial run."""
    doomed = folder.with_name(f".removed-{folder.name}")
    if (folder / CONFIG).exists() or (folder / VERSIONS).exists():
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def start_training(settings: StudySettings, seed: int, lock: int) -> subprocess.Popen[bytes]:
    """Start a process that trains one seed, after removing an interrupted run."""
    remove_run(run_folder(settings, seed))
    return subprocess.Popen(
        [sys.executable, "-m", "esper_agent.cli.main", *train_arguments(settings, seed)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        pass_fds=[lock],
        process_group=0,  # Ctrl-C reaches the study only, which forwards it
    )


def train_seeds(settings: StudySettings, seeds: Sequence[int], lock: int) -> None:
    """Train ``seeds``, ``workers`` at a time, and mark complete runs.

    Raises:
        TrainingFailedError: some runs failed; the others have completed.
        KeyboardInterrupt: the study or a run received Ctrl-C or SIGTERM; all runs have stopped. The message names a run
            that was stopped on its own.
    """
    waiting, failed, stopped = list(seeds), [], ""
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        with StopOnInterrupt() as stop, tqdm(total=len(seeds), desc="training runs", unit="run") as bar:
            while waiting or running:
                while waiting and len(running) < settings.workers:
                    seed = waiting.pop(0)
                    running[seed] = start_training(settings, seed, lock)
                time.sleep(0.2)
                for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                    code = running.pop(seed).returncode
                    if code in STOPPED and not stop.interrupted:
                        stop.signal = STOPPED[code]
                        stopped = f"{signal.Signals(STOPPED[code]).name} stopped the training of seed {seed}"
                    if code == OK:
                        write_text(run_folder(settings, seed) / COMPLETE, "esper train completed\n")
                    elif code not in STOPPED:
                        failed.append(f"seed {seed} (exit code {code})")
                    bar.update()
                if stop.interrupted:
                    raise SignalInterruptError(stop.signal, stopped)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    if failed:
        raise TrainingFailedError(f"no model from {', '.join(failed)}: see the messages above; nothing was evaluated")
