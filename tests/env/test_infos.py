"""Vector infos: equal to those that Gymnasium builds from single infos."""

import numpy as np
from esper_env.infos import merge_infos, single_info, vector_infos
from gymnasium.vector import VectorEnv
from hypothesis import given
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


def plain(value, row):
    """The info of one environment, spelled out."""
    if isinstance(value, dict):
        return {key: plain(part, row) for key, part in value.items()}
    return value[row].item() if isinstance(value[row], np.generic) else value[row]


def gymnasium_infos(infos_by_row):
    """Vector infos that ``gymnasium.vector.VectorEnv`` makes of single infos."""
    vector = VectorEnv()
    vector.num_envs = COUNT
    infos = {}
    for row, info in infos_by_row.items():
        infos = vector._add_info(infos, info, row)
    return infos


@given(rows_of)
def test_infos_equal_those_of_gymnasium_and_are_read_back(assert_same, rows):
    """The infos of two disjoint sets of environments with different keys are merged."""
    first, second = values(), values(offset=100.0)
    del first["name"], second["op"], second["parts"]["gain"]
    own = {row: plain(first if rows[row] else second, row) for row in range(COUNT)}
    parts = vector_infos(first, rows), vector_infos(second, ~rows)
    merged = merge_infos(*parts)
    assert_same(merged, gymnasium_infos(own))
    assert_same(parts[0], gymnasium_infos({row: info for row, info in own.items() if rows[row]}))
    for row, info in own.items():
        assert_same(single_info(merged, row), info)
    assert_same(parts, (vector_infos(first, rows), vector_infos(second, ~rows)))  # merging does not change its inputs
