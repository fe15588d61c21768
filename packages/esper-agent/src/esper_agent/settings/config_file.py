"""Configuration files: YAML or JSON values, checked against the dataclass that they configure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from esper_env.checks import describe, field_hints, is_valid, options
from esper_env.paths import user_path
from esper_env.suggestions import closest, shown

from esper_agent.settings.named_values import ConfigError, parse_assignments

Settings = TypeVar("Settings")


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file.

    Raises:
        ConfigError: a file that cannot be read or that holds no mapping.
    """
    file = user_path(path)
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"config file {file} cannot be read: {error.strerror}; give a YAML or JSON file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an encoding or a date
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"config file {file} is neither YAML nor JSON: {first_line}") from None
    if data is None:
        raise ConfigError(f"config file {file} is empty; expected `name: value` pairs")
    if not isinstance(data, dict):
        raise ConfigError(f"config file {file} holds a {type(data).__name__}; expected `name: value` pairs")
    return data


class _UniqueKeys(yaml.SafeLoader):
    """YAML reader that rejects a mapping with a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            (repeated, _), *_ = Counter(key.value for key, _ in node.value).most_common()
            raise yaml.constructor.ConstructorError(None, None, f"{repeated!r} is given twice", node.start_mark)
        return mapping


def with_values(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    """Return a copy of a dataclass instance with some of its values replaced; ``source`` names the file in errors.

    Raises:
        ConfigError: an unknown name, or a value of another type or outside its range.
    """
    return _replaced(settings, values, source, "", dict(_spellings(settings)))


def _replaced(settings: Any, values: Mapping[str, Any], source: str, group: str, known: Mapping[str, str]) -> Any:
    kind: type = type(settings)
    hints = field_hints(kind)
    changes: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{group}{name}"
        if name not in hints:
            near = closest(str(name).rpartition(".")[2], known)
            hint = f"did you mean {known[near]}?" if near else f"the settings are {', '.join(known.values())}"
            raise ConfigError(f"{source}: {full!r} is not a setting; {hint}")
        if not is_dataclass(getattr(settings, name)):
            changes[name] = _converted(value, hints[name], f"{source}: `{full}`")
        elif isinstance(value, Mapping):
            changes[name] = _replaced(getattr(settings, name), value, source, f"{full}.", known)
        else:
            raise ConfigError(f"{source}: `{full}` is {shown(value)}; expected `name: value` pairs")
    return replace(settings, **changes)


def _spellings(settings: Any, group: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name of each setting, nested ones too, and how to write it in a file."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from _spellings(value, field.name)
        else:
            yield field.name, f"`{group}: {{{field.name}: ...}}`" if group else repr(field.name)


def _converted(value: Any, hint: Any, where: str) -> Any:
    """The value as the type of its setting."""
    for kind, _ in options(hint):
        converted = _as_type(value, kind)
        if is_valid(converted, hint):
            return converted
    raise ConfigError(f"{where} is {shown(value)}; expected {describe(hint, none='null')}")


def _as_type(value: Any, kind: Any) -> Any:
    """Convert a value to a type that YAML lacks, or does not recognise: it reads 3e-4 and 1e6 as text."""
    if get_origin(kind) is Mapping and isinstance(value, list) and all(isinstance(text, str) for text in value):
        return parse_assignments(value)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(value)
    if kind is Path and isinstance(value, str) and value:  # the path '' would become the current folder
        return Path(value)
    try:
        if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
            return float(value)
        if kind is int and isinstance(value, str) and float(value).is_integer():
            return int(float(value))
    except (ValueError, OverflowError):
        pass
    return value


def expand_paths(settings: Any) -> None:
    """Expand ``~`` in the fields of a new dataclass instance that hold paths.

    Raises:
        ValueError: a path is not UTF-8.
    """
    kind: type = type(settings)
    for name, hint in field_hints(kind).items():
        value = getattr(settings, name)
        if any(option is Path for option, _ in options(hint)) and isinstance(value, str | PathLike):
            object.__setattr__(settings, name, user_path(value))


def plain(settings: Any) -> dict[str, Any]:
    """Return a dataclass instance as YAML and JSON types; paths become strings and tuples lists."""
    return json.loads(json.dumps(asdict(settings), default=str))
