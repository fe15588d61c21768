"""Events of a real run: start, updates, checkpoints and resumption, in its folder ``events`` and in sinks."""

import pytest
from esper_agent.training.run import resume, train
from esper_env.telemetry import MemorySink, MemoryWarning, memory, read_events
from resuming import NUM_ENVS, REAL, ROLLOUT, Crash, small_settings

TOTAL = 6 * ROLLOUT


def reported(events, *types):
    return [(event.type, event.payload.timesteps) for event in events if event.type in types]


def saved_at(*rollouts):
    return [("CHECKPOINT_SAVED", number * ROLLOUT) for number in rollouts]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of a run that was killed in its third rollout and resumed, and the events of both parts."""
    folder, sinks = tmp_path_factory.mktemp("events") / "run", (MemorySink(), MemorySink())
    with pytest.raises(Crash.Killed):
        train(small_settings(folder, *REAL), [Crash(2 * ROLLOUT + NUM_ENVS)], sinks[:1])
    resume(folder, progress=False, sinks=sinks[1:])
    return folder, *(sink.events for sink in sinks)


def test_events_folder_joins_both_parts_at_the_checkpoint(runs):
    folder, first, second = runs
    in_folder = list(read_events(folder / "events"))
    assert in_folder == [*first[: second[0].id], *second]
    assert [event.id for event in in_folder] == list(range(len(in_folder)))
    assert first[second[0].id].type == "CHECKPOINT_SAVED"
    assert [path.name for path in sorted((folder / "events").iterdir())] == [f"events-0000{n}.jsonl" for n in (0, 1)]


def test_run_reports_its_start_and_its_resumption(runs):
    folder, first, second = runs
    (began,), (resumed,) = ([e for e in events if e.type == "TRAINING_STARTED"] for events in (first, second))
    assert first[0] is began
    assert [event.type for event in second[:2]] == ["CHECKPOINT_LOADED", "TRAINING_STARTED"]
    assert second[0].payload.path == str(folder / "checkpoints" / f"{2 * ROLLOUT:012}.safetensors")
    assert (began.payload.timesteps, second[0].payload.timesteps, resumed.payload.timesteps) == (0, 24, 24)
    for event in (began, resumed):
        said = event.payload
        assert (said.env_id, said.dataset, said.num_envs, said.seed) == (REAL[0], "digits", NUM_ENVS, 3)
        assert said.total_timesteps == TOTAL


def test_checkpoint_is_reported_once_saved(runs):
    folder, first, second = runs
    assert reported(first, "CHECKPOINT_SAVED", "CHECKPOINT_LOADED") == saved_at(1, 2)
    assert reported(second, "CHECKPOINT_SAVED") == saved_at(3, 4, 5, 6)
    paths = [event.payload.path for event in second if event.type == "CHECKPOINT_SAVED"]
    assert paths[-2:] == [str(path) for path in sorted((folder / "checkpoints").iterdir())]


def test_updates_and_steps_are_reported_without_a_gap(runs):
    """Updates right before a checkpoint are reported after it, so both parts report them."""
    _, first, second = runs
    assert reported(first, "PPO_UPDATE_COMPLETED") == [("PPO_UPDATE_COMPLETED", n * ROLLOUT) for n in (1, 2)]
    assert reported(second, "PPO_UPDATE_COMPLETED") == [("PPO_UPDATE_COMPLETED", n * ROLLOUT) for n in (2, 3, 4, 5, 6)]
    epochs = [sum(event.type == "EPOCH_COMPLETED" for event in events) for events in (first, second)]
    assert epochs == [2 * ROLLOUT + NUM_ENVS, TOTAL - 2 * ROLLOUT]


def test_memory_pressure_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_mib", lambda: 1.0)
    sink = MemorySink()
    train(small_settings(tmp_path / "run", *REAL, total_timesteps=ROLLOUT, checkpoint_every=0), sinks=[sink])
    (warning,) = [event.payload for event in sink.events if isinstance(event.payload, MemoryWarning)]
    assert (warning.kind, warning.limit_mib) == ("resident", 0.9)


def test_sinks_receive_all_events_without_an_events_folder(tmp_path):
    sink, settings = MemorySink(), small_settings(tmp_path / "run", *REAL, total_timesteps=ROLLOUT, telemetry=False)
    train(settings, sinks=[sink])
    assert not (settings.out / "events").exists()
    assert reported(sink.events, "TRAINING_STARTED", "CHECKPOINT_SAVED") == [("TRAINING_STARTED", 0), *saved_at(1)]
