"""Legality of actions: one array, from which masks, decoding and sampling follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.checks import is_integer
from esper_env.rules import gates
from esper_env.rules.gates import GATE_INTO, GateConfig
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
from esper_env.suggestions import shown

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
        masked_gates: an action is illegal if its gate under this configuration would fail now; None allows it.

    Raises:
        ValueError: ``max_seeds`` is out of range.
    """

    def __init__(
        self,
        num_slots: int,
        offered_blueprints: Sequence[int],
        max_seeds: int,
        masked_gates: GateConfig | None = None,
    ) -> None:
        if not 1 <= max_seeds <= num_slots:
            raise ValueError(f"max_seeds is {max_seeds}; expected 1 to {num_slots}, the number of slots")
        self.nvec = head_sizes(num_slots)
        self.num_slots = num_slots
        self.max_seeds = max_seeds
        self.masked_gates = masked_gates
        self._is_offered = np.isin(np.arange(NUM_BLUEPRINTS), offered_blueprints)
        self._head_of_column = np.repeat(np.arange(NUM_HEADS), self.nvec)
        value = np.concatenate([np.arange(size) for size in self.nvec])
        self._when_read = np.ones_like(value, dtype=np.int8)
        self._when_read[self._head_of_column == Head.BLUEPRINT] = self._is_offered
        self._when_unread = (value == _DEFAULTS[self._head_of_column]).astype(np.int8)

    def legal(self, table: SlotTable) -> BoolArray:
        """Return a bool array (N, 6, S), True where (op, slot) is legal. WAIT always is."""
        legal = np.ascontiguousarray(_LEGAL_FROM[table.stage].transpose(0, 2, 1))
        has_room = table.has_seed.sum(axis=1) < self.max_seeds
        settled = table.alpha_mode == HOLD
        legal[:, Op.GERMINATE] &= has_room[:, None]
        legal[:, Op.PRUNE] &= settled & (table.age >= 1)
        legal[:, Op.SET_ALPHA_TARGET] &= settled
        if self.masked_gates is not None:
            gate = GATE_INTO[GATED_TARGET[:, table.stage]].transpose(1, 0, 2)  # (N, 6, S)
            legal &= ~gates.fails(table, gate, self.masked_gates)
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

    def conditional(self, legal: BoolArray, op: int) -> MaskArray:
        """Return the masks (N, sum(nvec)) given an op; any combination of the values that are on is legal.

        Raises:
            ValueError: ``op`` is not an op, or is not legal in any slot of an environment.
        """
        if not is_integer(op) or not 0 <= op < NUM_OPS:
            known = ", ".join(f"{other.name} {other.value}" for other in Op)
            raise ValueError(f"op is {shown(op)}; expected a member of esper_env.rules.Op or its number: {known}")
        possible: BoolArray = np.all(np.any(legal, axis=2), axis=0)
        if not possible[op]:
            names = ", ".join(other.name for other in Op if possible[other])
            raise ValueError(f"{Op(op).name} is not legal in any slot now; legal ops are {names}")
        return self.marginal(legal & (np.arange(NUM_OPS) == op)[:, None])

    def split(self, mask: MaskArray) -> tuple[MaskArray, ...]:
        """Split the mask of one environment into an array per head, as ``MultiDiscrete.sample(mask=...)`` takes it."""
        return tuple(np.split(mask, np.cumsum(self.nvec)[:-1]))

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
        columns = dict(zip(HEAD_NAMES, heads.T, strict=True))
        return CommandBatch(**columns, valid=valid, requested_op=op)

    def _checked(self, actions: ArrayLike, num_envs: int) -> IntArray:
        try:
            array = np.asarray(actions)
        except ValueError:  # rows of unequal length
            raise ValueError(
                f"actions are {shown(actions)}; expected ({num_envs}, {NUM_HEADS}) integers, rows of one length"
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
