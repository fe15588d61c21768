"""What a fetch or a check is doing, told as it happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """What is being done to a file."""

    DOWNLOAD = "download"
    CHECK = "check"  # its SHA-256 is computed
    UNPACK = "unpack"
    WAIT = "wait"  # before another try


@dataclass(frozen=True)
class Progress:
    """How far it is."""

    stage: Stage
    file: str
    done: int = 0  # bytes
    total: int = 0  # bytes
    reason: str = ""  # of waiting


Watcher = Callable[[Progress], None]


def unwatched(_progress: Progress) -> None:
    """For who does not want to be told."""
