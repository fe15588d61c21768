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
from esper_env.rules.reward_config import GAMMA

Settings = TypeVar("Settings")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the value, what was expected, and the remedy."""


def read_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises ``ConfigError`` when there is none."""
    file = Path(path)
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"config file {file} cannot be read: {error.strerror}; give a YAML or JSON file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"config file {file} is neither YAML nor JSON: {first_line}") from None
    if data is None:
        raise ConfigError(f"config file {file} is empty; expected `name: value` pairs")
    if not isinstance(data, dict):
        raise ConfigError(f"config file {file} holds a {type(data).__name__}; expected `name: value` pairs")
    return data


class _UniqueKeys(yaml.SafeLoader):
    """Reads YAML, and refuses a mapping that names a key twice: which one was meant is not known."""


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def with_values(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    """``settings``, a dataclass instance, with ``values`` in place of its own.

    Values of a nested dataclass are given nested, or under their own names as the flags are, or dotted. Hyphens in
    names count as underscores, and a mapping where NAME=VALUE settings belong is taken as them. Raises ``ConfigError``,
    naming ``source``, for a name the settings do not have (with the nearest one they do), for a name given twice and
    for a value of the wrong type.
    """
    known = tuple(setting_names(settings))
    flat: dict[str, Any] = {}
    for name, value in _dotted(values, known):
        if name in flat:
            raise ConfigError(f"{source}: {name!r} is given twice; keep one of them")
        flat[name] = value
    return _replaced(settings, flat, source, "", known)


def _dotted(values: Mapping[str, Any], known: tuple[str, ...], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value under its full dotted name."""
    last_names = {name.rpartition(".")[2]: name for name in known}
    for key, value in values.items():
        name = prefix + str(key).replace("-", "_")
        if isinstance(value, Mapping) and any(setting.startswith(f"{name}.") for setting in known):
            yield from _dotted(value, known, f"{name}.")
        else:
            yield name if name in known else last_names.get(name, name), value


def _replaced(settings: Any, values: Mapping[str, Any], source: str, prefix: str, known: tuple[str, ...]) -> Any:
    hints = get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    for name in dict.fromkeys(dotted.removeprefix(prefix).partition(".")[0] for dotted in values):
        full, group = prefix + name, f"{prefix}{name}."
        inner = {dotted: value for dotted, value in values.items() if dotted.startswith(group)}
        if full in values and any(setting.startswith(group) for setting in known):
            raise ConfigError(f"{source}: {full} is {values[full]!r}; expected `name: value` pairs")
        if full in values and full in known:
            changes[name] = _checked(values[full], hints[name], f"{source}: {full}")
        elif inner and name in hints:
            changes[name] = _replaced(getattr(settings, name), inner, source, group, known)
        else:
            unknown = next(iter(inner), full)
            raise ConfigError(f"{source}: {unknown!r} is not a setting; {_suggestion(unknown, known)}")
    return replace(settings, **changes)


def setting_names(settings: Any, prefix: str = "") -> Iterator[str]:
    """Names of the settings, those of nested ones dotted."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from setting_names(value, f"{prefix}{field.name}.")
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
        if isinstance(value, Mapping):  # env_settings: {horizon: 20} says the same as [horizon=20]
            value = [f"{name}={json.dumps(entry)}" for name, entry in value.items()]
        if not isinstance(value, list):
            raise TypeError
        return tuple(_converted(entry, get_args(hint)[0]) for entry in value)
    if hint is type(None):
        if value is None:
            return None
        raise TypeError
    if hint is float and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, str):  # YAML reads 1e6 as text
        if not float(value).is_integer():
            raise ValueError
        return int(float(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise TypeError


_TYPE_NAMES = {
    type(None): "null",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def _described(hint: Any) -> str:
    names = []
    for option in _options(hint):
        if get_origin(option) is Literal:
            names.append(" or ".join(map(repr, get_args(option))))
        elif get_origin(option) is tuple:
            names.append("a list such as [horizon=20], or `name: value` pairs")
        else:
            names.append(_TYPE_NAMES.get(option, option.__name__))
    return " or ".join(names)


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as YAML and JSON types; paths become strings and tuples lists."""
    return json.loads(json.dumps(asdict(settings), default=str))


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, Any]:
    """``("horizon=20", "gates=strict")`` -> ``{"horizon": 20, "gates": "strict"}``; values are read as YAML."""
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"setting {assignment!r} is not of the form NAME=VALUE, such as horizon=20")
        if name in parsed:
            raise ConfigError(f"setting {name!r} is given twice; keep one of them")
        try:
            parsed[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"the value of {name!r} in {assignment!r} is not readable as YAML") from None
    return parsed


#: What ``gymnasium.make_vec`` takes besides the settings of the environment itself.
_NOT_SETTINGS = ("id", "num_envs", "vectorization_mode", "vector_kwargs", "autoreset_mode", "render_mode")


def parse_env_settings(assignments: tuple[str, ...]) -> dict[str, Any]:
    """Keyword arguments of the environment from NAME=VALUE settings."""
    settings = parse_assignments(assignments)
    for name in _NOT_SETTINGS:
        if name in settings:
            raise ConfigError(f"env_settings names {name!r}, which is not a setting of the environment")
    return settings


def training_env_settings(assignments: tuple[str, ...], gamma: float) -> dict[str, Any]:
    """Those of the environment that a policy with discount ``gamma`` learns in: its reward has the same discount.

    Raises ``ConfigError`` when the settings give the reward another one.
    """
    settings = parse_env_settings(assignments)
    weights = settings.get("reward_weights", {})
    if not isinstance(weights, Mapping):
        return settings  # the environment says what is wrong with them
    if weights.get("gamma", gamma) != gamma:
        raise ConfigError(
            f"env_settings give the reward the gamma {weights['gamma']}, and the policy learns with {gamma}; "
            "give gamma alone, the reward takes it over"
        )
    if gamma != GAMMA:
        settings["reward_weights"] = {**weights, "gamma": gamma}
    return settings
