"""Policy study: train over several seeds and compare with fixed policies on held-out episodes.

    python benchmarks/policies/study.py --out benchmarks/results/policies-digits-v0

Training seeds run side by side, one process and one thread each. The output folder gets

* episodes.csv: one line per evaluated episode, the raw results;
* training.csv: one line per finished training episode;
* summary.json: settings, dataset, versions, machine, and every estimate with its interval;
* comparison.png: the returns of all policies, and the training curves.

A study resumes: it keeps complete training runs, and removes and repeats interrupted ones. Runs with other settings are
an error. Each study replaces the files in the output folder.

Exit codes: 0 done, 1 failed (training diverged, or a file could not be written), 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from esper_agent.cli.main import FAILED, OK
from esper_agent.cli.progress import say
from esper_agent.cli.script import origin, run_script, write_json
from esper_agent.evaluation.play import EpisodeRecord, run_episodes, write_csv
from esper_agent.evaluation.statistics import Estimate, bootstrap_interval, crossed_bootstrap, interquartile_mean
from esper_agent.evaluation.tables import print_table
from esper_agent.settings.config_file import plain
from esper_agent.settings.named_values import parse_env_settings
from esper_agent.settings.train import TrainSettings
from esper_agent.training.run import HELD_OUT_SEED
from esper_agent.training.run_folder import EPISODES, PolicyByName
from esper_agent.vectors import make_vector
from esper_env.persistence import write_text
from figure import draw_comparison
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from rows import COLUMNS, comparison_rows
from seeds import (
    LEARNED,
    LIKELIEST,
    StudySettings,
    TrainingFailedError,
    is_complete,
    learning,
    locked,
    run_folder,
    train_seeds,
    train_settings,
)
from tqdm import tqdm


def check_playable(settings: StudySettings) -> None:
    """Make the environment and every baseline once, so that errors show before hours of training.

    Raises ``ValueError`` (or a subclass) for an unusable environment, setting or baseline.
    """
    vector = make_vector(settings.env, 1, AutoresetMode.DISABLED, **parse_env_settings(settings.env_settings))
    try:
        for name in settings.baselines:
            PolicyByName(name, settings.env, HELD_OUT_SEED)(vector)
    finally:
        vector.close()


def play(settings: StudySettings, name: str, policy: str) -> list[EpisodeRecord]:
    """Held-out episodes of one policy."""
    return run_episodes(
        PolicyByName(policy, settings.env, HELD_OUT_SEED),
        settings.env,
        settings.episodes,
        HELD_OUT_SEED,
        name=name,
        num_envs=20,
        env_kwargs=parse_env_settings(settings.env_settings),
        deterministic=not name.startswith(LEARNED),
    )


def estimates(
    learned: Sequence[list[EpisodeRecord]],
    likeliest: Sequence[list[EpisodeRecord]],
    fixed: Mapping[str, list[EpisodeRecord]],
) -> dict[str, Any]:
    """Interquartile means of the returns, and of the paired differences learned minus other."""
    table, modes = (
        np.array([[record.episode_return for record in records] for records in runs]) for runs in (learned, likeliest)
    )
    result: dict[str, Any] = {
        "return": {LEARNED: as_json(crossed_bootstrap(table)), LIKELIEST: as_json(crossed_bootstrap(modes))},
        "learned_minus": {LIKELIEST: as_json(crossed_bootstrap(table - modes))},
    }
    for name, records in fixed.items():
        returns = np.array([record.episode_return for record in records])
        result["return"][name] = as_json(bootstrap_interval(returns))
        result["learned_minus"][name] = as_json(crossed_bootstrap(table - returns))
    result["return_by_seed"] = [float(interquartile_mean(row)) for row in table]
    result["likeliest_by_seed"] = [float(interquartile_mean(row)) for row in modes]
    return result


def as_json(estimate: Estimate) -> dict[str, float]:
    """Return an estimate as plain numbers, with NaN for a missing interval."""
    return {"iqm": estimate.value, "low": estimate.low, "high": estimate.high}


def describe(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Further means over episodes."""
    returns = [record.episode_return for record in records]
    return {
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns, ddof=1)) if len(returns) > 1 else math.nan,
        "test_accuracy": mean_where_measured([record.test_accuracy for record in records]),
        "parameters_added": mean_where_measured([record.parameters_added for record in records]),
        "fossilized": float(np.mean([record.fossilized for record in records])),
        "wait_share": float(np.mean([record.wait_share for record in records])),
        "episodes": len(records),
    }


def mean_where_measured(values: Sequence[float | None]) -> float:
    """Mean over the episodes that reached the horizon; NaN if none did."""
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else math.nan


def table(summary: Mapping[str, Any], title: str) -> Table:
    """Table of the comparison."""
    lines = Table(title=title)
    for column in COLUMNS:
        lines.add_column(column, justify="left" if column == "policy" else "right")
    for row in comparison_rows(summary):
        lines.add_row(*row)
    return lines


def summarise(
    settings: StudySettings, flags: Sequence[str], training: TrainSettings, played: Mapping[str, list[EpisodeRecord]]
) -> dict[str, Any]:
    """Content of summary.json; NaN for missing values."""
    learned, likeliest = ([played[f"{kind}-{seed}"] for seed in settings.seeds] for kind in (LEARNED, LIKELIEST))
    fixed = {name: played[name] for name in settings.baselines}
    pooled = {LEARNED: list(chain(*learned)), LIKELIEST: list(chain(*likeliest))} | fixed
    return {
        **origin("benchmarks/policies/study.py", flags),
        "settings": plain(settings),
        "training": {name: value for name, value in learning(plain(training)).items() if name != "seed"},
        "dataset": learned[0][0].dataset,
        "estimates": estimates(learned, likeliest, fixed),
        "policies": {name: describe(records) for name, records in pooled.items()},
    }


def training_curves(settings: StudySettings) -> str:
    """Training episodes of every run as one CSV text, with the training seed in the first column."""
    lines: list[str] = []
    for seed in settings.seeds:
        header, *rows = (run_folder(settings, seed) / EPISODES).read_text(encoding="utf-8").splitlines()
        lines = lines or [f"training_seed,{header}"]
        lines += [f"{seed},{row}" for row in rows]
    return "\n".join(lines) + "\n"


def study(settings: StudySettings, flags: Sequence[str], console: Console) -> int:
    """Train the missing runs, play every policy, and write the results; return the exit code."""
    settings.checked()
    wanted = {seed: train_settings(settings, seed) for seed in settings.seeds}
    check_playable(settings)
    with locked(settings.runs) as lock:
        missing = [seed for seed in settings.seeds if not is_complete(run_folder(settings, seed), wanted[seed])]
        train_seeds(settings, missing, lock)
        runs = {seed: str(run_folder(settings, seed)) for seed in settings.seeds}
        policies = {f"{kind}-{seed}": run for kind in (LEARNED, LIKELIEST) for seed, run in runs.items()}
        policies |= {name: name for name in settings.baselines}
        bar = tqdm(policies.items(), desc="evaluating", unit="policy")
        played = {name: play(settings, name, policy) for name, policy in bar}
        training = training_curves(settings)
    summary = summarise(settings, flags, wanted[settings.seeds[0]], played)
    write_csv([record for records in played.values() for record in records], settings.out / "episodes.csv")
    write_text(settings.out / "training.csv", training)
    write_json(summary, settings.out / "summary.json")
    draw_comparison(summary, played, training, settings.out / "comparison.png")
    seeds = f"{len(settings.seeds)} training seed{'s' * (len(settings.seeds) > 1)}"
    title = f"{settings.env} on {summary['dataset']}: {seeds}, {settings.episodes} held-out episodes"
    print_table(console, table(summary, title))
    say(console, f"Written to {settings.out}")
    return OK


def run(settings: StudySettings, flags: Sequence[str], console: Console) -> int:
    """Run the study with messages for interrupts and failed training runs; return the exit code."""
    try:
        return study(settings, flags, console)
    except KeyboardInterrupt as interrupt:
        why = f"Interrupted: {interrupt}" if str(interrupt) else "Interrupted"
        interrupt.args = (f"{why}; repeat the command to resume with the complete runs",)
        raise
    except TrainingFailedError as error:
        Console(stderr=True).print(f"Training failed: {error}", soft_wrap=True, markup=False, highlight=False)
        return FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_script(StudySettings, run, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
