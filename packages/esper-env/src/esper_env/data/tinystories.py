"""TinyStories as bytes, from the front of its training and validation files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from esper_env.data.originals import ORIGINALS
from esper_env.data.sources import DamagedDataError
from esper_env.data.splits import TEST_BYTES, VAL_BYTES
from esper_env.data.text import MIN_SPLIT_BYTES, Text, TextData

SOURCE = ORIGINALS["tinystories"]
TRAIN_FILE, VALID_FILE = (file.name for file in SOURCE.files)

#: Mark at the end of every story.
SEPARATOR = b"<|endoftext|>"

#: Bytes to read from the training file, which has 2.2 GB. A network sees a few megabytes in an episode at most.
MAX_BYTES = 64 * 2**20


def load_tinystories(
    folder: Path, max_bytes: int = MAX_BYTES, val: int = VAL_BYTES, test: int = TEST_BYTES
) -> TextData:
    """Load TinyStories in whole stories.

    Args:
        folder: Folder of the two files, which may be shorter than the originals.
        max_bytes: Bytes to read from the training file.
        val: Bytes of validation text at the end of these, at most a tenth of them.
        test: Bytes of test text to read from the validation file.

    Returns:
        The text; a split that would end within a story ends before it.

    Raises:
        MissingDataError: for a missing file.
        DamagedDataError: (a ``ValueError``) for a file without separator, with a NUL byte, or not in UTF-8.
    """
    SOURCE.refuse_missing(folder)
    stories = _stories(folder / TRAIN_FILE, max_bytes)
    cut = _end_of_last_story(stories[: len(stories) - min(val, len(stories) // 10)])
    if min(cut, len(stories) - cut) < MIN_SPLIT_BYTES:
        raise DamagedDataError.of(
            folder / TRAIN_FILE, f"{len(stories)} bytes of stories, too few for a validation split"
        )
    return TextData(SOURCE.name, stories[:cut], stories[cut:], _stories(folder / VALID_FILE, test))


def _stories(path: Path, count: int) -> Text:
    """Return the whole stories in the first ``count`` bytes of a file."""
    front = np.fromfile(path, dtype=np.uint8, count=count)
    stories = front[: _end_of_last_story(front)]
    if len(stories) < MIN_SPLIT_BYTES:
        raise DamagedDataError.of(
            path, f"its first {len(front):,} bytes contain no story that ends in {SEPARATOR.decode()}"
        )
    if not stories.all():
        raise DamagedDataError.of(path, f"a NUL byte at offset {int(np.argmin(stories))}, expected a text")
    try:
        stories.tobytes().decode()
    except UnicodeDecodeError as error:
        raise DamagedDataError.of(path, f"the byte at offset {error.start} is not UTF-8 ({error.reason})") from error
    return stories


def _end_of_last_story(text: Text) -> int:
    """Return the position after the last separator; 0 without one."""
    place = text.tobytes().rfind(SEPARATOR)
    return place + len(SEPARATOR) if place >= 0 else 0
