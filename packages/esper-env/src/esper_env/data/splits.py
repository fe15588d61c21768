"""Splits of a data set: seeded and stratified where it has labels, at line ends where it is a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper_env.data.images import Images, Labels
from esper_env.data.text import Text
from esper_env.seeding import derive_rng

#: Bytes of text for validation and for the tests, at most. Every step measures on all of the validation text, several
#: times, so it is short: 16 KiB, and a contribution, a paired difference over 16,384 predictions, has a standard error
#: of about 0.2 points where 5% of them change sides. The tests are for the end of an episode alone.
VAL_BYTES, TEST_BYTES = 2**14, 2**16


def stratified_split(labels: NDArray[np.int64], sizes: Sequence[int], purpose: str) -> list[NDArray[np.int64]]:
    """Disjoint index arrays of exactly these sizes, each with the class shares of ``labels`` (to about one image).

    The split depends on the labels, the sizes and ``purpose`` alone. Indices are ascending within a split.
    Raises ``ValueError`` when the sizes do not add up to ``len(labels)``.
    """
    if sum(sizes) != len(labels) or min(sizes) < 0:
        raise ValueError(f"split sizes {tuple(sizes)} add up to {sum(sizes)}; expected {len(labels)}, one per label")
    order = derive_rng(0, purpose).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)[labels[by_class]]
    starts = np.searchsorted(labels[by_class], labels[by_class])
    # Where an image stands within its class, in (0, 1): cutting at a fixed place takes the same share of every class.
    place = (np.arange(len(labels)) - starts + 0.5) / counts
    spread = by_class[np.argsort(place, kind="stable")]
    return [np.sort(part) for part in np.split(spread, np.cumsum(sizes)[:-1])]


def split_at_lines(text: Text) -> list[Text]:
    """Training, validation and test text: the last ``TEST_BYTES``, but a tenth at most, are for the tests, and
    ``VAL_BYTES``, but a tenth at most, in front of them for validation.

    A cut moves to the end of its line if that is no further than half the length of the split that it makes shorter,
    else to the end of its character.
    """
    val, test = (min(most, len(text) // 10) for most in (VAL_BYTES, TEST_BYTES))
    cuts = [_line_end(text, len(text) - val - test, val // 2), _line_end(text, len(text) - test, test // 2)]
    return np.split(text, cuts)


def _line_end(text: Text, place: int, reach: int) -> int:
    """Behind the first line end from ``place`` on, if it is within ``reach`` bytes; else where a character starts."""
    ahead = text[place : place + reach]
    ends = np.flatnonzero(ahead == ord("\n"))
    if len(ends):
        return place + int(ends[0]) + 1
    starts = np.flatnonzero(ahead[:4] & 0xC0 != 0x80)  # UTF-8: a character's other bytes are 0b10xxxxxx, three at most
    return place + int(starts[0]) if len(starts) else place


def carved(name: str, images: Images, labels: Labels, val: int) -> dict[str, Any]:
    """The training and validation fields of an ``ImageData``: ``val`` images of each class's share, a fifth at most."""
    val = min(val, len(labels) // 5)
    train_index, val_index = stratified_split(labels, (len(labels) - val, val), f"data/{name}")
    return {
        "train_images": images[train_index],
        "train_labels": labels[train_index],
        "val_images": images[val_index],
        "val_labels": labels[val_index],
    }
