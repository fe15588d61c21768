"""Registry of blueprints by topology."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from esper_env.checks import is_whole
from esper_env.rules.heads import NUM_BLUEPRINTS, Blueprint
from esper_env.suggestions import did_you_mean, shown

#: Builds a shape-preserving module for features of the given number of channels (or width).
BlueprintFactory = Callable[[int], nn.Module]


@dataclass(frozen=True, eq=False)
class BlueprintEntry:
    """Registered blueprint: its name, its value of the blueprint head and its factory."""

    name: str
    value: int
    factory: BlueprintFactory
    batched: bool = True  # False: only for environments that run every network stand-alone
    built_in: bool = False

    def build(self, channels: int) -> nn.Module:
        """Return a new module for features of ``channels`` channels.

        Raises ``ValueError`` if the factory fails, or returns anything but a module with parameters.
        """
        try:
            module: object = self.factory(channels)
        except Exception as error:
            count = f"{channels} channel{'s' * (channels > 1)}"
            raise ValueError(
                f"the factory of blueprint {self.name!r} fails for {count} ({error}); expected a function "
                "from the number of channels to a torch.nn.Module"
            ) from error
        if not isinstance(module, nn.Module) or not any(True for _ in module.parameters()):
            raise ValueError(
                f"blueprint {self.name!r} makes {module!r}; expected a torch.nn.Module with parameters to train: "
                "change the blueprint's factory"
            )
        return module


#: Shapes by topology, and custom blueprints by topology and value.
CustomRegistry = tuple[dict[str, tuple[tuple[int, ...], ...]], dict[str, dict[int, BlueprintEntry]]]

_REGISTRY: dict[str, dict[int, BlueprintEntry]] = {"cnn": {}, "transformer": {}}
#: Shapes of the features on which a topology's blueprints are tried: (channels, height, width) or (length, width).
_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "cnn": ((8, 4, 4), (4, 8, 8), (1, 5, 6)),
    "transformer": ((16, 8), (9, 32)),
}


def register_topology(topology: str, *shapes: Sequence[int]) -> None:
    """Introduce a topology: a kind of custom hosts with its own blueprints.

    Registering the same topology again with the same shapes changes nothing.

    Args:
        topology: name, which hosts have as their attribute ``topology``.
        *shapes: shapes of a sample's features, (channels, height, width) or (length, width). Blueprints are tried on
            features of each shape when they are registered.

    Raises:
        ValueError: the name is taken with other shapes, or differs only in case from a known one.
        TypeError: the name is not a string, no shape is given, or a shape is not two or three positive integers.
    """
    _require_text("topology", topology)
    if not shapes:
        raise TypeError("register_topology got no shape; expected (channels, height, width) or (length, width)")
    for shape in shapes:
        if not isinstance(shape, Sequence) or len(shape) not in (2, 3) or not all(is_whole(size, 1) for size in shape):
            raise TypeError(f"shape is {shown(shape)}; expected (channels, height, width) or (length, width)")
    wanted = tuple(tuple(int(size) for size in shape) for shape in shapes)
    known = next((name for name in _SHAPES if name.lower() == topology.lower()), topology)
    if known != topology:
        raise ValueError(f"topology {topology!r} differs only in case from {known!r}; choose another name")
    if _SHAPES.get(topology, wanted) != wanted:
        tried = ", ".join(map(str, _SHAPES[topology]))
        raise ValueError(f"topology {topology!r} is already registered with other shapes: {tried}")
    _SHAPES[topology] = wanted
    _REGISTRY.setdefault(topology, {})


def register_blueprint(
    name: str,
    topology: str,
    factory: BlueprintFactory,
    *,
    value: int | None = None,
    batched: bool = True,
    replace: bool = False,
) -> BlueprintEntry:
    """Offer a blueprint on every host of a topology, in environments that are made afterwards.

    The blueprint is first built and run on small features of the topology, of several shapes, in every layout that
    would run it. It must work for any number of channels (or width).

    Args:
        name: name in this topology.
        topology: kind of host: "cnn", "transformer" or one from :func:`register_topology`.
        factory: function from the number of channels (or the width) to a module that keeps the shape of its input.
        value: value of the blueprint head. By default a standard name has the value of its
            :class:`~esper_env.rules.heads.Blueprint`, a replaced blueprint keeps its value, and any other has the
            highest free value of the topology.
        batched: False for a module that ``torch.func.vmap`` cannot run. It is offered only in environments that run
            every network stand-alone: tasks with ``auto_shard_size=1``, made with ``shard_size=1``.
        replace: True to replace a custom blueprint of this name. Existing environments keep the old blueprint.

    Raises:
        ValueError: the name or value is taken in this topology, no value is left, the topology is not known, or the
            blueprint does not work.
        TypeError: the name or topology is not a string, or the factory is not callable.
    """
    _require_text("name", name)
    _require_text("topology", topology)
    if not callable(factory):
        raise TypeError(
            f"the factory of blueprint {name!r} is {factory!r}; expected a function from the number of channels to a "
            "torch.nn.Module"
        )
    if topology not in _REGISTRY:
        raise ValueError(
            f"topology {topology!r} of blueprint {name!r} is not known; expected one of "
            f"{', '.join(map(repr, _REGISTRY))}, or a new one from esper_env.register_topology"
            f"{did_you_mean(topology, _REGISTRY)}"
        )
    old = next((entry for entry in _REGISTRY[topology].values() if entry.name.lower() == name.lower()), None)
    if old is not None:
        _check_replaceable(old, name, topology, replace)
    entries = {taken: entry for taken, entry in _REGISTRY[topology].items() if entry is not old}
    entry = BlueprintEntry(name, _free_value(name, topology, value, entries, old), factory, batched)
    from esper_env.population.blueprint_check import check_blueprint  # needs this module

    for shape in _SHAPES[topology]:
        check_blueprint(entry, shape)
    _REGISTRY[topology] = {**entries, entry.value: entry}
    return entry


def unregister_blueprint(name: str, topology: str) -> None:
    """Remove a custom blueprint: environments that are made afterwards do not offer it, and its value is free.

    Existing environments keep it.

    Raises:
        ValueError: the topology has no such blueprint, or it belongs to the package.
    """
    names = {entry.name: entry for entry in offered_blueprints(topology)}
    if name not in names:
        custom = [entry.name for entry in names.values() if not entry.built_in]
        raise ValueError(
            f"blueprint {shown(name)} is not registered for topology {topology!r}; the custom ones are "
            f"{', '.join(custom) or 'none'}{did_you_mean(name, custom)}"
        )
    entry = names[name]
    if entry.built_in:
        raise ValueError(f"blueprint {entry.name!r} belongs to the package and cannot be unregistered")
    del _REGISTRY[topology][entry.value]


def add_built_in(blueprint: Blueprint, topology: str, factory: BlueprintFactory) -> None:
    """Register a standard blueprint of the package, without a trial."""
    _REGISTRY[topology][blueprint] = BlueprintEntry(blueprint.name.lower(), int(blueprint), factory, built_in=True)


def custom_registry() -> CustomRegistry:
    """Return the topologies with their shapes, and the custom blueprints, for :func:`restore_registry`."""
    custom = {
        topology: {value: entry for value, entry in entries.items() if not entry.built_in}
        for topology, entries in _REGISTRY.items()
    }
    return dict(_SHAPES), custom


def restore_registry(registry: CustomRegistry) -> None:
    """Replace the topologies and custom blueprints, without a trial."""
    shapes, custom = registry
    built_in = {
        topology: {value: entry for value, entry in entries.items() if entry.built_in}
        for topology, entries in _REGISTRY.items()
    }
    _SHAPES.clear()
    _SHAPES.update(shapes)
    _REGISTRY.clear()
    _REGISTRY.update({topology: built_in.get(topology, {}) | entries for topology, entries in custom.items()})


def offered_blueprints(topology: str, *, batched: bool = False) -> tuple[BlueprintEntry, ...]:
    """Return the blueprints of a topology, ordered by value.

    Args:
        topology: kind of host.
        batched: True to leave out blueprints that only run in stand-alone networks.

    Raises:
        ValueError: no blueprint matches.
    """
    with_blueprints = [name for name, entries in _REGISTRY.items() if entries]
    if not isinstance(topology, str) or topology not in with_blueprints:
        hint = did_you_mean(topology, with_blueprints)
        raise ValueError(
            f"topology {topology!r} has no blueprints; expected one of {sorted(with_blueprints)}, or one for which "
            f"esper_env.register_blueprint has registered a blueprint{hint}"
        )
    entries = _REGISTRY[topology]
    offered = tuple(entries[value] for value in sorted(entries) if entries[value].batched or not batched)
    if not offered:
        raise ValueError(
            f"topology {topology!r} has only blueprints that run in stand-alone networks; make the environment with "
            "auto_shard_size=1 and shard_size=1, or register a blueprint that torch.func.vmap can run"
        )
    return offered


def registered_names() -> dict[int, str]:
    """Return the names of each registered value of the blueprint head, of all topologies: "flex_attention/mixer"."""
    names: dict[int, list[str]] = {}
    for entries in _REGISTRY.values():
        for value, entry in entries.items():
            if entry.name not in names.setdefault(value, []):
                names[value].append(entry.name)
    return {value: "/".join(names[value]) for value in sorted(names)}


def blueprint_entry(
    blueprint: int | str, topology: str, offered: Iterable[BlueprintEntry] | None = None
) -> BlueprintEntry:
    """Return the blueprint of a topology with a name or a value.

    Args:
        blueprint: name or value.
        topology: kind of host.
        offered: blueprints to choose from; by default all that are registered for the topology.

    Raises:
        ValueError: no blueprint matches.
    """
    entries = tuple(offered_blueprints(topology) if offered is None else offered)
    found = _find(blueprint, entries)
    if found is not None:
        return found
    problem = f"does not fit a {topology} host"
    registered = _find(blueprint, _REGISTRY.get(topology, {}).values())
    if registered is not None:
        problem = "was registered after this environment was made"
        if not registered.batched:
            problem += ", or only runs in environments that run every network stand-alone"
    names = [entry.name for entry in entries]
    raise ValueError(
        f"blueprint {blueprint!r} {problem}; expected one of {', '.join(names)}{did_you_mean(blueprint, names)}"
    )


def _find(blueprint: object, entries: Iterable[BlueprintEntry]) -> BlueprintEntry | None:
    """Return the entry with a name or a value."""
    known = isinstance(blueprint, str | int | np.integer) and not isinstance(blueprint, bool)
    return next((entry for entry in entries if known and blueprint in (entry.name, entry.value)), None)


def _require_text(what: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise TypeError(f"the blueprint's {what} is {shown(text)}; expected a text such as 'conv_light' or 'cnn'")


def _check_replaceable(old: BlueprintEntry, name: str, topology: str, replace: bool) -> None:
    if old.built_in:
        reason = "belongs to the package and cannot be replaced"
    elif old.name != name:
        reason = "differs only in case"
    elif not replace:
        raise ValueError(
            f"blueprint {name!r} is already registered for topology {topology!r}; choose another name, or pass "
            "replace=True"
        )
    else:
        return
    raise ValueError(f"blueprint {old.name!r} of topology {topology!r} {reason}; choose another name than {name!r}")


def _free_value(
    name: str, topology: str, value: int | None, entries: dict[int, BlueprintEntry], old: BlueprintEntry | None
) -> int:
    """Return the value of a new blueprint beside ``entries``, replacing ``old``."""
    if value is None and old is not None:
        return old.value
    if value is None and name.upper() in Blueprint.__members__:
        value = int(Blueprint[name.upper()])
    elif value is None:
        value = max(set(range(1, NUM_BLUEPRINTS)) - entries.keys(), default=None)
        if value is None:
            custom = ", ".join(repr(entry.name) for entry in entries.values() if not entry.built_in)
            raise ValueError(
                f"blueprint {name!r} exceeds the {NUM_BLUEPRINTS - 1} that a topology may have; unregister one of "
                f"{custom} with esper_env.unregister_blueprint, or register a topology for your own hosts"
            )
    if not is_whole(value, least=1) or value >= NUM_BLUEPRINTS:
        raise ValueError(f"blueprint value {value!r} is out of range; expected 1 to {NUM_BLUEPRINTS - 1}")
    if value in entries:
        raise ValueError(f"blueprint value {value} is taken by {entries[value].name!r} in topology {topology!r}")
    return value
