"""Actions from names, and actions in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.checks import array_of
from esper_env.rules.heads import (
    HEAD_DEFAULTS,
    HEAD_NAMES,
    HEAD_RELEVANCE,
    HEAD_VALUES,
    NUM_HEADS,
    Blueprint,
    Head,
    Op,
    meaning,
)
from esper_env.suggestions import did_you_mean, shown

#: Op -> the heads that it reads, besides the op itself.
READ_HEADS: dict[Op, tuple[Head, ...]] = {
    op: tuple(head for head in Head if head != Head.OP and HEAD_RELEVANCE[op, head]) for op in Op
}
#: Heads without a default. SET_ALPHA_TARGET replaces the operator of a seed with the style's.
_REQUIRED: dict[Op, set[Head]] = {
    op: {Head.SLOT, Head.BLUEPRINT} | ({Head.STYLE, Head.ALPHA_TARGET} if op is Op.SET_ALPHA_TARGET else set())
    for op in Op
}
_STANDARD = {value.value: value.name.lower() for value in Blueprint if value is not Blueprint.NOOP}
_MEANINGS = {(HEAD_NAMES[head], value.name): meaning(value) for head, values in HEAD_VALUES.items() for value in values}


class ActionNames:
    """Names of the values of an action, for one environment or for any environment.

    Args:
        slot_ids: ids of the slots in action order; None for "r0c0", "r0c1", ..., as in a host with one row of slots.
        blueprints: names of the blueprints by value; None for the standard blueprints.
    """

    def __init__(self, slot_ids: Sequence[str] | None = None, blueprints: Mapping[int, str] | None = None) -> None:
        self._slot_ids = None if slot_ids is None else tuple(slot_ids)
        self.blueprints = dict(_STANDARD if blueprints is None else blueprints)
        self._values = {head: {value.value: value.name for value in values} for head, values in HEAD_VALUES.items()}
        self._values[Head.BLUEPRINT] = self.blueprints
        self._any_blueprint = blueprints is None

    def slot(self, value: int) -> str:
        """Return the id of a slot."""
        return f"r0c{value}" if self._slot_ids is None else self._slot_ids[value]

    def action(self, op: object, **arguments: object) -> NDArray[np.int64]:
        """Return the action (8,) of an op with arguments by the name of the head; None stands for an omitted argument.

        Values are names in any case, integers of the head, or members of the head's enum.

        Raises:
            TypeError: an argument that the op does not read, or one that it needs and that is missing.
            ValueError: a value that the head does not have.
        """
        chosen = Op(self._value(Head.OP, op))
        given = {Head[name.upper()]: value for name, value in arguments.items() if value is not None}
        reads = READ_HEADS[chosen]
        reading = ", ".join(HEAD_NAMES[head] for head in reads) or "no arguments"
        for head in given:
            if head not in reads:
                raise TypeError(f"{chosen.name} got an unexpected argument '{HEAD_NAMES[head]}'; it takes {reading}")
        missing = [HEAD_NAMES[head] for head in reads if head in _REQUIRED[chosen] and head not in given]
        if missing:
            raise TypeError(f"{chosen.name} is missing {', '.join(map(repr, missing))}; it takes {reading}")
        action = np.array(HEAD_DEFAULTS, dtype=np.int64)
        action[Head.OP] = chosen
        for head, value in given.items():
            action[head] = self._value(head, value)
        return action

    def arguments(self, action: Sequence[int]) -> dict[str, str]:
        """Return the names of the values that the op of an action (8,) reads, by the name of the head."""
        return {
            HEAD_NAMES[head]: self.slot(action[head]) if head is Head.SLOT else self._values[head][action[head]]
            for head in READ_HEADS[Op(action[Head.OP])]
        }

    def describe(self, action: ArrayLike) -> str:
        """Return an action (8,) in words; raise ``ValueError`` if it is not one."""
        array = array_of(action)
        if array.shape != (NUM_HEADS,) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"action is {shown(action)}; expected {NUM_HEADS} integers ({', '.join(HEAD_NAMES)})")
        values: list[int] = array.tolist()
        for head in (Head.OP, *READ_HEADS[Op(self._value(Head.OP, values[Head.OP]))]):
            self._value(head, values[head])
        return describe_command(Op(values[Head.OP]).name, self.arguments(values))

    def _value(self, head: Head, given: object) -> int:
        """Return the integer of a head's value by name, integer or member."""
        name, known = HEAD_NAMES[head], self._known(head)
        if isinstance(given, str):
            if head is Head.SLOT and self._slot_ids is None and (number := re.fullmatch(r"r0c(\d+)", given.lower())):
                return int(number[1])
            for value, text in known.items():
                if text.lower() == given.lower():
                    return value
        elif isinstance(given, int | np.integer) and not isinstance(given, bool):
            own = not isinstance(given, Enum) or isinstance(given, HEAD_VALUES.get(head, int))
            if own and (given in known or (head is Head.SLOT and self._slot_ids is None and given >= 0)):
                return int(given)
        raise ValueError(
            f"`{name}` is {shown(given)}; expected {self._expected(head)}{did_you_mean(given, known.values())}"
        )

    def _known(self, head: Head) -> dict[int, str]:
        return dict(enumerate(self._slot_ids or ())) if head is Head.SLOT else self._values[head]

    def _expected(self, head: Head) -> str:
        if head is Head.SLOT and self._slot_ids is None:
            return "'r0c0', 'r0c1', ... or the number of a slot; pass env=... for a host with several rows of slots"
        known = ", ".join(f"{text!r} {value}" for value, text in self._known(head).items())
        custom = "; pass env=... for custom blueprints" if head is Head.BLUEPRINT and self._any_blueprint else ""
        return f"one of {known}{custom}"


def describe_command(op: str, arguments: Mapping[str, str]) -> str:
    """Return an op and the names of its arguments in words.

    For example "GERMINATE norm in r0c0: style SIGMOID_ADD, tempo FAST (3 epochs), alpha_target FULL (1)".
    """
    place = arguments.get("slot", "")
    if "blueprint" in arguments:
        place = f"{arguments['blueprint']} in {place}"
    rest = [
        f"{head} {value}{_MEANINGS.get((head, value), '')}"
        for head, value in arguments.items()
        if head not in ("slot", "blueprint")
    ]
    return f"{op} {place}".strip() + (f": {', '.join(rest)}" if rest else "")
