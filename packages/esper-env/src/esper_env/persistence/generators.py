"""NumPy generators as part of a state: of any of NumPy's kinds, shared where they are shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from esper_env.persistence.tree import Tree

#: The kinds there are, by name: a name in a state is looked up here and nowhere else.
_KINDS: dict[str, type[np.random.BitGenerator]] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}


def generators_state(rngs: Sequence[np.random.Generator], seeds: Sequence[int]) -> Tree:
    """The state of some generators, and what each started from, -1 where that is not known.

    ``rows`` names each one's entry in ``states``; generators that share their bits share an entry.

    Raises ``ValueError`` for a bit generator that is none of NumPy's.
    """
    distinct = list({id(rng.bit_generator): rng.bit_generator for rng in rngs}.values())
    places = {id(bits): place for place, bits in enumerate(distinct)}
    for bits in distinct:
        _kind_of(type(bits).__name__)
    return {
        "rows": [places[id(rng.bit_generator)] for rng in rngs],
        "states": {str(place): _plain(dict(bits.state)) for place, bits in enumerate(distinct)},
        "seeds": [int(seed) for seed in seeds],
    }


def generators_from(state: Tree, count: int) -> tuple[list[np.random.Generator], list[int]]:
    """``count`` new generators that go on from :func:`generators_state`, and what they started from.

    Raises ``ValueError`` for a malformed state.
    """
    if not isinstance(state, dict) or state.keys() != {"rows", "states", "seeds"}:
        raise ValueError("generators of the state: expected rows, states and seeds")
    rows, states, seeds = state["rows"], state["states"], state["seeds"]
    for numbers in (rows, seeds):
        if not isinstance(numbers, list) or len(numbers) != count or any(type(number) is not int for number in numbers):
            raise ValueError(f"generators of the state: {numbers!r} is not an integer for each of {count} environments")
    if not isinstance(states, dict):
        raise ValueError(f"generators of the state: states is {states!r}; expected a dict")
    made = {str(place): _generator(entry) for place, entry in states.items()}
    if {str(row) for row in rows} != made.keys():
        raise ValueError(f"generators of the state: rows {rows} do not name the states {sorted(made)}")
    return [made[str(row)] for row in rows], seeds.copy()


def _generator(state: Any) -> np.random.Generator:
    if not isinstance(state, dict):
        raise ValueError(f"a generator of the state is {state!r}; expected the state of a bit generator")
    bits = _kind_of(state.get("bit_generator"))(0)
    try:
        bits.state = _plain(state)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a generator of the state is no {state['bit_generator']}: {error!r}") from error
    if not _same(_plain(dict(bits.state)), state):
        raise ValueError(f"a generator of the state has values that no {state['bit_generator']} can have")
    return np.random.Generator(bits)


def _kind_of(name: Any) -> type[np.random.BitGenerator]:
    if not isinstance(name, str) or name not in _KINDS:
        raise ValueError(f"bit generator {name!r} cannot be part of a state; expected one of {', '.join(_KINDS)}")
    return _KINDS[name]


def _plain(value: Any) -> Any:
    """Copies; NumPy's scalars as Python's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.copy()
    return value.item() if isinstance(value, np.generic) else value


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    return type(left) is type(right) and bool(left == right)
