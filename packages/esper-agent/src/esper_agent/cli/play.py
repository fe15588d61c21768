"""``esper evaluate`` and ``esper benchmark``: play policies and report their results."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from esper_env.checks import check
from esper_env.devices import resolve_device
from esper_env.paths import user_path
from esper_env.persistence import check_writable, write_text
from gymnasium.vector import AutoresetMode
from rich.console import Console

from esper_agent.cli.commands import BenchmarkSettings, EvaluateSettings
from esper_agent.cli.console import new_console
from esper_agent.cli.progress import episode_progress, say
from esper_agent.evaluation.play import EpisodeRecord, run_episodes, write_csv
from esper_agent.evaluation.tables import print_summaries, summarise, summarise_all
from esper_agent.policies.baselines import POLICIES
from esper_agent.settings.config_file import plain
from esper_agent.settings.named_values import ConfigError, parse_env_settings
from esper_agent.settings.train import DEFAULT_TASK
from esper_agent.training.run_folder import CONFIG, PolicyByName, common_task, new_folder, package_versions
from esper_agent.vectors import check_growth, find_id, make_vector

BENCHMARK_FILES = ("episodes.csv", "summary.csv")
SETTINGS = "settings.json"
#: Value of ``--json`` that stands for standard output.
STANDARD_OUTPUT = Path("-")


def run_evaluate(settings: EvaluateSettings, console: Console) -> int:
    """Play the policy, write and print the results, and return the exit code."""
    check(settings)
    resolve_device(settings.device)
    if settings.json == STANDARD_OUTPUT:
        console = new_console(stderr=True)
    elif settings.json is not None:
        check_writable(settings.json)
    env_id = settings.env or common_task([settings.policy]) or DEFAULT_TASK
    policy = PolicyByName(settings.policy, env_id, settings.seed, settings.device)
    given = parse_env_settings(settings.env_settings)
    kept = {name: value for name, value in policy.env_kwargs.items() if name not in given}
    _check_text(policy.name, kept)
    env_kwargs = policy.env_kwargs | given
    _try_policies([policy], env_id, env_kwargs)
    _print_task(settings.env, [policy], env_id, console)
    if kept:
        here = f"; given here: {_listed(given)}" if given else ""
        say(console, f"Played with the environment settings of the run: {_listed(kept)}{here}")
    _print_notes([policy], console)
    records = _play(policy, env_id, settings, env_kwargs, console)
    summary = summarise(records)
    content = _origin(settings, env_id, env_kwargs)
    content |= {"summary": summary.row(), "episodes": [record.row() for record in records]}
    if settings.json == STANDARD_OUTPUT:
        sys.stdout.write(_json(content))
    elif settings.json is not None:
        write_text(settings.json, _json(content))
    print_summaries(console, [summary], _title(env_id, records))
    if settings.json not in (None, STANDARD_OUTPUT):
        say(console, f"Written to {settings.json}")
    return 0


def run_benchmark(settings: BenchmarkSettings, console: Console) -> int:
    """Play all policies, write and print the results, and return the exit code."""
    check(settings)
    resolve_device(settings.device)
    named = [name if name in POLICIES else str(user_path(name).resolve()) for name in settings.policies]
    if not named or len(set(named)) < len(named):
        raise ConfigError(f"`policies` is {list(settings.policies)}; expected at least one, each once")
    env_kwargs = parse_env_settings(settings.env_settings)
    env_id = settings.env or common_task(settings.policies) or DEFAULT_TASK
    # Every policy is made and tried before the first episode is played.
    policies = {name: PolicyByName(name, env_id, settings.seed, settings.device) for name in settings.policies}
    _try_policies(list(policies.values()), env_id, env_kwargs)
    new_folder(settings.out, (CONFIG, *BENCHMARK_FILES, SETTINGS))
    _print_task(settings.env, list(policies.values()), env_id, console)
    _print_notes(list(policies.values()), console)
    results = {name: _play(policy, env_id, settings, env_kwargs, console) for name, policy in policies.items()}
    reference = settings.policies[0] if len(settings.policies) > 1 else None
    summaries = summarise_all(results, reference)
    everything = [record for records in results.values() for record in records]
    raw, summary = (settings.out / name for name in BENCHMARK_FILES)
    write_csv(everything, raw)
    write_csv(summaries, summary)
    write_text(settings.out / SETTINGS, _json(_origin(settings, env_id, env_kwargs)))
    print_summaries(console, summaries, _title(env_id, everything))
    say(console, f"Written to {raw}, {summary} and {settings.out / SETTINGS}")
    return 0


def _origin(
    settings: EvaluateSettings | BenchmarkSettings, env_id: str, env_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings and versions that the results depend on; the environment's settings include those of the run."""
    own = plain(replace(settings, env=env_id, env_settings=env_kwargs))
    for name in ("config", "json", "out", "progress"):  # which change no result
        own.pop(name, None)
    return {"settings": own, "versions": package_versions()}


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _try_policies(policies: Sequence[PolicyByName], env_id: str, env_kwargs: Mapping[str, Any]) -> None:
    """Make every policy for a single environment, to find errors and collect notes."""
    with closing(make_vector(env_id, 1, AutoresetMode.DISABLED, **env_kwargs)) as env:
        check_growth(env.single_observation_space, env_id)
        for policy in policies:
            policy(env)


def _print_notes(policies: Sequence[PolicyByName], console: Console) -> None:
    for policy in policies:
        for note in policy.notes:
            say(console, f"Note: {note}")


def _print_task(given: str | None, policies: Sequence[PolicyByName], env_id: str, console: Console) -> None:
    """Print the task of the runs among the policies if it was not given; raise ``ValueError`` if it is not known."""
    runs = sum(policy.is_run for policy in policies)
    if given is None and runs:
        find_id(env_id)
        say(console, f"Task of the run{'s' if runs > 1 else ''}: {env_id}")


def _check_text(name: str, env_kwargs: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` if the text of a run has moved away from its absolute path."""
    dataset = env_kwargs.get("dataset")
    if isinstance(dataset, str) and Path(dataset).is_absolute() and not os.path.lexists(dataset):
        raise ConfigError(
            f"the text that {name} was trained on is no longer at {dataset}; give its new path with "
            "--env-settings dataset=NEWPATH"
        )


def _listed(env_kwargs: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in env_kwargs.items())


def _play(
    policy: PolicyByName,
    env_id: str,
    settings: EvaluateSettings | BenchmarkSettings,
    env_kwargs: Mapping[str, Any],
    console: Console,
) -> list[EpisodeRecord]:
    with episode_progress(policy.name, settings.episodes, console, settings.progress) as advance:
        records = run_episodes(
            policy,
            env_id,
            settings.episodes,
            settings.seed,
            name=policy.name,
            num_envs=settings.num_envs,
            env_kwargs=env_kwargs,
            deterministic=settings.deterministic,
            workers=settings.workers,
            progress=advance,
        )
    if policy.name == "heuristic" and not any(record.germinated for record in records):
        say(console, "Note: heuristic planted no seed: it plants only while enough epochs are left to commit one")
    return records


def _title(env_id: str, records: Sequence[EpisodeRecord]) -> str:
    seeds = [record.seed for record in records]
    played = f"episode with seed {seeds[0]}"
    if len(set(seeds)) > 1:
        played = f"episodes with seeds {min(seeds)} to {max(seeds)}"
    return f"{env_id} on {records[0].dataset}, {played}"
