"""Decisions of the heuristic until a seed is in HOLDING: planting and growing."""

from dataclasses import replace

import numpy as np
import pytest
from esper_agent.policies.heuristic import HeuristicConfig, HeuristicPolicy
from esper_env.rules.actions import ActionNames
from esper_env.rules.heads import AlphaTarget, Blueprint, Head, Op, Style, Tempo
from esper_env.rules.stages import Stage
from esper_env.seeds import register_blueprint, register_topology
from heuristic_moments import HORIZON, Moment, Seed, aged, decide, policy_with
from torch import nn

# Planting


def test_heuristic_plants_on_a_plateau():
    policy = policy_with(style=Style.GATED_GATE, tempo=Tempo.SLOW)
    action, _ = policy.predict(Moment().observation())
    assert (action[Head.STYLE], action[Head.TEMPO]) == (Style.GATED_GATE, Tempo.SLOW)
    assert action[Head.ALPHA_TARGET] == AlphaTarget.FULL
    (decision,) = policy.decisions[0]
    assert (decision.op, decision.slot, decision.blueprint) == (Op.GERMINATE, 0, "conv_light")
    assert decision.reason == "plateau of 5 epochs and slot r0c0 is empty"
    assert decision.epoch == 20
    assert decision.sentence() == (
        "epoch 20: GERMINATE conv_light in r0c0: style GATED_GATE, tempo SLOW (8 epochs), alpha_target FULL (1); "
        f"{decision.reason}"
    )


@pytest.mark.parametrize(
    ("holds", "fails", "reason"),
    [
        ({"epoch": 5}, {"epoch": 4}, "epoch 4 of at least 5"),
        ({"stabilised": True}, {"stabilised": False}, "the host has not stabilised"),
        ({"plateau": 3}, {"plateau": 2}, "plateau of 2 epochs"),
        ({"epoch": HORIZON - 13}, {"epoch": HORIZON - 12}, "12 epochs left are too few"),
        (
            {"seeds": {0: Seed(Stage.FOSSILIZED), 2: Seed(Stage.FOSSILIZED)}},
            {"seeds": {slot: Seed(Stage.FOSSILIZED) for slot in range(3)}},
            "no slot is free",
        ),
    ],
)
def test_each_condition_of_planting_can_prevent_it(holds, fails, reason):
    assert decide(Moment(**holds)).op == Op.GERMINATE
    refused = decide(Moment(**fails))
    assert refused.op == Op.WAIT
    assert reason in refused.reason


def test_planting_pauses_for_five_epochs_after_a_prune():
    before = Moment(seeds={1: Seed(Stage.TRAINING)})
    gone = aged(before, {1: Seed(Stage.PRUNED)})
    for pause, op in ((4, Op.WAIT), (5, Op.GERMINATE)):
        decision = decide(before, gone, aged(gone, {1: Seed(Stage.EMBARGOED)}, epochs=pause))
        assert decision.op == op
    assert "pruned" not in decision.reason


def test_decisions_name_slots_by_their_ids():
    moment = Moment(slots=2, seeds={0: Seed(Stage.GERMINATED)}, illegal=((Op.ADVANCE, 0),))
    policy = HeuristicPolicy(HORIZON, "cnn", names=ActionNames(("r0c2", "r1c0")))
    decision = decide(moment, policy=policy)
    assert decision.reason == "plateau of 5 epochs and slot r1c0 is empty"
    assert decision.action.startswith("GERMINATE conv_light in r1c0: ")
    waited = decide(replace(moment, plateau=0), policy=policy)
    assert waited.reason.startswith("slot r0c2: germinated, so it can start to train, not legal yet; no planting:")
    assert waited.sentence() == f"epoch 20: WAIT; {waited.reason}"


def test_planting_takes_the_first_legal_slot():
    assert decide(Moment(seeds={0: Seed(Stage.FOSSILIZED)})).slot == 1
    assert decide(Moment(illegal=((Op.GERMINATE, 0), (Op.GERMINATE, 1)))).slot == 2


# The rotation


def test_rotation_is_cyclic_and_restarts_with_the_episode():
    names = ["CONV_LIGHT", "CONV_HEAVY", "ATTENTION", "NORM", "DEPTHWISE", "CONV_LIGHT", "CONV_HEAVY", "CONV_LIGHT"]
    policy, state = policy_with(), None
    for index, name in enumerate(names):
        action, state = policy.predict(Moment().observation(), state, np.array([index in (0, 7)]))
        assert Blueprint(int(action[Head.BLUEPRINT])).name == name


def test_blueprint_at_the_end_of_the_rotation_is_skipped_if_it_is_not_offered():
    policy = policy_with(rotation=("norm", "conv_light"))
    assert decide(Moment(), Moment(offered=(Blueprint.NORM,)), policy=policy).blueprint == "norm"


def test_rotation_has_a_default_by_topology_and_no_blueprint_twice():
    policy = HeuristicPolicy(HORIZON, "transformer")
    assert [entry.name for entry in policy.rotation] == ["mlp", "attention", "mlp_small", "lora_large", "norm"]
    with pytest.raises(ValueError, match=r"the rotation is \['norm', 'norm'\]; expected one or more different"):
        policy_with(rotation=("norm", Blueprint.NORM))


@pytest.mark.usefixtures("own_tables")
def test_custom_blueprint_has_its_registered_name_in_rotations_and_decisions():
    """A custom CNN blueprint has the head's highest value, that of FLEX_ATTENTION on Transformers."""
    entry = register_blueprint("mixer", "cnn", lambda channels: nn.Conv2d(channels, channels, 1))
    assert entry.value == Blueprint.FLEX_ATTENTION
    for named in ("mixer", entry.value):
        planted = decide(Moment(offered=(entry.value,)), policy=policy_with(rotation=(named,)))
        assert (planted.op, planted.blueprint) == (Op.GERMINATE, "mixer")
    seeds = {0: Seed(Stage.GERMINATED, blueprint=entry.value)}
    assert decide(Moment(seeds=seeds)).blueprint == "mixer"
    register_topology("elsewhere", (4, 4))
    register_blueprint("only", "elsewhere", lambda width: nn.Linear(width, width))
    assert [entry.name for entry in HeuristicPolicy(HORIZON, "elsewhere").rotation] == ["only"]


def prune_then_plant(policy, pause, blueprint=Blueprint.CONV_LIGHT):
    """Return the decision ``pause`` epochs after a seed of ``blueprint`` was pruned."""
    moment = Moment(epoch=10, plateau=0, seeds={1: Seed(Stage.TRAINING, blueprint=blueprint)})
    moments = [moment, aged(moment, {1: Seed(Stage.PRUNED)})]
    for _ in range(pause):
        moments.append(aged(moments[-1], {1: Seed(Stage.EMBARGOED)}))
    moments[-1] = replace(moments[-1], plateau=5)
    return decide(*moments, policy=policy)


def test_pruned_blueprint_is_skipped_until_its_penalty_decays():
    """By default a penalty of 2 loses 5% per epoch, and stays at 1 or more for 13 epochs."""
    assert prune_then_plant(policy_with(), 5).blueprint == "conv_heavy"
    assert prune_then_plant(policy_with(), 13).blueprint == "conv_heavy"
    assert prune_then_plant(policy_with(), 14).blueprint == "conv_light"
    assert prune_then_plant(policy_with(), 5, Blueprint.NORM).blueprint == "conv_light"


def test_nothing_is_planted_while_every_blueprint_is_penalised():
    decision = prune_then_plant(policy_with(rotation=(Blueprint.CONV_LIGHT,)), 5)
    assert decision.op == Op.WAIT
    assert "every blueprint was pruned recently" in decision.reason


def test_heuristic_config_rejects_a_penalty_that_decays_too_fast():
    """Halving every epoch leaves 0.06 of 2 after the pause of five epochs."""
    with pytest.raises(ValueError, match=r"decays to 0\.0625 .* expected at least `penalty_threshold`, 3\.0"):
        HeuristicConfig(penalty_decay=0.5, penalty_threshold=3.0)


# Growing seeds


@pytest.mark.parametrize(
    ("gates", "ready", "unready"),
    [
        ("permissive", Seed(Stage.TRAINING, epochs=3), Seed(Stage.TRAINING, epochs=2)),
        ("permissive", Seed(Stage.TRAINING, 3, health=0.7), Seed(Stage.TRAINING, 3, health=0.69)),
        ("permissive", Seed(Stage.TRAINING, 3), Seed(Stage.TRAINING, 3, exploding=True)),
        ("permissive", Seed(Stage.BLENDING, 6), Seed(Stage.BLENDING, 6, mode=1)),
        ("strict", Seed(Stage.TRAINING, 3, contribution=0.6), Seed(Stage.TRAINING, 3, contribution=0.4)),
        ("strict", Seed(Stage.BLENDING, 3), Seed(Stage.BLENDING, 2)),
    ],
)
def test_seed_advances_as_soon_as_its_gate_can_pass(gates, ready, unready):
    for seed, op in ((ready, Op.ADVANCE), (unready, Op.WAIT)):
        moment = Moment(seeds={0: seed, 1: Seed(Stage.FOSSILIZED), 2: Seed(Stage.FOSSILIZED)})
        assert decide(moment, policy=policy_with(gates)).op == op


@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.BLENDING])
@pytest.mark.parametrize(("epochs", "drop", "op"), [(5, 2.5, Op.PRUNE), (5, 1.5, Op.ADVANCE), (4, 2.5, Op.ADVANCE)])
def test_growing_seed_is_pruned_after_five_epochs_of_falling_accuracy(stage, epochs, drop, op):
    previous = Stage.GERMINATED if stage == Stage.TRAINING else Stage.TRAINING
    start = Moment(seeds={0: Seed(previous)})
    entered = aged(start, {0: Seed(stage, 1)})
    now = aged(entered, {0: Seed(stage, epochs)}, epochs=epochs - 1, accuracies=(50.0 - drop,) * 5)
    decision = decide(start, entered, now)
    assert decision.op == op
    if op == Op.PRUNE:
        assert decision.reason == "accuracy fell by 2.5 points in 5 epochs"
        assert decision.confidence == pytest.approx(0.5 / 1.5)


def test_fall_of_accuracy_counts_from_the_entry_into_the_stage():
    """Five points lost in TRAINING do not count against a seed that loses nothing in BLENDING."""
    moments = [Moment(seeds={0: Seed(Stage.GERMINATED)})]
    moments.append(aged(moments[-1], {0: Seed(Stage.TRAINING, 1)}))
    moments.append(aged(moments[-1], {0: Seed(Stage.TRAINING, 4)}, epochs=3, accuracies=(45.0,) * 5))
    moments.append(aged(moments[-1], {0: Seed(Stage.BLENDING, 1, mode=1)}))
    moments.append(aged(moments[-1], {0: Seed(Stage.BLENDING, 5)}, epochs=4))
    assert decide(*moments).op == Op.ADVANCE


def test_one_noisy_epoch_does_not_cause_a_prune():
    """The accuracy is averaged over three epochs, so a dip of five points in the last one counts as 1.7."""
    start = Moment(seeds={0: Seed(Stage.GERMINATED)})
    entered = aged(start, {0: Seed(Stage.TRAINING, 1)})
    dip = aged(entered, {0: Seed(Stage.TRAINING, 5)}, epochs=4, accuracies=(50, 50, 50, 50, 45))
    assert decide(start, entered, dip).op == Op.ADVANCE
    assert decide(start, entered, dip, policy=policy_with(smoothing=1)).op == Op.PRUNE


def test_blend_that_ended_below_full_alpha_is_raised():
    moment = Moment(seeds={0: Seed(Stage.BLENDING, 6, alpha=0.5)})
    policy = policy_with()
    action, _ = policy.predict(moment.observation())
    assert action[Head.OP] == Op.SET_ALPHA_TARGET
    assert action[Head.ALPHA_TARGET] == AlphaTarget.FULL
