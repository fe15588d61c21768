"""Policies that nobody trained: waiting, uniform legal chance, and plans made in advance.

Each has the ``predict(observation, state, episode_start, deterministic) -> (actions, state)`` of a
Stable-Baselines3 model and decides from observations alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from esper_env.checks import is_whole
from esper_env.rules.gates import GateConfig, gate_config
from esper_env.rules.heads import Blueprint, Head, Op, Style, Tempo
from esper_env.rules.masks import sample_valid_actions
from esper_env.rules.observation_view import ObservationView
from esper_env.rules.stages import Stage
from esper_env.seeding import derive_rng
from numpy.typing import NDArray

from esper_agent.policies.batches import Actions, ObservationBatch, starting_rows
from esper_agent.policies.heuristic import HeuristicPolicy
from esper_agent.policies.readiness import check_horizon_and_gates, ready_to_advance, ready_to_fossilize

Observation = Mapping[str, NDArray]


class WaitPolicy:
    """Never grows anything: the host alone."""

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,  # noqa: ARG002
        deterministic: bool = True,  # noqa: ARG002
    ) -> tuple[Actions, Any]:
        """(N, 8) WAIT actions, or (8,) for a single observation."""
        batch = ObservationBatch.of(observation)
        return batch.returned(batch.waiting()), state


class RandomPolicy:
    """Uniformly random legal actions: first the op, then a slot in which it is legal, then what the op reads.

    The k-th episode that this policy sees draws from generator k of ``seed``, whichever row of a vector it runs in,
    so results do not depend on the number of environments. ``deterministic`` changes nothing: the same seed gives
    the same episodes anyway.
    """

    def __init__(self, seed: int = 0) -> None:
        if not is_whole(seed):
            raise ValueError(f"seed is {seed!r}; expected a whole number of at least 0")
        self.seed = seed
        self._episodes = 0

    def predict(
        self,
        observation: Observation,
        state: tuple[np.random.Generator, ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,  # noqa: ARG002
    ) -> tuple[Actions, tuple[np.random.Generator, ...]]:
        """Actions (N, 8) or (8,), and the generators of the N episodes under way."""
        batch = ObservationBatch.of(observation)
        starts = starting_rows(episode_start, state is not None, batch.num_envs)
        kept = state if state is not None else (None,) * batch.num_envs
        generators = tuple(
            self._next_generator() if start or generator is None else generator
            for start, generator in zip(starts, kept, strict=True)
        )
        actions = np.concatenate(
            [
                sample_valid_actions(batch.legal[row : row + 1], generator, np.flatnonzero(batch.offered[row]).tolist())
                for row, generator in enumerate(generators)
            ]
        )
        return batch.returned(actions), generators

    def _next_generator(self) -> np.random.Generator:
        self._episodes += 1
        return derive_rng(self.seed, "random-policy", self._episodes - 1)


@dataclass(frozen=True)
class Planting:
    """One seed of a plan; it is blended in to alpha 1."""

    blueprint: Blueprint
    slot: int = 0
    style: Style = Style.SIGMOID_ADD
    tempo: Tempo = Tempo.STANDARD


#: Which op carries a seed on from each stage.
_NEXT_OP = {
    Stage.HOLDING: Op.FOSSILIZE,
    Stage.BLENDING: Op.ADVANCE,
    Stage.TRAINING: Op.ADVANCE,
    Stage.GERMINATED: Op.ADVANCE,
}


class FixedPlanPolicy:
    """Plants the seeds of a plan at once and carries each on as soon as its gate can pass, up to FOSSILIZED.

    One action a step: seeds that can move come first (the furthest along before the others), then the next planting
    whose slot is empty. A slot that was emptied by a prune is not planted again, as its episode has moved on.

    Args:
        plantings: the plan, in planting order; a single ``Blueprint`` stands for that blueprint at slot 0.
        horizon: epochs of an episode, which the features are scaled by.
        gates: the environment's gate configuration.
    """

    def __init__(
        self, plantings: Blueprint | Sequence[Planting], horizon: int, gates: GateConfig | None = None
    ) -> None:
        self.plantings = (Planting(plantings),) if isinstance(plantings, Blueprint) else tuple(plantings)
        slots = [planting.slot for planting in self.plantings]
        if not slots or min(slots) < 0 or len(set(slots)) < len(slots):
            raise ValueError(f"the plan's slots are {slots}; expected at least one planting, and each slot once")
        unknown = [planting.blueprint for planting in self.plantings if planting.blueprint not in list(Blueprint)]
        if unknown:
            raise ValueError(
                f"the plan names blueprints {unknown}; expected members of esper_env.rules.heads.Blueprint"
            )
        check_horizon_and_gates(horizon, gates)
        self.horizon = horizon
        self.gates = gates if gates is not None else GateConfig.permissive()

    def predict(
        self,
        observation: Observation,
        state: NDArray[np.bool_] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,  # noqa: ARG002
    ) -> tuple[Actions, NDArray[np.bool_]]:
        """Actions (N, 8) or (8,), and a mask (N, plantings) of what has been planted in this episode."""
        batch = ObservationBatch.of(observation)
        if max(planting.slot for planting in self.plantings) >= batch.num_slots:
            raise ValueError(
                f"the plan plants slot {max(planting.slot for planting in self.plantings)}; "
                f"the environment has slots 0 to {batch.num_slots - 1}"
            )
        starts = starting_rows(episode_start, state is not None, batch.num_envs)
        planted = np.zeros((batch.num_envs, len(self.plantings)), dtype=bool) if state is None else state.copy()
        planted[starts] = False
        view = ObservationView(batch.features, batch.num_slots, self.horizon)
        ready = ready_to_advance(view, self.gates) | ready_to_fossilize(view, self.gates)
        actions = batch.waiting()
        for row in range(batch.num_envs):
            self._act(actions[row], planted[row], batch, row, view.stage[row], ready[row])
        return batch.returned(actions), planted

    def _act(
        self,
        action: Actions,
        planted: NDArray[np.bool_],
        batch: ObservationBatch,
        row: int,
        stage: NDArray[np.int64],
        ready: NDArray[np.bool_],
    ) -> None:
        """Fill in one environment's action, and tick off what it plants."""
        legal = batch.legal[row]
        for wanted, op in _NEXT_OP.items():
            for planting in self.plantings:
                if stage[planting.slot] == wanted and ready[planting.slot] and legal[op, planting.slot]:
                    action[[Head.OP, Head.SLOT]] = op, planting.slot
                    return
        for index, planting in enumerate(self.plantings):
            possible = legal[Op.GERMINATE, planting.slot] and batch.offered[row, planting.blueprint]
            if possible and not planted[index]:
                heads = [Head.OP, Head.SLOT, Head.BLUEPRINT, Head.STYLE, Head.TEMPO]
                action[heads] = Op.GERMINATE, planting.slot, planting.blueprint, planting.style, planting.tempo
                planted[index] = True
                return


def _fixed_plan(blueprint: Blueprint) -> Callable[[Any, int], FixedPlanPolicy]:
    def make(env: Any, _seed: int) -> FixedPlanPolicy:
        task, offered = env.unwrapped.task, env.unwrapped.offered_blueprints
        if blueprint not in offered:
            names = ", ".join(Blueprint(value).name.lower() for value in offered)
            raise ValueError(
                f"the policy {blueprint.name.lower()} plants what {task.env_id} does not offer; it has {names}"
            )
        return FixedPlanPolicy(blueprint, task.horizon, gate_config(task.gates))

    return make


#: Name -> what makes the policy for an Esper environment (single or vector) and a seed.
POLICIES: dict[str, Callable[[Any, int], Any]] = {
    "heuristic": lambda env, _seed: HeuristicPolicy.for_env(env),
    "random": lambda _env, seed: RandomPolicy(seed),
    "wait": lambda _env, _seed: WaitPolicy(),
    "conv_light": _fixed_plan(Blueprint.CONV_LIGHT),
    "conv_heavy": _fixed_plan(Blueprint.CONV_HEAVY),
    "attention": _fixed_plan(Blueprint.ATTENTION),
    "mlp": _fixed_plan(Blueprint.MLP),
}
