"""Seeded, stratified splits of a labelled data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esper_env.seeding import derive_rng


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
