"""Run folders, whose files docs/agents.md lists: creating and locking them, and loading their models.

Loading a model executes code stored in it, as with every Stable-Baselines3 file. Load only runs that you trust.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from esper_env.devices import resolve_device
from esper_env.paths import user_path
from esper_env.persistence import check_folder, replaced, write_text
from esper_env.suggestions import closest, esper_command
from esper_env.tasks import task_dict
from filelock import FileLock, Timeout
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
CHECKPOINTS, EVENTS, LOCK = "checkpoints", "events", "train.lock"
NORMALISER, EPISODES, PROGRESS = "vecnormalize.pkl", "episodes.csv", "progress.csv"
#: Files that must not exist when a run starts.
RUN_FILES = (CONFIG, TASK, VERSIONS, MODEL, NORMALISER, EPISODES, PROGRESS, CHECKPOINTS, EVENTS)
_PACKAGES = ("esper-env", "esper-agent", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")


class RunError(ValueError):
    """A run folder that cannot be created or used; the message names the cause and the remedy."""


@dataclass(frozen=True)
class Run:
    """A loaded run."""

    path: Path
    config: dict[str, Any]
    model: FactoredRecurrentPPO
    task: dict[str, Any]  # empty if task.json cannot be read: only notes depend on it

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Settings of the environment it was trained in."""
        return training_env_settings(self.config.get("env_settings", {}), self.model.gamma)


def package_versions() -> dict[str, str]:
    """Return versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def new_folder(folder: Path, names: Sequence[str]) -> None:
    """Create a folder.

    Raises:
        RunError: the folder cannot be written to, or already holds one of the files ``names``. Nothing has changed.
    """
    _check_folder(folder)
    _refuse(folder, names)
    folder.mkdir(parents=True, exist_ok=True)


def _refuse(folder: Path, names: Sequence[str]) -> None:
    """Raise ``RunError`` if a folder holds one of the files ``names``, unless a killed ``create_run`` left them."""
    left = (TASK, VERSIONS) if _was_interrupted(folder) else ()
    for name in names:
        if (folder / name).exists() and name not in left:
            ended = "" if name != CONFIG or (folder / MODEL).exists() else " without a model"
            what = f"a run{ended}" if (folder / CONFIG).exists() else f"a file {name}"
            raise RunError(f"{folder} already holds {what}; use another folder, or remove this one")


def _was_interrupted(folder: Path) -> bool:
    """Return True if a process was killed in ``create_run``: there is its lock, but no file that marks a run."""
    marks = (name for name in RUN_FILES if name not in (TASK, VERSIONS))
    return (folder / LOCK).is_file() and not any((folder / name).exists() for name in marks)


def is_leftover(path: Path, names: Sequence[str]) -> bool:
    """Return True if ``path`` is the temporary file of a process that was killed while it wrote one of ``names``."""
    parts = ((Path(name).stem, Path(name).suffix) for name in names)
    return any(re.fullmatch(rf"\.{re.escape(stem)}\.\d+{re.escape(suffix)}", path.name) for stem, suffix in parts)


def remove_leftovers(folder: Path, names: Sequence[str]) -> None:
    """Remove temporary files of killed processes; those that cannot be removed stay."""
    for path in [path for path in folder.iterdir() if is_leftover(path, names)]:
        with suppress(OSError):
            path.unlink()


def _check_folder(folder: Path) -> None:
    try:
        check_folder(folder)
    except ValueError as error:
        raise RunError(str(error)) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the operating system releases when the process ends, and remove leftovers.

    Raises:
        RunError: another process, or another training in this one, holds it, or the folder cannot be written to.
    """
    _check_folder(folder)
    try:
        lock = FileLock(folder / LOCK).acquire(blocking=False)
    except Timeout:
        raise RunError(f"{folder} is being trained by another process; wait for it to end, or stop it") from None
    except OSError as error:
        raise RunError(f"{folder / LOCK} cannot be locked: {error.strerror}; remove it or use another folder") from None
    with lock:
        remove_leftovers(folder, RUN_FILES)
        yield


def create_run(folder: Path, config: Mapping[str, Any], task: Mapping[str, Any]) -> None:
    """Write versions, task and configuration of a new run, in this order, into a folder that is locked.

    The configuration marks the run. If the process is killed before it is written, ``new_folder`` accepts the folder
    again.

    Raises:
        RunError: the folder already holds a run.
    """
    _refuse(folder, RUN_FILES)  # again, because the folder was not locked in ``new_folder``
    texts = {
        VERSIONS: json.dumps(package_versions(), indent=2) + "\n",
        TASK: json.dumps(task, indent=2) + "\n",
        CONFIG: yaml.safe_dump(dict(config), sort_keys=False),
    }
    try:
        for name, text in texts.items():
            write_text(folder / name, text)
    except BaseException:  # also Ctrl-C, so that a new run can use the folder
        for name in reversed(texts):
            (folder / name).unlink(missing_ok=True)
        raise


def save_model(folder: str | Path, model: BaseAlgorithm) -> Path:
    """Save the model, and the normaliser if its environment has one. Each file appears complete or not at all.

    Returns:
        The model's path.
    """
    folder = user_path(folder)
    normaliser = model.get_vec_normalize_env()
    if isinstance(normaliser, VecNormalize):
        with replaced(folder / NORMALISER) as temporary:
            normaliser.save(str(temporary))
    with replaced(folder / MODEL) as temporary:
        model.save(temporary)
    return folder / MODEL


def run_config(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a run and its configuration; raise ``RunError`` if there is none."""
    folder = user_path(path)
    if not folder.exists():
        command = esper_command("train", "--out", str(folder))
        raise RunError(f"there is no run folder {folder}; train one with `{command}`")
    if _was_interrupted(folder):
        command = esper_command("train", "--out", str(folder))
        raise RunError(
            f"the run in {folder} was interrupted before its settings were saved; start it again with `{command}` and "
            "its settings"
        )
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} is not a run: it has no {CONFIG}; give the folder that `esper train --out` wrote")
    try:
        config = read_config(folder / CONFIG)
        parse_env_settings(config.get("env_settings", {}))
    except ConfigError as error:
        raise RunError(f"{folder} cannot be used: {error}") from None
    if not isinstance(config.get("env"), str):
        raise RunError(f"{folder / CONFIG} does not name an environment; it was not written by `esper train`")
    return folder, config


def load_run(path: str | Path, env_id: str | None = None, device: str = "auto") -> Run:
    """Load a run's configuration and model.

    Args:
        path: the run folder.
        env_id: the task that the run must have been trained on; None accepts any.
        device: the device of the model.

    Raises:
        RunError: the folder holds no run, the run has no model, or it was trained on another task.
        ValueError: the device does not exist.
    """
    folder, config = run_config(path)
    if not (folder / MODEL).is_file():
        raise RunError(f"{folder} has no {MODEL}: training ended before a model was saved; train it again")
    if env_id is not None and env_id != config["env"]:
        raise RunError(
            f"{folder} was trained on {config['env']}, not on {env_id}; evaluate it with --env {config['env']}"
        )
    resolve_device(device)
    try:
        model = FactoredRecurrentPPO.load(folder / MODEL, device=device)
    except Exception as error:
        raise RunError(
            f"{folder / MODEL} cannot be loaded ({type(error).__name__}: {error}); it is damaged, or not a "
            "FactoredRecurrentPPO model"
        ) from error
    try:
        task = json.loads((folder / TASK).read_text(encoding="utf-8"))
        if not all(isinstance(task[name], str) for name in ("dataset_name", "data_digest")):
            task = {}
    except (OSError, ValueError, TypeError, LookupError):
        task = {}
    return Run(folder, config, model, task)


def is_run(name: str) -> bool:
    """Return True if the name of a policy is a path that exists, and not one of ``POLICIES``."""
    return name not in POLICIES and user_path(name).exists()


def common_task(names: Sequence[str]) -> str | None:
    """Return the task of the runs among policy names; None without a run.

    Raises:
        RunError: the runs were trained on different tasks, or a folder is not a run.
    """
    trained = {name: run_config(name)[1]["env"] for name in names if is_run(name)}
    if len(set(trained.values())) > 1:
        listed = ", ".join(f"{name} on {env_id}" for name, env_id in trained.items())
        raise RunError(f"the runs were trained on different tasks: {listed}; evaluate the runs of one task at a time")
    return next(iter(trained.values()), None)


class PolicyByName:
    """Factory of a policy: one of ``POLICIES``, or the model of a run folder.

    Raises:
        RunError: the name is neither, or the run cannot be used for the task.
    """

    def __init__(self, name: str, env_id: str, seed: int = 0, device: str = "auto") -> None:
        self.name, self.seed = name, seed
        self.notes: list[str] = []  # about the last environment
        self._run: Run | None = None
        if name not in POLICIES:
            if not user_path(name).exists():
                near = closest(name, POLICIES)
                hint = f"did you mean {near!r}?" if near else f"train one with `{esper_command('train')} --out RUN`"
                raise RunError(f"policy {name!r} is neither a run folder nor one of {', '.join(POLICIES)}; {hint}")
            self._run = load_run(name, env_id, device)
        self.is_run = self._run is not None
        #: Environment settings of the training.
        self.env_kwargs: dict[str, Any] = self._run.env_kwargs if self._run else {}

    def __call__(self, env: Env | VectorEnv) -> Policy:
        """Return the policy for an environment, and set ``notes``."""
        if self._run is None:
            policy = POLICIES[self.name](env, self.seed)
            self.notes = [f"{self.name} {policy.note}"] if getattr(policy, "note", None) else []
            return policy
        model, task = self._run.model, self._run.task
        for kind in ("observation", "action"):
            trained = getattr(model, f"{kind}_space")
            offered = getattr(env, f"single_{kind}_space", getattr(env, f"{kind}_space", None))
            if trained != offered:
                raise RunError(
                    f"the {kind} space of {self.name} is {trained}; the environment has {offered}; "
                    "use the environment settings the run was trained with"
                )
        self.notes = [f"{self.name} {note}" for note in _changes(task, self.env_kwargs, env.unwrapped)]
        return model


#: Settings of a task that change no result, or whose change has another note.
_WITHOUT_NOTE = ("env_id", "dataset", "data_dir", "device", "shard_size", "auto_shard_size", "capture")


#: Setting that is not part of the task.
_LIMIT = "max_episode_steps"


def _changes(task: Mapping[str, Any], env_kwargs: Mapping[str, Any], env: Any) -> Iterator[str]:
    """Yield a note for each difference from the environment of the training; its ``task`` is {} if unknown."""
    trained = {**task, _LIMIT: env_kwargs.get(_LIMIT)}
    here = {**task_dict(env.task), _LIMIT: getattr(env.spec, "kwargs", {}).get(_LIMIT)} if hasattr(env, "task") else {}
    changed = [name for name in here if name in trained and trained[name] != here[name] and name not in _WITHOUT_NOTE]
    if changed:
        before, now = (", ".join(f"{name}={values[name]}" for name in changed) for values in (trained, here))
        yield f"was trained with other settings: {before}; here {now}"
    digest, digest_here = task.get("data_digest"), getattr(env, "data_digest", None)
    if digest and digest_here and digest != digest_here:
        yield (
            f"was trained on other data: {task['dataset_name']} with the digest {digest[:8]}, "
            f"here it is {env.dataset_name} with {digest_here[:8]}"
        )
