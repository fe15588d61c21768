"""Progress of fetching and verifying, reported to a callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class FetchStage(StrEnum):
    """Work in progress on a file."""

    DOWNLOAD = "download"
    CHECK = "check"  # computing its SHA-256
    UNPACK = "unpack"
    WAIT = "wait"  # before the next attempt


@dataclass(frozen=True)
class FetchProgress:
    """Progress of one stage."""

    stage: FetchStage
    file: str
    done: int = 0  # bytes
    total: int = 0  # bytes; 0 if the stage reports only its start
    reason: str = ""  # for waiting


Watcher = Callable[[FetchProgress], None]


def unwatched(_progress: FetchProgress) -> None:
    """Ignore the progress."""
