"""Ledger of boosts on hand-made interactions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from esper_env.rules.scaffolding import ScaffoldLedger

GAMMA = 0.9


class Toy:
    """One environment with three slots; ``step`` names the seeds present and the pair interactions measured."""

    def __init__(self) -> None:
        self.ledger = ScaffoldLedger(1, 3, GAMMA)

    def step(self, present: str, **pairs: float) -> list[float]:
        """``present`` "1.1" = seeds in slots 0 and 2; ``i01=4.0`` = I_01 measured as 4 points. Returns the boosts."""
        seeds = np.array([[mark != "." for mark in present]])
        interactions = np.full((1, 3, 3), 99.0)  # unmeasured values must not be read
        measured = np.zeros((1, 3, 3), dtype=bool)
        for name, value in pairs.items():
            i, j = int(name[1]), int(name[2])
            interactions[0, [i, j], [j, i]] = value
            measured[0, [i, j], [j, i]] = True
        self.ledger.record(seeds, interactions, measured)
        return self.ledger.boosts()[0].tolist()


def test_pair_boosts_both_seeds() -> None:
    assert Toy().step("11.", i01=4.0) == [4.0, 4.0, 0.0]


def test_boosts_add_up_over_boosters() -> None:
    assert Toy().step("111", i01=4.0, i02=1.0) == [5.0, 4.0, 1.0]


def test_negative_interaction_counts_as_zero() -> None:
    assert Toy().step("111", i01=4.0, i12=-3.0) == [4.0, 4.0, 0.0]


def test_noise_averages_out() -> None:
    toy = Toy()
    for value in (6.0, -6.0, 6.0, -6.0):
        boosts = toy.step("11.", i01=value)
    assert boosts == pytest.approx([0.0, 0.0, 0.0])


def test_boost_of_a_pruned_seed_is_discounted() -> None:
    toy = Toy()
    toy.step("11.", i01=4.0)
    assert toy.step(".1.")[1] == pytest.approx(4.0 * GAMMA)
    assert toy.step(".1.")[1] == pytest.approx(4.0 * GAMMA**2)


def test_new_seed_in_the_booster_slot_starts_its_own_boost() -> None:
    toy = Toy()
    toy.step("11.", i01=4.0)
    toy.step(".1.")
    assert toy.step("11.", i01=-2.0)[1] == pytest.approx(4.0 * GAMMA**2)
    boosts = toy.step("11.", i01=8.0)  # its own mean is 3 now
    assert boosts[1] == pytest.approx(4.0 * GAMMA**3 + 3.0)
    assert boosts[0] == pytest.approx(3.0)


def test_new_seed_does_not_inherit_received_boosts() -> None:
    toy = Toy()
    toy.step("11.", i01=4.0)
    toy.step("1..")
    assert toy.step("11.")[1] == 0.0


def test_new_seed_does_not_inherit_boosts_of_earlier_boosters() -> None:
    toy = Toy()
    toy.step("11.", i01=4.0)
    toy.step(".1.")
    assert toy.step("11.")[1] > 0.0  # another seed in slot 0, whose past has the boost now
    toy.step("1..")
    assert toy.step("11.")[1] == 0.0


def test_non_finite_measurement_is_ignored() -> None:
    toy = Toy()
    toy.step("11.", i01=4.0)
    assert toy.step("11.", i01=math.nan)[1] == pytest.approx(4.0 * GAMMA)


def test_reset_clears_its_rows_only() -> None:
    ledger = ScaffoldLedger(2, 2, GAMMA)
    everyone = np.ones((2, 2), dtype=bool)
    ledger.record(everyone, np.full((2, 2, 2), 4.0), np.ones((2, 2, 2), dtype=bool))
    ledger.reset(np.array([True, False]))
    assert ledger.boosts().tolist() == [[0.0, 0.0], [4.0, 4.0]]
