"""The ``esper`` command: train, evaluate, benchmark, data, info."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from importlib.metadata import version
from pkgutil import resolve_name
from typing import Annotated, Any, Union

import gymnasium
import tyro
from esper_env.checks import field_hints
from esper_env.data import ORIGINALS
from esper_env.suggestions import did_you_mean, esper_command, shown
from rich.console import Console

from esper_agent.cli.commands import (
    BAD_INPUT,
    COMMANDS,
    DATA_COMMANDS,
    FAILED,
    FETCH,
    OK,
    RESUME,
    SIGNALLED,
    DataSettings,
    TrainFlags,
)
from esper_agent.cli.console import new_console
from esper_agent.cli.flags import check_flags, check_required, defaults, parse_flags, show_ranges, unknown_argument
from esper_agent.cli.streams import lenient_streams
from esper_agent.ppo.errors import NonFiniteUpdateError
from esper_agent.settings.config_file import expand_paths, read_config, with_values
from esper_agent.settings.named_values import ConfigError
from esper_agent.settings.train import TrainSettings

DESCRIPTION = """Train agents that decide when and where a small neural network grows.

Start with `esper info`, then `esper train --out runs/first` and `esper evaluate --policy runs/first`. Each subcommand
explains its settings with --help; --version prints the version. Exit codes: 0 success, 1 failure (training diverged, or
a file could not be written), 2 bad input, 130 interrupted, 143 terminated."""

_CONFIG = argparse.ArgumentParser("esper", add_help=False, allow_abbrev=False)
_CONFIG.add_argument("--config")


def main(
    argv: Sequence[str] | None = None, importing: Callable[[], AbstractContextManager[object]] = nullcontext
) -> int:
    """Run the command and return its exit code; see ``DESCRIPTION``.

    Args:
        argv: the arguments; None for those of the process.
        importing: makes the context in which the subcommand's modules are imported.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run(console: Console) -> int:
        if arguments == ["--version"]:
            console.print(f"esper {version('esper-agent')}", highlight=False)
            return OK
        settings = parse(arguments)
        with importing():
            work = resolve_name(_work_of(settings))
        return work(settings, console)

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


def _commands(arguments: list[str]) -> dict[str, tuple[type, str]]:
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
    return COMMANDS | {"train": RESUME}


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


def _work_of(settings: Any) -> str:
    """Return the module and the function that carry out the subcommand with these settings."""
    kinds = (*COMMANDS.values(), RESUME)
    return next(work for kind, work in kinds if issubclass(kind, type(settings)))  # TrainFlags become TrainSettings


if __name__ == "__main__":
    sys.exit(main())
