"""Events as lines of strict JSON and back; reading, tabulating and dropping the events of files."""

import json
import math
from types import MappingProxyType

import numpy as np
import pytest
from esper_agent.monitoring.payloads import TrainingStarted
from esper_env.telemetry import (
    PAYLOADS,
    CommandIssued,
    CounterfactualComputed,
    EpochCompleted,
    JsonlSink,
    SeedFossilized,
    SeedGateEvaluated,
    Severity,
    UndeclaredPayload,
    drop_events,
    event_table,
    read_events,
)
from esper_env.telemetry.jsonl import ENVELOPE, decode, encode, event_files
from hypothesis import given, settings
from hypothesis import strategies as st
from made_events import epoch_completed, event, events_of

LINES = [encode(event(number)) for number in range(3)]
FOSSIL = SeedFossilized(blueprint="norm", age=9, contribution=None)


def gate(**changes):
    values = {"gate": "G2", "passed": True, "score": 1.0, "checks_passed": ("a",), "checks_failed": (), "message": ""}
    return SeedGateEvaluated(**(values | changes))


# Lines


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("event_type", PAYLOADS)
@settings(max_examples=20)
@given(data=st.data())
def test_event_survives_a_round_trip(event_type, data):
    before = data.draw(events_of(event_type))
    line = encode(before)
    after = decode(line)
    assert type(after.payload) is PAYLOADS[event_type]
    assert repr(after) == repr(before)  # NaN differs from itself
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")
    assert line.isascii()
    assert list(json.loads(line, parse_constant=refuse_constant)) == list(ENVELOPE)


def test_line_has_the_documented_form():
    made = event(7, epoch_completed(math.inf), env=1, episode=2, epoch=3, slot="r0c0", time=1767225600.25)
    assert encode(made) == (
        b'{"schema":1,"id":7,"type":"EPOCH_COMPLETED","time":"2026-01-01T00:00:00.250000Z","env":1,"episode":2,'
        b'"epoch":3,"slot":"r0c0","severity":"info","payload":{"train_loss":1.0,"val_loss":1.5,"val_accuracy":50.0,'
        b'"parameters_added":0,"reward":"Infinity"}}\n'
    )


def test_encode_accepts_numpy_scalars_and_mappings():
    payload = EpochCompleted(
        train_loss=np.float32(0.5),
        val_loss=np.float32("nan"),
        val_accuracy=np.float64("-inf"),
        parameters_added=np.int64(3),
        reward=np.float64(0.1),
    )
    after = decode(encode(event(np.int64(4), payload, env=np.int32(2))))
    assert (after.id, after.env) == (4, 2)
    expected = EpochCompleted(train_loss=0.5, val_loss=math.nan, val_accuracy=-math.inf, parameters_added=3, reward=0.1)
    assert repr(after.payload) == repr(expected)
    read_only = MappingProxyType({"r0c0": np.float32("inf")})
    after = decode(encode(event(0, CounterfactualComputed(contributions=read_only, interactions={}))))
    assert after.payload.contributions == {"r0c0": math.inf}
    text = CommandIssued(op="NaN", arguments={"NaN": "Infinity"})  # and stays text
    assert decode(encode(event(0, text))).payload == text
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        encode(event(0, epoch_completed(reward={1, 2})))


def altered(**changes):
    """A valid line with some keys replaced."""
    return json.dumps(json.loads(LINES[0]) | changes).encode()


def altered_payload(**changes):
    return altered(payload=json.loads(LINES[0])["payload"] | changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", "schema is None; this version reads schema 1"),
        (altered(schema=2), "schema is 2; this version reads schema 1"),
        (altered(schema=True), "schema is True"),
        (altered(colour="red"), r"has the keys .*'colour'.*; expected"),
        (altered(type=["SEED_PRUNED"]), r"type is \['SEED_PRUNED'\]; expected str"),
        (altered(type="NO_SUCH_TYPE", payload=[]), r"payload is \[\]; expected dict"),
        (altered(id=None), "id is None; expected int"),
        (altered(env=True), "env is True"),
        (altered(epoch="3"), "epoch is '3'"),
        (altered(time="2026-01-01T00:00:00.000000"), "time is '2026-01-01T00:00:00.000000'; expected the form"),
        (altered(time="2026-01-01T00:00:00.000000+01:00"), "time is"),
        (altered(severity="loud"), "'loud' is not a valid Severity"),
        (altered(payload={}), r"payload of EPOCH_COMPLETED has the keys \[\]; expected .*reward"),
        (altered_payload(reward="red"), "reward is 'red'; expected float"),
        (altered_payload(reward=True), "reward is True"),
        (altered_payload(reward=None), "reward is None"),
        (altered_payload(parameters_added=0.5), "parameters_added is 0.5"),
    ],
)
def test_decode_rejects_what_is_not_an_event_with_a_reason(line, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode(line)
    assert not isinstance(caught.value, json.JSONDecodeError)


# Files


def write(folder, *contents):
    for number, content in enumerate(contents):
        (folder / f"events-{number:05d}.jsonl").write_bytes(content)


def ids(path):
    return [found.id for found in read_events(path)]


def test_read_events_reads_a_folder_file_by_file_or_one_file(tmp_path):
    write(tmp_path, LINES[2], LINES[0] + LINES[1][:-1])
    (tmp_path / "events-old.jsonl").write_text("something else\n")
    assert ids(tmp_path) == [2, 0, 1]
    assert ids(str(tmp_path / "events-00001.jsonl")) == [0, 1]
    for missing in ("missing", "events-00002.jsonl"):
        with pytest.raises(FileNotFoundError, match="no event file at"):
            read_events(tmp_path / missing)


@given(cut=st.integers(1, len(LINES[2]) - 2))
def test_incomplete_last_line_is_skipped_with_one_warning(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    write(folder, LINES[0] + LINES[2][:cut], LINES[1])
    with pytest.warns(RuntimeWarning, match="events-00000.jsonl, line 2: the line is incomplete") as caught:
        assert ids(folder) == [0, 1]
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (LINES[0] + LINES[1][:30] + b"\n" + LINES[2], 2),
        (LINES[0] + LINES[1][:30] + LINES[2], 2),
        (b"\n" + LINES[0], 1),
        (LINES[0] + LINES[1] + b"hello", 3),
        (LINES[0] + altered(schema=2), 2),
    ],
)
def test_other_invalid_lines_raise_an_error_with_file_and_line(tmp_path, content, line):
    write(tmp_path, LINES[0], content)
    with pytest.raises(ValueError, match=rf"events-00001.jsonl, line {line}: "):
        ids(tmp_path)


@pytest.mark.parametrize("first", [0, 1, 2, 5, 11, 12])
def test_drop_events_removes_an_id_all_later_ones_and_torn_lines_but_no_foreign_ones(tmp_path, first):
    drop_events(tmp_path / "missing", 0)
    drop_events(tmp_path, 0)
    write(tmp_path, b"not an event\n" + LINES[0])
    drop_events(tmp_path, 0)
    sink = JsonlSink(tmp_path, max_bytes=700)
    sink.write([event(number) for number in range(12)])
    sink.close()
    files = event_files(tmp_path)
    before = b"".join(file.read_bytes() for file in files).splitlines(keepends=True)
    stamp = files[1].stat().st_mtime_ns
    with files[-1].open("ab") as last:
        last.write(b'{"schema":1,"id":12,"ty')
    (tmp_path / "events-99999.jsonl").touch()  # as a full disk leaves it behind
    drop_events(tmp_path, first)
    assert b"".join(file.read_bytes() for file in event_files(tmp_path)) == b"".join(before[: 1 + first])
    assert sorted(tmp_path.iterdir()) == event_files(tmp_path)
    assert first < 5 or files[1].stat().st_mtime_ns == stamp


# Tables


def table_of(folder, *events, **options):
    sink = JsonlSink(folder)
    sink.write(events)
    sink.close()
    return event_table(folder, **options)


def test_table_has_a_row_per_event_and_a_column_per_field(tmp_path):
    failed = gate(passed=False, score=math.nan, checks_failed=("b", "c"))
    table = table_of(
        tmp_path,
        event(5, epoch_completed(reward=math.inf), env=1, epoch=4, time=1767225600.000001),
        event(6, failed, slot="r0c1", severity=Severity.ERROR),
    )
    assert list(table)[:8] == ["id", "type", "time", "env", "episode", "epoch", "slot", "severity"]
    assert {len(column) for column in table.values()} == {2}
    np.testing.assert_array_equal(table["id"], np.array([5, 6]), strict=True)
    assert table["type"].tolist() == ["EPOCH_COMPLETED", "SEED_GATE_EVALUATED"]
    assert table["time"].dtype == np.dtype("datetime64[us]")
    assert table["time"][0] == np.datetime64("2026-01-01T00:00:00.000001")
    np.testing.assert_array_equal(table["env"], [1.0, np.nan])
    assert table["slot"].tolist() == [None, "r0c1"]
    assert table["severity"].tolist() == ["info", "error"]
    np.testing.assert_array_equal(table["payload.reward"], [np.inf, np.nan])
    np.testing.assert_array_equal(table["payload.parameters_added"], [0.0, np.nan])
    assert table["payload.checks_failed"].tolist() == [None, ("b", "c")]


def test_table_of_a_type_has_only_its_rows_and_fields(tmp_path):
    table = table_of(tmp_path, event(0), event(1, FOSSIL), event(2), type="SEED_FOSSILIZED")
    assert table["id"].tolist() == [1]
    fields = [name for name in table if name.startswith("payload.")]
    assert fields == ["payload.blueprint", "payload.age", "payload.contribution"]
    np.testing.assert_array_equal(table["payload.contribution"], [np.nan])
    absent = event_table(tmp_path, type="SEED_GATE_EVALUATED")
    assert {len(column) for column in absent.values()} == {0}
    assert (absent["payload.score"].dtype, absent["payload.passed"].dtype) == (np.float64, np.bool_)
    with pytest.raises(ValueError, match=r"type is 'EPOCH'; expected one of .*EPOCH_COMPLETED"):
        event_table(tmp_path, type="EPOCH")


def test_table_has_bool_columns_without_missing_values_and_keeps_tuples_and_large_integers(tmp_path):
    table = table_of(tmp_path / "gates", event(0, gate()), event(1, gate(passed=False)))
    assert table["payload.passed"].dtype == np.bool_
    assert table["payload.passed"].tolist() == [True, False]
    assert table["payload.checks_passed"].tolist() == [("a",), ("a",)]
    values = {"env_id": "E", "dataset": "d", "num_envs": 1, "timesteps": 0, "total_timesteps": 1}
    starts = [event(number, TrainingStarted(seed=seed, **values)) for number, seed in enumerate((2**53 + 1, None))]
    table = table_of(tmp_path / "starts", *starts)
    assert table["payload.seed"].tolist() == [2**53 + 1, None]
    assert table["payload.num_envs"].dtype == np.float64


def test_undeclared_type_keeps_its_values_and_its_line(tmp_path):
    line = encode(event(4, FOSSIL)).replace(b"SEED_FOSSILIZED", b"TREE_FELLED")
    write(tmp_path, LINES[0] + line)
    found = list(read_events(tmp_path))[1]
    assert (found.type, found.payload.blueprint) == ("TREE_FELLED", "norm")
    assert isinstance(found.payload, UndeclaredPayload)
    assert "TREE_FELLED" not in PAYLOADS
    assert encode(found) == line
    for table in (event_table(tmp_path), event_table(tmp_path, type="TREE_FELLED")):
        assert table["payload.age"].dtype == table["payload.contribution"].dtype == np.float64
        assert table["payload.age"][-1] == 9.0
        assert table["payload.blueprint"][-1] == "norm"
