"""Events of seeds and of the actions on them."""

import pytest
from esper_env import describe_action
from esper_env.recording import Recorder
from esper_env.rules.heads import AlphaSpeed, AlphaTarget, Blueprint, Op, Style
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage
from esper_env.telemetry import MemorySink, SeedFossilized, SeedGateEvaluated, SeedGerminated, SeedPruned, Telemetry
from listening import heard, listen, payloads

COMMANDS = ("COMMAND_ISSUED", "COMMAND_SUCCEEDED", "COMMAND_REJECTED")


@pytest.fixture
def run(make_digits):
    """``run(actions)``: an environment after these actions, its sink in full detail and its infos."""

    def carry_out(actions):
        env = make_digits(horizon=20, mask_gates=False)
        sink = listen(env)
        env.reset(seed=0)
        return env, sink, [env.step(choice)[-1] for choice in actions]

    return carry_out


def stages(env, sink):
    moves = heard(env, sink, "SEED_STAGE_CHANGED")
    return [(move.epoch, move.slot, move.payload.from_stage, move.payload.to_stage) for move in moves]


def test_life_of_a_seed_has_events(run, script):
    """An advance comes one epoch early, and its gate fails."""
    life = script(1)
    env, sink, infos = run([*life[:3], *life[4:5], *life[3:]])
    assert stages(env, sink) == [
        (1, "r0c1", "DORMANT", "GERMINATED"),
        (2, "r0c1", "GERMINATED", "TRAINING"),
        (6, "r0c1", "TRAINING", "BLENDING"),
        (9, "r0c1", "BLENDING", "HOLDING"),
        (10, "r0c1", "HOLDING", "FOSSILIZED"),
    ]
    (born,) = payloads(env, sink, "SEED_GERMINATED")
    assert born == SeedGerminated(blueprint="conv_light", operator="ADD", alpha_target=1.0)
    (fossil,) = payloads(env, sink, "SEED_FOSSILIZED")  # the decision was based on the contribution before it
    assert fossil == SeedFossilized(blueprint="conv_light", age=9, contribution=infos[8]["contribution"][1])
    gates = {event.epoch: event for event in heard(env, sink, "SEED_GATE_EVALUATED")}
    names = {epoch: (event.slot, event.payload.gate, event.payload.passed) for epoch, event in gates.items()}
    passed = {1: "G0", 2: "G1", 6: "G2", 9: "G3", 10: "G5"}
    assert names == {epoch: ("r0c1", gate, True) for epoch, gate in passed.items()} | {4: ("r0c1", "G2", False)}
    assert gates[1].payload == SeedGateEvaluated(
        gate="G0", passed=True, score=1.0, checks_passed=(), checks_failed=(), message="G0 passed"
    )
    failed, passed = gates[4].payload, gates[6].payload
    assert failed.checks_failed == ("trained_long_enough",)
    assert failed.score == pytest.approx(len(failed.checks_passed) / (len(failed.checks_passed) + 1))
    assert passed.checks_failed == ()
    assert set(passed.checks_passed) == {*failed.checks_passed, *failed.checks_failed}
    (rejected,) = heard(env, sink, "COMMAND_REJECTED")
    assert (rejected.epoch, rejected.payload.reason) == (4, "G2 failed: trained_long_enough") == (4, failed.message)
    assert [event.type for event in heard(env, sink) if event.epoch == 2] == [
        "COMMAND_ISSUED",
        "SEED_GATE_EVALUATED",
        "SEED_STAGE_CHANGED",
        "EPOCH_COMPLETED",
        "COUNTERFACTUAL_COMPUTED",
        "COMMAND_SUCCEEDED",
    ]


def test_immediate_prune_and_the_stages_after_it(run, script, action):
    env, sink, infos = run([*script(2)[:4], action(Op.PRUNE, 2), *[action()] * 7])
    (pruned,) = heard(env, sink, "SEED_PRUNED")
    assert (pruned.epoch, pruned.slot) == (5, "r0c2")
    contribution = infos[3]["contribution"][2]
    assert pruned.payload == SeedPruned(
        blueprint="conv_light", stage="TRAINING", age=4, contribution=contribution, initiator="agent"
    )
    assert stages(env, sink)[2:] == [
        (5, "r0c2", "TRAINING", "PRUNED"),
        (6, "r0c2", "PRUNED", "EMBARGOED"),
        (11, "r0c2", "EMBARGOED", "RESETTING"),
        (12, "r0c2", "RESETTING", "DORMANT"),
    ]


def test_prune_by_a_ramp_is_reported_when_the_ramp_ends(run, script, action):
    """An unmeasured seed is pruned at once."""
    ramp = action(Op.PRUNE, 1, alpha_speed=AlphaSpeed.FAST)
    others = [action(Op.GERMINATE, 0), action(Op.PRUNE, 0)]
    env, sink, _ = run([*script(1)[:8], ramp, *others])
    at_once, later = sorted(heard(env, sink, "SEED_PRUNED"), key=lambda event: event.slot)
    assert (later.epoch, later.payload.stage, later.payload.initiator) == (11, "BLENDING", "agent")
    assert (at_once.epoch, at_once.payload.stage, at_once.payload.age) == (11, "GERMINATED", 1)
    assert at_once.payload.contribution is None
    moves = [move for move in stages(env, sink) if move[1] == "r0c1"]
    assert moves[-2:] == [(9, "r0c1", "HOLDING", "BLENDING"), (11, "r0c1", "BLENDING", "PRUNED")]
    (succeeded,) = [event.payload for event in heard(env, sink, "COMMAND_SUCCEEDED") if event.epoch == 9]
    assert succeeded.arguments == {"slot": "r0c1", "alpha_speed": "FAST", "alpha_curve": "LINEAR"}


def test_command_events_use_names(run, action):
    heads = {"blueprint": Blueprint.NORM, "style": Style.GATED_GATE, "alpha_target": AlphaTarget.SEVENTY}
    env, sink, _ = run([action(Op.GERMINATE, 1, **heads), action(), action(Op.FOSSILIZE, 0)])
    arguments = {"blueprint": "norm", "style": "GATED_GATE", "tempo": "STANDARD", "alpha_target": "SEVENTY"}
    germinate, fossilize = (
        {"op": "GERMINATE", "arguments": {"slot": "r0c1"} | arguments},
        {"op": "FOSSILIZE", "arguments": {}},
    )
    assert [(event.type, vars(event.payload)) for event in heard(env, sink, *COMMANDS)] == [
        ("COMMAND_ISSUED", germinate),
        ("COMMAND_SUCCEEDED", germinate),
        ("COMMAND_ISSUED", fossilize),
        ("COMMAND_REJECTED", fossilize | {"rejection": "ILLEGAL", "reason": "it was not legal"}),
    ]
    words = describe_action(action(Op.GERMINATE, 1, **heads), env=env)
    assert words.startswith("GERMINATE norm in r0c1: style GATED_GATE, tempo STANDARD (5 epochs)")
    assert [event.payload.sentence() for event in heard(env, sink, *COMMANDS)] == [
        f"COMMAND_ISSUED: {words}.",
        f"COMMAND_SUCCEEDED: {words}.",
        "COMMAND_ISSUED: FOSSILIZE.",
        "COMMAND_REJECTED: FOSSILIZE: it was not legal.",
    ]


def test_counterfactuals_have_contributions_and_interactions(run, script):
    """Two blended seeds have two contributions and one interaction."""
    lives = [choice for pair in zip(script(0)[:8], script(2)[:8], strict=True) for choice in pair]
    env, sink, infos = run(lives)
    received = heard(env, sink, "COUNTERFACTUAL_COMPUTED")
    last = received[-1]
    assert last.epoch == len(lives)
    interaction = env.unwrapped._vector._growth.table.interaction_sum[0]
    assert last.payload.contributions == {"r0c0": infos[-1]["contribution"][0], "r0c2": infos[-1]["contribution"][2]}
    assert last.payload.interactions == {"r0c0+r0c2": interaction[0]}
    assert interaction[0] == interaction[2]
    measured = {epoch for epoch, info in enumerate(infos, start=1) if info["contribution_measured"].any()}
    assert {event.epoch for event in received} == measured


def test_isolation_is_checked_at_first_training_of_a_blueprint_in_a_slot():
    hub = Telemetry()
    recorder = Recorder(hub, 2, ("r0c0", "r0c1", "r0c2"), {})

    def due(*seeds):
        table = SlotTable.empty(2, 3)
        for env, slot, blueprint, stage in seeds:
            table.blueprint[env, slot], table.stage[env, slot] = blueprint, stage
        return recorder.inspection_due(table)

    trains = (0, 1, Blueprint.NORM, Stage.TRAINING)
    assert not due(trains)  # without a sink
    hub.add_sink(MemorySink())
    assert not due((0, 1, Blueprint.NORM, Stage.BLENDING))
    assert due(trains)
    assert not due(trains)
    assert not due((1, 1, Blueprint.NORM, Stage.TRAINING))
    assert due(trains, (0, 2, Blueprint.NORM, Stage.TRAINING))
    assert due((0, 1, Blueprint.ATTENTION, Stage.TRAINING))
