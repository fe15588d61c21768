"""Saving and restoring the arrays of an object, with every mismatch an error before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ArrayState = dict[str, NDArray[Any]]


def save_arrays(owner: object, names: Sequence[str]) -> ArrayState:
    """Copies of the attributes ``_name`` of ``owner``, by name."""
    return {name: getattr(owner, f"_{name}").copy() for name in names}


def restore_arrays(owner: object, names: Sequence[str], state: Mapping[str, NDArray[Any]]) -> None:
    """Put copies of ``state`` back into the attributes ``_name`` of ``owner``.

    Raises ``ValueError`` on a missing or unknown name, another shape or another dtype.
    """
    what = type(owner).__name__
    if set(state) != set(names):
        raise ValueError(f"state of {what} has the arrays {sorted(state)}; expected {sorted(names)}")
    for name in names:
        own, given = getattr(owner, f"_{name}"), np.asarray(state[name])
        if given.shape != own.shape or given.dtype != own.dtype:
            raise ValueError(
                f"state of {what}: {name!r} is {given.dtype} {given.shape}; expected {own.dtype} {own.shape}. "
                "Restore it into the configuration it was saved from"
            )
    for name in names:
        setattr(owner, f"_{name}", np.array(state[name]))
