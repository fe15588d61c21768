"""The open registry of blueprints: what a seed can be made from, by topology."""

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
    """A registered blueprint: its name, the value of the blueprint head, and how to build it."""

    name: str
    value: int
    factory: BlueprintFactory

    def build(self, channels: int) -> nn.Module:
        """A module of the factory. ``ValueError`` when that fails, makes something else, or nothing that can learn."""
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
    """Offer a kind of seed on every host of a topology ("cnn", "transformer").

    ``value`` is its value in the blueprint head: that of :class:`~esper_env.rules.heads.Blueprint` for a standard
    name, otherwise the highest one that the topology does not use yet.

    Raises:
        ValueError: the name or the value is taken in this topology, or no value is left; or the topology differs from
            one that has blueprints in the case of its letters alone.
        TypeError: a name or topology that is no text, a factory that cannot be called.
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
            raise ValueError(f"topology {topology!r} of blueprint {name!r} is spelled {known!r}; write it so")
    entries = _REGISTRY.get(topology, {})
    if any(entry.name == name for entry in entries.values()):
        raise ValueError(f"blueprint {name!r} is already registered for topology {topology!r}; choose another name")
    if value is None:
        value = _free_value(name, entries)
    if not is_whole(value, least=1) or value >= NUM_BLUEPRINTS:
        raise ValueError(f"blueprint value {value!r} is out of range; expected 1 to {NUM_BLUEPRINTS - 1}")
    if value in entries:
        raise ValueError(f"blueprint value {value} is taken by {entries[value].name!r} in topology {topology!r}")
    entry = BlueprintEntry(name, value, factory)
    _REGISTRY.setdefault(topology, {})[value] = entry
    return entry


def _free_value(name: str, entries: dict[int, BlueprintEntry]) -> int:
    if name.upper() in Blueprint.__members__:
        return int(Blueprint[name.upper()])
    free = [value for value in range(NUM_BLUEPRINTS - 1, 0, -1) if value not in entries]
    if not free:
        raise ValueError(f"no value of the blueprint head is left for {name!r}; it has {NUM_BLUEPRINTS - 1} in all")
    return free[0]


def offered_blueprints(topology: str) -> tuple[BlueprintEntry, ...]:
    """Blueprints of a topology, by head value.

    Raises:
        ValueError: no blueprint is registered for it.
    """
    if topology not in _REGISTRY:
        hint = did_you_mean(topology, _REGISTRY)
        raise ValueError(f"topology {topology!r} has no blueprints; known: {sorted(_REGISTRY)}{hint}")
    entries = _REGISTRY[topology]
    return tuple(entries[value] for value in sorted(entries))


def blueprint_entry(blueprint: int | str, topology: str) -> BlueprintEntry:
    """The entry of a head value or a name.

    Raises:
        ValueError: the topology does not offer it.
    """
    known = isinstance(blueprint, str | int | np.integer) and not isinstance(blueprint, bool)
    for entry in offered_blueprints(topology):
        if known and blueprint in (entry.name, entry.value):
            return entry
    names = [entry.name for entry in offered_blueprints(topology)]
    hint = _where_registered(blueprint) or did_you_mean(blueprint, names)
    complaint = f"blueprint {blueprint!r} does not fit a {topology} host"
    raise ValueError(f"{complaint}; expected one of {', '.join(names)}{hint}")


def _where_registered(name: object) -> str:
    """The end of an error: the topologies that have a blueprint of this name, or nothing."""
    names = {topology: [entry.name for entry in entries.values()] for topology, entries in _REGISTRY.items()}
    places = [topology for topology in names if isinstance(name, str) and name in names[topology]]
    listed = " and ".join(map(repr, sorted(places)))
    return f"; this name is registered for topology {listed}, of other hosts" if places else ""
