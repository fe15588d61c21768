"""Vector infos: equal to those that Gymnasium builds from single infos."""

import numpy as np
from esper_env.infos import replace_rows, single_info, vector_infos
from gymnasium.vector import VectorEnv
from hypothesis import given
from hypothesis import strategies as st

COUNT = 5
rows_of = st.lists(st.booleans(), min_size=COUNT, max_size=COUNT).map(np.array)


def values(offset=0):
    """Batched values of every kind."""
    return {
        "loss": np.arange(COUNT) + 0.5 + offset,
        "op": np.arange(COUNT) + offset,
        "valid": np.arange(COUNT) % 2 == offset % 2,
        "mask": (np.arange(COUNT * 3).reshape(COUNT, 3) % 2).astype(np.int8),
    }


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
    singles = {row: {key: np.array(value[row]) for key, value in values().items()} for row in np.flatnonzero(rows)}
    infos = vector_infos(values(), rows)
    if rows.any():
        assert_same(infos, gymnasium_infos(singles))
    for row in range(COUNT):
        read = single_info(infos, row)
        assert bool(read) == (row in singles)
        if row in singles:
            assert_same({key: np.array(value) for key, value in read.items()}, singles[row])
            assert_same(gymnasium_infos({row: read}), gymnasium_infos({row: singles[row]}))


@given(rows_of)
def test_rows_are_replaced(assert_same, rows):
    first, second = values(), values(offset=101)
    merged = replace_rows(first, second, rows)
    for row in range(COUNT):
        for key, value in merged.items():
            assert_same(np.array(value[row]), np.array((second if rows[row] else first)[key][row]))
    assert_same((first, second), (values(), values(offset=101)))  # the inputs are unchanged
