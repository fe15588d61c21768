"""One protocol for everything that has a state: ``get_state`` returns a tree, ``set_state`` loads one.

``set_state`` compares the tree with the object's own before it loads it. An object made of several others may fail half
way; :func:`restore`, around the outermost call, then puts the previous state back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from esper_env.persistence.tree import Tree


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be saved and loaded."""

    @property
    def get_state(self) -> Callable[[], Tree]:
        """Return copies of everything that the object's future depends on."""

    @property
    def set_state(self) -> Callable[[Tree], None]:
        """Load copies of such a tree; raise ``ValueError`` for one that does not fit."""


class Accessors(NamedTuple):
    """A ``Stateful`` made of two functions, for objects that lack the methods."""

    get_state: Callable[[], Tree]
    set_state: Callable[[Tree], None]


@dataclass(frozen=True)
class Attributes:
    """A ``Stateful`` made of some attributes of an object: arrays or JSON values whose shapes and types never change.

    The keys of the state are the attributes' names without a leading underscore.
    """

    owner: Any
    names: tuple[str, ...]

    def get_state(self) -> Tree:
        """Return copies of the values."""
        return {name.removeprefix("_"): _copied(getattr(self.owner, name)) for name in self.names}

    def set_state(self, state: Tree) -> None:
        """Load copies of the values; raise ``ValueError`` for other names, shapes or types."""
        check_like(state, self.get_state())
        for name in self.names:
            setattr(self.owner, name, _copied(state[name.removeprefix("_")]))


def _copied(value: Any) -> Any:
    return np.array(value) if isinstance(value, np.ndarray | np.generic) else deepcopy(value)


class ArrayState:
    """Mixin for objects whose state is the arrays in the attributes that ``STATE`` names."""

    STATE: ClassVar[tuple[str, ...]]

    def get_state(self) -> Tree:
        """Return copies of the arrays."""
        return Attributes(self, self.STATE).get_state()

    def set_state(self, state: Tree) -> None:
        """Load copies of the arrays; raise ``ValueError`` for other names, shapes or dtypes."""
        Attributes(self, self.STATE).set_state(state)


def restore(get_state: Callable[[], Tree], set_state: Callable[[Tree], None], state: Tree) -> None:
    """Call ``set_state(state)``; if it raises, restore the previous state."""
    before = get_state()
    try:
        set_state(state)
    except BaseException:
        set_state(before)
        raise


def get_states(parts: Mapping[str, Stateful]) -> Tree:
    """Return the state of every part, by name."""
    return {name: part.get_state() for name, part in parts.items()}


def set_states(parts: Mapping[str, Stateful], state: Tree) -> None:
    """Load the state of every part, in order.

    Raises:
        ValueError: the names differ, or a part rejects its state; the message names the part. Parts before that one
            have changed, so the outermost caller uses :func:`restore`.
    """
    check_keys(state, parts)
    for name, part in parts.items():
        try:
            part.set_state(state[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def check_like(found: Any, expected: Any, place: str = "") -> None:
    """Raise ``ValueError``, naming the ``place``, unless both trees have the same keys, types and array shapes."""
    if isinstance(expected, Mapping):
        check_keys(found, expected, place)
        for key, value in expected.items():
            check_like(found[key], value, f"{place}/{key}" if place else key)
    elif describe(found) != describe(expected):
        raise ValueError(f"{place or 'it'} is {describe(found)}; expected {describe(expected)}")


def check_keys(found: Any, expected: Collection[str], place: str = "") -> None:
    """Raise ``ValueError`` unless ``found`` is a dict with exactly the ``expected`` keys."""
    if type(found) is not dict:
        raise ValueError(f"{place or 'it'} is {describe(found)}; expected a dict with the keys {sorted(expected)}")
    missing = sorted(set(expected) - found.keys())
    unknown = sorted(map(str, found.keys() - set(expected)))
    if missing or unknown:
        parts = [f"lacks {missing[:5]}"] if missing else []
        parts += [f"has the unknown keys {unknown[:5]}"] if unknown else []
        raise ValueError(f"{place or 'it'} {' and '.join(parts)}")


def describe(value: Any) -> str:
    """Return the kind of a leaf in words; values of one kind have equal descriptions."""
    if type(value) is np.ndarray:
        return f"an array {value.shape} of {value.dtype.str if not value.dtype.isnative else value.dtype}"
    return f"a {type(value).__name__}"
