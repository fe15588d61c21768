"""The ``esper`` command: train, evaluate, benchmark, data, info."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Union

import gymnasium
import tyro
from esper_env import atomic
from esper_env.suggestions import did_you_mean, shown
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from esper_agent.baselines import POLICIES
from esper_agent.callbacks import SingleThreadedPolicy
from esper_agent.configuration import ConfigError, parse_env_settings, read_config, with_values
from esper_agent.console_sink import ConsoleSink, ErrorConsole
from esper_agent.data_commands import DATA_COMMANDS, DataSettings, run_data
from esper_agent.evaluation import EpisodeRecord, run_episodes, write_csv
from esper_agent.information import print_information
from esper_agent.ppo import NonFiniteUpdateError
from esper_agent.ranges import check_device
from esper_agent.report.tables import print_summaries, summarise, summarise_all, training_table, write_summaries
from esper_agent.runs import CONFIG, EPISODES, EVENTS, PROGRESS, PolicyByName, new_folder
from esper_agent.saving import checkpoint_paths
from esper_agent.training import HELD_OUT_SEED, Trained, TrainSettings, resume, train
from esper_agent.vectors import check_growth, make_vector

DESCRIPTION = """Grow small neural networks while they train, and train agents that decide how.

Start with `esper info`, then `esper train --out runs/first` and `esper evaluate --policy runs/first`. Each subcommand
explains its settings with --help; --version prints the version. Exit codes: 0 done, 1 failed (training diverged, or a
file could not be written), 2 bad input, 130 interrupted, 143 terminated."""

OK, FAILED, BAD_INPUT = 0, 1, 2
#: A process that a signal ended has this exit code plus the signal's number.
SIGNALLED = 128
BENCHMARK_FILES = ("episodes.csv", "summary.csv")


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
class EvaluateSettings:
    """Play one policy on a number of episodes and print what came of them."""

    policy: str
    """A run folder, or one of heuristic, random, wait, conv_light, conv_heavy, attention, mlp."""
    env: str = "Esper-Digits-v0"
    """Task; `esper info` lists them."""
    episodes: int = 20
    """Episodes to play."""
    seed: int = HELD_OUT_SEED
    """Seed of the first episode; episode i has seed + i, so policies evaluated with one seed can be compared."""
    num_envs: int = 10
    """Episodes that run at once."""
    deterministic: bool = False
    """Take the likeliest actions of a learned policy; without it they are sampled, as in training."""
    env_settings: tuple[str, ...] = ()
    """Settings of the environment as NAME=VALUE, for example horizon=20 gates=strict; a run keeps its own otherwise."""
    device: str = "auto"
    """Where a learned policy runs: auto, cpu, cuda or cuda:N."""
    json: Annotated[Path | None, tyro.conf.DisallowNone] = None
    """Also write the summary and every episode to this file."""
    config: Annotated[Path | None, tyro.conf.DisallowNone] = None
    """YAML or JSON file with these settings; flags given as well win."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """Play several policies on the same episodes, compare them, and write the raw numbers down."""

    policies: tuple[str, ...]
    """Run folders and names: heuristic, random, wait, conv_light, conv_heavy, attention, mlp.
    The first is the one compared with."""
    out: Path
    """Folder for episodes.csv (one line an episode) and summary.csv (one line a policy); it must not hold them yet."""
    env: str = "Esper-Digits-v0"
    """Task; `esper info` lists them."""
    episodes: int = 50
    """Episodes of each policy, the same for all."""
    seed: int = HELD_OUT_SEED
    """Seed of the first episode; episode i has seed + i."""
    num_envs: int = 10
    """Episodes that run at once."""
    deterministic: bool = False
    """Take the likeliest actions of a learned policy; without it they are sampled, as in training."""
    env_settings: tuple[str, ...] = ()
    """Settings of the environment as NAME=VALUE, for example horizon=20 gates=strict."""
    device: str = "auto"
    """Where learned policies run: auto, cpu, cuda or cuda:N."""
    config: Annotated[Path | None, tyro.conf.DisallowNone] = None
    """YAML or JSON file with these settings; flags given as well win."""


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


def run_evaluate(settings: EvaluateSettings, console: Console) -> int:
    check_play(settings)
    if settings.json is not None and (settings.json.is_dir() or settings.json.name == ""):
        raise ConfigError(f"json is {str(settings.json)!r}, a folder; expected the name of a file")
    policy = PolicyByName(settings.policy, settings.env, settings.seed, settings.device)
    given = parse_env_settings(settings.env_settings)
    env_kwargs = policy.env_kwargs | given
    if env_kwargs != given:
        listed = _listed(env_kwargs)
        console.print(f"Played with the environment settings of the run: {listed}", markup=False, soft_wrap=True)
    records = _play(policy, settings, env_kwargs, console)
    if policy.note:
        console.print(policy.note, markup=False, soft_wrap=True)
    summary = summarise(records)
    print_summaries(console, [summary], _title(settings.env, records))
    if settings.json is not None:
        content = {"summary": summary.row(), "episodes": [record.row() for record in records]}
        atomic.write_text(settings.json, json.dumps(content, indent=2) + "\n")
        console.print(f"Written to {settings.json}", soft_wrap=True, markup=False)
    return OK


def run_benchmark(settings: BenchmarkSettings, console: Console) -> int:
    check_play(settings)
    named = [name if name in POLICIES else str(Path(name).resolve()) for name in settings.policies]
    if not named or len(set(named)) < len(named):
        raise ConfigError(f"policies are {list(settings.policies)}; expected at least one, none twice")
    env_kwargs = parse_env_settings(settings.env_settings)
    # Whatever cannot be used is found before the first episode is played.
    policies = {name: PolicyByName(name, settings.env, settings.seed, settings.device) for name in settings.policies}
    with closing(make_vector(settings.env, 1, AutoresetMode.DISABLED, **env_kwargs)) as env:
        check_growth(env.single_observation_space, settings.env)
        for policy in policies.values():
            policy(env)
    out = new_folder(settings.out, (CONFIG, *BENCHMARK_FILES), "a benchmark")
    for name, policy in policies.items():
        if policy.env_kwargs and policy.env_kwargs != env_kwargs:
            there = _listed(policy.env_kwargs)
            console.print(f"Note: {name} was trained with other settings: {there}", markup=False, soft_wrap=True)
        if policy.note:
            console.print(policy.note, markup=False, soft_wrap=True)
    results = {name: _play(policy, settings, env_kwargs, console) for name, policy in policies.items()}
    reference = settings.policies[0] if len(settings.policies) > 1 else None
    summaries = summarise_all(results, reference)
    everything = [record for records in results.values() for record in records]
    raw, summary = (out / name for name in BENCHMARK_FILES)
    write_csv(everything, raw)
    write_summaries(summaries, summary)
    print_summaries(console, summaries, _title(settings.env, everything))
    console.print(f"Written to {raw} and {summary}", soft_wrap=True, markup=False)
    return OK


def check_play(settings: EvaluateSettings | BenchmarkSettings) -> None:
    """``ConfigError`` for numbers and devices that cannot be used."""
    for name, least in {"episodes": 1, "num_envs": 1, "seed": 0}.items():
        if getattr(settings, name) < least:
            raise ConfigError(f"{name} is {getattr(settings, name)}; expected a whole number of at least {least}")
    check_device(settings.device)


def _listed(env_kwargs: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in env_kwargs.items())


def run_info(_settings: InfoSettings, console: Console) -> int:
    print_information(console)
    return OK


def _play(
    policy: PolicyByName,
    settings: EvaluateSettings | BenchmarkSettings,
    env_kwargs: Mapping[str, Any],
    console: Console,
) -> list[EpisodeRecord]:
    with episode_bar(policy.name, settings.episodes, console) as advance:
        return run_episodes(
            policy,
            settings.env,
            settings.episodes,
            settings.seed,
            name=policy.name,
            num_envs=settings.num_envs,
            env_kwargs=env_kwargs,
            deterministic=settings.deterministic,
            progress=advance,
        )


@contextmanager
def episode_bar(name: str, episodes: int, console: Console) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere; yields what to call with the number of finished episodes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(name), total=episodes)
        yield lambda finished: bar.advance(task, finished)


def _title(env_id: str, records: Sequence[EpisodeRecord]) -> str:
    seeds = [record.seed for record in records]
    return f"{env_id} on {records[0].dataset}, episodes with seeds {min(seeds)} to {max(seeds)}"


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
    return tyro.cli(command, prog="esper", description=DESCRIPTION, args=arguments)


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
