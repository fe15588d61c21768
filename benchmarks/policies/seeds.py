"""The training runs of a policy study: its settings, and one run folder a training seed.

A run is used again only if it has the settings that are asked for and `esper train` went through with it.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper_agent.cli.main import OK, SIGNALLED, parse
from esper_agent.settings.config_file import ConfigError, plain, read_config
from esper_agent.training.callbacks import StopOnInterrupt
from esper_agent.training.run import HELD_OUT_SEED, TrainSettings
from esper_agent.training.run_folder import CONFIG, EPISODES, MODEL, VERSIONS, RunError
from esper_env.persistence import atomic
from tqdm import tqdm

#: The learned policies as they were trained, sampling their actions, and taking the likeliest ones instead.
LEARNED, LIKELIEST = "learned", "likeliest"
#: File in a run folder that says that `esper train` went through; an interrupted run leaves a model as well.
COMPLETE = "complete"
#: File in the folder of the runs that is locked while a study, or a training run it started, is at work there.
LOCK = ".lock"
#: Environment i of a run starts from seed + i: runs this far apart share no training episode.
SEED_DISTANCE = 1000
#: What the study itself says to `esper train`.
OWN_FLAGS = ("--out", "--env", "--env-settings", "--seed", "--total-timesteps", "--progress", "--no-progress")
#: Settings of a run that what it learns does not depend on.
INCIDENTAL = ("out", "progress", "config")


#: Exit codes of a training process that was told to end, and the signals that told it.
STOPPED = {code: number for number in StopOnInterrupt.SIGNALS for code in (SIGNALLED + number, -number)}


class TrainingFailedError(RuntimeError):
    """Training runs that did not go through."""


@dataclass(frozen=True)
class StudySettings:
    """Train FactoredRecurrentPPO over several seeds and compare it with policies that nobody trained."""

    out: Path
    """Folder of the results; those of an earlier study in it are replaced."""
    runs: Path = Path("runs/study")
    """Folder of the training runs, one folder a seed. Runs of the same settings that are complete are used again,
    unfinished ones are removed and trained anew, those of other settings are an error."""
    env: str = "Esper-Digits-v0"
    """Task to train and evaluate on."""
    env_settings: tuple[str, ...] = ()
    """Settings of the environment as NAME=VALUE, for example horizon=20 gates=strict, in training and evaluation."""
    total_timesteps: int = 40_960
    """Environment steps of each training run."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Training seeds."""
    episodes: int = 100
    """Held-out episodes of each policy, the same for all."""
    baselines: tuple[str, ...] = ("heuristic", "conv_light", "conv_heavy", "random", "wait")
    """Policies to compare with."""
    workers: int = 2
    """Processes at a time."""
    train_flags: str = ""
    """Further flags of `esper train`, the same for every seed, as one text after an equals sign:
    --train-flags="--n-steps 8 --ent-coef 0.02". What this study has a flag of its own for is given with that one, and
    wins over a --config file."""

    def checked(self) -> StudySettings:
        """These settings, or a ``ConfigError`` for those that cannot work."""
        for name in ("episodes", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        most = HELD_OUT_SEED // SEED_DISTANCE
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < most for s in self.seeds):
            raise ConfigError(f"seeds are {list(self.seeds)}; expected one or more from 0 to {most - 1}, none twice")
        taken = [name for name in self.baselines if name.partition("-")[0] in (LEARNED, LIKELIEST)]
        if taken or len(set(self.baselines)) < len(self.baselines):
            raise ConfigError(
                f"baselines are {list(self.baselines)}; expected none twice, and none called {LEARNED} or {LIKELIEST}"
            )
        if self.out.resolve() in [run_folder(self, seed).resolve() for seed in self.seeds]:
            raise ConfigError(f"out is {self.out}, which is the folder of a training run; give another folder")
        for folder in (self.out, self.runs):
            check_writable(folder)
        return self


def check_writable(folder: Path) -> None:
    """``ConfigError`` unless ``folder`` is, or can be made, a folder to write to."""
    present = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not present.is_dir():
        raise ConfigError(f"{folder} cannot be written to: {present} is not a folder; give another one")
    if not os.access(present, os.W_OK):
        raise ConfigError(f"{folder} cannot be written to: {present} is read-only; give another one")


def run_folder(settings: StudySettings, seed: int) -> Path:
    """Where a training seed has its run."""
    return settings.runs / f"seed-{seed}"


def train_arguments(settings: StudySettings, seed: int) -> list[str]:
    """The arguments of `esper` that train a seed."""
    try:
        flags = shlex.split(settings.train_flags)
    except ValueError as error:
        raise ConfigError(f"train_flags are {settings.train_flags!r}: {error}; close every quotation") from None
    for flag in flags:
        name = flag.partition("=")[0].replace("_", "-")
        if name in OWN_FLAGS:
            raise ConfigError(
                f"train_flags have {name}, which the study sets; leave it out or use the study's own flag"
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
    """What `esper train` makes of the arguments of a seed."""
    wanted: TrainSettings = parse(train_arguments(settings, seed)).checked()
    if wanted.num_envs > SEED_DISTANCE:
        raise ConfigError(f"num_envs is {wanted.num_envs}; expected at most {SEED_DISTANCE}, the distance of the seeds")
    return wanted


def learning(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that what it learns depends on, those of nested groups under their own names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= learning(value)
        elif name not in INCIDENTAL:
            flat[name] = value
    return flat


def is_complete(folder: Path, wanted: TrainSettings) -> bool:
    """Whether ``folder`` holds the wanted run, trained to the end. ``RunError`` when it holds a run of other settings.

    Only what is there is looked at.
    """
    if not (folder / CONFIG).is_file():
        return False
    found, expected = learning(read_config(folder / CONFIG)), learning(plain(wanted))
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if names:
        said = ", ".join(f"{name} {found.get(name)!r} instead of {expected.get(name)!r}" for name in names)
        raise RunError(f"{folder} was trained with {said}; give another folder with --runs, or remove this one")
    return all((folder / name).is_file() for name in (COMPLETE, MODEL, EPISODES))


@contextmanager
def locked(runs: Path) -> Iterator[int]:
    """Keep other studies out of the folder of the runs; yields a descriptor that keeps them out for as long as it is
    open, so a training process that inherits it and outlives this one is not disturbed either."""
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another study, or a run it started, is at work in {runs}; wait for it, or give another --runs"
            ) from None
        yield file.fileno()


def remove_run(folder: Path) -> None:
    """Remove a run if ``folder`` holds one. It is renamed first: what a kill leaves of it is no run any more."""
    doomed = folder.with_name(f".removed-{folder.name}")
    if (folder / CONFIG).exists() or (folder / VERSIONS).exists():
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def start_training(settings: StudySettings, seed: int, lock: int) -> subprocess.Popen[bytes]:
    """Train one seed in a process of its own; what an interrupted run left in its place is removed."""
    remove_run(run_folder(settings, seed))
    return subprocess.Popen(
        [sys.executable, "-m", "esper_agent.cli.main", *train_arguments(settings, seed)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        pass_fds=[lock],
        process_group=0,  # a Ctrl-C in the terminal is for the study, which passes it on once
    )


def train_seeds(settings: StudySettings, seeds: Sequence[int], lock: int) -> None:
    """Train ``seeds``, ``workers`` at a time, and mark the runs that went through.

    A run that fails does not stop the others; ``TrainingFailedError`` names it when they are through. A Ctrl-C or
    SIGTERM, to the study or to a run, ends them all with ``KeyboardInterrupt``.
    """
    waiting, failed = list(seeds), []
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
                    stop.signal = stop.signal or STOPPED.get(code)
                    if code == OK:
                        atomic.write_text(run_folder(settings, seed) / COMPLETE, "esper train went through\n")
                    elif code not in STOPPED:
                        failed.append(f"seed {seed} (exit code {code})")
                    bar.update()
                if stop.interrupted:
                    raise KeyboardInterrupt
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    if failed:
        raise TrainingFailedError(f"no model from {', '.join(failed)}: see the messages above; nothing was evaluated")
