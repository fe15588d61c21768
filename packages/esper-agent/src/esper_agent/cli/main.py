"""The ``esper`` command: train, evaluate, benchmark, data, info."""

from __future__ import annotations

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
from esper_env.suggestions import closest, did_you_mean, shown
from esper_env.tasks import TASK_KWARGS
from rich.console import Console

from esper_agent.cli.data import DATA_COMMANDS, DataSettings, run_data
from esper_agent.cli.info import print_information
from esper_agent.cli.play import BenchmarkSettings, EvaluateSettings, run_benchmark, run_evaluate
from esper_agent.evaluation.tables import training_table
from esper_agent.monitoring.console import ConsoleSink, ErrorConsole
from esper_agent.ppo.ppo import NonFiniteUpdateError
from esper_agent.settings.config_file import ConfigError, read_config, setting_names, with_values
from esper_agent.training.callbacks import SingleThreadedPolicy
from esper_agent.training.checkpoints import checkpoint_paths
from esper_agent.training.run import Trained, TrainSettings, resume, train
from esper_agent.training.run_folder import EPISODES, EVENTS, PROGRESS

DESCRIPTION = """Grow small neural networks while they train, and train agents that decide how.

Start with `esper info`, then `esper train --out runs/first` and `esper evaluate --policy runs/first`. Each subcommand
explains its settings with --help; --version prints the version. Exit codes: 0 done, 1 failed (training diverged, or a
file could not be written), 2 bad input, 130 interrupted, 143 terminated."""

OK, FAILED, BAD_INPUT = 0, 1, 2
#: A process that a signal ended has this exit code plus the signal's number.
SIGNALLED = 128


@dataclass(frozen=True)
class ResumeSettings:
    """Go on with a run that ended before its time, from its latest checkpoint, under its own settings."""

    resume: Path
    """Folder of the run."""
    device: Annotated[str | None, tyro.conf.DisallowNone] = None
    """Where the policy is trained: auto, cpu, cuda or cuda:N; the run's own setting when not given."""
    progress: bool = True
    """Show a progress bar with the rate and the time left."""


@dataclass(frozen=True)
class InfoSettings:
    """List the tasks, the action heads, the blueprints with their parameter counts, and the data sets on this disk."""


def run_train(settings: TrainSettings, console: Console) -> int:
    shown = replace(settings, progress=settings.progress and console.is_terminal)
    trained = train(shown, [SingleThreadedPolicy()], [ConsoleSink(ErrorConsole())])
    return _report(trained, console)


def run_resume(settings: ResumeSettings, console: Console) -> int:
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
        **({"what happened": trained.folder / EVENTS} if (trained.folder / EVENTS).exists() else {}),
        "see how good it is": f"esper evaluate --policy {trained.folder} --env {trained.env}",
    }
    if trained.resumed_from is not None:
        done += f", from {trained.resumed_from:,} on"
    if trained.interrupted:
        saved = checkpoint_paths(trained.folder)
        begin = f"timestep {int(saved[0].name):,}" if saved else "the beginning"
        files["go on"] = f"esper train --resume {trained.folder}, from {begin}"
    console.print(done, soft_wrap=True)
    for label, text in files.items():
        console.print(f"  {label:18} {text}", soft_wrap=True, markup=False, highlight=False)
    return OK if trained.signal is None else SIGNALLED + trained.signal


def run_info(_settings: InfoSettings, console: Console) -> int:
    print_information(console)
    return OK


#: Subcommand -> its settings and what runs it.
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
    """What ``run`` returns, or the exit code of what it raised, with one line about it on standard error."""
    errors = ErrorConsole()

    def tell(text: str) -> None:
        with suppress(OSError):  # a warning that nobody can be told of must not end what it is about
            errors.print(text, soft_wrap=True, markup=False, highlight=False)

    # A terminal has its own width; tables that go into a file or a log should not be cut to 80 columns.
    own_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_place, **_more: tell(f"Warning: {message}")
            return run(Console(width=None if own_width else 110))
    except SystemExit as leaving:  # tyro has printed the help, or what is wrong with the flags
        return leaving.code if isinstance(leaving.code, int) else OK
    except KeyboardInterrupt as interrupt:
        tell(str(interrupt) or "Interrupted")
        return SIGNALLED + signal.SIGINT
    except NonFiniteUpdateError as error:
        tell(f"Training failed: {error}")
        return FAILED
    except (ValueError, gymnasium.error.Error) as error:  # before OSError: missing data is both
        tell(f"Error: {' '.join(str(error).split())}")
        return BAD_INPUT
    except OSError as error:
        tell(". ".join([f"Error: {error}", *getattr(error, "__notes__", ())]))
        return FAILED


def parse(arguments: list[str]) -> Any:
    """The settings of the subcommand: its defaults, under those of its ``--config`` file, under the flags."""
    _refuse_unknown(arguments[:1], tuple(COMMANDS), "esper")
    if arguments[:1] == ["data"]:
        _refuse_unknown(arguments[1:2], DATA_COMMANDS, "esper data")
    _refuse_repeated(arguments)
    subcommands = []
    for name, (kind, _) in _commands(arguments).items():
        chosen = arguments[:1] == [name]
        path = _config_path(arguments) if chosen and "config" in {field.name for field in fields(kind)} else None
        default = _defaults(kind) if path is None else with_values(_defaults(kind), read_config(path), str(path))
        subcommands.append(Annotated[kind, tyro.conf.subcommand(name, default=default)])
    command: Any = Union[tuple(subcommands)]  # noqa: UP007
    settings, foreign = tyro.cli(
        command, prog="esper", description=DESCRIPTION, args=arguments, return_unknown_args=True
    )
    if foreign:
        raise ConfigError(_not_taken(foreign, arguments, settings))
    return settings


def _not_taken(foreign: Sequence[str], arguments: Sequence[str], settings: Any) -> str:
    """What is wrong with arguments that the subcommand does not have, and what does the same if anything does."""
    words = arguments[: 2 if arguments[0] == "data" else 1]
    command = " ".join(["esper", *(word for word in words if not word.startswith("-"))])
    flag, equals, value = foreign[0].partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    taken = {known.rpartition(".")[2] for known in setting_names(settings)}
    near = closest(name, taken) if flag.startswith("--") else None
    hint = f"; did you mean --{near.replace('_', '-')}?" if near else ""
    if flag.startswith("--") and name in TASK_KWARGS and "env_settings" in taken:
        given = value if equals else next((word for word in foreign[1:2] if not word.startswith("-")), "VALUE")
        hint = f"; it is a setting of the environment: --env-settings {name}={given}"
    what = "option" if flag.startswith("-") else "place for"
    return f"{command} has no {what} {shown(flag)}; `{command} --help` lists what it takes{hint}"


def _commands(arguments: list[str]) -> dict[str, tuple[type, Callable[[Any, Console], int]]]:
    """The subcommands. ``train --resume`` has settings of its own: all others are those of the run."""
    flags = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    if arguments[:1] != ["train"] or "--resume" not in flags:
        return COMMANDS
    others = sorted(flags - {f"--{name}" for name in ("resume", "device", "progress", "no-progress", "help")})
    if others:
        raise ConfigError(
            f"{' '.join(others)} cannot be given with --resume: a run goes on with its own settings; leave all out but "
            "--device and --progress or --no-progress"
        )
    return COMMANDS | {"train": (ResumeSettings, run_resume)}


def _refuse_unknown(given: list[str], known: Sequence[str], command: str) -> None:
    """What is no subcommand is an error, also in front of --help, which would be that of ``command``."""
    for name in given:
        if not name.startswith("-") and name not in known:
            raise ConfigError(
                f"{command} has no command {shown(name)}; expected one of {', '.join(known)}{did_you_mean(name, known)}"
            )


def _refuse_repeated(arguments: list[str]) -> None:
    """A flag that takes several values keeps only those of its last mention; who repeats it means to add to them."""
    for flag in ("--env-settings", "--logit-bias", "--policies"):
        if sum(argument.partition("=")[0].replace("_", "-") == flag for argument in arguments) > 1:
            raise ConfigError(f"{flag} is given twice; name all values after one: {flag} A=1 B=2")


def _config_path(arguments: list[str]) -> str | None:
    """The value of the last ``--config``, which has to be known before the other flags can have their defaults."""
    path = None
    for flag, following in zip(arguments, [*arguments[1:], None], strict=True):
        if flag == "--config":
            path = following
        elif flag.startswith("--config="):
            path = flag.partition("=")[2]
    return path


def _defaults(kind: type) -> Any:
    """An instance of the settings in which what has no default is marked as missing."""
    required = [field for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    return kind(**{field.name: tyro.MISSING for field in required})


def _runner(settings: Any) -> Callable[[Any, Console], int]:
    return next(run for kind, run in [*COMMANDS.values(), (ResumeSettings, run_resume)] if kind is type(settings))


if __name__ == "__main__":
    sys.exit(main())
