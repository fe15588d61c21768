"""The ``esper`` command: train, evaluate, benchmark, info."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Union

import gymnasium
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from esper_agent import atomic
from esper_agent.callbacks import SingleThreadedPolicy
from esper_agent.configuration import ConfigError, parse_assignments, read_config, with_values
from esper_agent.evaluation import EpisodeRecord, run_episodes, write_csv
from esper_agent.information import print_information
from esper_agent.ppo import NonFiniteUpdateError
from esper_agent.report.tables import summarise, summarise_all, summary_table, write_summaries
from esper_agent.runs import PolicyByName
from esper_agent.training import TrainSettings, check_device, train

DESCRIPTION = """Grow small neural networks while they train, and train agents that decide how.

Start with `esper info`, then `esper train --out runs/first` and `esper evaluate --policy runs/first`. Each subcommand
explains its settings with --help. Exit codes: 0 done, 1 training diverged, 2 bad input, 130 interrupted."""

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class EvaluateSettings:
    """Play one policy on a number of episodes and print what came of them."""

    policy: str
    """A run folder, or one of heuristic, random, wait, conv_light, conv_heavy."""
    env: str = "Esper-Digits-v0"
    """Task; `esper info` lists them."""
    episodes: int = 20
    """Episodes to play."""
    seed: int = 100
    """Seed of the first episode; episode i has seed + i, so policies evaluated with one seed can be compared."""
    num_envs: int = 10
    """Episodes that run at once."""
    stochastic: bool = False
    """Sample the actions of a learned policy instead of taking the likeliest."""
    env_settings: tuple[str, ...] = ()
    """Settings of the environment as NAME=VALUE, for example horizon=20 gates=strict."""
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
    """Run folders and names: heuristic, random, wait, conv_light, conv_heavy. The first is the one compared with."""
    out: Path
    """Folder for episodes.csv (one line an episode) and summary.csv (one line a policy)."""
    env: str = "Esper-Digits-v0"
    """Task; `esper info` lists them."""
    episodes: int = 50
    """Episodes of each policy, the same for all."""
    seed: int = 100
    """Seed of the first episode; episode i has seed + i."""
    num_envs: int = 10
    """Episodes that run at once."""
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
    trained = train(settings, [SingleThreadedPolicy()])
    done = trained.model.num_timesteps
    if trained.interrupted:
        console.print(f"Stopped after {done:,} timesteps; the model is saved as {trained.model_path}", soft_wrap=True)
        return INTERRUPTED
    console.print(f"Trained for {done:,} timesteps; the model is saved as {trained.model_path}", soft_wrap=True)
    return OK


def run_evaluate(settings: EvaluateSettings, console: Console) -> int:
    check_device(settings.device)
    records = _play(settings.policy, settings, console, deterministic=not settings.stochastic)
    summary = summarise(records)
    console.print(summary_table([summary], _title(settings.env, records)))
    if settings.json is not None:
        content = {"summary": summary.row(), "episodes": [record.row() for record in records]}
        atomic.write_text(settings.json, json.dumps(content, indent=2) + "\n")
        console.print(f"Written to {settings.json}", soft_wrap=True)
    return OK


def run_benchmark(settings: BenchmarkSettings, console: Console) -> int:
    check_device(settings.device)
    if not settings.policies or len(set(settings.policies)) < len(settings.policies):
        raise ConfigError(f"policies are {list(settings.policies)}; expected at least one, none twice")
    # Every name is looked up before the first episode is played.
    for name in settings.policies:
        PolicyByName(name, settings.env, settings.seed, settings.device)
    results = {name: _play(name, settings, console) for name in settings.policies}
    reference = settings.policies[0] if len(settings.policies) > 1 else None
    summaries = summarise_all(results, reference)
    everything = [record for records in results.values() for record in records]
    write_csv(everything, settings.out / "episodes.csv")
    write_summaries(summaries, settings.out / "summary.csv")
    console.print(summary_table(summaries, _title(settings.env, everything)))
    console.print(f"Written to {settings.out}/episodes.csv and {settings.out}/summary.csv", soft_wrap=True)
    return OK


def run_info(_settings: InfoSettings, console: Console) -> int:
    print_information(console)
    return OK


def _play(
    name: str,
    settings: EvaluateSettings | BenchmarkSettings,
    console: Console,
    deterministic: bool = True,
) -> list[EpisodeRecord]:
    with episode_bar(name, settings.episodes, console) as advance:
        return run_episodes(
            PolicyByName(name, settings.env, settings.seed, settings.device),
            settings.env,
            settings.episodes,
            settings.seed,
            name=name,
            num_envs=settings.num_envs,
            env_kwargs=parse_assignments(settings.env_settings),
            deterministic=deterministic,
            progress=advance,
        )


@contextmanager
def episode_bar(name: str, episodes: int, console: Console) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere; yields what to call with the number of finished episodes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=episodes)
        yield lambda finished: bar.advance(task, finished)


def _title(env_id: str, records: Sequence[EpisodeRecord]) -> str:
    seeds = [record.seed for record in records]
    return f"{env_id} on {records[0].dataset}, episodes with seeds {min(seeds)} to {max(seeds)}"


#: Subcommand -> its settings and what runs it.
COMMANDS: dict[str, tuple[type, Callable[[Any, Console], int]]] = {
    "train": (TrainSettings, run_train),
    "evaluate": (EvaluateSettings, run_evaluate),
    "benchmark": (BenchmarkSettings, run_benchmark),
    "info": (InfoSettings, run_info),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 training diverged, 2 bad input, 130 interrupted."""

    def run(console: Console) -> int:
        settings = parse(list(sys.argv[1:] if argv is None else argv))
        return _runner(settings)(settings, console)

    return exit_code(run)


def exit_code(run: Callable[[Console], int]) -> int:
    """What ``run`` returns, or the exit code of what it raised, with one line about it on standard error."""
    errors = Console(stderr=True)
    try:
        # A terminal has its own width; tables that go into a file or a log should not be cut to 80 columns.
        return run(Console(width=None if sys.stdout.isatty() else 110))
    except SystemExit as leaving:  # tyro has printed the help, or what is wrong with the flags
        return leaving.code if isinstance(leaving.code, int) else OK
    except KeyboardInterrupt:
        errors.print("Interrupted; nothing was saved", soft_wrap=True)
        return INTERRUPTED
    except NonFiniteUpdateError as error:
        errors.print(f"Training failed: {error}", soft_wrap=True, markup=False)
        return FAILED
    except (ValueError, OSError, gymnasium.error.Error) as error:
        errors.print(f"Error: {' '.join(str(error).split())}", soft_wrap=True, markup=False, highlight=False)
        return BAD_INPUT


def parse(arguments: list[str]) -> Any:
    """The settings of the subcommand: its defaults, under those of its ``--config`` file, under the flags."""
    subcommands = []
    for name, (kind, _) in COMMANDS.items():
        chosen = arguments[:1] == [name]
        path = _config_path(arguments) if chosen and "config" in {field.name for field in fields(kind)} else None
        default = _defaults(kind) if path is None else with_values(_defaults(kind), read_config(path), str(path))
        subcommands.append(Annotated[kind, tyro.conf.subcommand(name, default=default)])
    command: Any = Union[tuple(subcommands)]  # noqa: UP007
    return tyro.cli(command, prog="esper", description=DESCRIPTION, args=arguments)


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
    return next(run for kind, run in COMMANDS.values() if kind is type(settings))


if __name__ == "__main__":
    sys.exit(main())
