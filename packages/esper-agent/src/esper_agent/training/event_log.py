"""Callback that keeps the event files of a run consistent with its checkpoints."""

from __future__ import annotations

from pathlib import Path

from esper_env.persistence import Tree, check_like
from esper_env.telemetry import Telemetry, drop_events
from stable_baselines3.common.callbacks import BaseCallback


class EventLog(BaseCallback):
    """Saves the next event id in a checkpoint, and removes later events on resume.

    The files of a run therefore hold each event once, however often the run was interrupted.

    Args:
        hub: emits the events.
        folder: folder of the ``JsonlSink`` that writes them.
    """

    def __init__(self, hub: Telemetry, folder: Path) -> None:
        super().__init__()
        self.hub, self.folder = hub, folder

    def get_state(self) -> Tree:
        """Return the next id, after all earlier events are in the files."""
        self.hub.flush()
        return {"next_id": self.hub.next_id}

    def set_state(self, state: Tree) -> None:
        """Continue the numbering from a state."""
        check_like(state, {"next_id": 0})
        self.hub.next_id = state["next_id"]

    def drop_later_events(self) -> None:
        """Remove events from the files that the hub will emit again."""
        drop_events(self.folder, self.hub.next_id)

    def _on_step(self) -> bool:
        return True
