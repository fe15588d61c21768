"""Registry of blueprints by topology."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from esper_env.checks import is_whole
from esper_env.rules.heads import NUM_BLUEPRINTS, Blueprint
from esper_env.suggestions import did_you_mean

#: Builds a shape-preserving module for features of the given number of channels (or width).
BlueprintFactory = Callable[[int], nn.Module]


@dataclass(frozen=True, eq=False)
class BlueprintEntry:
    """Registered blueprint: its name, its value of the blueprint head and its factory."""

    name: str
    value: int
    factory: BlueprintFactory

    def build(self, channels: int) -> nn.Module:
        """Return a new module for features of ``channels`` channels.

        Raises ``ValueError`` if the factory fails, or returns anything but a module with parameters.
        """
        try:
            module: object = self.factory(channels)
        except Exception as error:
            raise ValueError(
                f"the factory of blueprint {self.name!r} fails for {channels} channels ({error}); expected a function "
                "from the number of channels to a torch.nn.Module"
            ) from error
        if not isinstance(module, nn.Module) or not any(True for _ in module.parameters()):
            raise ValueError(
                f"blueprint {self.name!r} makes {module!r}; expected a torch.nn.Module with parameters to train: "
                "change the blueprint's factory"
            )
        return module


_REGISTRY: dict[str, dict[int, BlueprintEntry]] = {}


def register_blueprint(
    name: str, topology: str, factory: BlueprintFactory, *, value: int | None = None
) -> BlueprintEntry:
    """Offer a blueprint on every host of a topology.

    Args:
        name: name in this topology.
        topology: kind of host, such as "cnn" or "transformer".
        factory: function from the number of channels (or the width) to a module that keeps the shape of its input.
        value: value of the blueprint head. By default a standard name has the value of its
            :class:`~esper_env.rules.heads.Blueprint`, and any other the highest free value of the topology.

    Raises:
        ValueError: the name or value is taken in this topology, no value is left, or the topology differs only in case
            from a known one.
        TypeError: the name or topology is not a string, or the factory is not callable.
    """
    for what, text in {"name": name, "topology": topology}.items():
        if not isinstance(text, str) or not text:
            raise TypeError(f"the blueprint's {what} is {text!r}; expected a text such as 'conv_light' or 'cnn'")
    if not callable(factory):
        raise TypeError(
            f"the factory of blueprint {name!r} is {factory!r}; expected a function from the number of channels to a "
            "torch.nn.Module"
        )
    for known in _REGISTRY:
        if topology != known and topology.lower() == known.lower():
            raise ValueError(f"topology {topology!r} of blueprint {name!r} differs only in case; expected {known!r}")
    entries = _REGISTRY.get(topology, {})
    if any(entry.name == name for entry in entries.values()):
        raise ValueError(f"blueprint {name!r} is already registered for topology {topology!r}; choose another name")
    if value is None and name.upper() in Blueprint.__members__:
        value = int(Blueprint[name.upper()])
    elif value is None:
        value = max(set(range(1, NUM_BLUEPRINTS)) - entries.keys(), default=None)
        if value is None:
            raise ValueError(f"blueprint {name!r} exceeds the {NUM_BLUEPRINTS - 1} that a topology may have")
    if not is_whole(value, least=1) or value >= NUM_BLUEPRINTS:
        raise ValueError(f"blueprint value {value!r} is out of range; expected 1 to {NUM_BLUEPRINTS - 1}")
    if value in entries:
        raise ValueError(f"blueprint value {value} is taken by {entries[value].name!r} in topology {topology!r}")
    entry = BlueprintEntry(name, value, factory)
    _REGISTRY.setdefault(topology, {})[value] = entry
    return entry


def offered_blueprints(topology: str) -> tuple[BlueprintEntry, ...]:
    """Return the blueprints of a topology, ordered by value; raise ``ValueError`` if it has none."""
    if not isinstance(topology, str) or topology not in _REGISTRY:
        hint = did_you_mean(topology, _REGISTRY)
        raise ValueError(f"topology {topology!r} has no blueprints; expected one of {sorted(_REGISTRY)}{hint}")
    entries = _REGISTRY[topology]
    return tuple(entries[value] for value in sorted(entries))


def blueprint_entry(blueprint: int | str, topology: str) -> BlueprintEntry:
    """Return the blueprint of a topology with a name or a value; raise ``ValueError`` if there is none."""
    known = isinstance(blueprint, str | int | np.integer) and not isinstance(blueprint, bool)
    for entry in offered_blueprints(topology):
        if known and blueprint in (entry.name, entry.value):
            return entry
    names = [entry.name for entry in offered_blueprints(topology)]
    raise ValueError(
        f"blueprint {blueprint!r} does not fit a {topology} host; expected one of {', '.join(names)}"
        f"{did_you_mean(blueprint, names)}"
    )
