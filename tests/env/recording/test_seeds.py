"""What is told of seeds and of the actions on them."""

import numpy as np
import pytest
from esper_env.rules.heads import AlphaSpeed, AlphaTarget, Blueprint, Op, Style
from listening import heard, listen, payloads


@pytest.fixture
def run(make_digits):
    """``run(actions, **kwargs)``: an environment that has carried them out, and the sink."""

    def carry_out(actions, full=False, **kwargs):
        env = make_digits(**({"horizon": 20} | kwargs))
        sink = listen(env, full)
        env.reset(seed=0)
        infos = [env.step(choice)[-1] for choice in actions]
        return env, sink, infos

    return carry_out


def stages(env, sink):
    moves = heard(env, sink, "SEED_STAGE_CHANGED")
    return [(move.epoch, move.slot, move.payload.from_stage, move.payload.to_stage) for move in moves]


def test_a_life_is_told_stage_by_stage(run, script):
    env, sink, infos = run(script(1))
    assert stages(env, sink) == [
        (1, "r0c1", "DORMANT", "GERMINATED"),
        (2, "r0c1", "GERMINATED", "TRAINING"),
        (5, "r0c1", "TRAINING", "BLENDING"),
        (8, "r0c1", "BLENDING", "HOLDING"),
        (9, "r0c1", "HOLDING", "FOSSILIZED"),
    ]
    (born,) = heard(env, sink, "SEED_GERMINATED")
    assert (born.epoch, born.slot) == (1, "r0c1")
    assert (born.payload.blueprint, born.payload.operator, born.payload.alpha_target) == ("conv_light", "ADD", 1.0)
    (fossil,) = payloads(env, sink, "SEED_FOSSILIZED")
    assert (fossil.blueprint, fossil.age) == ("conv_light", 8)
    assert fossil.contribution == infos[7]["contribution"][1]  # what the decision was made on
    assert payloads(env, sink, "SEED_PRUNED") == []


def test_gates_tell_what_they_asked(run, script):
    life = script(0)
    env, sink, _ = run([*life[:3], *life[4:5], *life[3:]])  # an advance one epoch early
    gates = [(event.epoch, event.slot, event.payload) for event in heard(env, sink, "SEED_GATE_EVALUATED")]
    assert [(epoch, gate.gate, gate.passed) for epoch, _, gate in gates] == [
        (1, "G0", True),
        (2, "G1", True),
        (4, "G2", False),
        (6, "G2", True),
        (9, "G3", True),
        (10, "G5", True),
    ]
    assert {slot for _, slot, _ in gates} == {"r0c0"}
    failed, passed = gates[2][2], gates[3][2]
    assert failed.checks_failed == ("trained_long_enough",)
    assert failed.message == "G2 failed: trained_long_enough"
    assert failed.score == pytest.approx(len(failed.checks_passed) / (len(failed.checks_passed) + 1))
    assert passed.checks_failed == ()
    assert set(passed.checks_passed) == {*failed.checks_passed, *failed.checks_failed}
    (rejected,) = heard(env, sink, "COMMAND_REJECTED")
    assert (rejected.epoch, rejected.payload.reason) == (4, failed.message)


def test_a_prune_at_once_and_the_stages_that_follow(run, script, action):
    env, sink, infos = run([*script(2)[:4], action(Op.PRUNE, 2), *[action()] * 7])
    (pruned,) = heard(env, sink, "SEED_PRUNED")
    assert (pruned.epoch, pruned.slot) == (5, "r0c2")
    told = pruned.payload
    assert (told.blueprint, told.stage, told.age, told.initiator) == ("conv_light", "TRAINING", 4, "agent")
    assert told.contribution == infos[3]["contribution"][2]
    assert stages(env, sink)[2:] == [
        (5, "r0c2", "TRAINING", "PRUNED"),
        (6, "r0c2", "PRUNED", "EMBARGOED"),
        (11, "r0c2", "EMBARGOED", "RESETTING"),
        (12, "r0c2", "RESETTING", "DORMANT"),
    ]


def test_a_seed_without_a_measurement_is_pruned_without_a_contribution(run, action):
    env, sink, _ = run([action(Op.GERMINATE, 0), action(Op.PRUNE, 0)])
    (pruned,) = payloads(env, sink, "SEED_PRUNED")
    assert (pruned.stage, pruned.contribution, pruned.age) == ("GERMINATED", None, 1)


def test_a_prune_by_a_ramp_is_told_when_the_ramp_ends(run, script, action):
    ramp = action(Op.PRUNE, 1, alpha_speed=AlphaSpeed.FAST)
    env, sink, _ = run([*script(1)[:8], ramp, *[action()] * 2])
    (pruned,) = heard(env, sink, "SEED_PRUNED")
    assert (pruned.epoch, pruned.payload.stage, pruned.payload.initiator) == (11, "BLENDING", "agent")
    assert stages(env, sink)[-2:] == [(9, "r0c1", "HOLDING", "BLENDING"), (11, "r0c1", "BLENDING", "PRUNED")]
    succeeded = [event.payload for event in heard(env, sink, "COMMAND_SUCCEEDED") if event.epoch == 9]
    assert succeeded[0].arguments == {"slot": "r0c1", "alpha_speed": "FAST", "alpha_curve": "LINEAR"}


def test_commands_are_told_in_words(run, action):
    germinate = action(
        Op.GERMINATE, 1, blueprint=Blueprint.NORM, style=Style.GATED_GATE, alpha_target=AlphaTarget.SEVENTY
    )
    env, sink, _ = run([germinate, action(), action(Op.FOSSILIZE, 0)], full=True)
    first, second, third, fourth = heard(
        env, sink, "COMMAND_ISSUED", "COMMAND_SUCCEEDED", "COMMAND_REJECTED"
    )  # a WAIT is no command
    assert [event.type for event in (first, second)] == ["COMMAND_ISSUED", "COMMAND_SUCCEEDED"]
    assert first.payload.op == second.payload.op == "GERMINATE"
    assert first.payload.arguments == {
        "slot": "r0c1",
        "blueprint": "norm",
        "style": "GATED_GATE",
        "tempo": "STANDARD",
        "alpha_target": "SEVENTY",
    }
    assert [event.type for event in (third, fourth)] == ["COMMAND_ISSUED", "COMMAND_REJECTED"]
    assert (third.payload.op, third.payload.arguments) == ("FOSSILIZE", {})
    assert fourth.payload.reason == "it was not legal"


@pytest.mark.parametrize("full", [False, True])
def test_an_outcome_is_told_after_everything_that_led_to_it(run, script, full):
    env, sink, _ = run(script(0)[:2], full)
    order = [event.type for event in heard(env, sink) if event.epoch == 2]
    assert order == [
        *(["COMMAND_ISSUED"] if full else []),
        "SEED_GATE_EVALUATED",
        "SEED_STAGE_CHANGED",
        "EPOCH_COMPLETED",
        *(["COUNTERFACTUAL_COMPUTED"] if full else []),
        "COMMAND_SUCCEEDED",
    ]


@pytest.mark.parametrize("full", [False, True])
def test_counterfactuals_are_told_in_full_detail_only(run, script, full):
    """Two blended seeds: two contributions and a pair."""
    lives = [choice for pair in zip(script(0)[:8], script(2)[:8], strict=True) for choice in pair]
    env, sink, infos = run(lives, full)
    told = heard(env, sink, "COUNTERFACTUAL_COMPUTED")
    if not full:
        assert told == []
        return
    last = told[-1]
    assert last.epoch == len(lives)
    interaction = env.unwrapped._vector._growth.table.interaction_sum[0]
    assert last.payload.contributions == {"r0c0": infos[-1]["contribution"][0], "r0c2": infos[-1]["contribution"][2]}
    assert last.payload.interactions == {"r0c0+r0c2": interaction[0]}
    assert interaction[0] == interaction[2]
    measured = {epoch for epoch, info in enumerate(infos, start=1) if info["contribution_measured"].any()}
    assert {event.epoch for event in told} == measured
    np.testing.assert_array_equal(env.unwrapped._vector._growth.table.contribution_age[0], [0, -1, 0])
