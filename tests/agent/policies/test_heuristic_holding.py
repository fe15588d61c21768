"""Decisions of the heuristic about HOLDING seeds, and the order of seeds."""

from dataclasses import replace

import pytest
from esper_env.rules.heads import AlphaSpeed, Head, Op
from esper_env.rules.stages import Stage
from heuristic_moments import HORIZON, READY, Moment, Seed, aged, decide, policy_with

# Holding


def holding(contributions, birth=50.0, now=60.0, epoch=20, policy=None, others=None):
    """Return the decision after an episode in which a seed is born at one accuracy and measured in HOLDING."""
    others = others or {}
    moments = [Moment(epoch=epoch, accuracies=(birth,) * 5, plateau=0)]
    moments.append(aged(moments[-1], {0: Seed(Stage.BLENDING), **others}))
    for count, contribution in enumerate(contributions, 1):
        seed = Seed(Stage.HOLDING, count, contribution=contribution)
        moments.append(aged(moments[-1], {0: seed, **others}, accuracies=(now,) * 5))
    return decide(*moments, policy=policy)


def test_holding_is_judged_on_the_mean_of_three_epochs():
    assert holding([0.0, 0.9]).op == Op.WAIT
    kept = holding([0.0, 0.9, 0.9])
    assert kept.op == Op.FOSSILIZE
    assert kept.reason == "contributes 0.6 points over 3 epochs"
    assert holding([0.9, 0.3, 0.2]).op == Op.PRUNE


def test_dependence_without_improvement_is_pruned():
    ransom = holding([10.0] * 3, birth=50.0, now=49.0)
    assert ransom.op == Op.PRUNE
    assert "depended on (10.0 points) but accuracy is 1.0 points lower" in ransom.reason
    assert holding([10.0] * 3, birth=50.0, now=50.5).op == Op.FOSSILIZE
    assert holding([0.06] * 3, birth=50.0, now=49.0).reason == "contributes only 0.1 points"


def test_second_stay_in_holding_is_judged_separately():
    moments = [Moment(seeds={0: Seed(Stage.HOLDING, n, contribution=9.0)}, epoch=19 + n) for n in (1, 2)]
    moments.append(aged(moments[-1], {0: Seed(Stage.BLENDING, 1, mode=1)}))
    for count in (1, 2, 3):
        moments.append(aged(moments[-1], {0: Seed(Stage.HOLDING, count, contribution=0.1)}))
    assert decide(*moments[:-1]).op != Op.PRUNE
    assert decide(*moments[:-1]).op != Op.FOSSILIZE
    assert decide(*moments).op == Op.PRUNE


def test_unmeasured_contribution_is_not_zero():
    assert holding([None, None, None, 5.0, 5.0]).op == Op.WAIT
    assert holding([None, None, None, 5.0, 5.0, 5.0]).op == Op.FOSSILIZE


@pytest.mark.parametrize(
    ("gates", "seed", "op"),
    [
        ("permissive", {"contribution": 5.0, "health": 0.69}, Op.WAIT),
        ("permissive", {"contribution": 5.0, "exploding": True}, Op.WAIT),
        ("permissive", {"contribution": 5.0, "health": 0.7}, Op.FOSSILIZE),
        ("permissive", {"contribution": 0.8}, Op.FOSSILIZE),
        ("strict", {"contribution": 0.8}, Op.WAIT),  # strict gates require one point, the rule alone half
    ],
)
def test_holding_seed_waits_while_its_gate_cannot_pass(gates, seed, op):
    moments = [Moment(epoch=20 + n, plateau=0, seeds={0: Seed(Stage.HOLDING, n, **seed)}) for n in (1, 2, 3)]
    decision = decide(*moments, policy=policy_with(gates))
    assert decision.op == op
    assert f"contributes {seed['contribution']} points over 3 epochs" in decision.reason


def test_contribution_before_the_first_epoch_of_holding_does_not_count():
    entered = Moment(plateau=0, seeds={0: Seed(Stage.HOLDING, 0, contribution=9.0)})
    moments = [entered, *(aged(entered, {0: Seed(Stage.HOLDING, n, contribution=0.1)}, epochs=n) for n in (1, 2, 3))]
    assert "contribution measured 2 of 3 times" in decide(*moments[:-1]).reason
    assert decide(*moments).reason == "contributes only 0.1 points"


def test_helpful_seed_is_fossilized_before_the_horizon():
    """The last action is at epoch 59, and one good measurement suffices three epochs before it."""
    assert holding([5.0], epoch=HORIZON - 6).op == Op.WAIT
    assert holding([5.0], epoch=HORIZON - 5).op == Op.FOSSILIZE
    assert holding([0.2, 0.2, 0.2], epoch=HORIZON - 20).op == Op.PRUNE
    assert holding([0.2, 0.2, 0.2], epoch=HORIZON - 5).op == Op.WAIT


def test_other_live_seeds_bring_the_final_epochs_forward():
    other = {1: Seed(Stage.TRAINING)}
    assert holding([5.0], epoch=HORIZON - 6, others=other).op == Op.FOSSILIZE


def test_prune_speed_is_configurable():
    policy, state = policy_with(prune_speed=AlphaSpeed.SLOW), None
    for epoch in range(1, 4):
        seeds = {0: Seed(Stage.HOLDING, epoch)}
        action, state = policy.predict(Moment(epoch=20 + epoch, seeds=seeds).observation(), state)
    assert (action[Head.OP], action[Head.ALPHA_SPEED]) == (Op.PRUNE, AlphaSpeed.SLOW)


# Order of seeds


@pytest.mark.parametrize(("first", "second"), [(Stage.BLENDING, Stage.TRAINING), (Stage.TRAINING, Stage.GERMINATED)])
def test_later_stage_goes_first(first, second):
    assert decide(Moment(seeds={0: READY[second], 2: READY[first]})).slot == 2


def test_holding_goes_before_blending():
    moments = [Moment(epoch=20 + n, seeds={0: READY[Stage.BLENDING], 1: Seed(Stage.HOLDING, n)}) for n in (1, 2, 3)]
    decision = decide(*moments)
    assert (decision.slot, decision.op) == (1, Op.PRUNE)


def test_oldest_seed_of_a_stage_goes_first():
    born_second = Moment(seeds={1: Seed(Stage.TRAINING, 1)})
    both = aged(born_second, {0: Seed(Stage.TRAINING, 3), 1: Seed(Stage.TRAINING, 3)})
    assert decide(born_second, both).slot == 1
    assert decide(both).slot == 0


def test_waiting_seed_yields_to_the_others():
    """The HOLDING seed has one measurement and waits, so that the other seeds are considered."""
    seeds = {0: Seed(Stage.HOLDING, 1), 1: Seed(Stage.BLENDING, 2, mode=1), 2: Seed(Stage.GERMINATED)}
    decision = decide(Moment(seeds=seeds))
    assert (decision.slot, decision.op) == (2, Op.ADVANCE)


def test_planting_is_possible_while_a_seed_waits():
    assert decide(Moment(seeds={0: Seed(Stage.TRAINING, 1)})).op == Op.GERMINATE


def test_seed_with_a_failed_attempt_goes_last():
    seeds = {0: READY[Stage.BLENDING], 1: READY[Stage.TRAINING]}
    first = Moment(seeds=seeds)
    assert decide(first).slot == 0
    assert decide(first, replace(first, epoch=21, succeeded=False)).slot == 1
    assert decide(first, replace(first, epoch=21, succeeded=True)).slot == 0


def test_heuristic_waits_if_its_proposals_are_illegal():
    wanting = Moment(
        seeds={0: READY[Stage.BLENDING]}, illegal=((Op.ADVANCE, 0), *((Op.GERMINATE, s) for s in range(3)))
    )
    decision = decide(wanting)
    assert decision.op == Op.WAIT
    assert "not legal yet" in decision.reason
