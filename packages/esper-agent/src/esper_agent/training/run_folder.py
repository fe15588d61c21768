"""A run folder: all that a training run leaves behind, and how to get the model back out of it.

| file | content |
|---|---|
| config.yaml | the resolved configuration |
| task.json | the resolved task, and name and digest of the data set that was used |
| versions.json | versions of Python and of the packages that matter |
| checkpoints/ | the last two states of the training, from which it can be resumed; named by their timesteps |
| train.lock | held by the process that trains |
| model.zip | the model, saved the Stable-Baselines3 way |
| vecnormalize.pkl | the normaliser of the returns, saved the Stable-Baselines3 way |
| events/ | what happened, as telemetry events: see docs/telemetry.md |
| progress.csv | what the logger recorded, one line per rollout |
| episodes.csv | one line per finished training episode |

Loading a model runs code stored in it, as with every Stable-Baselines3 file: load only runs that you trust.
"""

from __future__ import annotations

import difflib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from esper_env.devices import resolve_device
from esper_env.persistence import replaced, write_text
from gymnasium import Env
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecNormalize

from esper_agent.evaluation.play import Policy
from esper_agent.policies.baselines import POLICIES
from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.settings.config_file import read_config
from esper_agent.settings.named_values import ConfigError, parse_env_settings, training_env_settings

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

CONFIG, TASK, VERSIONS, MODEL = "config.yaml", "task.json", "versions.json", "model.zip"
CHECKPOINTS, EVENTS = "checkpoints", "events"
NORMALISER, EPISODES, PROGRESS = "vecnormalize.pkl", "episodes.csv", "progress.csv"
#: What must not be there when a run begins.
RUN_FILES = (CONFIG, TASK, VERSIONS, MODEL, NORMALISER, EPISODES, PROGRESS, CHECKPOINTS, EVENTS)
_PACKAGES = ("esper-env", "esper-agent", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")


class RunError(ValueError):
    """A run folder that cannot be made or used; the message says what was found and what to do."""


@dataclass(frozen=True)
class Run:
    """A loaded run."""

    path: Path
    config: dict[str, Any]
    model: FactoredRecurrentPPO
    task: dict[str, Any]  # empty where task.json cannot be read: nothing but notes depends on it

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Settings of the environment it was trained in."""
        return training_env_settings(self.config.get("env_settings", {}), self.model.gamma)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def new_folder(path: str | Path, names: Sequence[str], content: str) -> Path:
    """Make a folder for ``content`` unless it is there; a ``RunError`` if one of the files to come is there already."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; {content} needs a folder")
    for name in names:
        if (folder / name).exists():
            ended = "" if name != CONFIG or (folder / MODEL).exists() else " without a model"
            what = f"a run{ended}" if (folder / CONFIG).exists() else f"a file {name}"
            raise RunError(f"{folder} already holds {what}; give another folder, or remove this one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the folder {folder} cannot be made: {error.strerror}; give another one") from None
    return folder


def create_run(path: str | Path, config: Mapping[str, Any], task: Mapping[str, Any]) -> Path:
    """Make a run folder with its configuration, task and versions.

    A folder that already holds a run, or files that would be overwritten, is a ``RunError``.
    """
    folder = new_folder(path, RUN_FILES, "a run")
    write_text(folder / VERSIONS, json.dumps(package_versions(), indent=2) + "\n")
    write_text(folder / TASK, json.dumps(task, indent=2) + "\n")
    write_text(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))
    return folder


def save_model(folder: str | Path, model: BaseAlgorithm) -> Path:
    """Save the model, and the normaliser if its environment has one; returns the model's path.

    Each file appears complete or not at all.
    """
    folder = Path(folder)
    normaliser = model.get_vec_normalize_env()
    if isinstance(normaliser, VecNormalize):
        with replaced(folder / NORMALISER) as temporary:
            normaliser.save(str(temporary))
    with replaced(folder / MODEL) as temporary:
        model.save(temporary)
    return folder / MODEL


def run_config(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a run and its configuration; ``RunError`` when there is none."""
    folder = Path(path)
    if folder.is_file():
        raise RunError(f"{folder} is a file; give the folder that `esper train --out` wrote")
    if not folder.is_dir():
        raise RunError(f"there is no run folder {folder}; train one with `esper train --out {folder}`")
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} is not a run: it has no {CONFIG}; give the folder that `esper train --out` wrote")
    try:
        config = read_config(folder / CONFIG)
    except ConfigError as error:
        raise RunError(f"{folder} cannot be used: {error}") from None
    if "env" not in config:
        raise RunError(f"{folder / CONFIG} does not name an environment; it was not written by `esper train`")
    if not isinstance(config["env"], str):
        raise RunError(f"{folder / CONFIG} has the `env` {config['env']!r}; expected the id of a task")
    return folder, config


def load_run(path: str | Path, env_id: str | None = None, device: str = "auto") -> Run:
    """Load a run's configuration and model.

    Raises ``RunError`` when the folder is missing or holds no run, when the run was stopped before it saved a model,
    and, with ``env_id`` given, when it was trained on another task; ``ConfigError`` for a device that is not there.
    """
    folder, config = run_config(path)
    if not (folder / MODEL).is_file():
        raise RunError(f"{folder} has no {MODEL}: its training ended before a model was saved; train it again")
    if env_id is not None and env_id != config["env"]:
        raise RunError(
            f"{folder} was trained on {config['env']}, not on {env_id}; evaluate it with --env {config['env']}"
        )
    resolve_device(device)
    try:
        parse_env_settings(config.get("env_settings", {}))
    except ConfigError as error:
        raise RunError(f"{folder / CONFIG} cannot be used: {error}") from None
    try:
        model = FactoredRecurrentPPO.load(folder / MODEL, device=device)
    except Exception as error:
        raise RunError(
            f"{folder / MODEL} cannot be loaded ({type(error).__name__}: {error}); it is damaged, or not of "
            "FactoredRecurrentPPO"
        ) from error
    return Run(folder, config, model, _read_task(folder / TASK))


def _read_task(path: Path) -> dict[str, Any]:
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return task if isinstance(task, dict) else {}


def common_task(names: Sequence[str]) -> str | None:
    """The task that the runs among the names of policies were trained on; None without a run.

    ``RunError`` for runs of different tasks, and as of :func:`run_config`.
    """
    trained = {name: run_config(name)[1]["env"] for name in names if name not in POLICIES and Path(name).exists()}
    if len(set(trained.values())) > 1:
        listed = ", ".join(f"{name} on {env_id}" for name, env_id in trained.items())
        raise RunError(f"the runs were trained on different tasks: {listed}; play those of one task at a time")
    return next(iter(trained.values()), None)


class PolicyByName:
    """What makes a policy for an environment: one of ``POLICIES``, or the model of a run folder.

    Raises:
        RunError: the name is neither, or the run cannot be used for the task.
    """

    def __init__(self, name: str, env_id: str, seed: int = 0, device: str = "auto") -> None:
        self.name, self.seed = name, seed
        self.env_kwargs: dict[str, Any] = {}  # that the run was trained with
        self.note = ""  # about the data of the environment that it was last made for
        self._model: FactoredRecurrentPPO | None = None
        self._task: dict[str, Any] = {}
        if name in POLICIES:
            return
        if not Path(name).exists():
            near = difflib.get_close_matches(name, POLICIES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "train one with `esper train`"
            raise RunError(f"policy {name!r} is neither a run folder nor one of {', '.join(POLICIES)}; {hint}")
        run = load_run(name, env_id, device)
        self._model, self.env_kwargs, self._task = run.model, run.env_kwargs, run.task

    @property
    def is_run(self) -> bool:
        """Whether the policy is the model of a run folder."""
        return self._model is not None

    def __call__(self, env: Env | VectorEnv) -> Policy:
        """Return the policy for an environment."""
        if self._model is None:
            return POLICIES[self.name](env, self.seed)
        for kind in ("observation", "action"):
            trained = getattr(self._model, f"{kind}_space")
            offered = getattr(env, f"single_{kind}_space", getattr(env, f"{kind}_space", None))
            if trained != offered:
                raise RunError(
                    f"the {kind} space of {self.name} is {trained}, the environment's is {offered}; "
                    "use the environment settings the run was trained with"
                )
        self.note = self._data_note(env)
        return self._model

    def _data_note(self, env: Env | VectorEnv) -> str:
        """Where the run was trained on other data, a line about it; runs of earlier versions do not tell."""
        trained, here = self._task.get("data_digest"), getattr(env.unwrapped, "data_digest", None)
        if not isinstance(trained, str) or here is None or trained == here:
            return ""
        name = getattr(env.unwrapped, "dataset_name", "data")
        return (
            f"Note: {self.name} was trained on other data: {self._task.get('dataset_name')} with the digest "
            f"{trained[:8]}, here it is {name} with {here[:8]}"
        )
