"""Memory of the reward model: environments and episodes are independent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from esper_env.rules.reward import RewardInputs, RewardModel
from esper_env.rules.reward_config import RewardMode, reward_config
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage

SLOTS, HORIZON, HOST = 3, 8, 400
#: Two boosted seeds, one pruned and one committed, so that the whole memory of the model is used.
LIVES = np.array(
    [
        [Stage.BLENDING] * 3 + [Stage.PRUNED] + [Stage.EMBARGOED] * 4,
        [Stage.BLENDING] * 4 + [Stage.HOLDING] + [Stage.FOSSILIZED] * 3,
        [Stage.DORMANT] * 2 + [Stage.GERMINATED] + [Stage.TRAINING] * 2 + [Stage.BLENDING] * 3,
    ]
)


def random_steps(seed: int, rows: int = 1) -> list[RewardInputs]:
    """Return one episode of ``rows`` environments with random measurements."""
    rng = np.random.default_rng(seed)
    steps = []
    for t in range(HORIZON):
        table = SlotTable.empty(rows, SLOTS)
        table.stage[:] = LIVES[:, t]
        table.alpha = np.where(table.is_blended, rng.uniform(0.1, 1, (rows, SLOTS)), 0.0)
        table.contribution = rng.uniform(1, 30, (rows, SLOTS))
        table.contribution_age[:] = 0
        pairs = table.is_blended[:, :, None] & table.is_blended[:, None, :] & ~np.eye(SLOTS, dtype=bool)
        steps.append(
            RewardInputs(
                val_accuracy=rng.uniform(20, 80, rows),
                committed_accuracy=rng.uniform(40, 80, rows),
                terminated=np.full(rows, t == HORIZON - 1),
                parameters_added=rng.integers(0, 2000, rows),
                op=rng.integers(0, 6, rows),
                table=table,
                rolled_back=rng.random(rows) < 0.2,
                interactions=rng.uniform(0, 8, (rows, SLOTS, SLOTS)),
                interactions_measured=pairs,
            )
        )
    return steps


def side_by_side(parts: list[RewardInputs]) -> RewardInputs:
    """Join steps of single environments."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    tables = [part.table for part in parts]
    columns = [field.name for field in dataclasses.fields(SlotTable)]
    table = SlotTable(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in columns})
    names = [field.name for field in dataclasses.fields(RewardInputs) if field.name != "table"]
    return RewardInputs(table=table, **{name: joined(name) for name in names})


def fresh(mode: str, rows: int = 1) -> RewardModel:
    model = RewardModel(rows, SLOTS, HORIZON, HOST, reward_config(mode))
    model.reset(np.ones(rows, dtype=bool), np.full(rows, 10.0), SlotTable.empty(rows, SLOTS))
    return model


def totals(model: RewardModel, steps: list[RewardInputs]) -> list[list[float]]:
    return [model.compute(step).total.tolist() for step in steps]


@pytest.mark.parametrize("mode", list(RewardMode))
def test_rewards_of_environments_are_independent(mode: str) -> None:
    episodes = [random_steps(seed) for seed in range(3)]
    together = totals(fresh(mode, 3), [side_by_side(list(parts)) for parts in zip(*episodes, strict=True)])
    alone = np.concatenate([totals(fresh(mode), episode) for episode in episodes], axis=1)
    np.testing.assert_allclose(together, alone, atol=1e-12)
    assert len(np.unique(alone[-1])) == 3


@pytest.mark.parametrize("mode", list(RewardMode))
@pytest.mark.parametrize("played", [3, 6, 8])
def test_reset_changes_its_rows_only(mode: str, played: int) -> None:
    """Row 0 restarts after ``played`` steps, truncated or terminated, while row 1 continues."""
    model = fresh(mode, 2)
    first, second = random_steps(1), random_steps(2)
    for step in first[:played]:
        model.compute(side_by_side([step, second[0]]))
    before = model.get_state()
    model.reset(np.array([True, False]), np.array([10.0, np.nan]), SlotTable.empty(2, SLOTS))
    for part, arrays in model.get_state().items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array[1], before[part][name][1], err_msg=name)
    again = [model.compute(side_by_side([step, second[0]])).total[0] for step in second]
    np.testing.assert_allclose(again, np.ravel(totals(fresh(mode), second)), atol=1e-12)


@pytest.mark.parametrize("mode", list(RewardMode))
@pytest.mark.parametrize("cut", range(HORIZON))
def test_restored_model_continues_exactly(mode: str, cut: int) -> None:
    steps = random_steps(5, rows=2)
    expected = totals(fresh(mode, 2), steps)
    model = fresh(mode, 2)
    rewards = totals(model, steps[:cut])
    state = model.get_state()
    model.compute(steps[0])  # must not change the state, which is a copy
    restored = RewardModel(2, SLOTS, HORIZON, HOST, reward_config(mode))
    restored.set_state(state)
    assert rewards + totals(restored, steps[cut:]) == expected


@pytest.mark.parametrize("mode", list(RewardMode))
def test_model_does_not_keep_the_table(mode: str) -> None:
    """The environment changes one table in place, so the model must keep copies."""
    steps = random_steps(7)
    shared = SlotTable.empty(1, SLOTS)
    model = fresh(mode)
    rewards = []
    for step in steps:
        for field in dataclasses.fields(SlotTable):
            getattr(shared, field.name)[:] = getattr(step.table, field.name)
        rewards.append(model.compute(dataclasses.replace(step, table=shared)).total.tolist())
    assert rewards == totals(fresh(mode), steps)


def test_set_state_rejects_misfit_states() -> None:
    state = fresh("contribution", 2).get_state()
    with pytest.raises(ValueError, match=r"accuracy is an array \(2,\) .*; expected an array \(1,\)"):
        fresh("contribution", 1).set_state(state)
    with pytest.raises(ValueError, match=r"lacks .*ledger"):
        fresh("contribution", 2).set_state({"episode": state["episode"]})
    del state["episode"]["credit"]
    with pytest.raises(ValueError, match="credit"):
        fresh("contribution", 2).set_state(state)


def test_inputs_do_not_change_and_outputs_are_new() -> None:
    model = fresh("contribution", 2)
    steps = random_steps(9, rows=2)
    kept = random_steps(9, rows=2)
    outputs = [model.compute(step) for step in steps]
    copies = [output.total.copy() for output in outputs]
    for output in outputs:
        output.total[:] = 99.0
        for component in output.components.values():
            component[:] = 99.0
    np.testing.assert_array_equal(totals(fresh("contribution", 2), steps), copies)
    for step, original in zip(steps, kept, strict=True):
        for field in dataclasses.fields(SlotTable):
            np.testing.assert_array_equal(getattr(step.table, field.name), getattr(original.table, field.name))
