"""Trees of arrays and JSON values, the states made of them, and the files that hold states."""

from esper_env.persistence.atomic import check_folder, check_writable, replaced, sync, write_text
from esper_env.persistence.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from esper_env.persistence.state import (
    Accessors,
    Attributes,
    Stateful,
    check_keys,
    check_like,
    describe,
    get_states,
    restore,
    set_states,
)
from esper_env.persistence.tree import Tree

__all__ = [
    "Accessors",
    "Attributes",
    "CheckpointError",
    "Stateful",
    "Tree",
    "check_folder",
    "check_keys",
    "check_like",
    "check_writable",
    "describe",
    "get_states",
    "read_checkpoint",
    "replaced",
    "restore",
    "set_states",
    "sync",
    "write_checkpoint",
    "write_text",
]
