"""The ``esper`` command: train, evaluate, benchmark, data, info."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Union

import gymnasium
import tyro
from esper_env.checks import field_hints
from esper_env.suggestions import closest, did_you_mean, shown
from esper_env.tasks import TASK_KWARGS
from rich.console import Console

from esper_agent.cli.data import DATA_COMMANDS, DataSettings, run_data
from esper_agent.cli.flags import check_flags, flag_settings, show_ranges
from esper_agent.cli.info import InfoSettings, run_info
from esper_agent.cli.play import BenchmarkSettings, EvaluateSettings, run_benchmark, run_evaluate
from esper_agent.evaluation.tables import training_table
from esper_agent.monitoring.console import ConsoleSink, ErrorConsole
from esper_agent.ppo.ppo import NonFiniteUpdateError
from esper_agent.settings.config_file import read_config, with_values
from esper_agent.settings.named_values import ConfigError
from esper_agent.training.callbacks import SingleThreadedPolicy
from esper_agent.training.checkpoints import checkpoint_paths
from esper_agent.training.run import Trained, TrainSettings, resume, train
from esper_agent.training.run_folder import EPISODES, EVENTS, PROGRESS

DESCRIPTION = """Train agents that decide when and where a small neural network grows.

Start with `esper info`, then `esper train --out runs/first` and `esper evaluate --policy runs/first`. Each subcommand
explains its settings with --help; --version prints the version. Exit codes: 0 success, 1 failure (training diverged, or
a file could not be written), 2 bad input, 130 interrupted, 143 terminated."""

OK, FAILED, BAD_INPUT = 0, 1, 2
_CONFIG = argparse.ArgumentParser("esper", add_help=False, allow_abbrev=False)
_CONFIG.add_argument("--config")
#: A signal ends the process with this exit code plus its number.
SIGNALLED = 128


@dataclass(frozen=True)
class ResumeSettings:
    """Resume an interrupted run from its latest checkpoint, with its own settings."""

    resume: Path
    """Folder of the run."""
    device: Annotated[str | None, tyro.conf.DisallowNone] = None
    """Device of the policy: auto, cpu, cuda or cuda:N; by default the device of the run."""
    progress: bool = True
    """Show a progress bar with the rate and the remaining time."""


def run_train(settings: TrainSettings, console: Console) -> int:
    """Train, print a report, and return the exit code."""
    shown = replace(settings, progress=settings.progress and console.is_terminal)
    trained = train(shown, [SingleThreadedPolicy()], [ConsoleSink(ErrorConsole())])
    return _report(trained, console)


def run_resume(settings: ResumeSettings, console: Console) -> int:
    """Resume a run, print a report, and return the exit code."""
    progress = settings.progress and console.is_terminal
    watchers, sinks = [SingleThreadedPolicy()], [ConsoleSink(ErrorConsole())]
    return _report(resume(settings.resume, progress, settings.device, watchers, sinks), console)


def _report(trained: Trained, console: Console) -> int:
    if trained.episodes:
        console.print(training_table(trained.episodes, f"{trained.env} on {trained.dataset}"))
    done = f"{'Stopped after' if trained.interrupted else 'Trained for'} {trained.model.num_timesteps:,} timesteps"
    files = {
        "model": trained.model_path,
        "training episodes": trained.folder / EPISODES,
        "losses and metrics": f"{trained.folder / PROGRESS}; tensorboard --logdir {trained.folder}",
        **({"events": trained.folder / EVENTS} if (trained.folder / EVENTS).exists() else {}),
        "to evaluate it": f"esper evaluate --policy {trained.folder} --env {trained.env}",
    }
    if trained.resumed_from is not None:
        done += f", resumed from {trained.resumed_from:,}"
    if trained.interrupted:
        saved = checkpoint_paths(trained.folder)
        begin = f"timestep {int(saved[0].stem):,}" if saved else "the beginning"
        files["to resume it"] = f"esper train --resume {trained.folder}, from {begin}"
    console.print(done, soft_wrap=True)
    for label, text in files.items():
        console.print(f"  {label:18} {text}", soft_wrap=True, markup=False, highlight=False)
    return OK if trained.signal is None else SIGNALLED + trained.signal


#: Settings and function of each subcommand.
COMMANDS: dict[str, tuple[type, Callable[[Any, Console], int]]] = {
    "train": (TrainSettings, run_train),
    "evaluate": (EvaluateSettings, run_evaluate),
    "benchmark": (BenchmarkSettings, run_benchmark),
    "data": (DataSettings, run_data),
    "info": (InfoSettings, run_info),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``DESCRIPTION``."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run(console: Console) -> int:
        if arguments == ["--version"]:
            console.print(f"esper {version('esper-agent')}", highlight=False)
            return OK
        settings = parse(arguments)
        return _runner(settings)(settings, console)

    return exit_code(run)


def exit_code(run: Callable[[Console], int]) -> int:
    """Return the exit code of ``run``; an exception becomes a line on standard error and its exit code."""
    errors = ErrorConsole()

    def report(text: str) -> None:
        with suppress(OSError):  # a closed standard error must not end the command
            errors.print(text, soft_wrap=True, markup=False, highlight=False)

    # Tables in a file or a log are not cut to the default of 80 columns.
    own_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_place, **_more: report(f"Warning: {message}")
            return run(Console(width=None if own_width else 110))
    except SystemExit as leaving:  # tyro has printed the help or an error
        return leaving.code if isinstance(leaving.code, int) else OK
    except KeyboardInterrupt as interrupt:
        report(str(interrupt) or "Interrupted")
        return SIGNALLED + signal.SIGINT
    except NonFiniteUpdateError as error:
        report(f"Training failed: {error}")
        return FAILED
    except (ValueError, gymnasium.error.Error) as error:  # before OSError: missing data is both
        report(f"Error: {' '.join(str(error).split())}")
        return BAD_INPUT
    except OSError as error:
        report(". ".join([f"Error: {error}", *getattr(error, "__notes__", ())]))
        return FAILED


def parse(arguments: list[str]) -> Any:
    """Return the settings of the subcommand: flags over values of the ``--config`` file over defaults.

    Raises:
        ConfigError: an unknown command or flag, or a value of another type or outside its range.
        SystemExit: tyro has printed the help, or an error about the flags.
    """
    _reject_unknown(arguments[:1], tuple(COMMANDS), "esper")
    if arguments[:1] == ["data"]:
        _reject_unknown(arguments[1:2], DATA_COMMANDS, "esper data")
    subcommands = []
    for name, (kind, _) in _commands(arguments).items():
        show_ranges(kind)
        default = _defaults(kind)
        if arguments[:1] == [name]:
            if "config" in field_hints(kind):
                # The file gives the other flags their defaults.
                path = _CONFIG.parse_known_args(arguments)[0].config
                default = default if path is None else with_values(default, read_config(path), path)
            check_flags(arguments[1:], default)
        subcommands.append(Annotated[kind, tyro.conf.subcommand(name, default=default)])
    command: Any = Union[tuple(subcommands)]  # noqa: UP007
    settings, foreign = tyro.cli(
        command, prog="esper", description=DESCRIPTION, args=arguments, return_unknown_args=True
    )
    if foreign:
        raise ConfigError(_unknown_argument(foreign, arguments, settings))
    return settings


def _unknown_argument(foreign: Sequence[str], arguments: Sequence[str], settings: Any) -> str:
    """Error text for unknown arguments, with the closest alternative."""
    words = arguments[: 2 if arguments[0] == "data" else 1]
    command = " ".join(["esper", *(word for word in words if not word.startswith("-"))])
    flag, _, value = foreign[0].partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    known = flag_settings(settings)
    near = closest(name, known) if flag.startswith("--") else None
    hint = f"; did you mean --{near.replace('_', '-')}?" if near else ""
    if flag.startswith("--") and name in TASK_KWARGS and "env_settings" in known:
        hint = f"; it is a setting of the environment: --env-settings {name}={value or 'VALUE'}"
    what = "option" if flag.startswith("-") else "argument"
    return f"{command} has no {what} {shown(flag)}; `{command} --help` lists its options{hint}"


def _commands(arguments: list[str]) -> dict[str, tuple[type, Callable[[Any, Console], int]]]:
    """The subcommands; ``train --resume`` has its own settings, because the run keeps those it started with."""
    flags = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    if arguments[:1] != ["train"] or "--resume" not in flags:
        return COMMANDS
    others = sorted(flags - {f"--{name}" for name in ("resume", "device", "progress", "no-progress", "help")})
    if others:
        raise ConfigError(
            f"{' '.join(others)} cannot be combined with --resume, because a run resumes with its own settings; leave "
            "out all options but --device and --progress or --no-progress"
        )
    return COMMANDS | {"train": (ResumeSettings, run_resume)}


def _reject_unknown(given: list[str], known: Sequence[str], command: str) -> None:
    """Reject an unknown subcommand, even in front of --help."""
    for name in given:
        if not name.startswith("-") and name not in known:
            raise ConfigError(
                f"{command} has no command {shown(name)}; expected one of {', '.join(known)}{did_you_mean(name, known)}"
            )


def _defaults(kind: type) -> Any:
    """An instance of the settings in which values without a default are marked as missing."""
    required = [field for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    return kind(**{field.name: tyro.MISSING for field in required})


def _runner(settings: Any) -> Callable[[Any, Console], int]:
    return next(run for kind, run in [*COMMANDS.values(), (ResumeSettings, run_resume)] if kind is type(settings))


if __name__ == "__main__":
    sys.exit(main())
