"""NumPy generators as part of a state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from esper_env.persistence.state import check_keys, check_like
from esper_env.persistence.tree import Tree

#: Seed of a generator whose seed is not known, as in Gymnasium.
UNKNOWN_SEED = -1


class Generators:
    """One NumPy generator per environment.

    Several environments may share a generator; they still share it after a state has been loaded.

    Args:
        rngs: (N,) generators.
        seeds: (N,) the seeds they started from, ``UNKNOWN_SEED`` if unknown.
    """

    def __init__(self, rngs: Sequence[np.random.Generator], seeds: Sequence[int]) -> None:
        self.rngs, self.seeds = list(rngs), list(seeds)

    def get_state(self) -> Tree:
        """Return the states of the distinct bit generators, and which environment uses which.

        Raises:
            ValueError: a bit generator is not PCG64, which ``numpy.random.default_rng`` and Gymnasium use.
        """
        distinct = list({id(rng.bit_generator): rng.bit_generator for rng in self.rngs}.values())
        for bits in distinct:
            if type(bits) is not np.random.PCG64:
                raise ValueError(
                    f"np_random uses the bit generator {type(bits).__name__}, whose state cannot be saved; expected "
                    "PCG64, as of numpy.random.default_rng"
                )
        places = {id(bits): place for place, bits in enumerate(distinct)}
        return {
            "rows": [places[id(rng.bit_generator)] for rng in self.rngs],
            "states": {str(place): dict(bits.state) for place, bits in enumerate(distinct)},
            "seeds": [int(seed) for seed in self.seeds],
        }

    def set_state(self, state: Tree) -> None:
        """Replace the generators by new ones that continue from a state."""
        check_keys(state, ("rows", "states", "seeds"))
        for name in ("rows", "seeds"):
            numbers = state[name]
            if not isinstance(numbers, list) or [type(number) for number in numbers] != [int] * len(self.rngs):
                raise ValueError(f"{name} is {numbers!r}; expected {len(self.rngs)} integers")
        check_keys(state["states"], {str(row) for row in state["rows"]}, "states")
        made = {place: np.random.Generator(_bit_generator(saved)) for place, saved in state["states"].items()}
        self.rngs, self.seeds = [made[str(row)] for row in state["rows"]], state["seeds"].copy()


def _bit_generator(state: Any) -> np.random.PCG64:
    bits = np.random.PCG64(0)
    check_like(state, dict(bits.state), "state of a bit generator")
    with suppress(ValueError, OverflowError):
        bits.state = state
    if dict(bits.state) != state:
        raise ValueError("state of a bit generator is impossible for PCG64")
    return bits
