"""Joint distribution of the eight heads: the op first, then the arguments that this op reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from esper_env.rules import HEAD_DEFAULTS, HEAD_RELEVANCE, NUM_HEADS, NUM_OPS, Head
from torch import nn
from torch.nn import functional as F

#: Logit of a masked value: its probability is exactly 0 in float32, and nothing derived from it is infinite.
MASKED_LOGIT = -1e8


class HeadTables(nn.Module):
    """Constant tables of the heads, as buffers that move with the policy and are not saved."""

    columns: th.Tensor
    relevance: th.Tensor
    defaults: th.Tensor

    def __init__(self, nvec: Sequence[int]) -> None:
        super().__init__()
        self.nvec = tuple(int(size) for size in nvec)
        self.num_slots = self.nvec[Head.SLOT]
        # columns[h, v] is the position of value v of head h in the flat vector of all heads. A value that the head
        # lacks has the position behind the last, which spread() fills.
        columns = th.full((NUM_HEADS, max(self.nvec)), sum(self.nvec))
        start = 0
        for head, size in enumerate(self.nvec):
            columns[head, :size] = th.arange(start, start + size)
            start += size
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("relevance", th.tensor(HEAD_RELEVANCE.tolist()), persistent=False)
        self.register_buffer("defaults", th.tensor(HEAD_DEFAULTS), persistent=False)

    def spread(self, flat: th.Tensor) -> th.Tensor:
        """Reshape (B, sum(nvec)) to (B, heads, widest head); values that a head lacks are 0."""
        return F.pad(flat, (0, 1))[:, self.columns]


class HeadEvaluation(NamedTuple):
    """Log-probabilities and entropies of actions by head; 0 for heads that the op does not read."""

    log_probs: th.Tensor  # (B, heads)
    entropies: th.Tensor  # (B, heads), divided by ln(number of valid values)
    relevance: th.Tensor  # (B, heads) bool
    choices: th.Tensor  # (B, heads) bool: the op reads the head, and more than one value is valid


def masked_log_softmax(logits: th.Tensor, valid: th.Tensor) -> th.Tensor:
    """Return finite log-probabilities over the last axis; every invalid value has a probability of exactly 0."""
    valid_logits = logits.clamp(min=MASKED_LOGIT / 2)  # diverging training exceeds any bound
    return th.log_softmax(th.where(valid, valid_logits, MASKED_LOGIT), dim=-1)


def normalised_entropy(log_probs: th.Tensor, valid: th.Tensor) -> th.Tensor:
    """Return the entropy over the last axis divided by ln(number of valid values); 0 if at most one is valid."""
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    count = valid.sum(dim=-1)
    return th.where(count > 1, entropy / count.clamp(min=2).float().log(), 0.0)


class FactoredDistribution:
    """pi(op) pi(slot | op) times pi(value) for each other head that the op reads.

    The slot is masked by the op's own row of ``op_slot_mask``; the other heads by their sections of
    ``action_mask``. A head that the op does not read holds its default, with log-probability and entropy 0. The op is
    sampled once per sample, with PyTorch's global generator, as everywhere in SB3.

    Args:
        tables: constant tables of the heads.
        logits: (B, sum(nvec)).
        action_mask: (B, sum(nvec)), marginal masks.
        op_slot_mask: (B, ops * slots), slot masks per op.
    """

    def __init__(self, tables: HeadTables, logits: th.Tensor, action_mask: th.Tensor, op_slot_mask: th.Tensor) -> None:
        self.tables = tables
        self.logits = tables.spread(logits.float())  # (B, heads, width)
        self.valid = tables.spread(action_mask.bool())  # (B, heads, width)
        self.op_slots = op_slot_mask.bool().reshape(-1, NUM_OPS, tables.num_slots)  # (B, ops, S)
        self.op_log_probs = masked_log_softmax(self.logits[:, Head.OP], self.valid[:, Head.OP])[:, :NUM_OPS]
        self.op_probs = self.op_log_probs.exp()  # (B, ops)

    def given_op(self, ops: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return log-probabilities and validity of every head's values, (B, heads, width) each, given ops (B,)."""
        num_slots = self.tables.num_slots
        chosen = ops.reshape(-1, 1, 1).expand(-1, 1, num_slots)
        valid = self.valid.clone()
        valid[:, Head.SLOT, :num_slots] = self.op_slots.gather(1, chosen).squeeze(1)
        return masked_log_softmax(self.logits, valid), valid

    def evaluate(self, actions: th.Tensor) -> HeadEvaluation:
        """Return log-probabilities of actions (B, heads), and entropies given their ops."""
        actions = actions.long()
        ops = actions[:, Head.OP]
        relevance = self.tables.relevance[ops]
        log_probs, valid = self.given_op(ops)
        taken = log_probs.gather(2, actions.unsqueeze(-1)).squeeze(-1)
        return HeadEvaluation(
            log_probs=th.where(relevance, taken, 0.0),
            entropies=th.where(relevance, normalised_entropy(log_probs, valid), 0.0),
            relevance=relevance,
            choices=relevance & (valid.sum(dim=-1) > 1),
        )

    def get_actions(self, deterministic: bool = False) -> th.Tensor:
        """Sample the op, then its arguments, or take the most likely ones; return actions (B, heads) int64."""
        if deterministic:
            ops = self.op_log_probs.argmax(dim=1)
            arguments = self.given_op(ops)[0][:, : Head.OP].argmax(dim=2)
        else:
            ops = th.multinomial(self.op_probs, 1).squeeze(1)
            probs = self.given_op(ops)[0][:, : Head.OP].exp()
            arguments = th.multinomial(probs.flatten(0, 1), 1).reshape(-1, Head.OP)
        actions = th.cat([arguments, ops.unsqueeze(1)], dim=1)
        return th.where(self.tables.relevance[ops], actions, self.tables.defaults)
