"""Measurements of networks: loss, accuracy, contributions, interactions, and the value of committed networks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env.population.evaluation.configurations import ConfigurationSet, ShapleyGame, bits
from esper_env.population.evaluation.held_out import HeldOut
from esper_env.population.evaluation.scoring import score
from esper_env.population.shard import Shard
from esper_env.population.structure import Structure

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Measurement(NamedTuple):
    """Accuracies in percent, differences in points; S slots in action order."""

    loss: FloatArray  # (n,) of the main configuration, nats
    accuracy: FloatArray  # (n,)
    contribution: FloatArray  # (n, S) leave-one-out; prospective for TRAINING seeds; 0 where not measured
    measured: BoolArray  # (n, S)
    interaction: FloatArray  # (n, S, S) f(ij) - f(i) - f(j) + f(none), symmetric; 0 where not measured
    interaction_measured: BoolArray  # (n, S, S)


class Commitment(NamedTuple):
    """Accuracies of committed networks, which have fossilized seeds only, in percent."""

    val_accuracy: FloatArray  # (k,)
    test_accuracy: FloatArray  # (k,)
    shapley: FloatArray  # (k, S) on the validation split, points


def measure(shard: Shard, structure: Structure, held_out: HeldOut, rows: BoolArray) -> Measurement:
    """Measure the networks of ``rows`` (n,) in one shared pass; the numbers of the others are 0."""
    order = list(shard.execution_order)
    count, slots = structure.alpha.shape
    on = (structure.blended & (structure.alpha > 0.0) & rows[:, None])[:, order]
    training = (structure.training & rows[:, None])[:, order]
    everything = bits(on)
    wanted = np.flatnonzero(rows)
    net, pos = np.nonzero(on | training)
    flipped = everything[net] ^ (1 << pos)  # without a blended seed, with a TRAINING one
    pair_net, pair_i, pair_j = np.nonzero(on[:, :, None] & on[:, None, :] & np.triu(np.ones((slots, slots), bool), 1))
    pair_i_mask, pair_j_mask = 1 << pair_i, 1 << pair_j
    requested = [
        (wanted, everything[wanted]),
        (net, flipped),
        (pair_net, pair_i_mask),
        (pair_net, pair_j_mask),
        (pair_net, pair_i_mask | pair_j_mask),
        (pair_net, np.zeros_like(pair_net)),
    ]
    configurations = ConfigurationSet.of(
        np.concatenate([networks for networks, _ in requested]),
        np.concatenate([masks for _, masks in requested]),
        slots,
    )
    at = [configurations.find(networks, masks) for networks, masks in requested]
    scores = score(shard, structure, configurations, held_out, losses_of=at[0])
    loss, main = np.zeros(count), np.zeros(count)
    loss[wanted], main[wanted] = scores.loss[at[0]], scores.accuracy[at[0]]
    only_i, only_j, both, none = (scores.accuracy[where] for where in at[2:])
    contribution, measured = np.zeros((count, slots)), np.zeros((count, slots), dtype=np.bool_)
    difference = main[net] - scores.accuracy[at[1]]
    action_slot = np.asarray(order)[pos]
    contribution[net, action_slot] = np.where(on[net, pos], difference, -difference)
    measured[net, action_slot] = True
    interaction = np.zeros((count, slots, slots))
    interaction_measured = np.zeros((count, slots, slots), dtype=np.bool_)
    first, second = np.asarray(order)[pair_i], np.asarray(order)[pair_j]
    for a, b in ((first, second), (second, first)):
        interaction[pair_net, a, b] = both - only_i - only_j + none
        interaction_measured[pair_net, a, b] = True
    return Measurement(loss, main, contribution, measured, interaction, interaction_measured)


def updated(old: Measurement, new: Measurement, rows: BoolArray) -> Measurement:
    """Return the old measurement with the networks of ``rows`` (n,) replaced by the new one."""

    def update(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
        return np.where(rows.reshape(-1, *(1,) * (before.ndim - 1)), after, before)

    return Measurement(*(update(*columns) for columns in zip(old, new, strict=True)))


def nothing_measured(count: int, slots: int) -> Measurement:
    """Return the measurement of a shard in which no network is measured."""
    zeros = np.zeros((count, slots))
    pairs = np.zeros((count, slots, slots))
    return Measurement(np.zeros(count), np.zeros(count), zeros, zeros > 0, pairs, pairs > 0)


def appraise(
    shard: Shard,
    structure: Structure,
    rows: NDArray[np.int64],
    validation: HeldOut,
    test: HeldOut,
    rngs: list[np.random.Generator],
) -> Commitment:
    """Evaluate the committed networks of ``rows`` (k,); ``rngs`` (k,) draw for sampled Shapley values."""
    order = list(shard.execution_order)
    slots = len(order)
    committed = bits(structure.fossilized[:, order])[rows]
    games = [ShapleyGame(int(mask), rng) for mask, rng in zip(committed, rngs, strict=True)]
    owners = np.concatenate([np.full(len(game.masks), row) for row, game in zip(rows, games, strict=True)])
    masks = np.concatenate([np.asarray(game.masks, dtype=np.int64) for game in games])
    configurations = ConfigurationSet.of(owners, masks, slots)
    no_losses = np.zeros(0, dtype=np.int64)
    validated = score(shard, structure, configurations, validation, no_losses)
    final = ConfigurationSet.of(rows, committed, slots)
    tested = score(shard, structure, final, test, no_losses)
    val = validated.accuracy
    shapley = np.zeros((len(rows), slots))
    for index, (row, game) in enumerate(zip(rows, games, strict=True)):
        wanted = np.asarray(game.masks, dtype=np.int64)
        value = val[configurations.find(np.full(len(wanted), row), wanted)]
        shapley[index, order] = game.values(dict(zip(game.masks, value.tolist(), strict=True)), slots)
    return Commitment(val[configurations.find(rows, committed)], tested.accuracy[final.find(rows, committed)], shapley)
