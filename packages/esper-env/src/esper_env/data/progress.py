"""Progress of fetching and verifying, reported to a callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Work in progress on a file."""

    DOWNLOAD = "download"
    CHECK = "check"  # computing its SHA-256
    UNPACK = "unpack"
    WAIT = "wait"  # before the next attempt


@dataclass(frozen=True)
class Progress:
    """Progress of one stage."""

    stage: Stage
    file: str
    done: int = 0  # bytes
    total: int = 0  # bytes; 0 if the stage reports only its start
    reason: str = ""  # for waiting


Watcher = Callable[[Progress], None]


def unwatched(_progress: Progress) -> None:
    """Ignore the progress."""
