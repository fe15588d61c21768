"""Vector infos: equal to those that Gymnasium builds from single infos."""

import numpy as np
import pytest
from esper_env.infos import merge_infos, restrict_infos, single_info, vector_infos
from gymnasium.vector import VectorEnv
from hypothesis import assume, given
from hypothesis import strategies as st

COUNT = 5
rows_of = st.lists(st.booleans(), min_size=COUNT, max_size=COUNT).map(np.array)


def values(offset=0.0):
    """Batched values of every kind."""
    return {
        "loss": np.arange(COUNT) + 0.5 + offset,
        "op": np.arange(COUNT) + int(offset),
        "valid": np.arange(COUNT) % 2 == 0,
        "mask": (np.arange(COUNT * 3).reshape(COUNT, 3) % 2).astype(np.int8),
        "name": np.full(COUNT, "digits", dtype=object),
        "parts": {"rent": -np.arange(COUNT) - offset, "gain": np.arange(COUNT) * 2.0},
    }


def single_infos(batch):
    """Info of each environment, spelled out."""

    def plain(entry):
        return entry.item() if isinstance(entry, np.generic) else entry

    return [
        {
            key: {name: plain(part[row]) for name, part in value.items()}
            if isinstance(value, dict)
            else plain(value[row])
            for key, value in batch.items()
        }
        for row in range(COUNT)
    ]


def gymnasium_infos(infos_by_row):
    """Vector infos that ``gymnasium.vector.VectorEnv`` makes of single infos."""
    vector = VectorEnv()
    vector.num_envs = COUNT
    infos = {}
    for row, info in infos_by_row.items():
        infos = vector._add_info(infos, info, row)
    return infos


@given(rows_of)
def test_infos_equal_those_of_gymnasium(assert_same, rows):
    ours = restrict_infos(vector_infos(values(), np.ones(COUNT, bool)), rows)
    theirs = gymnasium_infos({row: single_infos(values())[row] for row in np.flatnonzero(rows)})
    assert_same(ours, theirs)
    if rows.any():
        assert_same(vector_infos(values(), rows), theirs)


@given(rows_of)
def test_merge_equals_adding_infos_one_by_one(assert_same, rows):
    first, second = values(), values(offset=100.0)
    del first["name"], second["op"], second["parts"]["gain"]
    assume(rows.any() and not rows.all())
    ours = merge_infos(vector_infos(first, rows), vector_infos(second, ~rows))
    own = {True: single_infos(first), False: single_infos(second)}
    theirs = gymnasium_infos({row: own[bool(rows[row])][row] for row in range(COUNT)})
    assert_same(ours, theirs)


def test_merge_keeps_its_arguments(assert_same):
    rows = np.array([True, True, False, False, False])
    first, second = vector_infos(values(), rows), vector_infos(values(9.0), ~rows)
    merge_infos(first, second)
    assert_same(first, vector_infos(values(), rows))
    assert_same(second, vector_infos(values(9.0), ~rows))


@pytest.mark.parametrize("row", range(COUNT))
def test_single_info_has_python_values(assert_same, row):
    assert_same(single_info(vector_infos(values(), np.ones(COUNT, bool)), row), single_infos(values())[row])


def test_single_info_omits_keys_of_other_environments():
    rows = np.array([True, False, True, False, False])
    infos = merge_infos(vector_infos(values(), np.ones(COUNT, bool)), vector_infos({"final": np.zeros(COUNT)}, rows))
    assert "final" in single_info(infos, 2)
    assert "final" not in single_info(infos, 1)


def test_infos_are_copies():
    batch = values()
    infos = vector_infos(batch, np.ones(COUNT, bool))
    info, kept = single_info(infos, 0), restrict_infos(infos, np.ones(COUNT, bool))
    batch["mask"][:] = 7
    batch["parts"]["rent"][:] = 7
    assert not (infos["mask"] == 7).any()
    assert not (infos["parts"]["rent"] == 7).any()
    assert not np.shares_memory(infos["_mask"], infos["_op"])
    infos["mask"][:] = 8
    infos["_mask"][:] = False
    assert not (info["mask"] == 8).any()
    assert not (kept["mask"] == 8).any()
    assert kept["_mask"].all()
