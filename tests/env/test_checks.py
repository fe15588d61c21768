"""Settings are checked against the annotations of their fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from esper_env.checks import NON_NEGATIVE, POSITIVE, SHARE, Described, Interval, OneOf, check, check_value, describe
from esper_env.rules.heads import Tempo

NAN, INF = float("nan"), float("inf")
HUGE = 10**400


@dataclass(frozen=True)
class Inner:
    rate: Annotated[float, POSITIVE] = 1.0


@dataclass(frozen=True)
class Settings:
    count: Annotated[int, POSITIVE] = 3
    share: Annotated[float, Interval(0, 1, "[)")] = 0.5
    target: Annotated[float | None, POSITIVE] = None
    seeds: Annotated[int, Interval(2)] | Literal["auto"] = "auto"
    mode: Annotated[str, OneOf(("a", "b"))] = "a"
    names: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    place: Annotated[str | None, Described("a path")] = None
    out: Path = Path("x")
    tempo: Tempo = Tempo.STANDARD
    flag: bool = True
    free: Any = None
    inner: Inner = field(default_factory=Inner)


def test_check_accepts_values_of_the_declared_types():
    check(Settings())
    check(Settings(1, 0, 2, 2, "b", ["x"], {"y": 1.0}, "z", "runs", 2, False, object()))


def test_numbers_of_numpy_are_numbers_and_become_those_of_python():
    values = Settings(np.int64(4), np.float32(0.25), np.uint8(2), np.int8(3), weights={"y": np.float64(1)})
    values = type(values)(**(vars(values) | {"flag": np.bool_(False), "names": ("a",)}))
    check(values)
    numbers = (values.count, values.share, values.target, values.seeds, values.weights["y"], values.flag)
    assert numbers == (4, 0.25, 2, 3, 1.0, False)
    assert [type(number) for number in numbers] == [int, float, int, int, float, bool]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("count", (0, -1, 2.0, "3", True, None, np.float64(3), np.bool_(True)), "a positive integer"),
        ("share", (1, -0.1, NAN, "x", False, HUGE), r"a number in \[0, 1\)"),
        ("target", (0, INF, -INF, "low"), "a positive number or None"),
        ("seeds", (1, 2.5, "all", ["auto"]), "an integer of at least 2 or 'auto'"),
        ("mode", ("c", ["a"], None, 1), "one of 'a', 'b'"),
        ("names", ("p", [1], {"p": 1}), "a list of strings"),
        ("weights", ([1], None), "a mapping"),
        ("place", (5,), "a path or None"),
        ("out", (5, None), "a path"),
        ("tempo", (9, "FAST", np.zeros(2)), "one of FAST 0, STANDARD 1, SLOW 2"),
        ("flag", (1, "yes"), "True or False"),
        ("inner", (3,), "a Inner"),
    ],
)
def test_check_rejects_other_values(name, values, words):
    for value in values:
        with pytest.raises(ValueError, match=f"^`{name}` is .*; expected {words}$"):
            check(Settings(**{name: value}))


def test_long_values_are_cut_in_errors():
    with pytest.raises(ValueError, match=r"^`count` is 1{100}\.\.\.; expected a number of at most 1$"):
        check_value("count", int("1" * 200), Annotated[float, Interval(high=1)])


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an integer"),
        (float, "a finite number"),
        (Annotated[int, NON_NEGATIVE], "a non-negative integer"),
        (Annotated[float, SHARE], "a number in [0, 1]"),
        (Annotated[float, Interval(1, ends="()")], "a number greater than 1"),
        (Annotated[float, Interval(high=1)], "a number of at most 1"),
    ],
)
def test_describe_names_the_range(hint, words):
    assert describe(hint) == words


def test_describe_uses_the_word_for_none_of_the_caller():
    assert describe(Annotated[float | None, POSITIVE], none="null") == "a positive number or null"
