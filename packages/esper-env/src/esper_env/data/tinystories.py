"""TinyStories as bytes, from the front of its training and validation files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from esper_env.data.originals import ORIGINALS, DamagedDataError
from esper_env.data.splits import TEST_BYTES, VAL_BYTES
from esper_env.data.text import MIN_SPLIT_BYTES, Text, TextData, find_invalid_byte

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
    source = ORIGINALS["tinystories"]
    source.refuse_missing(folder)
    train_path, valid_path = (folder / file.name for file in source.files)
    stories = _stories(train_path, max_bytes)
    cut = _end_of_last_story(stories[: len(stories) - min(val, len(stories) // 10)])
    if min(cut, len(stories) - cut) < MIN_SPLIT_BYTES:
        raise DamagedDataError.of(train_path, f"{len(stories)} bytes of stories, too few for a validation split")
    return TextData(source.name, stories[:cut], stories[cut:], _stories(valid_path, test))


def _stories(path: Path, count: int) -> Text:
    """Return the whole stories in the first ``count`` bytes of a file."""
    front = np.fromfile(path, dtype=np.uint8, count=count)
    stories = front[: _end_of_last_story(front)]
    if len(stories) < MIN_SPLIT_BYTES:
        raise DamagedDataError.of(
            path, f"its first {len(front):,} bytes contain no story that ends in {SEPARATOR.decode()}"
        )
    if problem := find_invalid_byte(stories.tobytes()):
        raise DamagedDataError.of(path, f"{problem}; expected a UTF-8 text")
    return stories


def _end_of_last_story(text: Text) -> int:
    """Return the position after the last separator; 0 without one."""
    place = text.tobytes().rfind(SEPARATOR)
    return place + len(SEPARATOR) if place >= 0 else 0
