"""Events out of the files that ``JsonlSink`` wrote."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper_env.telemetry.events import PAYLOADS, Event
from esper_env.telemetry.lines import NotJSONError, decode, field_types
from esper_env.telemetry.sinks import event_files

_LINE_START = b'{"schema":'
_NUMBERS = {int, int | None, float, float | None}
_EXACT_IN_FLOAT = 2**53


def read_events(path: str | Path) -> Iterator[Event]:
    """The events of a file, or of the event files of a folder one after the other, with typed payloads.

    The last line of a file that was cut off by a crash is skipped with a ``RuntimeWarning``. Every other line that is
    no event, or of a schema or type that this version does not know, is a ``ValueError`` that names file and line.

    Raises:
        FileNotFoundError: at once, when there is no such file, or no event file in the folder.
    """
    path = Path(path)
    files = event_files(path) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(
            f"there is no event file in {path}; give the folder of a JsonlSink that got events, as `events` in a run"
        )
    if not files[0].exists():
        raise FileNotFoundError(f"there is no file or folder {path}; give what a JsonlSink wrote")
    return (event for file in files for event in _events_in(file))


def event_table(path: str | Path, type: str | None = None) -> dict[str, NDArray[Any]]:
    """The events as columns, one row per event, ready for ``pandas.DataFrame``; with ``type``, those of one type.

    Columns: id int64; type text; time datetime64[us], UTC; env, episode, epoch; slot text; severity text; and
    ``payload.<field>`` for every field of the types that occur (of ``type``, if given). What a row does not have is NaN
    in columns of numbers and None in others:

    * numbers, whole or not, are float64; object, where a whole number is too large for float64 to hold it exactly;
    * true and false are bool where every row has one, otherwise object;
    * everything else is object: text, tuples of text, mappings.

    Raises:
        ValueError: an unknown type, or a line that ``read_events`` cannot read.
        FileNotFoundError: as ``read_events``.
    """
    if type is not None and type not in PAYLOADS:
        raise ValueError(f"type is {type!r}; expected one of {', '.join(PAYLOADS)}")
    events = [event for event in read_events(path) if type is None or event.type == type]
    microseconds = np.array([round(event.time * 1e6) for event in events], dtype=np.int64)
    table = {
        "id": np.array([event.id for event in events], dtype=np.int64),
        "type": _objects([event.type for event in events]),
        "time": microseconds.astype("datetime64[us]"),
        "env": _numbers([event.env for event in events]),
        "episode": _numbers([event.episode for event in events]),
        "epoch": _numbers([event.epoch for event in events]),
        "slot": _objects([event.slot for event in events]),
        "severity": _objects([str(event.severity) for event in events]),
    }
    types = [type] if type is not None else list(dict.fromkeys(event.type for event in events))
    for name, hints in _fields_of(types).items():
        values = [getattr(event.payload, name, None) for event in events]
        table[f"payload.{name}"] = _column(values, hints)
    return table


def _events_in(file: Path) -> Iterator[Event]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                event = decode(line)
            except ValueError as error:
                if not (isinstance(error, NotJSONError) and _is_cut_off(line)):
                    raise ValueError(f"{file}, line {number}: {error}") from None
                warnings.warn(f"{file}, line {number}: the line is cut off; skipped", RuntimeWarning, stacklevel=4)
                return
            yield event


def _is_cut_off(line: bytes) -> bool:
    """Whether a line that is no JSON is the beginning of an event; only the last line has no newline."""
    return not line.endswith(b"\n") and line[: len(_LINE_START)] == _LINE_START[: len(line)]


def _fields_of(event_types: list[str]) -> dict[str, set[Any]]:
    """The payload fields of some event types, each with what it is declared as: types may differ in that."""
    found: dict[str, set[Any]] = {}
    for event_type in event_types:
        for field, hint in field_types(event_type).items():
            found.setdefault(field, set()).add(hint)
    return found


def _column(values: list[Any], hints: set[Any]) -> NDArray[Any]:
    if hints <= _NUMBERS:
        return _numbers(values)
    if hints == {bool} and None not in values:
        return np.array(values, dtype=np.bool_)
    return _objects(values)


def _numbers(values: list[Any]) -> NDArray[Any]:
    if any(isinstance(value, int) and abs(value) > _EXACT_IN_FLOAT for value in values):
        return _objects(values)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _objects(values: list[Any]) -> NDArray[Any]:
    column = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):  # an assignment of all would take apart values that are sequences
        column[row] = value
    return column
