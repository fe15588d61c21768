"""Reading of event files: order, torn and foreign lines, undeclared types, and the table."""

import math

import numpy as np
import pytest
from esper_agent.monitoring.payloads import TrainingStarted
from esper_env.telemetry import (
    EpisodeCompleted,
    Event,
    GovernorSnapshot,
    JsonlSink,
    SeedFossilized,
    SeedGateEvaluated,
    Severity,
    event_table,
    read_events,
)
from esper_env.telemetry.lines import encode
from hypothesis import given
from hypothesis import strategies as st
from made_events import epoch_completed, event, snapshot

LINES = [encode(event(number)) for number in range(3)]


def write(folder, *contents):
    for number, content in enumerate(contents):
        (folder / f"events-{number:05d}.jsonl").write_bytes(content)


def ids(path):
    return [found.id for found in read_events(path)]


def test_read_events_reads_a_folder_file_by_file_or_one_file(tmp_path):
    write(tmp_path, LINES[2], LINES[0] + LINES[1])
    (tmp_path / "foreign.jsonl").write_text("something else\n")
    assert ids(tmp_path) == [2, 0, 1]
    assert ids(str(tmp_path / "events-00001.jsonl")) == [0, 1]
    assert all(type(found) is Event for found in read_events(tmp_path))


@given(cut=st.integers(1, len(LINES[2]) - 2))
def test_incomplete_last_line_is_skipped_with_one_warning(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    write(folder, LINES[0] + LINES[2][:cut], LINES[1])
    with pytest.warns(RuntimeWarning, match="events-00000.jsonl, line 2: the line is incomplete") as caught:
        assert ids(folder) == [0, 1]
    assert len(caught) == 1


def test_last_line_without_newline_is_read(tmp_path):
    write(tmp_path, LINES[0] + LINES[1][:-1])
    assert ids(tmp_path) == [0, 1]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (LINES[0] + LINES[1][:30] + b"\n" + LINES[2], 2),
        (LINES[0] + LINES[1][:30] + LINES[2], 2),
        (b"\n" + LINES[0], 1),
        (LINES[0] + LINES[1] + b"hello", 3),
        (LINES[0] + b"\0\0\0", 2),
        (LINES[0].replace(b'"schema":1', b'"schema":2'), 1),
        (LINES[0] + LINES[1].replace(b'"schema":1', b'"schema":2').strip(), 2),
    ],
)
def test_other_invalid_lines_raise_an_error_with_file_and_line(tmp_path, content, line):
    write(tmp_path, LINES[0], content)
    with pytest.raises(ValueError, match=rf"events-00001.jsonl, line {line}: "):
        ids(tmp_path)


def test_read_events_rejects_missing_files_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="no event file in"):
        read_events(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_events(tmp_path / "missing")


def written(folder, *events):
    sink = JsonlSink(folder)
    sink.write(events)
    sink.close()
    return folder


def test_table_has_a_row_per_event_and_a_column_per_field(tmp_path):
    gate = SeedGateEvaluated(
        gate="G2", passed=False, score=math.nan, checks_passed=("a",), checks_failed=("b", "c"), message="no"
    )
    folder = written(
        tmp_path,
        event(5, epoch_completed(reward=math.inf), env=1, epoch=4, time=1767225600.000001),
        event(6, gate, slot="r0c1", severity=Severity.ERROR),
    )
    table = event_table(folder)
    assert list(table)[:8] == ["id", "type", "time", "env", "episode", "epoch", "slot", "severity"]
    assert {len(column) for column in table.values()} == {2}
    assert table["id"].dtype == np.int64
    assert table["id"].tolist() == [5, 6]
    assert table["type"].tolist() == ["EPOCH_COMPLETED", "SEED_GATE_EVALUATED"]
    assert table["time"].dtype == np.dtype("datetime64[us]")
    assert table["time"][0] == np.datetime64("2026-01-01T00:00:00.000001")
    np.testing.assert_array_equal(table["env"], [1.0, np.nan])
    np.testing.assert_array_equal(table["episode"], [np.nan, np.nan])
    np.testing.assert_array_equal(table["epoch"], [4.0, np.nan])
    assert table["slot"].tolist() == [None, "r0c1"]
    assert table["severity"].tolist() == ["info", "error"]
    np.testing.assert_array_equal(table["payload.reward"], [np.inf, np.nan])
    np.testing.assert_array_equal(table["payload.parameters_added"], [0.0, np.nan])
    assert table["payload.checks_failed"].tolist() == [None, ("b", "c")]
    assert table["payload.passed"].tolist() == [None, False]
    assert table["payload.passed"].dtype == object


def test_table_of_a_type_has_only_its_rows_and_fields(tmp_path):
    fossil = SeedFossilized(blueprint="norm", age=9, contribution=None)
    folder = written(tmp_path, event(0), event(1, fossil), event(2))
    table = event_table(folder, type="SEED_FOSSILIZED")
    assert table["id"].tolist() == [1]
    assert [name for name in table if name.startswith("payload.")] == [
        "payload.blueprint",
        "payload.age",
        "payload.contribution",
    ]
    np.testing.assert_array_equal(table["payload.contribution"], [np.nan])


def test_table_of_an_absent_type_is_empty(tmp_path):
    table = event_table(written(tmp_path, event(0)), type="SEED_GATE_EVALUATED")
    assert {name: len(column) for name, column in table.items() if len(column)} == {}
    assert table["payload.score"].dtype == np.float64
    assert table["payload.passed"].dtype == np.bool_


def test_table_has_bool_columns_without_missing_values(tmp_path):
    gates = [
        SeedGateEvaluated(gate="G1", passed=passed, score=1.0, checks_passed=(), checks_failed=(), message="")
        for passed in (True, False)
    ]
    table = event_table(written(tmp_path, *[event(number, gate) for number, gate in enumerate(gates)]))
    assert table["payload.passed"].dtype == np.bool_
    assert table["payload.passed"].tolist() == [True, False]
    assert table["payload.checks_passed"].tolist() == [(), ()]


def test_table_keeps_large_integers_exact(tmp_path):
    values = {"env_id": "E", "dataset": "d", "num_envs": 1, "timesteps": 0, "total_timesteps": 1}
    starts = [TrainingStarted(seed=seed, **values) for seed in (2**53 + 1, None)]
    table = event_table(written(tmp_path, *[event(number, start) for number, start in enumerate(starts)]))
    assert table["payload.seed"].tolist() == [2**53 + 1, None]
    assert table["payload.num_envs"].dtype == np.float64


def test_table_has_object_columns_for_fields_of_mixed_types(tmp_path):
    whole = EpisodeCompleted(
        episode_return=0.0,
        length=1,
        truncated=False,
        val_accuracy=1.0,
        committed_val_accuracy=None,
        test_accuracy=None,
        parameters_added=None,
        fossilized=2,
        rollbacks=0,
    )
    assert isinstance(snapshot(), GovernorSnapshot)
    table = event_table(written(tmp_path, event(0, whole), event(1, snapshot())))
    assert table["payload.fossilized"].tolist() == [2, ("r0c0",)]


def test_undeclared_type_is_read_with_columns_of_its_values(tmp_path):
    line = encode(event(4, SeedFossilized(blueprint="norm", age=9, contribution=None)))
    write(tmp_path, LINES[0] + line.replace(b"SEED_FOSSILIZED", b"TREE_FELLED"))
    assert [found.type for found in read_events(tmp_path)] == ["EPOCH_COMPLETED", "TREE_FELLED"]
    for table in (event_table(tmp_path), event_table(tmp_path, type="TREE_FELLED")):
        assert table["payload.age"].dtype == table["payload.contribution"].dtype == np.float64
        assert table["payload.age"][-1] == 9.0
        assert table["payload.blueprint"][-1] == "norm"


def test_event_table_rejects_unknown_types(tmp_path):
    with pytest.raises(ValueError, match=r"type is 'EPOCH'; expected one of .*EPOCH_COMPLETED"):
        event_table(written(tmp_path, event(0)), type="EPOCH")
