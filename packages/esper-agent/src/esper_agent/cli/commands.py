"""The subcommands of ``esper``: their settings, which are their flags, and the functions that carry them out.

Parsing and ``--help`` need only this module, which imports no PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from esper_env.checks import POSITIVE, SEED
from esper_env.workers import Workers

from esper_agent.settings.named_values import NamedValues
from esper_agent.settings.train import HELD_OUT_SEED, TrainSettings

#: Exit codes. A signal ends the process with ``SIGNALLED`` plus its number.
OK, FAILED, BAD_INPUT, SIGNALLED = 0, 1, 2, 128
#: Subcommands of ``esper data``.
LIST, FETCH, VERIFY = "list", "fetch", "verify"


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


@dataclass(frozen=True, kw_only=True)
class PlaySettings:
    """Settings that ``esper evaluate`` and ``esper benchmark`` share."""

    env: Annotated[str | None, tyro.conf.DisallowNone] = None
    """Task; `esper info` lists them. By default the task of the runs among the policies, which must be the same, or
    Esper-Digits-v0 without a run."""
    seed: Annotated[int, SEED] = HELD_OUT_SEED
    """Seed of the first episode; episode i has seed + i, so policies evaluated with one seed can be compared."""
    num_envs: Annotated[int, POSITIVE] = 10
    """Episodes that run at once."""
    workers: Workers = 1
    """Processes that the environments are spread over; auto for one per core."""
    deterministic: bool = False
    """Play the greedy policy; by default the actions of a learned policy are sampled, as in training."""
    env_settings: NamedValues = field(default_factory=dict)
    """Settings of the environment as NAME=VALUE, for example horizon=20 gates=strict."""
    device: str = "auto"
    """Device of a learned policy: auto, cpu, cuda or cuda:N."""
    progress: bool = True
    """Show the progress: a bar on a terminal, lines elsewhere."""
    config: Annotated[Path | None, tyro.conf.DisallowNone] = None
    """YAML or JSON file with these settings; flags win."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(PlaySettings):
    """Play one policy on a number of episodes and print the results.

    A run keeps its own environment settings, except those in --env-settings.
    """

    policy: str
    """A run folder, or one of heuristic, random, wait, conv_light, conv_heavy, attention, mlp."""
    episodes: Annotated[int, POSITIVE] = 20
    """Episodes to play."""
    json: Annotated[Path | None, tyro.conf.DisallowNone] = None
    """Also write settings, versions, the summary and every episode to this file, which is replaced if it exists. With -
    they go to standard output, and everything else to standard error."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(PlaySettings):
    """Play several policies on the same episodes, compare them, and write the raw results."""

    policies: tuple[str, ...]
    """Run folders and names: heuristic, random, wait, conv_light, conv_heavy, attention, mlp.
    The others are compared with the first."""
    out: Path
    """Folder for episodes.csv (one line per episode), summary.csv (one line per policy) and settings.json; it must hold
    none of them."""
    episodes: Annotated[int, POSITIVE] = 50
    """Episodes of each policy, the same for all."""


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """The folder of the datasets, an argument of every subcommand."""

    data_dir: Annotated[str | None, tyro.conf.DisallowNone, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the datasets; default: $ESPER_DATA_DIR, else esper in the user's cache folder."""


@dataclass(frozen=True)
class ListSettings(DataFolder):
    """List the datasets, the tasks that accept them, the size of their downloads, and their folders."""


@dataclass(frozen=True)
class FetchSettings(DataFolder):
    """Download a dataset, compare it with the SHA-256 of the original, and put it where tasks find it.

    Run the command again to resume an interrupted download; it does nothing if the files are there and intact. Files
    without a manifest are never replaced. An original archive in the folder is unpacked instead of downloaded.
    Proxies are taken from the environment (https_proxy).
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Dataset; `esper data list` lists them."""
    url: Annotated[str | None, tyro.conf.DisallowNone, tyro.conf.arg(metavar="URL")] = None
    """Different URL of the same files: of the file or, ending in /, of a folder that has them all."""


@dataclass(frozen=True)
class VerifySettings(DataFolder):
    """Compare datasets on the disk with their manifests, and load them as a task does.

    The exit code is 1 if one is damaged, or was named but is not there.
    """

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="(optional)")
    ] = ()
    """Datasets; default: all that are on the disk."""


#: Settings of each subcommand.
DATA_COMMANDS = {LIST: ListSettings, FETCH: FetchSettings, VERIFY: VerifySettings}


@dataclass(frozen=True)
class DataSettings:
    """List the datasets, download one, or verify those on the disk."""

    command: Annotated[
        Annotated[ListSettings, tyro.conf.subcommand(LIST, prefix_name=False)]
        | Annotated[FetchSettings, tyro.conf.subcommand(FETCH, prefix_name=False)]
        | Annotated[VerifySettings, tyro.conf.subcommand(VERIFY, prefix_name=False)],
        tyro.conf.arg(name=""),
    ]


@dataclass(frozen=True)
class InfoSettings:
    """List the tasks, the action heads, the blueprints with their parameter counts, and the datasets on this disk."""


#: Settings of each subcommand, and the module and the function that carry it out.
COMMANDS: dict[str, tuple[type, str]] = {
    "train": (TrainFlags, "esper_agent.cli.train:run_train"),
    "evaluate": (EvaluateSettings, "esper_agent.cli.play:run_evaluate"),
    "benchmark": (BenchmarkSettings, "esper_agent.cli.play:run_benchmark"),
    "data": (DataSettings, "esper_agent.cli.data:run_data"),
    "info": (InfoSettings, "esper_agent.cli.info:run_info"),
}
#: The same for ``train --resume``.
RESUME: tuple[type, str] = (ResumeSettings, "esper_agent.cli.train:run_resume")
