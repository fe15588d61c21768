"""Splits of a dataset: seeded and stratified for labelled images, at line ends for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper_env.data.images import Images, Labels
from esper_env.data.text import Text
from esper_env.seeding import derive_rng

#: Maximum bytes of validation and test text. Every step evaluates on the whole validation text several times, so it is
#: short. A contribution is a paired difference over its 16,384 predictions. If 5% of them change, its standard error is
#: about 0.2 points. The test text is used only at the end of an episode.
VAL_BYTES, TEST_BYTES = 2**14, 2**16


def stratified_split(labels: NDArray[np.int64], sizes: Sequence[int], purpose: str) -> list[NDArray[np.int64]]:
    """Split images so that every split has the class shares of the whole, up to about one image.

    Args:
        labels: Class of each image, (N,).
        sizes: Number of images in each split; they add up to N.
        purpose: Name of the random stream. The split depends on the three arguments only.

    Returns:
        One array of ascending indices for each split; the arrays are disjoint.
    """
    order = derive_rng(0, purpose).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)[labels[by_class]]
    starts = np.searchsorted(labels[by_class], labels[by_class])
    # Position of an image within its class, in (0, 1): a cut at one position takes the same share of every class.
    place = (np.arange(len(labels)) - starts + 0.5) / counts
    spread = by_class[np.argsort(place, kind="stable")]
    return [np.sort(part) for part in np.split(spread, np.cumsum(sizes)[:-1])]


def split_at_lines(text: Text) -> list[Text]:
    """Split a text into training, validation and test text.

    The test text has the last ``TEST_BYTES`` bytes, the validation text the ``VAL_BYTES`` before them, but each at most
    a tenth of the text. A cut moves to the end of its line if that shortens the following split by less than half, else
    to the end of its character.
    """
    val, test = (min(most, len(text) // 10) for most in (VAL_BYTES, TEST_BYTES))
    cuts = [_line_end(text, len(text) - val - test, val // 2), _line_end(text, len(text) - test, test // 2)]
    return np.split(text, cuts)


def _line_end(text: Text, place: int, reach: int) -> int:
    """Return the position after the next line end within ``reach`` bytes, else of the next character."""
    ahead = text[place : place + reach]
    ends = np.flatnonzero(ahead == ord("\n"))
    if len(ends):
        return place + int(ends[0]) + 1
    starts = np.flatnonzero(ahead[:4] & 0xC0 != 0x80)  # UTF-8: a character's other bytes are 0b10xxxxxx, at most three
    return place + int(starts[0]) if len(starts) else place


def split_fields(images: Images, labels: Labels, **splits: NDArray[np.int64] | slice) -> dict[str, Any]:
    """Return the arrays of an ``ImageData`` by field name, for splits given by the indices of their images."""
    fields: dict[str, Any] = {}
    for split, index in splits.items():
        fields |= {f"{split}_images": images[index], f"{split}_labels": labels[index]}
    return fields


def carve_validation(name: str, images: Images, labels: Labels, val: int) -> dict[str, Any]:
    """Return the training and validation fields of an ``ImageData``, with ``val`` or at most a fifth for validation."""
    val = min(val, len(labels) // 5)
    train_index, val_index = stratified_split(labels, (len(labels) - val, val), f"data/{name}")
    return split_fields(images, labels, train=train_index, val=val_index)
