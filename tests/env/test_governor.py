"""Rollbacks of networks that are broken between two steps."""

import gymnasium
import numpy as np
import pytest
from esper_env.rules.heads import AlphaSpeed, AlphaTarget, Blueprint, Op
from esper_env.rules.stages import HAS_SEED, Stage
from faults import IN_HOST, IN_SEED
from trips import Trip, assert_agree, check_after_rollback, check_rolled_back, of_rows, wait

pytestmark = [pytest.mark.usefixtures("float64_networks"), pytest.mark.numeric]

#: Networks 0 and the last one stay healthy; each other one has its own fault.
HOST_ROWS = dict(enumerate(IN_HOST, start=1))
SEED_ROWS = dict(enumerate(IN_SEED, start=1 + len(IN_HOST)))
COUNT = 2 + len(IN_HOST) + len(IN_SEED)
HEALTHY = [0, COUNT - 1]

#: Steps of the shortest life until a seed is in a stage, and epoch of the latest snapshot.
STEPS = {
    Stage.GERMINATED: (1, 0),
    Stage.TRAINING: (3, 0),
    Stage.BLENDING: (7, 5),
    Stage.HOLDING: (8, 5),
    Stage.FOSSILIZED: (9, 9),
}
#: Each op is pending at least once; ``test_lifecycle_model.py`` rolls slots back with all of them in any stage.
CASES = [
    (Stage.GERMINATED, Op.ADVANCE, "middle"),
    (Stage.GERMINATED, Op.PRUNE, "last"),
    (Stage.TRAINING, Op.ADVANCE, "middle"),
    (Stage.BLENDING, Op.PRUNE, "middle"),
    (Stage.BLENDING, Op.SET_ALPHA_TARGET, "last"),
    (Stage.HOLDING, Op.FOSSILIZE, "middle"),
    (Stage.FOSSILIZED, Op.GERMINATE, "middle"),
    (Stage.FOSSILIZED, Op.WAIT, "last"),
]


def make(count=COUNT, **kwargs):
    settings = {"horizon": 16, "batches_per_step": 2, "batch_size": 16, "autoreset_mode": "Disabled"} | kwargs
    return gymnasium.make_vec("Esper-Digits-v0", num_envs=count, **settings)


def break_all(growth, slot):
    """Put every fault into its own network, and seed faults only if there is a seed."""
    rows = {row: IN_HOST[name] for row, name in HOST_ROWS.items()}
    if slot is not None:
        rows |= {row: IN_SEED[name] for row, name in SEED_ROWS.items()}
    for row, fault in rows.items():
        fault(growth, row, slot)
    return list(rows)


def pending(action, op, slot):
    """Return an action on the broken seed; GERMINATE uses the next slot, and PRUNE a ramp where possible."""
    if op == Op.GERMINATE:
        return action(op, 1, blueprint=Blueprint.NORM)
    return action(op, slot, alpha_speed=AlphaSpeed.FAST, alpha_target=AlphaTarget.HALF)


@pytest.mark.parametrize(("stage", "op", "when"), CASES)
def test_non_finite_network_is_rolled_back_in_any_stage_with_any_command(stage, op, when, script, action):
    """All faults occur at once, and healthy networks equal those of a run without faults."""
    steps, snapshot = STEPS[stage]
    horizon = steps + (1 if when == "last" else 3)
    healthy, sick = (Trip(make(horizon=horizon)) for _ in range(2))
    for trip in (healthy, sick):
        trip.go(*script()[:steps])
        assert (trip.growth.table.stage[:, 0] == stage).all()
    before = sick.growth.table.stage.copy()
    rows = break_all(sick.growth, 0)
    for trip in (healthy, sick):
        trip.go(pending(action, op, 0))
    if op == Op.PRUNE and stage in (Stage.GERMINATED, Stage.TRAINING):  # the broken seed is gone before training
        rows = list(HOST_ROWS)
        assert sick.steps[-1][4]["action_succeeded"][list(SEED_ROWS)].all()
    infos = sick.steps[-1][4]
    assert np.flatnonzero(infos["rollback"]).tolist() == rows
    assert infos["rollbacks"].tolist() == infos["rollback"].astype(int).tolist()
    check_rolled_back(sick, rows, before, snapshot)
    assert (sick.steps[-1][2] == (when == "last")).all()
    if when == "last":
        np.testing.assert_allclose(infos["committed_val_accuracy"][rows], infos["val_accuracy"][rows], atol=1e-9)
    else:
        for trip in (healthy, sick):
            trip.go(*wait(2))
        check_after_rollback(sick, rows)
    for ours, theirs in zip(healthy.steps, sick.steps, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert_agree(of_rows(left, HEALTHY), of_rows(right, HEALTHY))


@pytest.mark.parametrize(("planted", "horizon"), [(False, 1), (True, 3)])
def test_fault_in_the_first_step_restores_the_initial_network(planted, horizon, action):
    """The snapshot is the initial network with its planted seeds."""
    options = {"topology": {"r0c1": "conv_small", "r0c2": "conv_light"}} if planted else None
    trip = Trip(make(horizon=horizon), options=options)
    before = trip.growth.table.stage.copy()
    rows = break_all(trip.growth, 2 if planted else None)
    trip.go(action(Op.GERMINATE, 0, blueprint=Blueprint.NORM))
    assert np.flatnonzero(trip.steps[-1][4]["rollback"]).tolist() == rows
    check_rolled_back(trip, rows, before, 0)
    healthy = [row for row in range(COUNT) if row not in rows]
    assert (trip.growth.table.stage[healthy, 0] == Stage.GERMINATED).all()
    assert (trip.steps[-1][2] == (horizon == 1)).all()
    if horizon > 1:
        trip.go(*wait(2))
        check_after_rollback(trip, rows)


@pytest.mark.parametrize(("fault", "row", "shard_size"), [("NaN weight", 0, 1), ("NaN seed", 2, 2), ("NaN gate", 1, 3)])
def test_fault_in_a_shard_of_any_size_rolls_back_one_network(fault, row, shard_size, script, action):
    trip = Trip(make(3, shard_size=shard_size))
    trip.go(*script(), *script(1)[:3])  # a fossil in slot 0, a TRAINING seed in slot 1
    before = trip.growth.table.stage.copy()
    (IN_HOST | IN_SEED)[fault](trip.growth, row, 0)
    trip.go(action(Op.GERMINATE, 2))
    assert trip.steps[-1][4]["rollback"].tolist() == [other == row for other in range(3)]
    check_rolled_back(trip, [row], before, 9)
    assert before[row].tolist() == [Stage.FOSSILIZED, Stage.TRAINING, Stage.DORMANT]
    assert HAS_SEED[trip.growth.table.stage].sum(axis=1).tolist() == [1 if other == row else 3 for other in range(3)]


def test_undone_germination_does_not_change_later_seeds(script, action):
    """A later seed starts from the same weights, whatever the rollback undid."""
    waited, planted = (Trip(make(2, horizon=30)) for _ in range(2))
    for trip, skipped in ((waited, Op.WAIT), (planted, Op.GERMINATE)):
        trip.go(*wait(2))
        IN_HOST["NaN weight"](trip.growth, 1, None)
        trip.go(np.stack([wait()[0], action(skipped, 0, blueprint=Blueprint.NORM)]))
        trip.go(*script()[:3])
    assert waited.steps[3][4]["rollback"].tolist() == [False, True]
    assert (waited.growth.table.stage[:, 0] == Stage.TRAINING).all()
    assert_agree(waited.env.unwrapped.get_state()["population"], planted.env.unwrapped.get_state()["population"])
    assert_agree(waited.steps[-1][0], planted.steps[-1][0])
