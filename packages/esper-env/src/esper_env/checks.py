"""Settings that declare each value once: the annotation of a field gives its type and its range.

@dataclass(frozen=True)
class Settings:
    horizon: Annotated[int, POSITIVE]
    gamma: Annotated[float, Interval(0, 1, "(]")] = 0.98
    gates: Annotated[str, OneOf(("permissive", "strict"))] = "permissive"

    def __post_init__(self) -> None:
        check(self)  # "`horizon` is -3; expected a positive integer"
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.suggestions import shown

__all__ = [
    "NON_NEGATIVE",
    "POSITIVE",
    "SEED",
    "SHARE",
    "Described",
    "Interval",
    "OneOf",
    "array_of",
    "check",
    "check_fields",
    "check_value",
    "describe",
    "field_hints",
    "is_finite",
    "is_integer",
    "is_valid",
    "is_whole",
    "options",
    "plain",
]


@dataclass(frozen=True)
class Interval:
    """Range of a number. ``ends`` has brackets as in mathematics: "(" and ")" exclude an end."""

    low: float = -math.inf
    high: float = math.inf
    ends: Literal["[]", "[)", "(]", "()"] = "[]"

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.ends[0] == "(" else value >= self.low
        return above and (value < self.high if self.ends[1] == ")" else value <= self.high)

    def describe(self, noun: str) -> str:
        """Return the numbers of the range in words: "a positive integer", "a number in (0, 1]"."""
        plain = f"an {noun}" if noun == "integer" else f"a {noun}"
        if -math.inf < self.low and self.high < math.inf:
            return f"{plain} in {self.ends[0]}{self.low}, {self.high}{self.ends[1]}"
        if self.high < math.inf:
            return f"{plain} of at most {self.high}"
        if self.low == 0:
            return f"a positive {noun}" if self.ends[0] == "(" else f"a non-negative {noun}"
        if self.low > -math.inf:
            return f"{plain} {'greater than' if self.ends[0] == '(' else 'of at least'} {self.low}"
        return plain if noun == "integer" else f"a finite {noun}"


@dataclass(frozen=True)
class OneOf:
    """Strings that a setting accepts."""

    names: tuple[str, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.names

    @property
    def words(self) -> str:
        """The strings in words."""
        return f"one of {', '.join(map(repr, self.names))}"


@dataclass(frozen=True)
class Described:
    """Words for a value whose type alone does not show what is expected."""

    words: str

    def __contains__(self, _value: object) -> bool:
        return True


POSITIVE = Interval(0, ends="()")
NON_NEGATIVE = Interval(0)
SHARE = Interval(0, 1)
#: Seeds that PyTorch and NumPy both accept.
SEED = Interval(0, 2**32 - 1)

_NOUNS: dict[Any, str] = {bool: "True or False", str: "a string", Path: "a path", Mapping: "a mapping"}


def check(settings: object) -> None:
    """Check every field of a dataclass instance against its annotation; NumPy's numbers become Python's.

    Raises:
        ValueError: the first field with a value of another type or outside its range.
    """
    kind: type = type(settings)
    hints = field_hints(kind)
    for name, value in vars(settings).items():
        check_value(name, value, hints[name])
        object.__setattr__(settings, name, plain(value))


def plain(value: Any) -> Any:
    """Return the Python number of a NumPy scalar, also inside mappings, lists and tuples; other values unchanged."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def check_value(name: str, value: object, hint: Any) -> None:
    """Check one value against an annotation, such as ``Annotated[int, POSITIVE] | None``.

    Raises:
        ValueError: a value of another type or outside its range.
    """
    if not is_valid(value, hint):
        raise ValueError(f"`{name}` is {shown(value)}; expected {describe(hint)}")


def check_fields(kind: type, **values: object) -> None:
    """Check values against the annotations of a dataclass's fields of the same names, without making an instance.

    Raises:
        ValueError: the first value of another type or outside its range.
    """
    for name, value in values.items():
        check_value(name, value, field_hints(kind)[name])


@cache
def field_hints(kind: type) -> dict[str, Any]:
    """Return the annotations of a dataclass by field name, with their ranges."""
    return get_type_hints(kind, include_extras=True)


def options(hint: Any, allowed: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield the alternatives of an annotation: each type with its ``Interval``, ``OneOf``, ``Described`` or None."""
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        yield from options(inner, next((e for e in extras if isinstance(e, Interval | OneOf | Described)), allowed))
    elif get_origin(hint) in (Union, UnionType):
        for option in get_args(hint):
            yield from options(option, allowed)
    else:
        yield hint, allowed


def describe(hint: Any, none: str = "None") -> str:
    """Describe the values that an annotation accepts. ``none`` stands for None: "null" in configuration files."""
    words = [none if kind is NoneType else _words(kind, allowed) for kind, allowed in options(hint)]
    return " or ".join(dict.fromkeys(words))


def _words(kind: Any, allowed: Any) -> str:
    if kind in (int, float):
        return str((allowed or Interval()).describe("integer" if kind is int else "number"))
    if allowed is not None:
        return str(allowed.words)
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list of strings" if get_args(kind)[0] is str else "a list"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(f"{member.name} {member.value}" for member in kind)
    return _NOUNS.get(get_origin(kind) or kind, f"a {getattr(kind, '__name__', kind)}")


def is_valid(value: object, hint: Any) -> bool:
    """Return True if an annotation allows the value; an annotation that is not understood allows any value."""
    return any(_fits(value, kind, allowed) for kind, allowed in options(hint))


def _fits(value: object, kind: Any, allowed: Any) -> bool:
    if kind is Any or kind is NoneType:
        return kind is Any or value is None
    if kind in (int, float):
        return is_finite(value) and (kind is float or is_integer(value)) and value in (allowed or Interval())
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        texts = get_args(kind)[0] is str
        return isinstance(value, list | tuple) and all(isinstance(entry, str) or not texts for entry in value)
    if kind is Path:
        return isinstance(value, str | PathLike) and value != ""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return isinstance(value, int | str) and value in [member.value for member in kind]
    origin = get_origin(kind) or kind
    return not isinstance(origin, type) or (isinstance(value, origin) and (allowed is None or value in allowed))


def array_of(value: ArrayLike) -> NDArray[Any]:
    """Return a value as an array; an empty one for rows of unequal length, which no caller accepts."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.empty(0)


def is_integer(value: object) -> TypeGuard[int]:
    """Return True if ``value`` is an integer of Python or NumPy; a bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_whole(value: object, least: int = 0) -> TypeGuard[int]:
    """Return True if ``value`` is an integer of at least ``least``."""
    return is_integer(value) and value >= least


def is_finite(value: object) -> TypeGuard[float]:
    """Return True if ``value`` is a finite number of Python or NumPy that a float can hold; a bool is not."""
    if is_integer(value):
        return abs(int(value)) <= sys.float_info.max
    return isinstance(value, float | np.floating) and math.isfinite(value)
