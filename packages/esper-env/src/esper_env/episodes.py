"""Reset requests and the clock of a vector's episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeGuard

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from esper_env.checks import POSITIVE, check_value, is_integer
from esper_env.infos import Mask
from esper_env.persistence.state import ArrayState
from esper_env.seeds import BlueprintEntry, blueprint_entry
from esper_env.suggestions import did_you_mean, shown

OPTIONS = ("reset_mask", "topology")  # of a vector's reset


class ResetRequest(NamedTuple):
    """A checked call of ``reset``."""

    seeds: list[int | None]  # one per environment
    rows: Mask  # (N,) environments that are reset
    planted: dict[int, int]  # slot (action index) -> blueprint value, from the option "topology"


class SeedSites(NamedTuple):
    """Slots of a host, and how many seeds they may hold."""

    slot_ids: tuple[str, ...]
    topology: str  # of the host: "cnn", ...
    max_seeds: int
    blueprints: tuple[BlueprintEntry, ...]  # that the environment offers


def parse_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """Return a mode by member, value ("SameStep") or name ("SAME_STEP"); raise ``ValueError`` for anything else."""
    for known in AutoresetMode:
        if mode in (known, known.value, known.name):
            return known
    names = [known.value for known in AutoresetMode]
    hint = did_you_mean(str(mode).replace("_", ""), names)
    raise ValueError(f"autoreset_mode is {mode!r}; expected one of {', '.join(map(repr, names))}{hint}")


def parse_reset(
    seed: int | Sequence[int | None] | None,
    options: Mapping[str, Any] | None,
    count: int,
    sites: SeedSites,
    known: Sequence[str] = OPTIONS,
) -> ResetRequest:
    """Check the arguments of ``reset`` before anything changes; ``known`` lists the valid options.

    Raises:
        ValueError: a seed or an option is out of range, has a wrong shape, or does not exist.
        TypeError: a seed or an option has a wrong type.
    """
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options is {shown(options)}; expected a dict or None")
    given = dict(options or {})
    unknown = sorted(str(option) for option in given if option not in known)
    if unknown:
        raise ValueError(f"reset options {unknown} are not known; expected {', '.join(known)}")
    return ResetRequest(
        _seeds(seed, count), _rows(given.get("reset_mask"), count), _planted(given.get("topology"), sites)
    )


def _seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    if seed is None:
        return [None] * count
    if is_integer(seed):
        seeds: list[int | None] = [int(seed) + row for row in range(count)]
    elif _is_list(seed) and all(value is None or is_integer(value) for value in seed):
        seeds = [None if value is None else int(value) for value in seed]
    else:
        raise TypeError(f"seed is {shown(seed)}; expected an integer, one integer per environment, or None")
    if len(seeds) != count:
        raise ValueError(f"seed has {len(seeds)} values; expected one for each of the {count} environments")
    if any(value is not None and value < 0 for value in seeds):
        raise ValueError(f"seed is {shown(seed)}; seeds must be 0 or greater")
    return seeds


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _rows(mask: Any, count: int) -> Mask:
    if mask is None:
        return np.ones(count, dtype=np.bool_)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"options['reset_mask'] is {shown(mask)}; expected a numpy array of bools")
    if mask.shape != (count,):
        raise ValueError(f"options['reset_mask'] has shape {mask.shape}; expected ({count},)")
    if not mask.any():
        raise ValueError("options['reset_mask'] is False everywhere; name at least one environment to reset")
    return mask.copy()


def _planted(topology: Any, sites: SeedSites) -> dict[int, int]:
    if topology is None:
        return {}
    if not isinstance(topology, Mapping):
        raise TypeError(
            f"options['topology'] is {shown(topology)}; expected a mapping from slot ids to blueprint names"
        )
    for slot in topology:
        if slot not in sites.slot_ids:
            raise ValueError(f"options['topology'] names slot {slot!r}; this host has {', '.join(sites.slot_ids)}")
    if len(topology) > sites.max_seeds:
        raise ValueError(f"options['topology'] plants {len(topology)} seeds; max_seeds is {sites.max_seeds}")
    entries = {slot: blueprint_entry(name, sites.topology, sites.blueprints) for slot, name in topology.items()}
    return {sites.slot_ids.index(slot): entry.value for slot, entry in entries.items()}


class EpisodeClock(ArrayState):
    """Running and finished environments, and the step at which an episode is truncated."""

    STATE = ("_started", "finished", "_steps")

    def __init__(self, count: int, max_episode_steps: int | None) -> None:
        check_value("max_episode_steps", max_episode_steps, Annotated[int, POSITIVE] | None)
        self.limit = None if max_episode_steps is None else int(max_episode_steps)
        self._started = np.zeros(count, dtype=np.bool_)
        self.finished = np.zeros(count, dtype=np.bool_)
        self._steps = np.zeros(count, dtype=np.int64)

    def start(self, rows: Mask) -> None:
        """Begin an episode in ``rows`` (N,)."""
        self._started[rows] = True
        self.finished[rows] = False
        self._steps[rows] = 0

    def require_started(self, besides: Mask | None = None) -> None:
        """Raise ``ResetNeeded`` unless every environment, except ``besides`` (N,), has had its first reset."""
        missing = ~self._started if besides is None else ~self._started & ~besides
        if missing.any():
            rows = np.flatnonzero(missing).tolist()
            raise ResetNeeded(
                f"environments {rows} have not been reset; call reset() first, in a vector without a reset_mask"
            )

    def require_running(self, *, finished_too: bool) -> None:
        """``ResetNeeded`` unless every environment has an episode (a finished one counts with ``finished_too``)."""
        self.require_started()
        if not finished_too and self.finished.any():
            rows = np.flatnonzero(self.finished).tolist()
            raise ResetNeeded(
                f"the episodes of environments {rows} are over; call reset(), in a vector with options['reset_mask']"
            )

    def count(self, stepped: Mask, terminated: Mask) -> Mask:
        """Count a step of ``stepped`` (N,); returns which reached the limit, and marks the finished episodes.

        As with Gymnasium's ``TimeLimit``, an episode that terminates at the limit counts as cut as well.
        """
        self._steps[stepped] += 1
        truncated = np.zeros_like(stepped)
        if self.limit is not None:
            truncated = stepped & (self._steps >= self.limit)
        self.finished = self.finished | (stepped & (terminated | truncated))
        return truncated
