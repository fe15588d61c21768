"""TinyStories as bytes: as much of its training file as fits an environment, and its validation file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from esper_env.data.originals import ORIGINALS
from esper_env.data.sources import DamagedDataError
from esper_env.data.splits import TEST_BYTES, VAL_BYTES
from esper_env.data.text import LEAST_BYTES, Text, TextData

SOURCE = ORIGINALS["tinystories"]
TRAIN_FILE, VALID_FILE = (file.name for file in SOURCE.files)

#: What stands behind every story.
SEPARATOR = b"<|endoftext|>"

#: Bytes that are read from the front of the training file; the original has 2.2 GB. A network of an episode sees a few
#: megabytes at the most.
MOST = 64 * 2**20


def load_tinystories(folder: Path, most: int = MOST, val: int = VAL_BYTES, test: int = TEST_BYTES) -> TextData:
    """The whole stories in the first ``most`` bytes of the training file, of which the last ones, about ``val`` bytes
    or a tenth, are for validation; the test split is those in the first ``test`` bytes of the validation file.

    Files may be shorter than the original. Raises ``MissingDataError`` for a missing file and ``DamagedDataError`` (a
    ``ValueError``) for one that holds no stories: no separator, a NUL byte, or bytes that are not UTF-8.
    """
    SOURCE.refuse_missing(folder)
    stories = _stories(folder / TRAIN_FILE, most)
    cut = _end_of_last_story(stories[: len(stories) - min(val, len(stories) // 10)])
    if min(cut, len(stories) - cut) < LEAST_BYTES:
        raise _damaged(folder / TRAIN_FILE, f"{len(stories)} bytes of stories, too few to set one apart for validation")
    return TextData(SOURCE.name, stories[:cut], stories[cut:], _stories(folder / VALID_FILE, test))


def _stories(path: Path, most: int) -> Text:
    """The front of a file as far as the last story that is in it to its end."""
    front = np.fromfile(path, dtype=np.uint8, count=most)
    stories = front[: _end_of_last_story(front)]
    if len(stories) < LEAST_BYTES:
        raise _damaged(path, f"no story that ends in {SEPARATOR.decode()} in its first {len(front):,} bytes")
    if not stories.all():
        raise _damaged(path, f"a NUL byte at offset {int(np.argmin(stories))}, expected text")
    try:
        stories.tobytes().decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, f"the byte at offset {error.start} is not UTF-8 ({error.reason})") from error
    return stories


def _end_of_last_story(text: Text) -> int:
    """Where the last separator ends; 0 without any."""
    place = text.tobytes().rfind(SEPARATOR)
    return place + len(SEPARATOR) if place >= 0 else 0


def _damaged(path: Path, what: str) -> DamagedDataError:
    return DamagedDataError(f"{path} is damaged: {what}")
