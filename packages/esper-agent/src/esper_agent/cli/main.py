"""The ``esper`` command: train, evaluate, benchmark, data, info."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Union

import gymnasium
import tyro
from esper_env.checks import field_hints
from esper_env.data import ORIGINALS
from esper_env.suggestions import did_you_mean, esper_command, shell_command, shown
from rich.console import Console

from esper_agent.cli.console import new_console
from esper_agent.cli.data import DATA_COMMANDS, FETCH, DataSettings, run_data
from esper_agent.cli.flags import check_flags, check_required, defaults, parse_flags, show_ranges, unknown_argument
from esper_agent.cli.info import InfoSettings, run_info
from esper_agent.cli.play import BenchmarkSettings, EvaluateSettings, run_benchmark, run_evaluate
from esper_agent.cli.progress import training_progress
from esper_agent.cli.streams import lenient_streams
from esper_agent.evaluation.tables import print_table, training_table
from esper_agent.monitoring.console import ConsoleSink
from esper_agent.ppo.ppo import NonFiniteUpdateError
from esper_agent.settings.config_file import expand_paths, read_config, with_values
from esper_agent.settings.named_values import ConfigError
from esper_agent.settings.train import TrainSettings
from esper_agent.training.checkpoints import checkpoint_paths
from esper_agent.training.run import Trained, resume, train
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
class TrainFlags(TrainSettings):
    """Train a FactoredRecurrentPPO and write a run folder: configuration, versions, model, normaliser, curves.

    Ctrl-C or SIGTERM ends the run at the next step and saves it; a second one ends it at once. --resume RUN, instead of
    --out, resumes a run that was interrupted in any way.
    """

    resume: Annotated[Path | None, tyro.conf.DisallowNone, tyro.conf.arg(metavar="RUN")] = None
    """Resume the interrupted run in this folder, with its own settings; only --device and --progress or --no-progress
    can be added."""


@dataclass(frozen=True)
class ResumeSettings:
    """Resume an interrupted run from its latest checkpoint, with its own settings."""

    resume: Path
    """Folder of the run."""
    device: Annotated[str | None, tyro.conf.DisallowNone] = None
    """Device of the policy: auto, cpu, cuda or cuda:N; by default the device of the run."""
    progress: bool = True
    """Show the rate and the remaining time: a bar on a terminal, lines elsewhere."""


def run_train(settings: TrainSettings, console: Console) -> int:
    """Train, print a report, and return the exit code."""
    bar, watchers = training_progress(console, settings.progress)
    sinks = [ConsoleSink(new_console(stderr=True))]
    return _summarise(train(replace(settings, progress=bar), watchers, sinks), console)


def run_resume(settings: ResumeSettings, console: Console) -> int:
    """Resume a run, print a report, and return the exit code."""
    bar, watchers = training_progress(console, settings.progress)
    sinks = [ConsoleSink(new_console(stderr=True))]
    return _summarise(resume(settings.resume, bar, settings.device, watchers, sinks), console)


def _summarise(trained: Trained, console: Console) -> int:
    if trained.episodes:
        print_table(console, training_table(trained.episodes, f"{trained.env} on {trained.dataset}"))
    done = f"{'Stopped after' if trained.interrupted else 'Trained for'} {trained.model.num_timesteps:,} timesteps"
    files = {
        "model": trained.model_path,
        "training episodes": trained.folder / EPISODES,
        "losses and metrics": trained.folder / PROGRESS,
        "to see their curves": shell_command("tensorboard", "--logdir", str(trained.folder)),
        **({"events": trained.folder / EVENTS} if (trained.folder / EVENTS).exists() else {}),
        "to evaluate it": esper_command("evaluate", "--policy", str(trained.folder), "--env", trained.env),
    }
    if trained.resumed_from is not None:
        done += f", resumed from {trained.resumed_from:,}"
    saved = checkpoint_paths(trained.folder)
    if trained.interrupted and saved:
        done += f"; the checkpoint of timestep {int(saved[0].stem):,} is saved"
        files["to resume it"] = esper_command("train", "--resume", str(trained.folder))
    console.print(done, soft_wrap=True)
    for label, text in files.items():
        console.print(f"  {label:20} {text}", soft_wrap=True, markup=False, highlight=False)
    return OK if trained.signal is None else SIGNALLED + trained.signal


#: Settings and function of each subcommand.
COMMANDS: dict[str, tuple[type, Callable[[Any, Console], int]]] = {
    "train": (TrainFlags, run_train),
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
    """Return the exit code of ``run``; an exception becomes a line on standard error and its exit code.

    Output that cannot be written does not end ``run``. It turns success into failure, unless the pipe's reader has
    ended.
    """
    with lenient_streams() as out:
        code = _exit_code(run)
        out.flush()
        if code == OK and out.problem is not None:
            _report(f"Error: standard output cannot be written: {out.problem}")
            return FAILED
        return code


def _report(text: str) -> None:
    """Print a line on standard error."""
    Console(stderr=True).print(text, soft_wrap=True, markup=False, highlight=False)


def _exit_code(run: Callable[[Console], int]) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_place, **_more: _report(f"Warning: {message}")
            return run(new_console())
    except SystemExit as leaving:  # tyro has printed the help or an error
        return leaving.code if isinstance(leaving.code, int) else OK
    except KeyboardInterrupt as interrupt:
        _report(str(interrupt) or "Interrupted")
        return SIGNALLED + getattr(interrupt, "signal", signal.SIGINT)
    except NonFiniteUpdateError as error:
        _report(f"Training failed: {error}")
        return FAILED
    except (ValueError, gymnasium.error.Error) as error:  # before OSError: missing data is both
        _report(_in_one_line(error))
        return BAD_INPUT
    except MemoryError as error:
        _report(f"Error: there is not enough memory ({error}); lower the number of environments, or their steps")
        return FAILED
    except OSError as error:
        _report(_in_one_line(error))
        return FAILED


def _in_one_line(error: Exception) -> str:
    """Return an error and its notes, such as the path of the saved model, in one line."""
    return ". ".join(["Error: " + " ".join(str(error).split()), *getattr(error, "__notes__", ())])


def parse(arguments: list[str]) -> Any:
    """Return the settings of the subcommand: flags over values of the ``--config`` file over defaults.

    Raises:
        ConfigError: an unknown command or flag, or a value of another type or outside its range.
        SystemExit: tyro has printed the help, or an error about the flags.
    """
    _check_command(arguments[:1], tuple(COMMANDS), "esper")
    if arguments[:1] == ["data"]:
        _check_command(arguments[1:2], tuple(DATA_COMMANDS), "esper data")
        if arguments[1] in DATA_COMMANDS:
            check_flags(arguments[2:], defaults(DATA_COMMANDS[arguments[1]]))
        _check_fetch(arguments[1:])
    subcommands = []
    for name, (kind, _) in _commands(arguments).items():
        show_ranges(kind)
        default = defaults(kind)
        if arguments[:1] == [name]:
            if "config" in field_hints(kind):
                # The file gives the other flags their defaults.
                path = _CONFIG.parse_known_args(arguments)[0].config
                default = default if path is None else with_values(default, _read_settings(path), path)
            check_flags(arguments[1:], default)
            if kind is not DataSettings:
                check_required(arguments[1:], default, f"esper {name}")
        subcommands.append(Annotated[kind, tyro.conf.subcommand(name, default=default)])
    command: Any = Union[tuple(subcommands)]  # noqa: UP007
    description = DESCRIPTION.replace("`esper ", f"`{esper_command()} ")
    settings, foreign = parse_flags(command, arguments, prog="esper", description=description)
    if foreign:
        words = arguments[: 2 if arguments[0] == "data" else 1]
        command = " ".join(["esper", *(word for word in words if not word.startswith("-"))])
        raise ConfigError(unknown_argument(foreign, command, settings))
    expand_paths(settings)
    if isinstance(settings, TrainFlags):
        return TrainSettings(**{field.name: getattr(settings, field.name) for field in fields(TrainSettings)})
    return settings


def _read_settings(path: str) -> dict[str, Any]:
    """Read a configuration file; reject one with the setting ``resume``."""
    values = read_config(path)
    if "resume" in values:
        raise ConfigError(
            f"{path}: 'resume' is not a setting; resume a run with {esper_command('train', '--resume')} RUN"
        )
    return values


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


def _check_command(given: list[str], known: Sequence[str], command: str) -> None:
    """Reject a missing subcommand, and an unknown one even in front of --help."""
    if not given:
        raise ConfigError(f"{command} needs a command: {', '.join(known)}; --help explains them")
    for name in given:
        if not name.startswith("-") and name not in known:
            raise ConfigError(
                f"{command} has no command {shown(name)}; expected one of {', '.join(known)}{did_you_mean(name, known)}"
            )


def _check_fetch(arguments: list[str]) -> None:
    """Reject a fetch without the name of a dataset. Each of its flags takes one value."""
    if arguments[:1] != [FETCH] or "--help" in arguments or "-h" in arguments:
        return
    separate = sum(argument.startswith("--") and "=" not in argument for argument in arguments)
    if sum(not argument.startswith("--") for argument in arguments[1:]) <= separate:
        raise ConfigError(f"esper data fetch needs the NAME of a dataset; expected one of {', '.join(ORIGINALS)}")


def _runner(settings: Any) -> Callable[[Any, Console], int]:
    runners: list[tuple[type, Callable[[Any, Console], int]]] = [
        *COMMANDS.values(),
        (TrainSettings, run_train),
        (ResumeSettings, run_resume),
    ]
    return next(run for kind, run in runners if kind is type(settings))


if __name__ == "__main__":
    sys.exit(main())
