"""Memory of the heuristic, and its update by an observation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from esper_env.rules import HAS_SEED, HISTORY, NUM_BLUEPRINTS, ObservationView, Stage
from numpy.typing import NDArray

from esper_agent.policies.batches import recently_measured
from esper_agent.policies.heuristic_config import HeuristicConfig

_LONG_AGO = -(10**6)


class HeuristicState(NamedTuple):
    """Memory of N episodes. ``predict`` returns a new one and never changes its argument."""

    accuracy: NDArray[np.float64]  # (N,) smoothed accuracy at the last observation
    stage: NDArray[np.int64]  # (N, S) at the last observation
    blueprint: NDArray[np.int64]  # (N, S)
    birth_epoch: NDArray[np.int64]  # (N, S) epoch in which the current seed was first observed
    birth_accuracy: NDArray[np.float64]  # (N, S) accuracy just before it was planted
    entry_accuracy: NDArray[np.float64]  # (N, S) accuracy just before it entered its current stage
    holding_sum: NDArray[np.float64]  # (N, S) contributions measured in HOLDING
    holding_count: NDArray[np.int64]  # (N, S)
    last_prune: NDArray[np.int64]  # (N,) epoch in which a pruned seed was first observed
    penalty: NDArray[np.float64]  # (N, blueprints)
    turn: NDArray[np.int64]  # (N,) position in the rotation
    attempted: NDArray[np.int64]  # (N,) slot of the last action, -1 after WAIT

    @classmethod
    def fresh(cls, accuracy: NDArray[np.float64], num_slots: int) -> HeuristicState:
        """Return the state at the start of N episodes with accuracies (N,)."""
        rows, shape = len(accuracy), (len(accuracy), num_slots)
        return cls(
            accuracy=accuracy,
            stage=np.full(shape, int(Stage.DORMANT)),
            blueprint=np.zeros(shape, dtype=np.int64),
            birth_epoch=np.zeros(shape, dtype=np.int64),
            birth_accuracy=np.zeros(shape),
            entry_accuracy=np.zeros(shape),
            holding_sum=np.zeros(shape),
            holding_count=np.zeros(shape, dtype=np.int64),
            last_prune=np.full(rows, _LONG_AGO),
            penalty=np.zeros((rows, NUM_BLUEPRINTS)),
            turn=np.zeros(rows, dtype=np.int64),
            attempted=np.full(rows, -1),
        )


def remember(
    view: ObservationView,
    blueprints: NDArray[np.int64],
    state: HeuristicState | None,
    starts: NDArray[np.bool_],
    config: HeuristicConfig,
) -> HeuristicState:
    """Update the previous state, which may be None, with an observation that has ``blueprints`` (N, S) in the slots.

    ``starts`` (N,) are the rows that begin an episode. The update counts births, stage entries, prunes, and
    contributions measured in HOLDING.
    """
    accuracy = smoothed_accuracy(view, config.smoothing)
    last = HeuristicState.fresh(accuracy, view.num_slots)
    if state is not None:
        columns = zip(last, state, strict=True)
        last = HeuristicState(*(np.where(starts.reshape(-1, *[1] * (old.ndim - 1)), new, old) for new, old in columns))
    stage, before = view.stage, last.accuracy[:, None]
    had, has = HAS_SEED[last.stage], HAS_SEED[stage]
    gone, born, moved = had & ~has, has & ~had, stage != last.stage
    penalty = last.penalty * config.penalty_decay
    rows, slots = np.nonzero(gone)
    np.add.at(penalty, (rows, last.blueprint[rows, slots]), config.prune_penalty)
    measured = (stage == Stage.HOLDING) & (view.epochs_in_stage >= 1) & recently_measured(view)
    return HeuristicState(
        accuracy=accuracy,
        stage=stage,
        blueprint=np.asarray(blueprints, dtype=np.int64),
        birth_epoch=np.where(born, view.epoch[:, None], last.birth_epoch),
        birth_accuracy=np.where(born, before, last.birth_accuracy),
        entry_accuracy=np.where(moved, before, last.entry_accuracy),
        holding_sum=np.where(moved, 0.0, last.holding_sum) + np.where(measured, view.contribution, 0.0),
        holding_count=np.where(moved, 0, last.holding_count) + measured,
        last_prune=np.where(gone.any(axis=1), view.epoch, last.last_prune),
        penalty=penalty,
        turn=last.turn,
        attempted=last.attempted,
    )


def smoothed_accuracy(view: ObservationView, epochs: int) -> NDArray[np.float64]:
    """Return means (N,) of the newest ``epochs`` accuracies, or of fewer while the episode is younger."""
    newest = np.stack([view.base(f"accuracy_history_{HISTORY - 1 - age}") for age in range(epochs)]) * 100.0
    known = np.arange(epochs)[:, None] <= view.epoch
    return (newest * known).sum(axis=0) / known.sum(axis=0)
