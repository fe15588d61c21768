"""The state of an environment: everything its future depends on, in named parts.

Each part knows how to take its share of the state and how to prepare putting one back. To prepare is to check
everything and change nothing; only when every part is prepared does any of them change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from esper_env.persistence.tree import Arrays, Tree, arrays_of, split_tree
from esper_env.rules import lifecycle
from esper_env.rules.slot_table import SlotTable
from esper_env.tasks import TaskConfig, task_dict

#: Version of the layout of a state.
FORMAT = 3
#: Kind of the checkpoints that hold one.
KIND = "esper environment"
#: Where and how fast a task runs, not what it does; of the data, a digest is compared.
_FREE = frozenset({"dataset", "data_dir", "device", "shard_size", "auto_shard_size", "capture"})

Commit = Callable[[], None]


class Part(NamedTuple):
    """A named share of the state: ``take`` copies it; ``prepare`` checks one, given it and the whole state.

    ``prepare`` raises ``ValueError`` or returns what puts the share in place, which then cannot fail.
    """

    take: Callable[[], Tree]
    prepare: Callable[[Tree, Tree], Commit]


class Stateful(Protocol):
    """An object that keeps arrays and checks what it is given."""

    def get_state(self) -> dict[str, Any]:
        """Copies of the arrays."""
        ...

    def set_state(self, state: Any) -> None:
        """Take copies of such arrays, or raise ``ValueError``."""
        ...


def object_part(name: str, owner: Stateful) -> Part:
    """The share of an object with a state of its own; a copy of it tries what the object is given."""

    def prepare(state: Tree, _: Tree) -> Commit:
        arrays_of(state, name)
        try:
            copy.deepcopy(owner).set_state(state)
        except TypeError as error:
            raise ValueError(f"{name} of the state is not made as it should be: {error}") from error
        return lambda: owner.set_state(state)

    return Part(owner.get_state, prepare)


def attributes_part(
    name: str, owner: object, attributes: Mapping[str, str], check: Callable[[Arrays], None] | None = None
) -> Part:
    """The arrays in some attributes of ``owner``: {name in the state: attribute}; ``check`` may refuse them."""

    def take() -> Tree:
        return {key: getattr(owner, attribute).copy() for key, attribute in attributes.items()}

    def prepare(state: Tree, _: Tree) -> Commit:
        given = arrays_of(state, name)
        check_arrays(name, given, {key: getattr(owner, attribute) for key, attribute in attributes.items()})
        if check is not None:
            check(given)

        def commit() -> None:
            for key, attribute in attributes.items():
                setattr(owner, attribute, given[key].copy())

        return commit

    return Part(take, prepare)


def table_part(name: str, table: SlotTable) -> Part:
    """The columns of a slot table."""

    def check(columns: Arrays) -> None:
        try:
            lifecycle.validate(SlotTable(**columns))
        except ValueError as error:
            raise ValueError(f"{name} of the state: {error}") from error

    return attributes_part(name, table, {column.name: column.name for column in fields(SlotTable)}, check)


def check_arrays(what: str, given: Mapping[str, NDArray[Any]], like: Mapping[str, NDArray[Any]]) -> None:
    """``ValueError`` unless ``given`` has the names, shapes and dtypes of ``like``."""
    if given.keys() != like.keys():
        missing, extra = sorted(like.keys() - given.keys()), sorted(given.keys() - like.keys())
        raise ValueError(f"{what} of the state lacks {missing[:5]} and has {extra[:5]}, which are not known")
    for key, own in like.items():
        if given[key].shape != own.shape or given[key].dtype != own.dtype:
            raise ValueError(
                f"{what} of the state: {key!r} is {given[key].dtype} {given[key].shape}; "
                f"expected {own.dtype} {own.shape}"
            )


def task_identity(task: TaskConfig) -> Tree:
    """The numbers of a task that decide what happens, as plain JSON values."""
    return {name: _plain(value) for name, value in task_dict(task).items() if name not in _FREE}


def take_state(parts: Mapping[str, Part], identity: Tree) -> Tree:
    """A state: its format, the identity of the environment, and what each part holds. All copies."""
    return {"format": FORMAT, "identity": identity, **{name: part.take() for name, part in parts.items()}}


def put_state(parts: Mapping[str, Part], identity: Tree, state: Tree) -> None:
    """Put a state back, all or nothing.

    Raises ``ValueError`` when it is not one, was taken from an environment of another identity, or has a part that
    cannot be.
    """
    if not isinstance(state, dict) or not isinstance(state.get("identity"), dict):
        raise ValueError("this is not the state of an environment; expected what get_state returns")
    if type(state.get("format")) is not int or state["format"] != FORMAT:
        raise ValueError(
            f"the state has format {state.get('format')!r}; this version of esper-env knows format {FORMAT}. "
            "Use the version that it was taken with"
        )
    _check_identity(state["identity"], identity)
    expected = {"format", "identity", *parts}
    if state.keys() != expected:
        raise ValueError(f"the state has the parts {sorted(state)}; expected {sorted(expected)}")
    commits = [part.prepare(state[name], state) for name, part in parts.items()]
    for commit in commits:
        commit()


def _check_identity(found: Tree, own: Tree) -> None:
    try:
        found, arrays = split_tree(found)
    except ValueError as error:
        raise ValueError(f"identity of the state: {error}") from error
    if arrays:
        raise ValueError(f"identity of the state: {sorted(arrays)} are arrays; expected JSON values")
    differing = [
        f"{name} is {found.get(name, 'missing')!r} in the state and {own.get(name, 'unknown')!r} here"
        for name in sorted(found.keys() | own.keys())
        if name not in found or name not in own or found[name] != own[name]
    ]
    if differing:
        other_data = "data_digest" in found and found["data_digest"] != own.get("data_digest")
        what = "on other data (a file that has changed since, or another one), so " if other_data else ""
        raise ValueError(
            f"the state was taken {what}from another environment: {'; '.join(differing)}. "
            "Make the environment with the state's values, or take the state from one like this"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
