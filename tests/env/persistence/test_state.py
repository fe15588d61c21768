"""The protocol of states: comparing trees, loading parts, and restoring the previous state."""

from typing import ClassVar

import numpy as np
import pytest
from esper_env.persistence.generators import Generators
from esper_env.persistence.state import Accessors, ArrayState, check_keys, check_like, get_states, restore, set_states


class Counter(ArrayState):
    STATE: ClassVar = ("_counts", "total")

    def __init__(self, start=0):
        self._counts, self.total = np.full(3, start), np.array(float(start))


def test_array_state_round_trips_copies():
    source, target = Counter(4), Counter()
    state = source.get_state()
    target.set_state(state)
    state["counts"][:] = 9
    assert (source._counts == 4).all()
    assert (target._counts == 4).all()
    assert target.total == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.zeros(2, int)}, r"counts is an array \(2,\) of int64; expected an array \(3,\) of int64"),
        ({"counts": np.zeros(3)}, "of float64; expected"),
        ({"counts": np.zeros(3, ">i8")}, "of >i8; expected"),
        ({"counts": [1, 2, 3]}, "counts is a list; expected an array"),
        ({"more": np.zeros(3)}, r"has the unknown keys \['more'\]"),
    ],
)
def test_array_state_rejects_other_forms_and_keeps_its_arrays(change, message):
    counter = Counter(1)
    with pytest.raises(ValueError, match=message):
        counter.set_state(Counter(2).get_state() | change)
    assert (counter._counts == 1).all()


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1.0}}, "here/a/b is a int; expected a float"),
        ({"a": True}, {"a": 1}, "here/a is a bool; expected a int"),
        ({}, {"a": 1}, r"here lacks \['a'\]"),
        ({1: 2}, {}, r"here has the unknown keys \['1'\]"),
        (None, {"a": 1}, r"here is a NoneType; expected a dict with the keys \['a'\]"),
        ({"a": np.ma.zeros(2)}, {"a": np.zeros(2)}, "here/a is a MaskedArray"),
    ],
)
def test_check_like_names_the_place_of_the_difference(found, expected, message):
    with pytest.raises(ValueError, match=message):
        check_like(found, expected, "here")
    check_like(expected, expected, "here")


def test_check_keys_accepts_any_collection_of_keys():
    check_keys({"a": 1, "b": 2}, ("b", "a"))
    with pytest.raises(ValueError, match="lacks"):
        check_keys({"a": 1}, {"a", "b"})


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyboardInterrupt])
def test_restore_undoes_all_parts_if_a_later_one_fails(error):
    def fail(_state):
        raise error("broken")

    first, last = Counter(1), Counter(2)
    parts = {"first": first, "failing": Accessors(dict, fail), "last": last}

    def set_all(state):  # the failing part accepts its own state, as every part does
        set_states(parts if state["first"]["total"] == 5 else {"first": first, "last": last}, state)

    state = {"first": Counter(5).get_state(), "failing": {}, "last": Counter(5).get_state()}
    with pytest.raises(error):
        restore(lambda: get_states({"first": first, "last": last}), set_all, state)
    assert (first.total, last.total) == (1, 2)


def test_set_states_names_the_rejecting_part():
    with pytest.raises(ValueError, match="outer: inner: counts is a list"):
        set_states(
            {"outer": Accessors(dict, lambda state: set_states({"inner": Counter()}, state))},
            {"outer": {"inner": Counter().get_state() | {"counts": []}}},
        )


def test_generators_round_trip_and_stay_shared():
    first, second = np.random.default_rng(1), np.random.default_rng(2)
    first.integers(2**30, dtype=np.uint32)  # half of a word is left over
    source, target = Generators([first, second, first], [1, 2, -1]), Generators([np.random.default_rng(0)] * 3, [0] * 3)
    target.set_state(source.get_state())
    assert target.rngs[0] is target.rngs[2]
    assert target.rngs[0] is not target.rngs[1]
    assert target.seeds == [1, 2, -1]
    for ours, theirs in zip(source.rngs, target.rngs, strict=True):
        assert ours.integers(2**30, dtype=np.uint32) == theirs.integers(2**30, dtype=np.uint32)


@pytest.mark.parametrize("kind", ["PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators_reject_other_bit_generators(kind):
    rng = np.random.Generator(getattr(np.random, kind)(0))
    with pytest.raises(ValueError, match=f"bit generator {kind}, whose state cannot be saved; expected PCG64"):
        Generators([rng], [0]).get_state()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows",), [0], "expected 2 integers"),
        (("rows",), [0, True], "expected 2 integers"),
        (("rows",), [0, 2], r"states lacks \['2'\] and has the unknown keys \['1'\]"),
        (("seeds",), "ab", "seeds is 'ab'"),
        (("states", "1", "state", "state"), 2**128, "impossible"),
        (("states", "1", "state", "state"), -1, "impossible"),
        (("states", "1", "bit_generator"), "MT19937", "impossible"),
        (("states", "1", "uinteger"), 0.5, "expected a int"),
    ],
)
def test_generators_reject_impossible_states(path, value, message):
    generators = Generators([np.random.default_rng(seed) for seed in (1, 2)], [1, 2])
    state = generators.get_state()
    node = state
    for key in path[:-1]:
        node[key] = dict(node[key])
        node = node[key]
    node[path[-1]] = value
    before = list(generators.rngs)
    with pytest.raises(ValueError, match=message):
        generators.set_state(state)
    assert generators.rngs == before
