"""NAME=VALUE settings: ``horizon=20 gates=strict`` on the command line, a mapping everywhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import yaml
from esper_env.checks import Described
from esper_env.rules import GAMMA
from tyro.constructors import PrimitiveConstructorSpec


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the value, what was expected, and the remedy."""


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Return ``{"horizon": 20, "gates": "strict"}`` for ``["horizon=20", "gates=strict"]``; values are YAML.

    Raises:
        ConfigError: a text without a name or "=", a name that occurs twice, or a value that is not YAML or not UTF-8.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"setting {assignment!r} is not of the form NAME=VALUE, such as horizon=20")
        if name in parsed:
            raise ConfigError(f"setting {name!r} is given twice; keep one of them")
        try:
            text.encode()
            parsed[name] = yaml.safe_load(text)
        except UnicodeEncodeError:
            raise ConfigError(f"the value of {name!r} in {assignment!r} is not UTF-8 text; use another value") from None
        except yaml.YAMLError:
            raise ConfigError(f"the value of {name!r} in {assignment!r} is not valid YAML") from None
    return parsed


#: Annotation of a field that holds NAME=VALUE settings.
NamedValues = Annotated[
    Mapping[str, Any],
    Described("`name: value` pairs, or a list such as [horizon=20]"),
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE ...]",
        instance_from_str=parse_assignments,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda values: [f"{name}={value}" for name, value in values.items()],
    ),
]


def named_values(name: str, given: object) -> dict[str, Any]:
    """Return NAME=VALUE settings, given as a mapping or as a list of texts, as a mapping.

    Raises:
        ConfigError: ``given`` is anything else, or :func:`parse_assignments` rejects it. The message has the ``name``.
    """
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        return dict(given)
    if isinstance(given, list | tuple) and all(isinstance(text, str) for text in given):
        return parse_assignments(given)
    raise ConfigError(f"`{name}` is {given!r}; expected `name: value` pairs, or a list such as [horizon=20]")


#: Arguments of ``gymnasium.make_vec`` that are not settings of the environment.
_NOT_SETTINGS = ("id", "num_envs", "workers", "vectorization_mode", "vector_kwargs", "autoreset_mode", "render_mode")


def parse_env_settings(given: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Return keyword arguments of the environment from NAME=VALUE settings.

    Raises:
        ConfigError: a name that ``make_vec`` reads itself, and as of :func:`named_values`.
    """
    settings = named_values("env_settings", given)
    for name in _NOT_SETTINGS:
        if name in settings:
            raise ConfigError(f"`env_settings` has {name!r}, which is not a setting of the environment; leave it out")
    return settings


def training_env_settings(given: Mapping[str, Any] | Sequence[str], gamma: float) -> dict[str, Any]:
    """Return the keyword arguments of an environment whose reward has the learner's discount.

    Raises:
        ConfigError: settings that give the reward another discount, and as of :func:`parse_env_settings`.
    """
    settings = parse_env_settings(given)
    weights = settings.get("reward_weights", {})
    if not isinstance(weights, Mapping):
        return settings  # the environment rejects them
    if weights.get("gamma", gamma) != gamma:
        raise ConfigError(
            f"`reward_weights` has the gamma {weights['gamma']}, but the policy learns with {gamma}; set only the "
            "policy's gamma, which the reward takes over"
        )
    if gamma != GAMMA:
        settings["reward_weights"] = {**weights, "gamma": gamma}
    return settings
