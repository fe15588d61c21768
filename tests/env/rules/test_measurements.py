"""Gradient statistics and contributions in the slot table, against hand-computed values."""

import numpy as np
import pytest
from esper_env.rules.measurements import record_contributions, record_gradients
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage

SLOTS = 3


@pytest.fixture
def table():
    """One network: a blended seed at alpha 0.7, one in TRAINING, and an empty slot."""
    made = SlotTable.empty(1, SLOTS)
    made.stage[0, :2] = [Stage.BLENDING, Stage.TRAINING]
    made.alpha[0, 0] = 0.7
    return made


def gradients(table, norm, vanishing, exploding, sizes):
    """Columns given as (host, slot 0, slot 1, slot 2)."""
    record_gradients(table, *(np.array([column], dtype=np.float64) for column in (norm, vanishing, exploding, sizes)))


def contributions(table, contribution, measured, interaction=None, pairs=None):
    square = np.zeros((1, SLOTS, SLOTS))
    record_contributions(
        table,
        np.array([True]),
        np.array([contribution], dtype=np.float64),
        np.array([measured]),
        square if interaction is None else np.array([interaction], dtype=np.float64),
        square > 0 if pairs is None else np.array([pairs]),
    )


def test_gradient_statistics_equal_hand_computed_values(table):
    gradients(table, [2.0, 3.0, 0.5, 9.0], [0, 0.25, 0, 1], [0, 0, 0.5, 1], [100, 225, 25, 4])  # slot 2 is empty
    assert table.gradient_measured[0].tolist() == [True, True, False]
    assert table.gradient_norm[0].tolist() == [3.0, 0.5, 0.0]
    assert table.gradient_health[0].tolist() == pytest.approx([1 - 0.5 * 0.25, 1 - 0.8 * 0.5, 0.0])
    assert table.gradient_vanishing[0].tolist() == [True, False, False]
    assert table.gradient_exploding[0].tolist() == [False, True, False]
    # root mean squares: host 2/10, seeds 3/15 and 0.5/5
    assert table.gradient_ratio[0].tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert table.previous_gradient_health[0].tolist() == [1.0, 1.0, 1.0]


def test_gradient_ratio_is_a_moving_average_and_health_keeps_the_previous_value(table):
    gradients(table, [1.0, 1.0, 1.0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [4, 4, 4, 0])
    gradients(table, [1.0, 3.0, 0.0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [4, 4, 4, 0])
    assert table.gradient_ratio[0, :2].tolist() == pytest.approx([0.7 * 1 + 0.3 * 3, 0.7 * 1 + 0.3 * 0])
    assert table.previous_gradient_health[0, :2].tolist() == [0.5, 1.0]
    assert table.gradient_health[0, :2].tolist() == [1.0, 1.0]
    gradients(table, [1, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0.9, 0], [4, 4, 4, 0])
    assert table.gradient_health[0, :2].tolist() == [0.0, 0.0]  # and not below


def test_untrained_seed_keeps_its_statistics(table):
    gradients(table, [1.0, 1.0, 1.0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [4, 4, 4, 0])
    before = {name: getattr(table, name).copy() for name in vars(table)}
    gradients(table, [1.0, 7.0, 7.0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [4, 0, 0, 0])
    for name, column in before.items():
        np.testing.assert_array_equal(getattr(table, name), column, err_msg=name)


@pytest.mark.parametrize("norm", [[0.0, 1.0], [np.nan, 1.0], [1.0, np.nan], [1.0, np.inf]], ids=str)
def test_non_finite_ratio_becomes_zero(table, norm):
    gradients(table, [*norm, 1.0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [4, 4, 4, 0])
    assert table.gradient_ratio[0, 0] == 0.0
    assert table.gradient_exploding[0, 0]
    assert table.gradient_measured[0, 0]


def test_contributions_equal_hand_computed_values(table):
    contributions(table, [2.5, -1.0, 9.0], [True, True, False])
    assert table.contribution[0].tolist() == [2.5, -1.0, 0.0]
    assert table.contribution_age[0].tolist() == [0, 0, -1]
    assert table.contribution_alpha[0].tolist() == [0.7, 1.0, 0.0]  # prospective ones are at alpha 1
    assert table.contribution_velocity[0].tolist() == [0.0, 0.0, 0.0]  # nothing to compare with yet


def test_contribution_velocity_is_a_moving_average(table):
    contributions(table, [2.0, 0, 0], [True, False, False])
    contributions(table, [5.0, 0, 0], [True, False, False])
    assert table.contribution_velocity[0, 0] == pytest.approx(0.3 * 3)
    contributions(table, [4.0, 0, 0], [True, False, False])
    velocity = 0.7 * 0.9 + 0.3 * -1
    assert table.contribution_velocity[0, 0] == pytest.approx(velocity)
    table.contribution_age[0, 0] = -1  # it belonged to another operator: no change is known
    contributions(table, [9.0, 0, 0], [True, False, False])
    assert table.contribution_velocity[0, 0] == pytest.approx(0.7 * velocity)


def test_unmeasured_contribution_ages_and_keeps_its_value(table):
    contributions(table, [2.0, 1.0, 0], [True, True, False])
    for age in (1, 2, 3):
        contributions(table, [8.0, 8.0, 8.0], [False, True, False])
        assert table.contribution_age[0].tolist() == [age, 0, -1]
    assert table.contribution[0, 0] == 2.0
    assert table.contribution_velocity[0, 0] == 0.0
    assert table.contribution[0, 2] == 0.0


def test_interactions_equal_hand_computed_values(table):
    interaction = [[0, 3.0, -1.0], [3.0, 0, 4.0], [-1.0, 4.0, 0]]
    pairs = [[False, True, True], [True, False, False], [True, False, False]]  # the pair (1, 2) was not measured
    contributions(table, [0, 0, 0], [True, True, True], interaction, pairs)
    assert table.interaction_sum[0].tolist() == [2.0, 3.0, -1.0]
    assert table.boost_received[0].tolist() == [3.0, 3.0, 0.0]
    contributions(table, [0, 0, 0], [True, True, True])  # a partner is gone
    assert table.interaction_sum[0].tolist() == [0.0, 0.0, 0.0]
    assert table.boost_received[0].tolist() == [0.0, 0.0, 0.0]


def test_contributions_are_recorded_only_in_the_given_rows():
    table = SlotTable.empty(2, 2)
    table.stage[:], table.alpha[:] = Stage.HOLDING, 1.0
    pairs = np.array([[[False, True], [True, False]]] * 2)
    for _ in range(2):
        record_contributions(
            table, np.array([True, False]), np.full((2, 2), 3.0), np.array([[True, False]] * 2), pairs * 2.0, pairs
        )
    assert table.contribution.tolist() == [[3, 0], [0, 0]]
    assert table.contribution_age.tolist() == [[0, -1], [-1, -1]]
    assert table.interaction_sum.tolist() == table.boost_received.tolist() == [[2, 2], [0, 0]]
    table.contribution_age[:] = 0
    record_contributions(
        table, np.array([False, True]), np.ones((2, 2)), np.zeros((2, 2), bool), pairs * 0.0, pairs & False
    )
    assert table.contribution_age.tolist() == [[0, 0], [1, 1]]
