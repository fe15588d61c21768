"""An event: when and where something happened, and what (the payload)."""

from __future__ import annotations

from typing import NamedTuple

from esper_env.telemetry import payloads, training_payloads
from esper_env.telemetry.payloads import Payload, Severity

#: Event type -> class of its payload.
PAYLOADS: dict[str, type[Payload]] = {
    kind.TYPE: kind
    for module in (payloads, training_payloads)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Payload) and "TYPE" in vars(kind)
}


class Event(NamedTuple):
    """Something that happened. What does not apply is None: a policy's update belongs to no environment."""

    id: int  # in the order of emission
    time: float  # seconds since the epoch, UTC, in whole microseconds
    env: int | None  # index in the vector
    episode: int | None  # of this environment
    epoch: int | None  # of this episode
    slot: str | None
    severity: Severity
    payload: Payload

    @property
    def type(self) -> str:
        """The type of the event, a key of ``PAYLOADS``."""
        return self.payload.TYPE
