"""Which actions are possible: one legality array, shown as masks, used to decode and to sample."""

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
    Blueprint,
    Head,
    Op,
    head_sizes,
)
from esper_env.rules.lifecycle import LEGAL_FROM, Command
from esper_env.rules.slot_table import HOLD, BoolArray, IntArray, SlotTable

MaskArray = NDArray[np.int8]

_BY_STAGE = np.ascontiguousarray(LEGAL_FROM.T)  # (stage values, ops)
_DEFAULTS = np.asarray(HEAD_DEFAULTS, dtype=np.int64)


class ActionRules:
    """What the agent may do: legality, masks and decoding for a number of slots and a set of blueprints.

    ``max_seeds`` seeds (committed ones included) fit into a network at a time. ``ValueError`` for settings that
    make no sense.
    """

    def __init__(self, num_slots: int, offered_blueprints: Sequence[int], max_seeds: int) -> None:
        self.nvec = head_sizes(num_slots)
        self.num_slots = num_slots
        if not 1 <= max_seeds <= num_slots:
            raise ValueError(f"max_seeds is {max_seeds}; it must be between 1 and the number of slots, {num_slots}")
        self.max_seeds = max_seeds
        self.offered = _offered(offered_blueprints)
        self._is_offered = np.isin(np.arange(NUM_BLUEPRINTS), self.offered)
        self._head_of_column = np.repeat(np.arange(NUM_HEADS), self.nvec)
        self._when_read = np.concatenate(_open_masks(self.nvec, self.offered)).astype(np.int8)
        self._when_unread = np.concatenate(_default_masks(self.nvec)).astype(np.int8)

    def legal(self, table: SlotTable) -> BoolArray:
        """(N, 6, S): is (op, slot) possible? WAIT always is."""
        if table.shape[1] != self.num_slots:
            raise ValueError(f"the table has {table.shape[1]} slots; these rules are for {self.num_slots}")
        legal = np.ascontiguousarray(_BY_STAGE[table.stage].transpose(0, 2, 1))
        has_room = table.has_seed.sum(axis=1) < self.max_seeds
        settled = table.alpha_mode == HOLD
        legal[:, Op.GERMINATE] &= has_room[:, None]
        legal[:, Op.PRUNE] &= settled & (table.age >= 1)
        legal[:, Op.SET_ALPHA_TARGET] &= settled
        return legal

    def marginal(self, legal: BoolArray) -> MaskArray:
        """(N, sum(nvec)): a value is on when some legal joint action uses it; an unread head has its default on."""
        possible: BoolArray = np.any(legal, axis=2)  # (N, 6)
        read: BoolArray = np.any(possible[:, :, None] & HEAD_RELEVANCE, axis=1)  # (N, 8)
        masks = np.where(read[:, self._head_of_column], self._when_read, self._when_unread)
        slots = (legal & HEAD_RELEVANCE[:, Head.SLOT, None]).any(axis=1)
        np.copyto(masks[:, : self.num_slots], slots, where=read[:, Head.SLOT, None])
        masks[:, -NUM_OPS:] = possible
        return masks

    def op_slot(self, legal: BoolArray) -> MaskArray:
        """(N, 6 S): the legality array, flattened row by row."""
        return legal.reshape(len(legal), -1).astype(np.int8)

    def decode(self, actions: ArrayLike, table: SlotTable) -> Command:
        """Turn integer actions (N, 8) into what really happens: an illegal action becomes an invalid WAIT.

        ``ValueError``, before anything changes, for a wrong shape, values that are not integers, or values outside
        their head.
        """
        requested = self._checked(actions, table.shape[0])
        rows = np.arange(len(requested))
        op, slot = requested[:, Head.OP], requested[:, Head.SLOT]
        valid = self.legal(table)[rows, op, slot]
        valid &= (op != Op.GERMINATE) | self._is_offered[requested[:, Head.BLUEPRINT]]
        effective_op = np.where(valid, op, Op.WAIT)
        heads = np.where(HEAD_RELEVANCE[effective_op], requested, _DEFAULTS)
        return Command(
            op=effective_op,
            slot=heads[:, Head.SLOT],
            blueprint=heads[:, Head.BLUEPRINT],
            style=heads[:, Head.STYLE],
            tempo=heads[:, Head.TEMPO],
            alpha_target=heads[:, Head.ALPHA_TARGET],
            alpha_speed=heads[:, Head.ALPHA_SPEED],
            alpha_curve=heads[:, Head.ALPHA_CURVE],
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


def _offered(blueprints: Sequence[int]) -> tuple[Blueprint, ...]:
    offered = tuple(Blueprint(value) for value in blueprints)
    if not offered or Blueprint.NOOP in offered or len(set(offered)) < len(offered):
        names = [blueprint.name for blueprint in offered]
        raise ValueError(f"offered blueprints are {names}; expected at least one, no NOOP, none twice")
    return offered


def _open_masks(nvec: Sequence[int], offered: Sequence[int]) -> list[MaskArray]:
    """Per head, the values an op that reads the head may use (slot and op are narrowed by the legality array)."""
    masks = [np.ones(size, dtype=np.int8) for size in nvec]
    masks[Head.BLUEPRINT][:] = np.isin(np.arange(nvec[Head.BLUEPRINT]), np.asarray(offered))
    return masks


def _default_masks(nvec: Sequence[int]) -> list[MaskArray]:
    """Per head, the default alone."""
    return [(np.arange(size) == default).astype(np.int8) for size, default in zip(nvec, HEAD_DEFAULTS, strict=True)]


def split_mask(flat_mask: NDArray[np.generic], nvec: Sequence[int]) -> tuple[MaskArray, ...]:
    """A flat mask (sum(nvec),) as one int8 array per head, the form ``MultiDiscrete.sample(mask=...)`` takes."""
    flat = np.asarray(flat_mask)
    if flat.shape != (sum(nvec),):
        raise ValueError(f"the mask has shape {flat.shape}; expected ({sum(nvec)},) for heads of sizes {tuple(nvec)}")
    parts = np.split(flat.astype(np.int8), np.cumsum(nvec)[:-1])
    return tuple(parts)


def conditional_masks(legal_row: BoolArray, op: int, offered: Sequence[int]) -> tuple[MaskArray, ...]:
    """Masks of the eight heads given the op, for one environment's legality ``legal_row`` (6, S).

    Any combination of values that are on is a legal action. Heads the op does not read have their default on.
    ``ValueError`` for a value that is no op, and when the op is legal in no slot.
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
    """(N,) a uniformly drawn index among the True entries of each row of ``options`` (N, K)."""
    scores = rng.random(options.shape)
    picked: IntArray = np.where(options, scores, -1.0).argmax(axis=1)
    return picked


def sample_valid_actions(legal: BoolArray, rng: np.random.Generator, offered: Sequence[int]) -> IntArray:
    """(N, 8) legal actions for the legality array ``legal`` (N, 6, S).

    The op is uniform over the legal ops, the slot uniform over the slots in which it is legal, and every other head
    the op reads uniform over its values; the heads it does not read are at their defaults.
    """
    num_envs, _, num_slots = legal.shape
    actions = rng.integers(0, head_sizes(num_slots), size=(num_envs, NUM_HEADS))
    op = _pick(np.any(legal, axis=2), rng)
    actions[:, Head.SLOT] = _pick(legal[np.arange(num_envs), op], rng)
    actions[:, Head.BLUEPRINT] = np.asarray(offered)[rng.integers(0, len(offered), size=num_envs)]
    actions[:, Head.OP] = op
    return np.where(HEAD_RELEVANCE[op], actions, _DEFAULTS)
