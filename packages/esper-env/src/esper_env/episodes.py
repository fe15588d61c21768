"""Reset requests and the clock of a vector's episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from esper_env.networks.seeds import blueprint_entry

Mask = NDArray[np.bool_]
OPTIONS = ("reset_mask", "topology")


class ResetRequest(NamedTuple):
    """A checked call of ``reset``."""

    seeds: list[int | None]  # one per environment
    rows: Mask  # (N,) environments that are reset
    topology: dict[int, int]  # slot (action index) -> blueprint value


def parse_reset(
    seed: int | Sequence[int | None] | None,
    options: Mapping[str, Any] | None,
    count: int,
    slot_ids: Sequence[str],
    topology: str,
) -> ResetRequest:
    """Check the arguments of ``reset`` before anything changes.

    Raises:
        ValueError: seeds that are negative or not one per environment, an unknown option, a mask of a wrong shape or
            without a True, a slot or blueprint that does not exist.
        TypeError: seeds or a mask of a wrong type.
    """
    given = dict(options or {})
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        raise ValueError(f"reset options {unknown} are not known; expected {', '.join(OPTIONS)}")
    return ResetRequest(
        _seeds(seed, count), _rows(given.get("reset_mask"), count), _planted(given.get("topology"), slot_ids, topology)
    )


def _seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        seeds: list[int | None] = [int(seed) + row for row in range(count)]
    elif isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str):
        seeds = [None if value is None else int(value) for value in seed]
    else:
        raise TypeError(f"seed is {seed!r}; expected an integer, one integer per environment, or None")
    if len(seeds) != count:
        raise ValueError(f"seed has {len(seeds)} values; expected one for each of the {count} environments")
    if any(value is not None and value < 0 for value in seeds):
        raise ValueError(f"seed is {seed!r}; seeds must be 0 or greater")
    return seeds


def _rows(mask: Any, count: int) -> Mask:
    if mask is None:
        return np.ones(count, dtype=np.bool_)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"options['reset_mask'] is {mask!r}; expected a numpy array of bools")
    if mask.shape != (count,):
        raise ValueError(f"options['reset_mask'] has shape {mask.shape}; expected ({count},)")
    if not mask.any():
        raise ValueError("options['reset_mask'] is False everywhere; name at least one environment to reset")
    return mask.copy()


def _planted(topology: Any, slot_ids: Sequence[str], kind: str) -> dict[int, int]:
    if topology is None:
        return {}
    if not isinstance(topology, Mapping):
        raise TypeError(f"options['topology'] is {topology!r}; expected a mapping from slot ids to blueprint names")
    for slot in topology:
        if slot not in slot_ids:
            raise ValueError(f"options['topology'] names slot {slot!r}; this host has {', '.join(slot_ids)}")
    return {slot_ids.index(slot): blueprint_entry(name, kind).value for slot, name in topology.items()}


class EpisodeClock:
    """Which environments run, which have finished, and when an episode is cut."""

    def __init__(self, count: int, max_episode_steps: int | None) -> None:
        if max_episode_steps is not None and (
            isinstance(max_episode_steps, bool) or not isinstance(max_episode_steps, int) or max_episode_steps < 1
        ):
            raise ValueError(f"max_episode_steps is {max_episode_steps!r}; expected None or at least 1")
        self._limit = max_episode_steps
        self._started = np.zeros(count, dtype=np.bool_)
        self.finished = np.zeros(count, dtype=np.bool_)
        self._steps = np.zeros(count, dtype=np.int64)

    def start(self, rows: Mask) -> None:
        """An episode begins in ``rows`` (N,)."""
        self._started[rows] = True
        self.finished[rows] = False
        self._steps[rows] = 0

    def require_running(self, *, finished_too: bool) -> None:
        """``ResetNeeded`` unless every environment has an episode (a finished one counts with ``finished_too``)."""
        if not self._started.all():
            rows = np.flatnonzero(~self._started).tolist()
            raise ResetNeeded(f"environments {rows} have not been reset; call reset() before step()")
        if not finished_too and self.finished.any():
            rows = np.flatnonzero(self.finished).tolist()
            raise ResetNeeded(f"the episodes of environments {rows} are over; reset them with options['reset_mask']")

    def count(self, stepped: Mask, terminated: Mask) -> Mask:
        """Count a step of ``stepped`` (N,); returns which episodes are cut, and marks the finished ones."""
        self._steps[stepped] += 1
        truncated = np.zeros_like(stepped)
        if self._limit is not None:
            truncated = stepped & ~terminated & (self._steps >= self._limit)
        self.finished = self.finished | (stepped & (terminated | truncated))
        return truncated
