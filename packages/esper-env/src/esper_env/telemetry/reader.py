"""Reading of the files that ``JsonlSink`` writes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper_env.telemetry.events import Event
from esper_env.telemetry.lines import NotJSONError, decode, field_types
from esper_env.telemetry.payloads import PAYLOADS, UndeclaredPayload
from esper_env.telemetry.sinks import event_files

_LINE_START = b'{"schema":'
_NUMBERS = {int, int | None, float, float | None}
_EXACT_IN_FLOAT = 2**53


def read_events(path: str | Path) -> Iterator[Event]:
    """Iterate over the events of a file, or of all event files of a folder.

    Payloads are typed if an imported package declares the event type, and an ``UndeclaredPayload`` otherwise:
    ``import esper_agent`` before you read the events of training. An incomplete last line, which a crash leaves behind,
    is skipped with a ``RuntimeWarning``.

    Args:
        path: file, or folder of a ``JsonlSink``.

    Raises:
        FileNotFoundError: there is no such file, or no event file in the folder; raised at once.
        ValueError: a line is not an event of this schema; raised at that line, with its file and number.
    """
    path = Path(path)
    files = event_files(path) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(
            f"there is no event file in {path}; expected the folder of a JsonlSink, for example RUN/events"
        )
    if not files[0].exists():
        raise FileNotFoundError(f"there is no file or folder {path}; expected a file or folder of a JsonlSink")
    return (event for file in files for event in _events_in(file))


def event_table(path: str | Path, type: str | None = None) -> dict[str, NDArray[Any]]:
    """Return the events as columns, one row per event, ready for ``pandas.DataFrame``.

    Columns: id int64; type text; time datetime64[us], UTC; env, episode, epoch; slot text; severity text; and
    ``payload.<field>`` for every field of the types that occur. A missing value is NaN in columns of numbers and None
    in others:

    * numbers are float64; object, if a whole number is too large for float64 to hold it exactly;
    * true and false are bool if every row has a value, otherwise object;
    * everything else is object: text, tuples of text, mappings.

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
    for name, hints in _fields_of(events, type).items():
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
                warnings.warn(f"{file}, line {number}: the line is incomplete; skipped", RuntimeWarning, stacklevel=4)
                return
            yield event


def _is_cut_off(line: bytes) -> bool:
    """True if a line that is not JSON is the beginning of an event; only a last line has no newline."""
    return not line.endswith(b"\n") and line[: len(_LINE_START)] == _LINE_START[: len(line)]


def _fields_of(events: Sequence[Event], event_type: str | None) -> dict[str, set[Any]]:
    """Return the payload fields of events, each with its types: declared ones, otherwise those of the values."""
    declared = [event_type] if event_type is not None else dict.fromkeys(event.type for event in events)
    found: dict[str, set[Any]] = {}
    for kind in (PAYLOADS[name] for name in declared if name in PAYLOADS):
        for field, hint in field_types(kind).items():
            found.setdefault(field, set()).add(hint)
    for payload in (event.payload for event in events if isinstance(event.payload, UndeclaredPayload)):
        for field, value in vars(payload).items():
            found.setdefault(field, set()).add(float | None if value is None else type(value))
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
    for row, value in enumerate(values):  # assigning all at once would unpack sequences
        column[row] = value
    return column
