"""Events as lines of strict JSON in the files of a ``JsonlSink``: writing a line, and reading files.

JSON has no NaN and no infinities: the strings "NaN", "Infinity" and "-Infinity" stand for them, and become floats again
where the payload declares a float.
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from esper_env.paths import user_path
from esper_env.persistence import atomic
from esper_env.telemetry.events import PAYLOADS, Event, Payload, Severity, UndeclaredPayload

#: Version of the lines that this module writes, and the only one it reads.
SCHEMA = 1
#: Keys of a line, in order, and the types of their values.
ENVELOPE: dict[str, Any] = {
    "schema": int,
    "id": int,
    "type": str,
    "time": str,
    "env": int | None,
    "episode": int | None,
    "epoch": int | None,
    "slot": str | None,
    "severity": str,
    "payload": dict,
}
_FIELD_TYPES: dict[type[Payload], dict[str, Any]] = {}
_FILE_NAME = re.compile(r"events-\d{5,}\.jsonl", re.ASCII)
_NUMBERS = {int, int | None, float, float | None}
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def encode(event: Event) -> bytes:
    """Return the line of an event, with its newline.

    Raises:
        TypeError: a value is neither a JSON type nor a NumPy scalar nor a mapping.
    """
    values = vars(event.payload)
    try:
        payload = _encode(values)
    except ValueError:  # a number is not finite, which is rare
        payload = _encode(json.loads(json.dumps(values, default=_to_json_type), parse_constant=str))
    # Only the payload differs in form. Formatting the rest as text takes half the time of the encoder.
    return (
        f'{{"schema":{SCHEMA},"id":{event.id},"type":"{event.type}","time":"{_text_of(event.time)}",'
        f'"env":{_json(event.env)},"episode":{_json(event.episode)},"epoch":{_json(event.epoch)},'
        f'"slot":{_json(event.slot)},"severity":"{event.severity}","payload":{payload}}}\n'
    ).encode("ascii")


@lru_cache(maxsize=1024)
def _json(value: int | str | None) -> str:
    return json.dumps(value, default=_to_json_type)


def _to_json_type(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON; give a JSON type")


_encode = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":"), default=_to_json_type).encode


@lru_cache(maxsize=4)  # the events of a step share a time
def _text_of(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC).isoformat(timespec='microseconds')[:26]}Z"


def decode(line: bytes) -> Event:
    """Return the event of a line.

    Raises:
        json.JSONDecodeError: the line is not JSON, for example because its end is missing; a ``ValueError``.
        ValueError: the line is not an event of this schema.
    """
    record = json.loads(line)
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"its schema is {schema!r}; this version reads schema {SCHEMA}")
    fields = _typed_fields(record, ENVELOPE, "the line")
    name, values = fields["type"], fields["payload"]
    kind = PAYLOADS.get(name)
    if kind is None:
        payload: Payload = _undeclared(name)(**values)
    else:
        payload = kind(**_typed_fields(values, field_types(kind), f"the payload of {name}"))
    fields |= {"time": _seconds(fields["time"]), "severity": Severity(fields["severity"]), "payload": payload}
    return Event(**{field: fields[field] for field in Event._fields})


def _seconds(text: str) -> float:
    time = datetime.fromisoformat(text).timestamp()
    if _text_of(time) != text:
        raise ValueError(f"time is {text!r}; expected the form 2026-01-01T00:00:00.000000Z")
    return time


@lru_cache(maxsize=1024)
def _undeclared(name: str) -> type[UndeclaredPayload]:
    return type("UndeclaredPayload", (UndeclaredPayload,), {"TYPE": name})


def field_types(kind: type[Payload]) -> dict[str, Any]:
    """Return the fields of a payload class, in order, with their declared types."""
    if kind not in _FIELD_TYPES:
        hints = get_type_hints(kind)
        _FIELD_TYPES[kind] = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return _FIELD_TYPES[kind]


def _typed_fields(values: dict[str, Any], types: dict[str, Any], what: str) -> dict[str, Any]:
    if values.keys() != types.keys():
        raise ValueError(f"{what} has the keys {sorted(values)}; expected {sorted(types)}")
    return {name: _typed(values[name], hint, name) for name, hint in types.items()}


def _typed(value: Any, hint: Any, name: str) -> Any:
    """Return a JSON value as the type that its field declares."""
    if type(value) is hint:
        return value
    if hint is float and (type(value) is int or value in _NOT_FINITE):
        return float(value)
    if isinstance(hint, UnionType):  # with None
        return None if value is None else _typed(value, hint.__args__[0], name)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(item, parts[0], name) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {key: _typed(item, parts[1], f"{name}[{key!r}]") for key, item in value.items()}
    raise ValueError(f"{name} is {value!r}; expected {hint.__name__}")


def event_files(folder: Path) -> list[Path]:
    """Return the files of a ``JsonlSink`` in a folder, oldest first; none if the folder does not exist."""
    found = [path for path in folder.glob("events-*") if _FILE_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (len(path.name), path.name))  # numbers have leading zeros up to 99999


def drop_events(folder: str | Path, first: int) -> None:
    """Remove the events from id ``first`` on from the files of a ``JsonlSink`` in a folder, which need not exist.

    Ids must increase from file to file, as they do in a run. Each file changes atomically. A torn line is removed;
    other lines that are not events stay.
    """
    for file in reversed(event_files(user_path(folder))):
        lines = file.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and not _is_dropped(line, first)]
        if not kept:
            file.unlink()
        elif len(kept) < len(lines):
            with atomic.replaced(file) as temporary:
                temporary.write_bytes(b"".join(kept))
        else:
            return


def _is_dropped(line: bytes, first: int) -> bool:
    try:
        return bool(json.loads(line)["id"] >= first)
    except (ValueError, TypeError, KeyError):
        return False


def read_events(path: str | Path) -> Iterator[Event]:
    """Iterate over the events of a file, or of all files of a ``JsonlSink`` in a folder.

    Payloads are typed if an imported package declares the event type, and an ``UndeclaredPayload`` otherwise:
    ``import esper_agent`` before you read the events of training. An incomplete last line, which a crash leaves behind,
    is skipped with a ``RuntimeWarning``.

    Raises:
        FileNotFoundError: the file does not exist, or the folder has no event files. Raised by the call itself.
        ValueError: a line is not an event of this schema. Raised when that line is read, with its file and number.
    """
    path = user_path(path)
    files = event_files(path) if path.is_dir() else [path] if path.exists() else []
    if not files:
        raise FileNotFoundError(
            f"there is no event file at {path}; expected a file or folder of a JsonlSink, for example RUN/events"
        )
    return (event for file in files for event in _events_in(file))


def event_table(path: str | Path, type: str | None = None) -> dict[str, NDArray[Any]]:
    """Return the events as columns, one row per event, ready for ``pandas.DataFrame``.

    Columns: id int64; type; time datetime64[us], UTC; env, episode, epoch; slot; severity; and ``payload.<field>`` for
    every field of the types that occur. Numbers are float64, NaN if missing; or object, if an integer is too large for
    float64 to hold it exactly. True and false are bool if every row has a value. All else is object, None if missing.

    Args:
        path: file, or folder of a ``JsonlSink``.
        type: returns only the events and fields of this type.

    Raises:
        ValueError: the type is neither declared nor in the files, or ``read_events`` cannot read a line.
        FileNotFoundError: as in ``read_events``.
    """
    events = [event for event in read_events(path) if type is None or event.type == type]
    if type is not None and type not in PAYLOADS and not events:
        raise ValueError(
            f"type is {type!r}; expected one of {', '.join(PAYLOADS)}, or a type of another package in the files"
        )
    table = {
        "id": np.array([event.id for event in events], dtype=np.int64),
        "type": _objects([event.type for event in events]),
        "time": np.array([round(event.time * 1e6) for event in events], dtype="datetime64[us]"),
        **{name: _column([getattr(event, name) for event in events], _NUMBERS) for name in ("env", "episode", "epoch")},
        "slot": _objects([event.slot for event in events]),
        "severity": _objects([str(event.severity) for event in events]),
    }
    for name, hints in _fields_of(events, type).items():
        table[f"payload.{name}"] = _column([getattr(event.payload, name, None) for event in events], hints)
    return table


def _events_in(file: Path) -> Iterator[Event]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                event = decode(line)
            except ValueError as error:
                cut_off = line.startswith(b"{") and not line.endswith(b"\n")  # only a last line has no newline
                if not (cut_off and isinstance(error, json.JSONDecodeError)):
                    raise ValueError(f"{file}, line {number}: not an event: {error}") from None
                warnings.warn(f"{file}, line {number}: the line is incomplete; skipped", RuntimeWarning, stacklevel=4)
                return
            yield event


def _fields_of(events: Iterable[Event], event_type: str | None) -> dict[str, set[Any]]:
    """Return the payload fields of events, each with its types."""
    kind = PAYLOADS.get(event_type or "")
    found: dict[str, set[Any]] = {}
    for types in [field_types(kind)] if kind else map(_types_of, (event.payload for event in events)):
        for field, hint in types.items():
            found.setdefault(field, set()).add(hint)
    return found


def _types_of(payload: Payload) -> dict[str, Any]:
    """Return the declared types of the fields, or those of the values."""
    if not isinstance(payload, UndeclaredPayload):
        return field_types(type(payload))
    return {field: float | None if value is None else type(value) for field, value in vars(payload).items()}


def _column(values: list[Any], types: set[Any]) -> NDArray[Any]:
    if types <= _NUMBERS and all(not isinstance(value, int) or abs(value) <= 2**53 for value in values):
        return np.array(values, dtype=np.float64)  # None becomes NaN
    if types == {bool} and None not in values:
        return np.array(values, dtype=np.bool_)
    return _objects(values)


def _objects(values: list[Any]) -> NDArray[Any]:
    return np.fromiter(values, dtype=object, count=len(values))  # np.array would unpack tuples
