"""Checkpoints of a run on disk: saving them during training, and finding the latest one to resume from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from esper_env.checks import NON_NEGATIVE, check_value
from esper_env.paths import user_path
from esper_env.persistence import CheckpointError, Tree, read_checkpoint, write_checkpoint
from stable_baselines3.common.callbacks import BaseCallback

from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.training.run_folder import CHECKPOINTS
from esper_agent.training.state import KIND, check_layout, training_state

#: Name of a checkpoint: its timesteps. Before version 2, checkpoints were folders.
_NAME = re.compile(r"\d{12}(\.safetensors)?")
_LEFTOVER = re.compile(r"\.\d{12}\.\d+\.safetensors")


class Saved(NamedTuple):
    """A checkpoint read from disk."""

    path: Path
    timesteps: int
    state: Tree  # for ``restore_training``


class SaveCheckpoints(BaseCallback):
    """Saves checkpoints between rollouts at a fixed interval of timesteps, and keeps the last two.

    It also saves one when a callback stops training within a rollout, unless an evaluation was cancelled: a run that
    resumes from there would lack the evaluation's values. It must come before all other callbacks. Their work at the
    start of a rollout then follows the save, and a resumed run repeats it. If a checkpoint cannot be written, training
    continues with a ``RuntimeWarning`` and the previous checkpoints.

    Args:
        folder: the run folder; checkpoints are files in its subfolder ``checkpoints``.
        every: timesteps between two checkpoints, rounded up to whole rollouts; 0 disables saving.
        callbacks: callbacks whose state is saved, if they have one.
        settings: JSON values saved with the state; :func:`latest_checkpoint` compares them.
        previous: the checkpoint from which training resumed.
        on_saved: called with the path and the timesteps of every new checkpoint.

    Raises:
        ValueError: ``every`` is negative or not an integer.
    """

    model: FactoredRecurrentPPO

    def __init__(
        self,
        folder: str | Path,
        every: int,
        callbacks: Sequence[BaseCallback] = (),
        settings: Mapping[str, Any] | None = None,
        previous: Saved | None = None,
        on_saved: Callable[[Path, int], None] | None = None,
    ) -> None:
        super().__init__()
        check_value("every", every, Annotated[int, NON_NEGATIVE])
        self.folder, self.every = user_path(folder) / CHECKPOINTS, every
        self.callbacks, self.settings, self.on_saved = callbacks, dict(settings or {}), on_saved
        self.in_rollout = False  # True from a rollout's first step to its last
        self._previous = None if previous is None else previous.path
        self._tried = 0 if previous is None else previous.timesteps

    def _on_rollout_start(self) -> None:
        self.in_rollout = False
        if self.model.num_timesteps - self._tried >= self.every:
            self.save()

    def _on_step(self) -> bool:
        self.in_rollout = True
        return True

    def _on_rollout_end(self) -> None:
        self.in_rollout = False

    def _on_training_end(self) -> None:
        # After a full buffer only the updates are missing, and another call of ``learn`` would skip them.
        if self.in_rollout and not self.model.rollout_buffer.full:
            self.save()

    def save(self) -> None:
        """Save a checkpoint now unless ``every`` is 0. Call it outside rollouts, or once training has stopped."""
        if self.incomplete:
            return
        timesteps = self.model.num_timesteps
        path = self.folder / f"{timesteps:012}.safetensors"
        if not self.every or path == self._previous:
            return
        self._tried = timesteps
        try:
            # A file of this name is damaged, or from training after the checkpoint that this run was resumed from.
            path.unlink(missing_ok=True)
            state = training_state(self.model, self.callbacks)
            write_checkpoint(path, {"settings": self.settings, "state": state}, kind=KIND)
        except (OSError, CheckpointError) as error:
            kept = f"{self._previous} is kept" if self._previous else "no earlier checkpoint exists"
            warnings.warn(
                f"the checkpoint of timestep {timesteps} cannot be saved ({error}); {kept}; training is not affected",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._remove_others(path)
        self._previous = path
        if self.on_saved is not None:
            self.on_saved(path, timesteps)

    @property
    def incomplete(self) -> bool:
        """True if an evaluation was cancelled, so that its values are missing."""
        return any(getattr(callback, "cancelled", False) for callback in self.callbacks)

    def _remove_others(self, newest: Path) -> None:
        """Remove all but the newest and the one before it; files that cannot be removed are tried again next time."""
        for path in self.folder.iterdir():
            named = _NAME.fullmatch(path.name) or _LEFTOVER.fullmatch(path.name)
            if named and path.is_file() and path not in (newest, self._previous):
                with suppress(OSError):
                    path.unlink()


def checkpoint_paths(folder: Path) -> list[Path]:
    """Checkpoints of a run, the newest first. Other files in the folder are ignored.

    Raises:
        CheckpointError: the place of the checkpoints is a file.
    """
    place = folder / CHECKPOINTS
    if place.exists() and not place.is_dir():
        raise CheckpointError(f"{place} is a file; expected the folder of the checkpoints: move it away")
    if not place.is_dir():
        return []
    return sorted((entry for entry in place.iterdir() if _NAME.fullmatch(entry.name)), reverse=True)


def latest_checkpoint(folder: Path, settings: Mapping[str, Any]) -> Saved | None:
    """Return the newest readable checkpoint of a run, or None if the run has no checkpoints.

    Warns with a ``RuntimeWarning`` if a newer checkpoint is unreadable.

    Raises:
        CheckpointError: no checkpoint is readable, or they were saved with other ``settings``.
    """
    failures: list[str] = []
    for path in checkpoint_paths(folder):
        try:
            tree = read_checkpoint(path, kind=KIND)
            check_layout(tree["state"], str(path))
        except (CheckpointError, OSError) as error:
            failures.append(str(error))
            continue
        if failures:
            warnings.warn(
                f"a newer checkpoint cannot be read: {'; '.join(failures)}. Training resumes from {path}",
                RuntimeWarning,
                stacklevel=3,
            )
        _check_settings(path, tree["settings"], settings)
        return Saved(path, tree["state"]["counters"]["num_timesteps"], tree["state"])
    if failures:
        raise CheckpointError(
            f"{folder} has no readable checkpoint: {'; '.join(failures)}. To start again, use another folder"
        )
    return None


def _check_settings(path: Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name in sorted(saved.keys() | own.keys()):
        if saved.get(name) != own.get(name):
            raise CheckpointError(
                f"{path} was saved with {name} = {saved.get(name)}; the run's configuration has {own.get(name)}. "
                "A run cannot change its settings: restore the old value, or train another run"
            )
