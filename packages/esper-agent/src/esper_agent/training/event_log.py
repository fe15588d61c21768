"""The event files of a run, kept in step with its checkpoints."""

from __future__ import annotations

from pathlib import Path

from esper_env.persistence.state import check_like
from esper_env.persistence.tree import Tree
from esper_env.telemetry import Telemetry, drop_events
from stable_baselines3.common.callbacks import BaseCallback


class EventLog(BaseCallback):
    """Has a checkpoint remember how many events there were, and training that goes on drop those that came later.

    So each event of a run is told once, with an id of its own, however often the run was cut off.

    Args:
        hub: where the events are emitted.
        folder: of the ``JsonlSink`` that writes them.
    """

    def __init__(self, hub: Telemetry, folder: Path) -> None:
        super().__init__()
        self.hub, self.folder = hub, folder

    def get_state(self) -> Tree:
        """The next id; what came before is in the files."""
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
