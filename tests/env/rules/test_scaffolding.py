"""Ledger of boosts on hand-made interactions."""

import math

import numpy as np
import pytest
from esper_env.rules.scaffolding import ScaffoldLedger

GAMMA = 0.9


def boosts(*steps):
    """Return the boosts of three slots after steps of one environment.

    A step is (seeds present, pairs): ("1.1", {}) has seeds in slots 0 and 2, and {"01": 4.0} measures I_01 as 4 points.
    """
    ledger = ScaffoldLedger(1, 3, GAMMA)
    for present, pairs in steps:
        interactions = np.full((1, 3, 3), 99.0)  # unmeasured values must not be read
        measured = np.zeros((1, 3, 3), dtype=bool)
        for (i, j), value in pairs.items():
            interactions[0, [int(i), int(j)], [int(j), int(i)]] = value
            measured[0, [int(i), int(j)], [int(j), int(i)]] = True
        ledger.record(np.array([[mark != "." for mark in present]]), interactions, measured)
    return ledger.boosts()[0]


PAIR = ("11.", {"01": 4.0})
LEFT = (".1.", {})  # the seed in slot 0 is gone


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param([PAIR], {0: 4.0, 1: 4.0, 2: 0.0}, id="a pair boosts both seeds"),
        pytest.param([("111", {"01": 4.0, "02": 1.0})], {0: 5.0, 1: 4.0, 2: 1.0}, id="boosters add up"),
        pytest.param(
            [("111", {"01": 4.0, "12": -3.0})], {0: 4.0, 1: 4.0, 2: 0.0}, id="negative interactions count as 0"
        ),
        pytest.param([("11.", {"01": 6.0}), ("11.", {"01": -6.0})] * 2, {0: 0.0, 1: 0.0}, id="noise averages out"),
        pytest.param([PAIR, LEFT, LEFT], {1: 4.0 * GAMMA**2}, id="a pruned booster is discounted"),
        pytest.param(
            [PAIR, LEFT, ("11.", {"01": -2.0}), ("11.", {"01": 8.0})],
            {0: 3.0, 1: 4.0 * GAMMA**3 + 3.0},
            id="a new booster in the slot adds its own mean",
        ),
        pytest.param([PAIR, ("1..", {}), ("11.", {})], {1: 0.0}, id="a new seed inherits no boost"),
        pytest.param([PAIR, LEFT, ("11.", {}), ("1..", {}), ("11.", {})], {1: 0.0}, id="nor one of earlier boosters"),
        pytest.param([PAIR, ("11.", {"01": math.nan})], {1: 4.0 * GAMMA}, id="NaN is not measured"),
    ],
)
def test_boosts_equal_hand_computed_values(steps, expected):
    received = boosts(*steps)
    assert {slot: received[slot] for slot in expected} == pytest.approx(expected)


def test_reset_clears_its_rows_only():
    ledger = ScaffoldLedger(2, 2, GAMMA)
    everyone = np.ones((2, 2), dtype=bool)
    ledger.record(everyone, np.full((2, 2, 2), 4.0), np.ones((2, 2, 2), dtype=bool))
    ledger.reset(np.array([True, False]))
    assert ledger.boosts().tolist() == [[0.0, 0.0], [4.0, 4.0]]
