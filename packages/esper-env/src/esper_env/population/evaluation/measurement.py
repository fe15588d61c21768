"""Measurements of networks: loss, accuracy, contributions, interactions, and the value of committed networks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env.population.evaluation.configurations import ConfigurationSet, ShapleyGame, bits
from esper_env.population.evaluation.scoring import score
from esper_env.population.shard import Shard
from esper_env.population.splits import HeldOut
from esper_env.population.structure import BoolArray, FloatArray, IntArray, Structure


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
    order = np.asarray(shard.execution_order)
    count, slots = structure.alpha.shape
    result = Measurement(
        np.zeros(count),
        np.zeros(count),
        np.zeros((count, slots)),
        np.zeros((count, slots), dtype=np.bool_),
        np.zeros((count, slots, slots)),
        np.zeros((count, slots, slots), dtype=np.bool_),
    )
    if not rows.any():
        return result
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
    networks, masks = (np.concatenate(column) for column in zip(*requested, strict=True))
    configurations = ConfigurationSet.of(networks, masks, slots)
    at = [configurations.find(*pairs) for pairs in requested]
    scores = score(shard, structure, configurations, held_out, losses_of=at[0])
    accuracy = scores.accuracy
    result.loss[wanted], result.accuracy[wanted] = scores.loss[at[0]], accuracy[at[0]]
    difference = result.accuracy[net] - accuracy[at[1]]
    result.contribution[net, order[pos]] = np.where(on[net, pos], difference, -difference)
    result.measured[net, order[pos]] = True
    only_i, only_j, both, none = (accuracy[where] for where in at[2:])
    first, second = order[pair_i], order[pair_j]
    for a, b in ((first, second), (second, first)):
        result.interaction[pair_net, a, b] = both - only_i - only_j + none
        result.interaction_measured[pair_net, a, b] = True
    return result


def updated(old: Measurement, new: Measurement, rows: BoolArray) -> Measurement:
    """Return the old measurement with the networks of ``rows`` (n,) replaced by the new one."""

    def update(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
        return np.where(rows.reshape(-1, *(1,) * (before.ndim - 1)), after, before)

    return Measurement(*(update(*columns) for columns in zip(old, new, strict=True)))


def appraise(
    shard: Shard,
    structure: Structure,
    rows: IntArray,
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
