"""Configuration files: YAML or JSON values checked against a dataclass, so that a typo never trains the wrong thing."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

Settings = TypeVar("Settings")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the value, what was expected, and the remedy."""


def read_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises ``ConfigError`` when there is none."""
    file = Path(path)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {file} cannot be read: {error.strerror}; give a YAML or JSON file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"config file {file} is neither YAML nor JSON: {first_line}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"config file {file} holds a {type(data).__name__}; expected `name: value` pairs")
    return data


def with_values(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    """``settings``, a dataclass instance, with ``values`` in place of its own; nested dataclasses take nested mappings.

    Hyphens in names count as underscores. Raises ``ConfigError``, naming ``source``, for a name the settings do not
    have (with the nearest one they do) and for a value of the wrong type.
    """
    return _with_values(settings, values, source, "", tuple(_names(settings)))


def _with_values(settings: Any, values: Mapping[str, Any], source: str, prefix: str, known: tuple[str, ...]) -> Any:
    hints = get_type_hints(type(settings))
    changes = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        dotted = f"{prefix}{name}"
        if name not in hints:
            raise ConfigError(f"{source}: {dotted!r} is not a setting; {_suggestion(dotted, known)}")
        present = getattr(settings, name)
        if is_dataclass(present) and isinstance(value, Mapping):
            changes[name] = _with_values(present, value, source, f"{dotted}.", known)
        else:
            changes[name] = _checked(value, hints[name], f"{source}: {dotted}")
    return replace(settings, **changes)


def _names(settings: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from _names(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _suggestion(name: str, known: tuple[str, ...]) -> str:
    """The nearest setting, compared by full and by last name."""
    last_names = {candidate.rpartition(".")[2]: candidate for candidate in known}
    near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(
        name.rpartition(".")[2], list(last_names), n=1
    )
    if near:
        return f"did you mean {last_names.get(near[0], near[0])!r}?"
    return f"the settings are {', '.join(known)}"


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value as the type asks for it: numbers that YAML took for text, paths and tuples are converted."""
    for option in _options(hint):
        try:
            return _converted(value, option)
        except (TypeError, ValueError):
            continue
    raise ConfigError(f"{where} is {value!r}; expected {_described(hint)}")


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _converted(value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ValueError
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise TypeError
        return tuple(_converted(entry, get_args(hint)[0]) for entry in value)
    if hint is type(None):
        if value is None:
            return None
        raise TypeError
    if hint is float and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise TypeError


def _described(hint: Any) -> str:
    names = []
    for option in _options(hint):
        if get_origin(option) is Literal:
            names.append(" or ".join(map(repr, get_args(option))))
        elif get_origin(option) is tuple:
            names.append(f"a list of {_described(get_args(option)[0])}")
        else:
            names.append({type(None): "null", Path: "a path"}.get(option, option.__name__))
    return " or ".join(names)


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as YAML and JSON types; paths become strings and tuples lists."""
    return json.loads(json.dumps(asdict(settings), default=str))


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, Any]:
    """``("horizon=20", "gates=strict")`` -> ``{"horizon": 20, "gates": "strict"}``; values are read as YAML."""
    parsed = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"setting {assignment!r} is not of the form NAME=VALUE, such as horizon=20")
        try:
            parsed[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"the value of {name!r} in {assignment!r} is not readable as YAML") from None
    return parsed
