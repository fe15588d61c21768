"""Conversion of events to lines of strict JSON and back."""

import json
import math
from types import MappingProxyType

import numpy as np
import pytest
from esper_env.telemetry import PAYLOADS, CommandIssued, CounterfactualComputed, EpochCompleted, UndeclaredPayload
from esper_env.telemetry.lines import NotJSONError, decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from made_events import epoch_completed, event, events_of

ENVELOPE = ["schema", "id", "type", "time", "env", "episode", "epoch", "slot", "severity", "payload"]


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def altered(**changes):
    """A valid line with some keys replaced."""
    return json.dumps(json.loads(encode(event())) | changes).encode() + b"\n"


def altered_payload(**changes):
    return altered(payload=json.loads(encode(event()))["payload"] | changes)


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
    assert list(json.loads(line, parse_constant=refuse_constant)) == ENVELOPE


def test_line_has_the_documented_form():
    made = event(7, epoch_completed(math.inf), env=1, episode=2, epoch=3, slot="r0c0", time=1767225600.25)
    assert json.loads(encode(made)) == {
        "schema": 1,
        "id": 7,
        "type": "EPOCH_COMPLETED",
        "time": "2026-01-01T00:00:00.250000Z",
        "env": 1,
        "episode": 2,
        "epoch": 3,
        "slot": "r0c0",
        "severity": "info",
        "payload": {
            "train_loss": 1.0,
            "val_loss": 1.5,
            "val_accuracy": 50.0,
            "parameters_added": 0,
            "reward": "Infinity",
        },
    }


@pytest.mark.parametrize("microseconds", [1_090_352_934_935_922, 2_218_721_910_725_249, 1_999_999, 2_000_000])
def test_time_keeps_exact_microseconds(microseconds):
    line = encode(event(time=microseconds / 1e6))  # multiplied by 1e6, the first two are too small
    assert json.loads(line)["time"].endswith(f".{microseconds % 1_000_000:06d}Z")
    assert decode(line).time == microseconds / 1e6


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


def test_numeric_text_stays_text():
    payload = CommandIssued(op="NaN", arguments={"NaN": "Infinity"})
    assert decode(encode(event(0, payload))).payload == payload


def test_undeclared_type_keeps_its_values_and_line():
    line = encode(event(3, epoch_completed(math.nan))).replace(b"EPOCH_COMPLETED", b"NO_SUCH_TYPE")
    found = decode(line)
    assert (found.type, found.payload.val_loss, found.payload.reward) == ("NO_SUCH_TYPE", 1.5, "NaN")
    assert isinstance(found.payload, UndeclaredPayload)
    assert "NO_SUCH_TYPE" not in PAYLOADS
    assert encode(found) == line


def test_encode_rejects_values_without_a_json_form():
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        encode(event(0, epoch_completed(reward={1, 2})))


@pytest.mark.parametrize("line", [b"", b"\n", b"hello\n", b'{"schema":1,"id":\n', b"\xff\xfe\n", b'{"a":NaN}\n'])
def test_decode_rejects_non_strict_json(line):
    with pytest.raises(NotJSONError, match="not strict JSON"):
        decode(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]\n", "not a JSON object"),
        (b"{}\n", "schema is None; this version reads schema 1"),
        (altered(schema=2), "schema is 2; this version reads schema 1"),
        (altered(schema=True), "schema is True"),
        (altered(schema="1"), "schema is '1'"),
        (altered(colour="red"), r"lacks \[\] and has \['colour'\]"),
        (altered(type=["SEED_PRUNED"]), r"type is \['SEED_PRUNED'\]; expected text"),
        (altered(type="NO_SUCH_TYPE", payload=[]), "payload is not a JSON object"),
        (altered(id=None), "id is None; expected an integer"),
        (altered(id=1.0), "id is 1.0"),
        (altered(env=True), "env is True"),
        (altered(epoch="3"), "epoch is '3'"),
        (altered(slot=1), "slot is 1; expected text"),
        (altered(time="2026-01-01"), "time is '2026-01-01'"),
        (altered(time="2026-02-31T00:00:00.000000Z"), "day"),
        (altered(time="2026-01-01T00:00:00.000000+01:00"), "time is"),
        (altered(severity="loud"), "severity is 'loud'"),
        (altered(payload=[]), "payload is not a JSON object"),
        (altered(payload={}), "payload of EPOCH_COMPLETED lacks .*reward"),
        (altered_payload(colour="red"), r"has \['colour'\]"),
        (altered_payload(reward="red"), "reward is 'red'; expected a number"),
        (altered_payload(reward=True), "reward is True"),
        (altered_payload(reward=None), "reward is None"),
        (altered_payload(reward=10**400), "reward is too large"),
        (altered_payload(parameters_added=0.5), "parameters_added is 0.5"),
    ],
)
def test_decode_rejects_other_json_with_a_reason(line, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode(line)
    assert not isinstance(caught.value, NotJSONError)
