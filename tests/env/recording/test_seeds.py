"""Events of seeds and of the actions on them."""

import numpy as np
import pytest
from esper_env.recording import Recorder
from esper_env.rules.heads import AlphaSpeed, AlphaTarget, Blueprint, Op, Style
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage
from esper_env.telemetry import MemorySink, Telemetry
from listening import heard, listen, payloads


@pytest.fixture
def run(make_digits):
    """``run(actions, **kwargs)``: an environment after these actions, its sink and its infos."""

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


def test_every_stage_of_a_life_has_an_event(run, script):
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
    assert fossil.contribution == infos[7]["contribution"][1]  # the decision was based on it
    assert payloads(env, sink, "SEED_PRUNED") == []


def test_gate_events_list_the_checks(run, script):
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


def test_immediate_prune_and_the_stages_after_it(run, script, action):
    env, sink, infos = run([*script(2)[:4], action(Op.PRUNE, 2), *[action()] * 7])
    (pruned,) = heard(env, sink, "SEED_PRUNED")
    assert (pruned.epoch, pruned.slot) == (5, "r0c2")
    payload = pruned.payload
    assert (payload.blueprint, payload.stage, payload.age, payload.initiator) == ("conv_light", "TRAINING", 4, "agent")
    assert payload.contribution == infos[3]["contribution"][2]
    assert stages(env, sink)[2:] == [
        (5, "r0c2", "TRAINING", "PRUNED"),
        (6, "r0c2", "PRUNED", "EMBARGOED"),
        (11, "r0c2", "EMBARGOED", "RESETTING"),
        (12, "r0c2", "RESETTING", "DORMANT"),
    ]


def test_pruned_seed_without_a_measurement_has_no_contribution(run, action):
    env, sink, _ = run([action(Op.GERMINATE, 0), action(Op.PRUNE, 0)])
    (pruned,) = payloads(env, sink, "SEED_PRUNED")
    assert (pruned.stage, pruned.contribution, pruned.age) == ("GERMINATED", None, 1)


def test_prune_by_a_ramp_is_reported_when_the_ramp_ends(run, script, action):
    ramp = action(Op.PRUNE, 1, alpha_speed=AlphaSpeed.FAST)
    env, sink, _ = run([*script(1)[:8], ramp, *[action()] * 2])
    (pruned,) = heard(env, sink, "SEED_PRUNED")
    assert (pruned.epoch, pruned.payload.stage, pruned.payload.initiator) == (11, "BLENDING", "agent")
    assert stages(env, sink)[-2:] == [(9, "r0c1", "HOLDING", "BLENDING"), (11, "r0c1", "BLENDING", "PRUNED")]
    succeeded = [event.payload for event in heard(env, sink, "COMMAND_SUCCEEDED") if event.epoch == 9]
    assert succeeded[0].arguments == {"slot": "r0c1", "alpha_speed": "FAST", "alpha_curve": "LINEAR"}


def test_command_events_use_names(run, action):
    germinate = action(
        Op.GERMINATE, 1, blueprint=Blueprint.NORM, style=Style.GATED_GATE, alpha_target=AlphaTarget.SEVENTY
    )
    env, sink, _ = run([germinate, action(), action(Op.FOSSILIZE, 0)], full=True)
    first, second, third, fourth = heard(
        env, sink, "COMMAND_ISSUED", "COMMAND_SUCCEEDED", "COMMAND_REJECTED"
    )  # WAIT has no event
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
def test_outcome_comes_after_all_other_events_of_a_command(run, script, full):
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
def test_counterfactuals_have_events_only_in_full_detail(run, script, full):
    """Two blended seeds have two contributions and one interaction."""
    lives = [choice for pair in zip(script(0)[:8], script(2)[:8], strict=True) for choice in pair]
    env, sink, infos = run(lives, full)
    received = heard(env, sink, "COUNTERFACTUAL_COMPUTED")
    if not full:
        assert received == []
        return
    last = received[-1]
    assert last.epoch == len(lives)
    interaction = env.unwrapped._vector._growth.table.interaction_sum[0]
    assert last.payload.contributions == {"r0c0": infos[-1]["contribution"][0], "r0c2": infos[-1]["contribution"][2]}
    assert last.payload.interactions == {"r0c0+r0c2": interaction[0]}
    assert interaction[0] == interaction[2]
    measured = {epoch for epoch, info in enumerate(infos, start=1) if info["contribution_measured"].any()}
    assert {event.epoch for event in received} == measured
    np.testing.assert_array_equal(env.unwrapped._vector._growth.table.contribution_age[0], [0, -1, 0])


def test_isolation_is_checked_at_first_training_of_a_blueprint_in_a_slot():
    def table_of(*seeds):
        table = SlotTable.empty(2, 3)
        for env, slot, blueprint, stage in seeds:
            table.blueprint[env, slot], table.stage[env, slot] = blueprint, stage
        return table

    hub, trains = Telemetry(), (0, 1, Blueprint.NORM, Stage.TRAINING)
    recorder = Recorder(hub, 2, ("r0c0", "r0c1", "r0c2"), {})
    assert not recorder.inspection_due(table_of(trains))  # without a sink
    hub.add_sink(MemorySink())
    assert not recorder.inspection_due(table_of((0, 1, Blueprint.NORM, Stage.BLENDING)))
    assert recorder.inspection_due(table_of(trains))
    assert not recorder.inspection_due(table_of(trains))
    assert not recorder.inspection_due(table_of((1, 1, Blueprint.NORM, Stage.TRAINING)))
    assert recorder.inspection_due(table_of(trains, (0, 2, Blueprint.NORM, Stage.TRAINING)))
    assert recorder.inspection_due(table_of((0, 1, Blueprint.ATTENTION, Stage.TRAINING)))
    assert not recorder.inspection_due(table_of((0, 2, Blueprint.NORM, Stage.TRAINING)))
    hub.close()
