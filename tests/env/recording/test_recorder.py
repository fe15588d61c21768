"""Events of random play equal the results of the steps in every autoreset mode, and a sink changes nothing."""

from typing import get_args

import numpy as np
import pytest
from esper_env.rules.heads import HEAD_NAMES, Head, Op
from esper_env.rules.stages import Stage
from esper_env.telemetry import JsonlSink, MemorySink, read_events
from esper_env.telemetry.jsonl import field_types
from growing import lives, tensors
from gymnasium.vector import AutoresetMode
from listening import Play, Start, break_host, event_at, heard, listen

COUNT, STEPS = 3, 28
#: Seeds blend and fossilize within an episode; environment 2 breaks twice, environment 1 three times in a row.
SETTINGS = {"horizon": 12, "batches_per_step": 1, "batch_size": 8}
MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)


def break_some(envs, step):
    """Write NaN into a host weight of environment 2 twice, and of environment 1 until its governor gives up."""
    for row, steps in ((1, (4, 5, 6)), (2, (9, 20))):
        if step in steps:
            break_host(envs, row)


@pytest.fixture
def play(make_digits_vec):
    """``play(mode, seed, *sinks, listening=True, **settings)``: the play, and its sink in memory if ``listening``."""

    def run(mode, seed, *sinks, listening=True, **settings):
        envs = make_digits_vec(COUNT, autoreset_mode=mode.value, **(SETTINGS | settings))
        sink = listen(envs) if listening else None
        for other in sinks:
            envs.unwrapped.telemetry.add_sink(other)
        return Play(envs, lives(seed, COUNT, STEPS, 3), STEPS, break_some), sink

    return run


@MODES
@pytest.mark.parametrize("cut", [None, 7, 12])
def test_events_equal_the_results_of_the_steps(play, mode, cut, tmp_path):
    """``cut``: truncation before the horizon, and at the horizon, where the episode terminates."""
    played, sink = play(mode, 3 if cut is None else cut, JsonlSink(tmp_path), max_episode_steps=cut)
    played.envs.close()  # writes all events
    events = sink.events
    assert [event.id for event in events] == list(range(len(events)))
    assert_epochs(played, events)
    assert_episodes(played, events)
    assert_stages(played, events)
    assert_commands(played, events)
    known = {step.at for step in played.steps} | {(*entry[:2], 0) for entry in played.log}
    assert {event_at(event) for event in events} <= known
    assert {step.info["rollback"] for step in played.steps} == {False, True}
    assert list(map(repr, read_events(tmp_path))) == list(map(repr, events))  # NaN differs from itself
    for event in events:
        for name, hint in field_types(type(event.payload)).items():
            assert_plain(getattr(event.payload, name), hint)


def assert_plain(value, hint):
    """Check that a value and its parts have exactly the declared type, which is no NumPy type."""
    if isinstance(value, (dict, tuple)):
        assert type(value) in (dict, tuple)
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        assert {type(part) for part in parts} <= {str, float}
    else:
        assert type(value) in (get_args(hint) or (hint,)), (value, hint)


def assert_epochs(played, events):
    """Check that each step has one event, in order."""
    found = [event for event in events if event.type == "EPOCH_COMPLETED"]
    assert [event_at(event) for event in found] == [step.at for step in played.steps]
    for event, step in zip(found, played.steps, strict=True):
        assert event.payload.reward == step.reward
        for name in ("train_loss", "val_loss", "val_accuracy", "parameters_added"):
            assert repr(getattr(event.payload, name)) == repr(step.info[name]), name  # NaN differs from itself


def assert_episodes(played, events):
    found = {event_at(event): event.payload for event in events if event.type == "EPISODE_COMPLETED"}
    ends = {step.at: step for step in played.steps if step.terminated or step.truncated}
    assert found.keys() == ends.keys()
    assert len(ends) > 3
    for at, step in ends.items():
        payload, total = found[at], 0.0
        for other in played.steps:
            total += other.reward if other.at[:2] == at[:2] else 0.0
        assert payload.episode_return == pytest.approx(total, abs=1e-12)
        assert payload.length == step.epoch
        assert payload.truncated == (not step.terminated)
        assert payload.committed_val_accuracy == step.info.get("committed_val_accuracy")
        assert payload.test_accuracy == step.info.get("test_accuracy")
        assert payload.parameters_added == step.info.get("committed_parameters_added")
        assert payload.val_accuracy == step.info["val_accuracy"]
        assert payload.fossilized == (step.info["slot_stage"] == Stage.FOSSILIZED).sum()
        assert payload.rollbacks == step.info["rollbacks"]


def assert_stages(played, events):
    """Check that the changes lead from the stages of the reset to those of every step."""
    slots = played.envs.unwrapped.slot_ids
    moves = {}
    for event in events:
        if event.type == "SEED_STAGE_CHANGED":
            moves.setdefault(event_at(event), []).append(event)
    now, seen = {}, set()
    for entry in played.log:
        if isinstance(entry, Start):
            now[entry.env] = entry.info["slot_stage"].copy()
            continue
        for event in moves.pop(entry.at, []):
            slot = slots.index(event.slot)
            assert now[entry.env][slot] == Stage[event.payload.from_stage]
            now[entry.env][slot] = Stage[event.payload.to_stage]
            seen.add(event.payload.to_stage)
        np.testing.assert_array_equal(now[entry.env], entry.info["slot_stage"])
    assert not moves
    assert {"GERMINATED", "TRAINING", "BLENDING", "PRUNED"} <= seen


def assert_commands(played, events):
    """Check that every action other than WAIT is issued and then has exactly one outcome."""
    found = {}
    for event in events:
        if event.type.startswith("COMMAND_"):
            found.setdefault(event_at(event), []).append(event)
    for step in played.steps:
        pair = found.pop(step.at, [])
        if step.action[Head.OP] == Op.WAIT:
            assert pair == []
            continue
        outcome = "COMMAND_SUCCEEDED" if step.info["action_succeeded"] else "COMMAND_REJECTED"
        assert [event.type for event in pair] == ["COMMAND_ISSUED", outcome]
        issued, over = (event.payload for event in pair)
        assert issued.op == over.op == Op(step.action[Head.OP]).name
        assert issued.arguments == over.arguments
        if step.info["action_valid"]:
            assert issued.arguments["slot"] == played.envs.unwrapped.slot_ids[step.action[Head.SLOT]]
            assert set(issued.arguments) < set(HEAD_NAMES)
    assert not found


@MODES
@pytest.mark.parametrize("shard_size", [1, 2])
def test_sink_changes_no_bit_of_the_results(play, assert_same, mode, shard_size):
    """Observations, rewards, infos and all final tensors, in full detail and with isolation checks."""
    ends = []
    for listening in (False, True):
        played, sink = play(mode, 11, listening=listening, shard_size=shard_size)
        ends.append((played.returned, tensors(played.envs.unwrapped._growth)))
    assert "COUNTERFACTUAL_COMPUTED" in {event.type for event in heard(played.envs, sink)}
    assert_same(*[returned for returned, _ in ends])
    left, right = (found for _, found in ends)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.tobytes() == right[name].tobytes(), name


def test_sink_attached_during_an_episode_gets_numbers_of_the_whole_episode(make_digits_vec, action):
    """Episode number, length and return."""
    envs = make_digits_vec(2, horizon=4)
    envs.reset(seed=0)
    rewards = np.zeros(2)
    for step in range(6):
        if step == 5:
            sink = listen(envs)
        _, reward, *_ = envs.step(np.stack([action()] * 2))
        rewards = reward if step == 4 else rewards + reward
    (first, second) = heard(envs, sink, "EPOCH_COMPLETED")
    assert [event_at(first), event_at(second)] == [(0, 1, 2), (1, 1, 2)]
    for _ in range(2):
        _, reward, *_ = envs.step(np.stack([action()] * 2))
        rewards = rewards + reward
    ends = heard(envs, sink, "EPISODE_COMPLETED")
    assert [(event_at(end), end.payload.length) for end in ends] == [((0, 1, 4), 4), ((1, 1, 4), 4)]
    assert [end.payload.episode_return for end in ends] == pytest.approx(rewards.tolist(), abs=1e-12)


def test_warning_raises_the_detail_for_five_epochs(make_digits_vec, script):
    envs = make_digits_vec(1, horizon=20)
    sink = listen(envs, full=False)
    envs.reset(seed=0)
    life = script(1)
    for choice in life[:3]:
        envs.step(choice[None])
    assert not heard(envs, sink, "COUNTERFACTUAL_COMPUTED", "GOVERNOR_SNAPSHOT")
    envs.unwrapped._growth._governor._history[:] = 1e-6  # the loss is far above the history
    envs.unwrapped._growth._governor._count[:] = 20
    envs.unwrapped._growth._governor.guessing = 1e-6
    envs.step(life[3][None])
    assert [panic.epoch for panic in heard(envs, sink, "GOVERNOR_PANIC")] == [4]
    envs.unwrapped._growth._governor._history[:] = 100.0
    for choice in life[4:]:
        envs.step(choice[None])
    for _ in range(4):
        envs.step(script(1)[2][None])
    epochs = [event.epoch for event in heard(envs, sink, "COUNTERFACTUAL_COMPUTED")]
    assert epochs == [5, 6, 7, 8, 9]


def test_nothing_is_recorded_without_a_sink(make_digits_vec, action, monkeypatch):
    envs = make_digits_vec(2)
    monkeypatch.setattr(envs.unwrapped._growth.recorder, "record_step", None)
    envs.reset(seed=0)
    envs.step(np.stack([action()] * 2))
    hub = envs.unwrapped.telemetry
    hub.remove_sink(hub.add_sink(MemorySink()))
    envs.step(np.stack([action()] * 2))
    assert hub.next_id == 0
