"""Seeds: blueprints by topology, and operators that blend seeds into a host."""

from esper_env.seeds import cnn as _cnn  # registers the CNN blueprints
from esper_env.seeds import transformer as _transformer  # and those for Transformers
from esper_env.seeds.registry import (
    BlueprintEntry,
    blueprint_entry,
    offered_blueprints,
    register_blueprint,
    register_topology,
    unregister_blueprint,
)

__all__ = [
    "BlueprintEntry",
    "blueprint_entry",
    "offered_blueprints",
    "register_blueprint",
    "register_topology",
    "unregister_blueprint",
]

del _cnn, _transformer
