"""Event: time and place of an occurrence, and its payload."""

from __future__ import annotations

from typing import NamedTuple

from esper_env.telemetry.payloads import Payload, Severity


class Event(NamedTuple):
    """An occurrence. A field that does not apply is None: a policy update belongs to no environment."""

    id: int  # in the order of emission
    time: float  # seconds since the Unix epoch, UTC, in whole microseconds
    env: int | None  # index in the vector
    episode: int | None  # of this environment
    epoch: int | None  # of this episode
    slot: str | None
    severity: Severity
    payload: Payload

    @property
    def type(self) -> str:
        """Event type, for example "EPOCH_COMPLETED"."""
        return self.payload.TYPE
