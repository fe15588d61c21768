"""Sets of configurations, and Shapley values as mean marginal gains over orders."""

from itertools import permutations

import numpy as np
import pytest
from esper_env.population.evaluation.configurations import (
    EXACT_SHAPLEY_SEEDS,
    ConfigurationSet,
    ShapleyGame,
    bits,
    players_of,
    submasks,
)

SLOTS = 9


def by_orders(mask, value):
    """Shapley values by definition, over every order of the players."""
    players = players_of(mask)
    result, orders = np.zeros(SLOTS), list(permutations(players))
    for order in orders:
        on = 0
        for player in order:
            result[player] += (value(on | 1 << player) - value(on)) / len(orders)
            on |= 1 << player
    return result


def random_game(seed):
    """A random value for every coalition."""
    values = np.random.default_rng(seed).normal(size=1 << SLOTS) * 10
    return lambda mask: float(values[mask])


@pytest.mark.parametrize("mask", [0, 0b1, 0b100010000, 0b10110, 0b111001, 0b101010111 & 0b11111])
def test_exact_values_equal_mean_over_all_orders(mask):
    value, game = random_game(mask), ShapleyGame(mask, np.random.default_rng(0))
    known = {coalition: value(coalition) for coalition in game.masks}
    np.testing.assert_allclose(game.values(known, SLOTS), by_orders(mask, value), atol=1e-10)


def test_values_are_sampled_from_given_generator_above_limit():
    mask = (1 << (EXACT_SHAPLEY_SEEDS + 1)) - 1
    additive = {slot: float(slot + 1) for slot in range(SLOTS)}

    def value(coalition):
        return sum(additive[slot] for slot in players_of(coalition))

    game = ShapleyGame(mask, np.random.default_rng(5))
    assert len(game.masks) < 1 << SLOTS
    values = game.values({coalition: value(coalition) for coalition in game.masks}, SLOTS)
    np.testing.assert_allclose(values[: EXACT_SHAPLEY_SEEDS + 1], range(1, EXACT_SHAPLEY_SEEDS + 2))
    assert ShapleyGame(mask, np.random.default_rng(5)).masks == game.masks
    assert ShapleyGame(mask, np.random.default_rng(6)).masks != game.masks


def test_sampled_values_approach_exact_values():
    mask = (1 << (EXACT_SHAPLEY_SEEDS + 1)) - 1
    value = random_game(3)
    estimates = []
    for seed in range(40):
        game = ShapleyGame(mask, np.random.default_rng(seed))
        estimates.append(game.values({coalition: value(coalition) for coalition in game.masks}, SLOTS))
    error = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert (np.abs(np.mean(estimates, axis=0) - by_orders(mask, value)) < 5 * error + 1e-9).all()


def test_set_holds_each_configuration_once_and_finds_it():
    networks, masks = np.array([3, 0, 3, 0, 3]), np.array([5, 2, 5, 0, 1])
    configurations = ConfigurationSet.of(networks, masks, 3)
    pairs = list(zip(configurations.networks.tolist(), configurations.masks.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 2), (3, 1), (3, 5)]
    found = configurations.find(networks, masks)
    assert [pairs[at] for at in found] == list(zip(networks.tolist(), masks.tolist(), strict=True))


def test_masks_pack_and_list_bits():
    assert bits(np.array([[True, False, True], [False, False, False]])).tolist() == [0b101, 0]
    assert players_of(0b1101) == [0, 2, 3]
    assert sorted(submasks(0b101)) == [0b000, 0b001, 0b100, 0b101]
