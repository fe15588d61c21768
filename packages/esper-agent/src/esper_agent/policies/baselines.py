"""Baselines: waiting, uniformly random legal actions, and fixed plans.

Each has the ``predict(observation, state, episode_start, deterministic) -> (actions, state)`` of a
Stable-Baselines3 model and decides from observations alone. It ignores ``action_masks``, which the evaluation of
sb3-contrib passes, because the observation has the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from esper_env.checks import POSITIVE, SEED, check_value, is_whole
from esper_env.rules import (
    NUM_BLUEPRINTS,
    Head,
    ObservationView,
    Op,
    Stage,
    Style,
    Tempo,
    gate_config,
    sample_valid_actions,
)
from esper_env.seeding import derive_rng
from esper_env.seeds import blueprint_entry
from numpy.typing import NDArray

from esper_agent.policies.batches import (
    Actions,
    ObservationBatch,
    check_state,
    epochs_to_commit,
    ready_to_advance,
    ready_to_fossilize,
    starting_rows,
)
from esper_agent.policies.heuristic import HeuristicPolicy

Observation = Mapping[str, NDArray]


class WaitPolicy:
    """Policy that always waits, and so trains the host alone."""

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,  # noqa: ARG002
        deterministic: bool = True,  # noqa: ARG002
        action_masks: NDArray | None = None,  # noqa: ARG002
    ) -> tuple[Actions, Any]:
        """Return WAIT actions (N, 8), or (8,) for a single observation."""
        batch = ObservationBatch.of(observation)
        return batch.returned(batch.waiting()), state


class RandomPolicy:
    """Policy of uniformly random legal actions: the op, then a slot where it is legal, then the heads that it reads.

    The k-th episode that this policy sees draws from generator k of ``seed``, whichever row of a vector it runs in.
    Results therefore do not depend on the number of environments. ``deterministic`` is ignored.
    """

    def __init__(self, seed: int = 0) -> None:
        check_value("seed", seed, Annotated[int, SEED])
        self.seed = seed
        self._episodes = 0

    def predict(
        self,
        observation: Observation,
        state: tuple[np.random.Generator, ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,  # noqa: ARG002
        action_masks: NDArray | None = None,  # noqa: ARG002
    ) -> tuple[Actions, tuple[np.random.Generator, ...]]:
        """Return actions (N, 8) or (8,), and the generators of the N current episodes."""
        batch = ObservationBatch.of(observation)
        starts = starting_rows(episode_start, state is not None, batch.num_envs)
        kept = state if state is not None else (None,) * batch.num_envs
        if state is not None:
            check_state(state, (np.random.default_rng(0),) * batch.num_envs, batch.num_envs)
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
    """One seed of a plan, blended to alpha 1; ``blueprint`` is a value of the blueprint head."""

    blueprint: int
    slot: int = 0
    style: Style = Style.SIGMOID_ADD
    tempo: Tempo = Tempo.STANDARD


#: Op that moves a seed on from each stage, the latest stage first.
_NEXT_OP = {
    Stage.HOLDING: Op.FOSSILIZE,
    Stage.BLENDING: Op.ADVANCE,
    Stage.TRAINING: Op.ADVANCE,
    Stage.GERMINATED: Op.ADVANCE,
}


class FixedPlanPolicy:
    """Policy that plants the seeds of a plan and fossilizes each as soon as its gates can pass.

    Seeds that can move come first, the latest stage before the others. Then comes the next planting whose slot is
    empty. Nothing is planted twice in an episode.

    Args:
        plantings: the plan, in planting order; a blueprint's value stands for that blueprint in slot 0.
        horizon: epochs of an episode, which scale the features.
        gates: the environment's gates, "permissive" or "strict".

    Raises:
        ValueError: the plan is empty or uses a slot twice, or an argument is out of range.
    """

    def __init__(self, plantings: int | Sequence[Planting], horizon: int, gates: str = "permissive") -> None:
        self.plantings = (Planting(plantings),) if isinstance(plantings, int) else tuple(plantings)
        slots = [planting.slot for planting in self.plantings]
        if not slots or min(slots) < 0 or len(set(slots)) < len(slots):
            raise ValueError(f"the plan's slots are {slots}; expected at least one planting, and each slot once")
        blueprints = [planting.blueprint for planting in self.plantings]
        if not all(is_whole(value, least=1) and value < NUM_BLUEPRINTS for value in blueprints):
            raise ValueError(
                f"the plan's blueprints are {blueprints}; expected values of the blueprint head, 1 to "
                f"{NUM_BLUEPRINTS - 1}; `esper info` lists them"
            )
        check_value("horizon", horizon, Annotated[int, POSITIVE])
        self.horizon = horizon
        self._gates = gate_config(gates)

    @property
    def note(self) -> str | None:
        """Warning that the horizon is too short for any seed to be committed; None if it is long enough."""
        needed = min(epochs_to_commit(planting.tempo, self._gates) for planting in self.plantings)
        if self.horizon >= needed:
            return None
        return f"commits nothing with horizon={self.horizon}: it needs a horizon of at least {needed}"

    def predict(
        self,
        observation: Observation,
        state: NDArray[np.bool_] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,  # noqa: ARG002
        action_masks: NDArray | None = None,  # noqa: ARG002
    ) -> tuple[Actions, NDArray[np.bool_]]:
        """Return actions (N, 8) or (8,), and a mask (N, plantings) of the seeds planted in this episode."""
        batch = ObservationBatch.of(observation)
        last = max(planting.slot for planting in self.plantings)
        if last >= batch.num_slots:
            raise ValueError(f"the plan plants slot {last}; the environment has slots 0 to {batch.num_slots - 1}")
        starts = starting_rows(episode_start, state is not None, batch.num_envs)
        planted = np.zeros((batch.num_envs, len(self.plantings)), dtype=bool)
        if state is not None:
            check_state(state, planted, batch.num_envs)
            planted = state.copy()
        planted[starts] = False
        view = ObservationView(batch.features, batch.num_slots, self.horizon)
        ready = ready_to_advance(view, self._gates) | ready_to_fossilize(view, self._gates)
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
        """Fill in one environment's action, and mark the planting that it carries out."""
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


def _fixed_plan(name: str) -> Callable[[Any, int], FixedPlanPolicy]:
    def make(env: Any, _seed: int) -> FixedPlanPolicy:
        base = env.unwrapped
        blueprint = blueprint_entry(name, base.topology).value
        return FixedPlanPolicy(blueprint, base.task.horizon, base.task.gates)

    return make


#: Name -> function that makes the policy for an Esper environment (single or vector) and a seed.
POLICIES: dict[str, Callable[[Any, int], Any]] = {
    "heuristic": lambda env, _seed: HeuristicPolicy.for_env(env),
    "random": lambda _env, seed: RandomPolicy(seed),
    "wait": lambda _env, _seed: WaitPolicy(),
    **{name: _fixed_plan(name) for name in ("conv_light", "conv_heavy", "attention", "mlp")},
}
