"""Seeds derived from (run seed, purpose, index)."""

import numpy as np
import pytest
from esper_env.seeding import derive_rng, derive_seed
from hypothesis import given
from hypothesis import strategies as st

naturals = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, "a"), 1202876661367888254),
        ((7, "minibatches", 3), 594110341672791504),
        ((2**62, "host weights", 0), 491691245692605381),
    ],
)
def test_derived_seeds_are_fixed(arguments, expected):
    assert derive_seed(*arguments) == expected


@given(naturals, st.text(max_size=8), st.integers(0, 2**31))
def test_derived_seeds_have_63_bits(seed, purpose, index):
    assert 0 <= derive_seed(seed, purpose, index) < 2**63


def test_derived_seeds_depend_on_every_argument():
    seeds = {derive_seed(s, p, i) for s in range(8) for p in ("host", "seed", "data") for i in range(8)}
    assert len(seeds) == 8 * 3 * 8


def test_generators_repeat_and_differ_by_purpose():
    draw = derive_rng(3, "shapley", 1).random(8)
    np.testing.assert_array_equal(draw, derive_rng(3, "shapley", 1).random(8))
    assert not np.isin(draw, derive_rng(3, "shapley", 2).random(8)).any()
    assert not np.isin(draw, derive_rng(3, "data", 1).random(8)).any()
