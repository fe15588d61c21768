"""Events of random play equal the results of the steps in every autoreset mode, and a sink changes nothing."""

import numpy as np
import pytest
from esper_env.recording import Recorder
from esper_env.rules.heads import HEAD_NAMES, Head, Op
from esper_env.rules.rejection import Rejection
from esper_env.rules.stages import Stage
from esper_env.telemetry import JsonlSink, MemorySink, read_events
from growing import lives, tensors
from gymnasium.vector import AutoresetMode
from listening import Play, break_host, event_at, listen

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
    """Return ``play(mode, seed, folder=None, first=0, **settings)``: a play and its sink, attached before ``first``.

    A second sink writes to ``folder``.
    """

    def run(mode, seed, folder=None, first=0, **settings):
        envs = make_digits_vec(COUNT, autoreset_mode=mode.value, **(SETTINGS | settings))
        sinks = [] if first else [listen(envs)]
        if folder is not None:
            envs.unwrapped.telemetry.add_sink(JsonlSink(folder))

        def meddle(envs, step):
            if step == first > 0:
                sinks.append(listen(envs))
            break_some(envs, step)

        played = Play(envs, lives(seed, COUNT, STEPS, 3), STEPS, meddle)
        envs.close()  # writes all events
        return played, sinks[0].events

    return run


@MODES
@pytest.mark.parametrize(
    ("cut", "isolation", "shard_size"), [(None, "shadow", 1), (7, "straight_through", 3), (12, "straight_through", 1)]
)
def test_events_equal_the_results_of_the_steps(play, monkeypatch, tmp_path, mode, cut, isolation, shard_size):
    """``cut``: truncation before the horizon, and at the horizon, where the episode terminates.

    Every step is checked for isolation, which legal growth never violates.
    """
    monkeypatch.setattr(Recorder, "inspection_due", lambda *_: True)
    settings = {"max_episode_steps": cut, "isolation": isolation, "shard_size": shard_size}
    played, events = play(mode, 3 if cut is None else cut, tmp_path, **settings)
    assert [event_at(event) for event in events if event.type == "ISOLATION_VIOLATION"] == []
    assert [event.id for event in events] == list(range(len(events)))
    assert_epochs(played, events)
    assert_episodes(played, events)
    assert_stages(played, events)
    assert_commands(played, events)
    known = {step.at for step in played.steps}
    known |= {(env, episode + more, 0) for env, episode, _ in known for more in (0, 1)}
    assert {event_at(event) for event in events} <= known
    assert {bool(step.info["rollback"]) for step in played.steps} == {False, True}
    # Equal also in types, which are no NumPy types; NaN differs from itself.
    assert list(map(repr, read_events(tmp_path))) == list(map(repr, events))


def by_step(events, *types):
    found = {}
    for event in events:
        if event.type in types:
            found.setdefault(event_at(event), []).append(event)
    return found


def assert_epochs(played, events):
    """Check that each step has one event, in order."""
    found = [event for event in events if event.type == "EPOCH_COMPLETED"]
    assert [event_at(event) for event in found] == [step.at for step in played.steps]
    for event, step in zip(found, played.steps, strict=True):
        assert event.payload.reward == step.reward
        for name in ("train_loss", "val_loss", "val_accuracy", "parameters_added"):
            assert repr(getattr(event.payload, name)) == repr(step.info[name].item()), name  # NaN differs from itself


def assert_episodes(played, events):
    found = {event_at(event): event.payload for event in events if event.type == "EPISODE_COMPLETED"}
    ends = {step.at: step for step in played.steps if step.terminated or step.truncated}
    assert found.keys() == ends.keys()
    assert len(ends) > 3
    for at, step in ends.items():
        steps = [other for other in played.steps if other.at[:2] == at[:2]]
        total, commands = sum(other.reward for other in steps), [s for s in steps if s.action[Head.OP] != Op.WAIT]
        assert vars(found[at]) == {
            "episode_return": pytest.approx(total, abs=1e-12),
            "length": at[2],
            "truncated": not step.terminated,
            "val_accuracy": step.info["val_accuracy"],
            "committed_val_accuracy": step.info["committed_val_accuracy"] if step.terminated else None,
            "test_accuracy": step.info["test_accuracy"] if step.terminated else None,
            "parameters_added": step.info["committed_parameters_added"] if step.terminated else None,
            "fossilized": (step.info["slot_stage"] == Stage.FOSSILIZED).sum(),
            "commands": len(commands),
            "rejected": sum(bool(other.info["rejection"]) for other in commands),
            "rollbacks": step.info["rollbacks"],
        }


def assert_stages(played, events):
    """Check that the changes lead from the stages of the reset to those of every step."""
    slots = played.envs.unwrapped.slot_ids
    moves = by_step(events, "SEED_STAGE_CHANGED")
    now, seen = {}, set()
    for step in played.steps:
        stages = now.setdefault(step.at[:2], np.full(len(slots), Stage.DORMANT))
        for event in moves.pop(step.at, []):
            slot = slots.index(event.slot)
            assert stages[slot] == Stage[event.payload.from_stage]
            stages[slot] = Stage[event.payload.to_stage]
            seen.add(event.payload.to_stage)
        np.testing.assert_array_equal(stages, step.info["slot_stage"])
    assert not moves
    assert {"GERMINATED", "TRAINING", "BLENDING", "PRUNED"} <= seen


def assert_commands(played, events):
    """Check that every action other than WAIT is issued and then has exactly one outcome."""
    found = by_step(events, "COMMAND_ISSUED", "COMMAND_SUCCEEDED", "COMMAND_REJECTED")
    for step in played.steps:
        pair = found.pop(step.at, [])
        if step.action[Head.OP] == Op.WAIT:
            assert pair == []
            continue
        assert step.info["action_succeeded"] == (step.info["rejection"] == Rejection.NONE)
        outcome = "COMMAND_SUCCEEDED" if step.info["action_succeeded"] else "COMMAND_REJECTED"
        assert [event.type for event in pair] == ["COMMAND_ISSUED", outcome]
        issued, over = (event.payload for event in pair)
        assert issued.op == over.op == Op(step.action[Head.OP]).name
        assert issued.arguments == over.arguments
        if outcome == "COMMAND_REJECTED":
            assert Rejection[over.rejection] == step.info["rejection"]
        if step.info["action_valid"]:
            assert issued.arguments["slot"] == played.envs.unwrapped.slot_ids[step.action[Head.SLOT]]
            assert set(issued.arguments) < set(HEAD_NAMES)
    assert not found


@MODES
@pytest.mark.parametrize("shard_size", [1, 2])
def test_sink_changes_no_bit_of_the_results_and_can_be_attached_at_any_time(play, assert_same, mode, shard_size):
    """Observations, rewards, infos and all final tensors, in full detail; the last events are those of a late sink."""
    ends = []
    for first in (0, 20):
        played, events = play(mode, 11, first=first, shard_size=shard_size)
        ends.append((played.returned, tensors(played.envs.unwrapped._growth), events))
    (*early, all_events), (*late, last_events) = ends
    assert_same(early[0], late[0])
    assert early[1].keys() == late[1].keys()
    for name, value in early[1].items():
        assert value.tobytes() == late[1][name].tobytes(), name
    assert {"COUNTERFACTUAL_COMPUTED", "EPISODE_COMPLETED"} <= {event.type for event in last_events}
    timeless = [[repr(event[2:]) for event in events] for events in (all_events, last_events)]  # without id and time
    assert timeless[0][-len(last_events) :] == timeless[1]


def test_nothing_is_recorded_without_a_sink(make_digits_vec, action, monkeypatch):
    envs = make_digits_vec(2)
    monkeypatch.setattr(envs.unwrapped._growth.recorder, "record_step", None)
    envs.reset(seed=0)
    envs.step(np.stack([action()] * 2))
    hub = envs.unwrapped.telemetry
    hub.remove_sink(hub.add_sink(MemorySink()))
    envs.step(np.stack([action()] * 2))
    assert hub.next_id == 0
