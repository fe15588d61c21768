"""Conversion between an event and a line of strict JSON.

A line is an object with the keys of ``ENVELOPE``. JSON has no NaN and no infinities: the strings "NaN", "Infinity" and
"-Infinity" stand for them, and become floats again where the payload declares a float.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NoReturn, get_type_hints

import numpy as np

from esper_env.telemetry.events import Event
from esper_env.telemetry.payloads import PAYLOADS, Payload, Severity, UndeclaredPayload

#: Version of the lines that this module writes, and the only one it reads.
SCHEMA = 1
ENVELOPE = ("schema", "id", "type", "time", "env", "episode", "epoch", "slot", "severity", "payload")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class NotJSONError(ValueError):
    """The line is not JSON, for example because its end is missing."""


# Writing


def encode(event: Event) -> bytes:
    """Return the line of an event, with its newline.

    Raises:
        TypeError: a value is neither a JSON type nor a NumPy scalar nor a mapping.
    """
    try:
        payload = _encode(vars(event.payload))
    except ValueError:  # a number is not finite, which is rare
        payload = _encode(_finite(vars(event.payload)))
    # Only the payload differs in form. Formatting the rest as text takes half the time of the encoder.
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


def _to_json_type(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON; give a JSON type")


_encode = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":"), default=_to_json_type).encode


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
    """Return the event of a line.

    Raises:
        NotJSONError: the line is not strict JSON.
        ValueError: the line is JSON, but not an event of this schema.
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
    name = _text(name, "type")
    if not isinstance(values, dict):
        raise ValueError("its payload is not a JSON object")
    kind = PAYLOADS.get(name)
    if kind is None:
        return _undeclared(name)(**values)
    readers = _readers(kind)
    _require_keys(values, tuple(readers), f"the payload of {name}")
    return kind(**{field: read(values[field], field) for field, read in readers.items()})


@lru_cache(maxsize=1024)
def _undeclared(name: str) -> type[UndeclaredPayload]:
    return type("UndeclaredPayload", (UndeclaredPayload,), {"TYPE": name})


def _severity(value: Any) -> Severity:
    try:
        return Severity(value)
    except ValueError:
        raise ValueError(f"severity is {value!r}; expected one of {[str(s) for s in Severity]}") from None


def _seconds(value: Any) -> float:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise ValueError(f"time is {value!r}; expected the form 2026-01-01T00:00:00.000000Z")
    return ((datetime.fromisoformat(value) - _EPOCH) // _MICROSECOND) / 1e6


def _exactly(kind: type, words: str) -> Callable[[Any, str], Any]:
    def read(value: Any, name: str) -> Any:
        if type(value) is not kind:  # bool is not an integer here
            raise ValueError(f"{name} is {value!r}; expected {words}")
        return value

    return read


def _number(value: Any, name: str) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}; expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float") from None


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


_whole, _text, _truth = _exactly(int, "an integer"), _exactly(str, "text"), _exactly(bool, "true or false")
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


def _readers(kind: type[Payload]) -> dict[str, Callable[[Any, str], Any]]:
    if kind not in _READERS_OF:
        _READERS_OF[kind] = {name: _READERS[hint] for name, hint in field_types(kind).items()}
    return _READERS_OF[kind]


def field_types(kind: type[Payload]) -> dict[str, Any]:
    """Return the fields of a payload class, in order, with their declared types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


_READERS_OF: dict[type[Payload], dict[str, Callable[[Any, str], Any]]] = {}
