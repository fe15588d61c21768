"""Divergence and collapse without a NaN, repeated rollbacks, and the schedule of snapshots."""

import gymnasium
import numpy as np
import pytest
import torch
from esper_env.rules.heads import Op
from esper_env.rules.stages import Stage
from faults import IN_HOST, classifier, die, explode, growth_of
from stepping import reward_components
from trips import Trip, assert_agree, assert_restored, check_after_rollback, check_rolled_back, of_rows, wait

pytestmark = [pytest.mark.usefixtures("float64_networks"), pytest.mark.numeric]

SMALL = {"horizon": 20, "batches_per_step": 2, "batch_size": 16}


def make(count=3, **kwargs):
    return gymnasium.make_vec("Esper-Digits-v0", num_envs=count, **({"autoreset_mode": "Disabled"} | SMALL | kwargs))


def rollbacks(trip, row=1):
    """Return the rollbacks of one network by step."""
    return [bool(infos["rollback"][row]) for *_, infos, _ in trip.steps[1:]]


# Divergence

STEPS = {Stage.GERMINATED: 1, Stage.TRAINING: 3, Stage.BLENDING: 6, Stage.HOLDING: 8, Stage.FOSSILIZED: 9}


@pytest.mark.parametrize(
    ("stage", "when"),
    [
        (Stage.GERMINATED, "middle"),
        (Stage.TRAINING, "last"),
        (Stage.BLENDING, "middle"),
        (Stage.HOLDING, "last"),
        (Stage.FOSSILIZED, "middle"),
    ],
)
def test_explosion_is_rolled_back_after_three_epochs(stage, when, script):
    steps = STEPS[stage]
    trip = Trip(make(horizon=steps + (3 if when == "last" else 5)))
    calm = Trip(make(horizon=steps + (3 if when == "last" else 5)))
    for one in (trip, calm):
        one.go(*script()[:steps])
    before = trip.growth.table.stage.copy()
    explode(trip.growth, 1)
    for one in (trip, calm):
        one.go(*wait(3))
    assert rollbacks(trip) == [False] * (steps + 2) + [True]
    if stage == Stage.BLENDING:  # for three ticks, so there is a snapshot of the fifth epoch
        assert (before[:, 0] == Stage.BLENDING).all()
    check_rolled_back(trip, [1], before, {Stage.FOSSILIZED: 9}.get(stage, 5 * (steps // 5)))
    assert (trip.steps[-1][2] == (when == "last")).all()
    if when == "middle":
        for one in (trip, calm):
            one.go(*wait(2))
        check_after_rollback(trip, [1])
    for ours, theirs in zip(calm.steps, trip.steps, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert_agree(of_rows(left, [0, 2]), of_rows(right, [0, 2]))


def test_spike_resets_the_count():
    trip = Trip(make())
    trip.go(*wait(2))
    for _ in range(2):
        sound = [tensor.clone() for tensor in classifier(trip.growth, 1)]
        explode(trip.growth, 1)
        for _ in range(2):
            trip.go(*wait())
            assert trip.steps[-1][4]["val_loss"][1] > 100
        for tensor, value in zip(classifier(trip.growth, 1), sound, strict=True):
            tensor.copy_(value)
        trip.go(*wait())
        assert trip.steps[-1][4]["val_loss"][1] < 4
    assert not any(rollbacks(trip))


def test_actions_before_the_rollback_take_effect_until_it(action):
    trip = Trip(make())
    explode(trip.growth, 1)
    trip.go(action(Op.GERMINATE, 0), action(Op.ADVANCE, 0))
    assert trip.steps[-1][4]["action_succeeded"].all()
    trip.go(action(Op.GERMINATE, 1))
    assert rollbacks(trip) == [False, False, True]
    assert_restored(trip, 1, 0)
    assert trip.growth.table.stage[1].tolist() == [Stage.PRUNED, Stage.DORMANT, Stage.DORMANT]
    assert trip.growth.table.stage[0].tolist() == [Stage.TRAINING, Stage.GERMINATED, Stage.DORMANT]


def test_seed_fossilized_in_an_unhealthy_network_is_pruned(script):
    trip = Trip(make())
    trip.go(*script()[:8])
    explode(trip.growth, 1)
    trip.go(script()[8])
    assert (trip.growth.table.stage[:, 0] == Stage.FOSSILIZED).all()
    trip.go(*wait(2))
    assert rollbacks(trip)[-1]
    assert trip.growth.table.stage[:, 0].tolist() == [Stage.FOSSILIZED, Stage.PRUNED, Stage.FOSSILIZED]
    assert_restored(trip, 1, 5)


# Collapse


def test_collapse_is_rolled_back_at_once_in_any_stage(script):
    """After twelve epochs of learning, each network but the last has a seed in another stage, and collapses."""
    task = {"host_lr": 0.05, "seed_lr": 0.05, "batches_per_step": 17, "batch_size": 64}
    env = make(len(STEPS) + 1, horizon=15, **task)
    trip = Trip(env, seed=0, options={"topology": {"r0c0": "conv_heavy", "r0c1": "conv_heavy"}})
    lives = [wait(12 - steps) + script(2)[:steps] for steps in STEPS.values()] + [wait(12)]
    trip.go(*np.stack(lives, axis=1))
    before = trip.growth.table.stage.copy()
    assert before[:, 2].tolist() == [*STEPS, Stage.DORMANT]
    rows = list(range(len(STEPS)))
    for row in rows:
        die(trip.growth, row)
    pending = wait(len(STEPS) + 1)
    pending[list(STEPS).index(Stage.HOLDING)] = script(2)[8]  # FOSSILIZE
    trip.go(np.stack(pending))
    infos = trip.steps[-1][4]
    assert infos["rollback"].tolist() == [True] * len(STEPS) + [False]
    committed = list(STEPS).index(Stage.FOSSILIZED)
    check_rolled_back(trip, [row for row in rows if row != committed], before, 10)
    check_rolled_back(trip, [committed], before, 12)
    assert (infos["val_loss"] < 1.6).all()
    trip.go(*wait(2))
    check_after_rollback(trip, rows)


def test_untrained_network_may_guess():
    trip = Trip(make())
    trip.go(*wait(12))
    die(trip.growth, 1)
    trip.go(*wait(2))
    assert abs(trip.steps[-1][4]["val_loss"][1] - np.log(10)) < 0.1
    assert not any(rollbacks(trip))


# Three rollbacks


def break_every_step(trip, steps, row=1):
    for _ in range(steps):
        IN_HOST["NaN weight"](trip.growth, row, None)
        trip.go(*wait())


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_third_rollback_ends_the_episode(mode, script):
    """Final infos are those of the committed network, and the next episode starts afresh."""
    trip = Trip(make(autoreset_mode=mode))
    trip.go(*script(), *wait(2))
    for k in range(3):
        assert not trip.steps[-1][2].any()
        break_every_step(trip, 1)
        reward = trip.steps[-1][1]
        assert reward[1] < -0.5
        assert np.abs(reward[[0, 2]]).max() < 0.5
        if k < 2:
            assert_restored(trip, 1, 9)
            assert trip.steps[-1][4]["rollbacks"].tolist() == [0, k + 1, 0]
    _, reward, terminated, truncated, infos, _ = trip.steps[-1]
    assert terminated.tolist() == [False, True, False]
    assert not truncated.any()
    final = infos["final_info"] if mode == "SameStep" else infos
    assert (final["committed_measured"] & final["_committed_measured"]).tolist() == [False, True, False]
    assert final["rollbacks"][1] == 3
    assert final["committed_parameters_added"][1] == final["parameters_added"][1] > 0
    assert final["committed_val_accuracy"][1] == pytest.approx(final["val_accuracy"][1])
    assert final["reward_governor"][1] == -1.0
    parts = [value[1] for value in reward_components(final).values()]
    assert sum(parts) == pytest.approx(reward[1])
    if mode == "Disabled":
        assert_restored(trip, 1, 9)
        _, infos = trip.env.reset(options={"reset_mask": np.arange(3) == 1})
    elif mode == "NextStep":
        trip.go(*wait())
        infos = trip.steps[-1][4]
        assert trip.steps[-1][1][1] == 0.0
    assert infos["rollbacks"][1] == 0
    assert trip.growth.table.stage[1].tolist() == [Stage.DORMANT] * 3
    trip.go(*wait(2))
    assert not trip.steps[-1][4]["rollback"].any()
    break_every_step(trip, 1)
    assert trip.steps[-1][4]["rollbacks"].tolist() == [0, 1, 0]
    assert not trip.steps[-1][2].any()


def test_finished_network_is_not_judged():
    """With NEXT_STEP, a fault in a finished network has no effect."""
    trip = Trip(make(horizon=3, autoreset_mode="NextStep"))
    trip.go(*wait(3))
    IN_HOST["NaN weight"](trip.growth, 1, None)
    trip.go(*wait())
    assert not trip.steps[-1][4].get("rollback", np.zeros(3)).any()
    trip.go(*wait(2))
    assert not trip.steps[-1][4]["rollback"].any()


def test_single_environment_reports_rollbacks():
    env = gymnasium.make("Esper-Digits-v0", **SMALL)
    observation, info = env.reset(seed=1)
    assert info["rollbacks"] == 0
    growth, waiting = growth_of(env), wait()[0]
    seen = []
    for step in range(4):
        if step:
            IN_HOST["NaN weight"](growth, 0, None)
        observation, reward, terminated, truncated, info = env.step(waiting)
        assert observation in env.observation_space
        assert [type(value) for value in (reward, terminated)] == [float, bool]
        assert sum(reward_components(info).values()) == pytest.approx(reward)
        seen.append((bool(info["rollback"]), info["rollbacks"], terminated, info["reward_governor"]))
        assert not truncated
    assert seen == [(False, 0, False, 0.0), (True, 1, False, -1.0), (True, 2, False, -1.0), (True, 3, True, -1.0)]
    assert {"test_accuracy", "committed_val_accuracy", "shapley"} <= info.keys()
    env.close()


# The penalty


@pytest.mark.parametrize(("mode", "scale"), [("accuracy", 1.0), ("sparse", 5.0), ("contribution", 5.0)])
def test_penalty_is_the_scale_in_every_mode(mode, scale, action):
    weights = {"scale": scale}
    trip = Trip(make(reward_mode=mode, reward_weights=weights))
    trip.go(action(Op.GERMINATE, 0))
    IN_HOST["NaN weight"](trip.growth, 1, None)
    trip.go(action(Op.ADVANCE, 0))
    _, reward, _, _, infos, _ = trip.steps[-1]
    components = reward_components(infos)
    assert components["governor"].tolist() == [0.0, -scale, 0.0]
    np.testing.assert_allclose(sum(components.values()), reward)
    if mode == "accuracy":  # a skipped op costs nothing
        assert components["op_cost"].tolist() == pytest.approx([-0.002, 0.0, -0.002])


def test_return_is_the_committed_gain_less_costs_and_penalties(script):
    trip = Trip(make(horizon=14))
    trip.go(*script(), *wait(2))
    IN_HOST["NaN weight"](trip.growth, 1, None)
    trip.go(*wait(3))
    infos = [infos for *_, infos, _ in trip.steps if "rollback" in infos]
    gain = (infos[-1]["committed_val_accuracy"] - trip.steps[0][1]["val_accuracy"]) / 100
    rent = sum(0.05 * np.log(1 + info["parameters_added"] / 390) / 14 for info in infos)
    ops = sum(0.002 * (info["op"] != Op.WAIT) for info in infos)
    total = sum(reward for _, reward, *_ in trip.steps[1:])
    np.testing.assert_allclose(total, gain - rent - ops - np.array([0.0, 1.0, 0.0]), atol=1e-9)


# Snapshots


def test_snapshots_are_taken_at_the_start_every_five_epochs_and_after_fossilizing(script, monkeypatch):
    env = make()
    taken, growth = [], growth_of(env)
    take_snapshots = growth._population.take_snapshots

    def listen(structure, rows):
        taken.extend((int(growth.epoch[row]), int(row)) for row in np.flatnonzero(rows))
        take_snapshots(structure, rows)

    monkeypatch.setattr(growth._population, "take_snapshots", listen)
    trip = Trip(env)
    trip.go(*script()[:4])
    explode(growth, 1)
    trip.go(script()[4], *wait())  # epochs 5 and 6 of network 1 are unhealthy
    weight, bias = classifier(growth, 1)
    with torch.no_grad():
        weight.zero_()
        bias.zero_()
    trip.go(*script()[6:], *wait(4))  # epoch 7 is healthy, and the seed is fossilized after epoch 9
    IN_HOST["NaN weight"](growth, 2, None)  # rolled back in the epoch in which a snapshot is due
    trip.go(*wait(5))
    epochs = [[epoch for epoch, row in taken if row == which] for which in range(3)]
    assert epochs[0] == [0, 5, 9, 14]
    assert epochs[1] == [0, 7, 9, 14]
    assert epochs[2] == [0, 5, 9, 15]
    assert [step for step, rolled in enumerate(rollbacks(trip, 2), start=1) if rolled] == [14]
    assert not any(rollbacks(trip, 1))
