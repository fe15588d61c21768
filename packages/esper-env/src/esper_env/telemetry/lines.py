"""One event as one line of strict JSON, and back.

A line is an object with the keys of ``ENVELOPE``. JSON has no NaN and no infinities: they are written as the strings
"NaN", "Infinity" and "-Infinity", and read back as floats wherever the payload declares a float.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any, NoReturn, get_type_hints

import numpy as np

from esper_env.telemetry.events import PAYLOADS, Event
from esper_env.telemetry.payloads import Payload, Severity

#: Version of the lines that this module writes, and the only one it reads.
SCHEMA = 1
ENVELOPE = ("schema", "id", "type", "time", "env", "episode", "epoch", "slot", "severity", "payload")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class NotJSONError(ValueError):
    """A line that is no JSON at all, as one that was cut off."""


# Writing


def encode(event: Event) -> bytes:
    """The line of an event, with its newline.

    NumPy scalars and any mapping are accepted; ``TypeError`` for other values that JSON does not have.
    """
    try:
        payload = _encode(vars(event.payload))
    except ValueError:  # a number is not finite, which is rare: only then is the payload copied
        payload = _encode(_finite(vars(event.payload)))
    # The payload is all that differs in form; the rest is put together as text, in half the time of the encoder.
    return (
        f'{{"schema":{SCHEMA},"id":{event.id},"type":"{event.type}","time":"{_text_of(event.time)}",'
        f'"env":{_null_or(event.env)},"episode":{_null_or(event.episode)},"epoch":{_null_or(event.epoch)},'
        f'"slot":{_encoded(event.slot)},"severity":"{event.severity}","payload":{payload}}}\n'
    ).encode("ascii")


def _null_or(number: int | None) -> int | str:
    return "null" if number is None else number


@lru_cache(maxsize=1024)
def _encoded(text: str | None) -> str:
    return json.dumps(text)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON; give a JSON type")


_encode = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":"), default=_plain).encode


def _finite(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_finite(item) for item in value]
    return value


def _text_of(time: float) -> str:
    second, microsecond = divmod(round(time * 1e6), 1_000_000)
    return f"{_second(second)}.{microsecond:06d}Z"


@lru_cache(maxsize=4)  # many events share a second
def _second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:19]


# Reading


def decode(line: bytes) -> Event:
    """The event of a line.

    ``ValueError`` says what is wrong with one that ``encode`` did not write; ``NotJSONError`` when it is not even JSON.
    """
    record = _object(line)
    if record.get("schema") != SCHEMA or isinstance(record["schema"], bool):
        raise ValueError(f"its schema is {record.get('schema')!r}; this version reads schema {SCHEMA}")
    _require_keys(record, ENVELOPE, "the line")
    return Event(
        id=_whole(record["id"], "id"),
        time=_seconds(record["time"]),
        env=_whole_or_none(record["env"], "env"),
        episode=_whole_or_none(record["episode"], "episode"),
        epoch=_whole_or_none(record["epoch"], "epoch"),
        slot=None if record["slot"] is None else _text(record["slot"], "slot"),
        severity=_severity(record["severity"]),
        payload=_payload(record["type"], record["payload"]),
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise NotJSONError(f"it is not strict JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    return record


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not strict JSON")


def _require_keys(record: Mapping[str, Any], expected: tuple[str, ...], what: str) -> None:
    if record.keys() != set(expected):
        missing, foreign = sorted(set(expected) - record.keys()), sorted(record.keys() - set(expected))
        raise ValueError(f"{what} lacks {missing} and has {foreign} besides")


def _payload(name: Any, values: Any) -> Payload:
    kind = PAYLOADS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"its type is {name!r}, which this version does not know; it knows {', '.join(PAYLOADS)}")
    if not isinstance(values, dict):
        raise ValueError("its payload is not a JSON object")
    readers = _readers(name)
    _require_keys(values, tuple(readers), f"the payload of {name}")
    return kind(**{field: read(values[field], field) for field, read in readers.items()})


def _severity(value: Any) -> Severity:
    try:
        return Severity(value)
    except ValueError:
        raise ValueError(f"severity is {value!r}; expected one of {[str(s) for s in Severity]}") from None


def _seconds(value: Any) -> float:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise ValueError(f"time is {value!r}; expected a form like 2026-01-01T00:00:00.000000Z")
    return ((datetime.fromisoformat(value) - _EPOCH) // _MICROSECOND) / 1e6


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}; expected a whole number")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}; expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float") from None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}; expected text")
    return value


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; expected true or false")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {value!r}; expected a list of texts")
    return tuple(_text(item, name) for item in value)


def _mapping_of(read: Callable[[Any, str], Any]) -> Callable[[Any, str], dict[str, Any]]:
    def mapping(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r}; expected an object")
        return {key: read(item, f"{name}[{key!r}]") for key, item in value.items()}

    return mapping


def _optional(read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, name: None if value is None else read(value, name)


_whole_or_none = _optional(_whole)
_READERS: dict[Any, Callable[[Any, str], Any]] = {
    int: _whole,
    int | None: _whole_or_none,
    float: _number,
    float | None: _optional(_number),
    str: _text,
    bool: _truth,
    tuple[str, ...]: _texts,
    Mapping[str, float]: _mapping_of(_number),
    Mapping[str, str]: _mapping_of(_text),
}


@cache
def _readers(event_type: str) -> dict[str, Callable[[Any, str], Any]]:
    return {name: _READERS[hint] for name, hint in field_types(event_type).items()}


@cache
def field_types(event_type: str) -> dict[str, Any]:
    """The payload fields of an event type, and the Python types they are declared with, in order."""
    hints = get_type_hints(PAYLOADS[event_type])
    return {field.name: hints[field.name] for field in fields(PAYLOADS[event_type])}
