"""Legality of actions: one array, from which masks, decoding and sampling follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.rules.heads import (
    HEAD_DEFAULTS,
    HEAD_NAMES,
    HEAD_RELEVANCE,
    NUM_BLUEPRINTS,
    NUM_HEADS,
    NUM_OPS,
    Head,
    Op,
    head_sizes,
)
from esper_env.rules.lifecycle import GATED_TARGET, CommandBatch
from esper_env.rules.slot_table import HOLD, BoolArray, IntArray, SlotTable
from esper_env.rules.stages import IS_LIVE, Stage

MaskArray = NDArray[np.int8]


def _legal_from() -> BoolArray:
    table: BoolArray = np.ascontiguousarray(GATED_TARGET.T != Stage.UNKNOWN)
    table[:, Op.WAIT] = True
    table[:, Op.PRUNE] = IS_LIVE
    table[[Stage.BLENDING, Stage.HOLDING], Op.SET_ALPHA_TARGET] = True
    return table


_LEGAL_FROM = _legal_from()  # (stage values, ops): the stages in which an op makes sense
_DEFAULTS = np.asarray(HEAD_DEFAULTS, dtype=np.int64)


class ActionRules:
    """Legality, masks and decoding for a number of slots and a set of blueprints.

    Args:
        num_slots: number of slots.
        offered_blueprints: values of the blueprint head that GERMINATE accepts.
        max_seeds: seeds that a network holds at a time, committed ones included.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, num_slots: int, offered_blueprints: Sequence[int], max_seeds: int) -> None:
        self.nvec = head_sizes(num_slots)
        self.num_slots = num_slots
        if not 1 <= max_seeds <= num_slots:
            raise ValueError(f"max_seeds is {max_seeds}; expected 1 to {num_slots}, the number of slots")
        self.max_seeds = max_seeds
        self.offered = _offered(offered_blueprints)
        self._is_offered = np.isin(np.arange(NUM_BLUEPRINTS), self.offered)
        self._head_of_column = np.repeat(np.arange(NUM_HEADS), self.nvec)
        self._when_read = np.concatenate(_open_masks(self.nvec, self.offered)).astype(np.int8)
        self._when_unread = np.concatenate(_default_masks(self.nvec)).astype(np.int8)

    def legal(self, table: SlotTable) -> BoolArray:
        """Return a bool array (N, 6, S), True where (op, slot) is legal. WAIT always is."""
        if table.shape[1] != self.num_slots:
            raise ValueError(f"the table has {table.shape[1]} slots; expected {self.num_slots}")
        legal = np.ascontiguousarray(_LEGAL_FROM[table.stage].transpose(0, 2, 1))
        has_room = table.has_seed.sum(axis=1) < self.max_seeds
        settled = table.alpha_mode == HOLD
        legal[:, Op.GERMINATE] &= has_room[:, None]
        legal[:, Op.PRUNE] &= settled & (table.age >= 1)
        legal[:, Op.SET_ALPHA_TARGET] &= settled
        return legal

    def marginal(self, legal: BoolArray) -> MaskArray:
        """Return the marginal masks (N, sum(nvec)).

        A value is on if some legal action uses it. A head that no legal op reads has its default on.
        """
        possible: BoolArray = np.any(legal, axis=2)  # (N, 6)
        read: BoolArray = np.any(possible[:, :, None] & HEAD_RELEVANCE, axis=1)  # (N, 8)
        masks = np.where(read[:, self._head_of_column], self._when_read, self._when_unread)
        slots = (legal & HEAD_RELEVANCE[:, Head.SLOT, None]).any(axis=1)
        np.copyto(masks[:, : self.num_slots], slots, where=read[:, Head.SLOT, None])
        masks[:, -NUM_OPS:] = possible
        return masks

    def op_slot(self, legal: BoolArray) -> MaskArray:
        """Return the legality array as int8, flattened to (N, 6 S)."""
        return legal.reshape(len(legal), -1).astype(np.int8)

    def decode(self, actions: ArrayLike, table: SlotTable) -> CommandBatch:
        """Decode integer actions (N, 8); an illegal action becomes an invalid WAIT.

        Raises:
            ValueError: the shape is wrong, or a value is not an integer or outside its head.
        """
        requested = self._checked(actions, table.shape[0])
        rows = np.arange(len(requested))
        op, slot = requested[:, Head.OP], requested[:, Head.SLOT]
        valid = self.legal(table)[rows, op, slot]
        valid &= (op != Op.GERMINATE) | self._is_offered[requested[:, Head.BLUEPRINT]]
        effective = np.where(valid, op, Op.WAIT)
        heads = np.where(HEAD_RELEVANCE[effective], requested, _DEFAULTS)
        heads[:, Head.OP] = effective
        return CommandBatch(
            **{name: heads[:, head] for head, name in enumerate(HEAD_NAMES)},
            valid=valid,
            requested_op=op,
        )

    def _checked(self, actions: ArrayLike, num_envs: int) -> IntArray:
        try:
            array = np.asarray(actions)
        except ValueError:  # rows of unequal length
            raise ValueError(
                f"actions are {actions!r}; expected ({num_envs}, {NUM_HEADS}) integers, rows of one length"
            ) from None
        if array.shape != (num_envs, NUM_HEADS):
            raise ValueError(
                f"actions have shape {array.shape}; expected ({num_envs}, {NUM_HEADS}): one row per environment, "
                f"one column per head ({', '.join(HEAD_NAMES)})"
            )
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"actions have dtype {array.dtype}; expected integers such as int64")
        outside = (array < 0) | (array >= np.asarray(self.nvec))
        if outside.any():
            env, head = np.argwhere(outside)[0]
            raise ValueError(
                f"action of environment {env} has {array[env, head]} for head {HEAD_NAMES[head]}; "
                f"expected 0 to {self.nvec[head] - 1}"
            )
        return array.astype(np.int64)


def _offered(blueprints: Sequence[int]) -> tuple[int, ...]:
    offered = tuple(int(value) for value in blueprints)
    sound = all(0 < value < NUM_BLUEPRINTS for value in offered)
    if not offered or not sound or len(set(offered)) < len(offered):
        raise ValueError(
            f"offered blueprints are {list(offered)}; expected one or more distinct values from 1 to "
            f"{NUM_BLUEPRINTS - 1}"
        )
    return offered


def _open_masks(nvec: Sequence[int], offered: Sequence[int]) -> list[MaskArray]:
    """Return, per head, the values for ops that read it; the legality array narrows slot and op."""
    masks = [np.ones(size, dtype=np.int8) for size in nvec]
    masks[Head.BLUEPRINT][:] = np.isin(np.arange(nvec[Head.BLUEPRINT]), np.asarray(offered))
    return masks


def _default_masks(nvec: Sequence[int]) -> list[MaskArray]:
    """Return, per head, the default alone."""
    return [(np.arange(size) == default).astype(np.int8) for size, default in zip(nvec, HEAD_DEFAULTS, strict=True)]


def split_mask(flat_mask: NDArray[np.generic], nvec: Sequence[int]) -> tuple[MaskArray, ...]:
    """Split a flat mask (sum(nvec),) into int8 arrays per head, as ``MultiDiscrete.sample(mask=...)`` takes them."""
    flat = np.asarray(flat_mask)
    if flat.shape != (sum(nvec),):
        raise ValueError(f"the mask has shape {flat.shape}; expected ({sum(nvec)},) for heads of sizes {tuple(nvec)}")
    parts = np.split(flat.astype(np.int8), np.cumsum(nvec)[:-1])
    return tuple(parts)


def conditional_masks(legal_row: BoolArray, op: int, offered: Sequence[int]) -> tuple[MaskArray, ...]:
    """Return int8 masks of the eight heads given the op. Any combination of values that are on is legal.

    A head that the op does not read has its default on.

    Args:
        legal_row: (6, S) legality array of one environment.
        op: member of ``Op`` or its number.
        offered: values of the blueprint head that GERMINATE accepts.

    Raises:
        ValueError: ``op`` is not an op, or is not legal in any slot.
    """
    if isinstance(op, bool) or not isinstance(op, int | np.integer) or not 0 <= op < NUM_OPS:
        known = ", ".join(f"{other.name} {other.value}" for other in Op)
        raise ValueError(f"op is {op!r}; expected a member of esper_env.rules.heads.Op or its number: {known}")
    if not legal_row[op].any():
        possible = ", ".join(other.name for other in Op if legal_row[other].any())
        raise ValueError(f"{Op(op).name} is not legal in any slot now; legal ops are {possible}")
    nvec = head_sizes(legal_row.shape[1])
    masks = [
        when_read if relevant else default
        for when_read, default, relevant in zip(
            _open_masks(nvec, offered), _default_masks(nvec), HEAD_RELEVANCE[op], strict=True
        )
    ]
    if HEAD_RELEVANCE[op, Head.SLOT]:
        masks[Head.SLOT] = legal_row[op].astype(np.int8)
    masks[Head.OP] = (np.arange(NUM_OPS) == op).astype(np.int8)
    return tuple(masks)


def _pick(options: BoolArray, rng: np.random.Generator) -> IntArray:
    """Draw an index (N,) uniformly among the True entries of each row of ``options`` (N, K)."""
    scores = rng.random(options.shape)
    picked: IntArray = np.where(options, scores, -1.0).argmax(axis=1)
    return picked


def sample_valid_actions(legal: BoolArray, rng: np.random.Generator, offered: Sequence[int]) -> IntArray:
    """Draw legal actions (N, 8) for the legality array ``legal`` (N, 6, S).

    The op is uniform over the legal ops, and the slot over those where the op is legal. Other heads that the op reads
    are uniform over their values, and the rest are at their defaults.
    """
    num_envs, _, num_slots = legal.shape
    actions = rng.integers(0, head_sizes(num_slots), size=(num_envs, NUM_HEADS))
    op = _pick(np.any(legal, axis=2), rng)
    actions[:, Head.SLOT] = _pick(legal[np.arange(num_envs), op], rng)
    actions[:, Head.BLUEPRINT] = np.asarray(offered)[rng.integers(0, len(offered), size=num_envs)]
    actions[:, Head.OP] = op
    return np.where(HEAD_RELEVANCE[op], actions, _DEFAULTS)
