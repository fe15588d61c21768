"""Heuristic: a hand-written policy that grows a network by rules and gives its reasons.

    policy = HeuristicPolicy.for_env(env)
    actions, state = policy.predict(observation, state, episode_start)
    policy.decisions[0][-1].sentence()  # "epoch 12: GERMINATE conv_light in r0c0: style ...; plateau of 4 epochs and ..."

Each step considers the live seeds in turn: HOLDING, BLENDING, TRAINING, GERMINATED, and the oldest first within a
stage. A seed whose last attempt failed comes last. The first seed whose rule proposes a legal op other than WAIT acts.
If none does, a new seed may be planted.

| stage | rule |
|---|---|
| none | plant if the host has stabilised, the plateau is long enough, the last prune is long ago, a slot is empty and time is left to commit a seed |
| GERMINATED | advance |
| TRAINING, BLENDING | prune after `patience` epochs in the stage if accuracy has fallen by more than `max_loss` points since it entered; otherwise advance as soon as the gate can pass |
| HOLDING | average the contribution over `holding_epochs`; then prune a seed that the network depends on without having improved, fossilize one that contributes, and prune the rest |

Near the horizon a HOLDING seed is judged on the measurements so far, and is fossilized or left alone.
"""  # noqa: E501

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import numpy as np
from esper_env.checks import POSITIVE, check_value
from esper_env.rules import (
    FULL_ALPHA,
    IS_LIVE,
    ActionNames,
    AlphaSpeed,
    AlphaTarget,
    Head,
    ObservationView,
    Op,
    Stage,
    gate_config,
)
from esper_env.seeds import BlueprintEntry, blueprint_entry, offered_blueprints
from numpy.typing import NDArray

from esper_agent.policies.batches import (
    Actions,
    ObservationBatch,
    check_state,
    epochs_to_commit,
    on_hold_at,
    ready_to_advance,
    ready_to_fossilize,
    starting_rows,
)
from esper_agent.policies.heuristic_config import ROTATIONS, HeuristicConfig
from esper_agent.policies.heuristic_memory import HeuristicState, remember


@dataclass(frozen=True)
class Decision:
    """Decision of the heuristic in one environment at one epoch, with its reason."""

    env: int
    epoch: int
    op: Op
    slot: int | None  # None for WAIT
    blueprint: str | None  # name of the seed's blueprint
    confidence: float  # 0..1: distance of the deciding quantity from its threshold; 1 for a rule without one
    reason: str
    action: str = Op.WAIT.name  # in words, see esper_env.describe_action

    def sentence(self) -> str:
        """Return epoch, action and reason as text."""
        return f"epoch {self.epoch}: {self.action}; {self.reason}"


class _Wish(NamedTuple):
    """Proposal of one seed's rule."""

    op: Op
    reason: str
    confidence: float = 1.0


class _Scene(NamedTuple):
    """Inputs of the rules: the observation, the memory, and the gates that can pass."""

    view: ObservationView
    batch: ObservationBatch
    memory: HeuristicState
    advance: NDArray[np.bool_]  # (N, S)
    fossilize: NDArray[np.bool_]  # (N, S)
    remaining: NDArray[np.int64]  # (N,) actions left, including this one


class HeuristicPolicy:
    """Heuristic policy with the ``predict`` of a Stable-Baselines3 model.

    ``decisions[i]`` holds the decisions in environment i's current episode, including waits, the newest last.

    Args:
        horizon: epochs of an episode, which scale the features.
        topology: the host's kind, such as "cnn", whose registered blueprints can be planted.
        gates: the environment's gates, "permissive" or "strict".
        config: numbers of the rules.
        names: names of slots and blueprints in decisions; by default "r0c0", "r0c1", ... and the registered names.

    Raises:
        ValueError: an argument or the rotation is invalid.
    """

    def __init__(
        self,
        horizon: int,
        topology: str,
        gates: str = "permissive",
        config: HeuristicConfig | None = None,
        names: ActionNames | None = None,
    ) -> None:
        check_value("horizon", horizon, Annotated[int, POSITIVE])
        check_value("config", config, HeuristicConfig | None)
        self.horizon = horizon
        self._gates = gate_config(gates)
        self.config = config if config is not None else HeuristicConfig()
        self.topology = topology
        if names is None:
            names = ActionNames(blueprints={entry.value: entry.name for entry in offered_blueprints(topology)})
        self._names = names
        rotation = self.config.rotation
        if rotation is None:
            rotation = ROTATIONS.get(topology) or tuple(entry.name for entry in offered_blueprints(topology))
        self.rotation = tuple(blueprint_entry(blueprint, topology) for blueprint in rotation)
        rotated = [entry.name for entry in self.rotation]
        if not rotated or len(set(rotated)) < len(rotated):
            raise ValueError(f"the rotation is {rotated}; expected one or more different blueprints")
        #: Position in the rotation after a blueprint was planted, by its name.
        self._turn_after: dict[str | None, int] = {
            name: (place + 1) % len(rotated) for place, name in enumerate(rotated)
        }
        self.decisions: list[deque[Decision]] = []
        #: Rules by stage, in the order in which live seeds are considered.
        self._rules: dict[int, Callable[[_Scene, int, int], _Wish]] = {
            Stage.HOLDING: self._judge_holding,
            Stage.BLENDING: self._judge_growing,
            Stage.TRAINING: self._judge_growing,
            Stage.GERMINATED: lambda *_: _Wish(Op.ADVANCE, "germinated, so it can start to train"),
        }

    @classmethod
    def for_env(cls, env: Any, config: HeuristicConfig | None = None) -> HeuristicPolicy:
        """Make the policy for an Esper environment, single or vector, with its horizon, topology and gates.

        Raises:
            TypeError: ``env`` is not an Esper environment.
        """
        base = env.unwrapped
        if not hasattr(base, "task"):
            raise TypeError(f"{base} is not an Esper environment; make one with gymnasium.make or make_vec")
        names = ActionNames(base.slot_ids, base.blueprint_names)
        return cls(base.task.horizon, base.topology, base.task.gates, config, names)

    @property
    def epochs_to_commit(self) -> int:
        """Actions from planting a seed to fossilizing it, both included."""
        return epochs_to_commit(self.config.tempo, self._gates, self.config.holding_epochs)

    @property
    def note(self) -> str | None:
        """Warning that the horizon is too short for any seed to be committed; None if it is long enough."""
        needed = self.config.min_epoch + self.epochs_to_commit
        if self.horizon >= needed:
            return None
        return (
            f"plants nothing with horizon={self.horizon}: it plants from epoch {self.config.min_epoch}, and "
            f"commits a seed {self.epochs_to_commit} epochs later; it needs a horizon of at least {needed}"
        )

    def predict(
        self,
        observation: Mapping[str, NDArray],
        state: HeuristicState | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,  # noqa: ARG002
        action_masks: NDArray | None = None,  # noqa: ARG002
    ) -> tuple[Actions, HeuristicState]:
        """Return actions (N, 8), or (8,) for an unbatched observation, and the state for the next call.

        ``deterministic`` is ignored, because the rules are deterministic, and ``action_masks``, because the observation
        has the masks.

        Raises:
            ValueError: the observation is malformed, or the state belongs to other environments.
        """
        batch = ObservationBatch.of(observation)
        if state is not None:
            check_state(state, HeuristicState.fresh(np.zeros(batch.num_envs), batch.num_slots), batch.num_envs)
            if len(self.decisions) != batch.num_envs:
                raise ValueError(
                    f"this policy keeps the decisions of {len(self.decisions)} environments, and the observation has "
                    f"{batch.num_envs}; pass the state that the policy's own last predict returned, or None to begin"
                )
        view = ObservationView(batch.features, batch.num_slots, self.horizon)
        starts = starting_rows(episode_start, state is not None, batch.num_envs)
        if state is None:
            self.decisions = [deque(maxlen=self.horizon) for _ in starts]
        for started in np.flatnonzero(starts):
            self.decisions[started].clear()
        memory = remember(view, batch.blueprints, state, starts, self.config)
        scene = _Scene(
            view,
            batch,
            memory,
            ready_to_advance(view, self._gates),
            ready_to_fossilize(view, self._gates),
            self.horizon - view.epoch,
        )
        actions, turn, attempted = batch.waiting(), memory.turn.copy(), np.full(batch.num_envs, -1)
        for row in range(batch.num_envs):
            decision = self._decide(scene, row)
            if decision.op != Op.WAIT:
                self._fill(actions[row], decision)
                attempted[row] = decision.slot
            self.decisions[row].append(replace(decision, action=self._names.describe(actions[row])))
            if decision.op == Op.GERMINATE:
                turn[row] = self._turn_after[decision.blueprint]
        return batch.returned(actions), memory._replace(turn=turn, attempted=attempted)

    # Decisions

    def _decide(self, scene: _Scene, row: int) -> Decision:
        """Return the first legal proposal in order of priority, otherwise a planting or WAIT."""
        epoch, waits = int(scene.view.epoch[row]), []
        for slot in self._turn_order(scene, row):
            wish = self._rules[int(scene.view.stage[row, slot])](scene, row, slot)
            blueprint = self._names.blueprints[int(scene.batch.blueprints[row, slot])]
            if wish.op != Op.WAIT and scene.batch.legal[row, wish.op, slot]:
                return Decision(row, epoch, wish.op, slot, blueprint, wish.confidence, wish.reason)
            waits.append(
                f"slot {self._names.slot(slot)}: {wish.reason}" + ("" if wish.op == Op.WAIT else ", not legal yet")
            )
        return self._plant(scene, row, waits)

    def _turn_order(self, scene: _Scene, row: int) -> list[int]:
        stage, memory = scene.view.stage[row], scene.memory
        failed = -1 if scene.view.last_action_succeeded[row] else int(memory.attempted[row])
        rank = {int(stage): place for place, stage in enumerate(self._rules)}
        live = np.flatnonzero(IS_LIVE[stage]).tolist()
        return sorted(live, key=lambda s: (s == failed, rank[int(stage[s])], memory.birth_epoch[row, s], s))

    def _judge_growing(self, scene: _Scene, row: int, slot: int) -> _Wish:
        """Rule of TRAINING and BLENDING."""
        epochs = int(scene.view.epochs_in_stage[row, slot])
        fallen = float(scene.memory.entry_accuracy[row, slot] - scene.memory.accuracy[row])
        if epochs >= self.config.patience and fallen > self.config.max_loss:
            reason = f"accuracy fell by {fallen:.1f} points in {epochs} epochs"
            return _Wish(Op.PRUNE, reason, _beyond(fallen, self.config.max_loss))
        if scene.advance[row, slot]:
            return _Wish(Op.ADVANCE, f"the gate can pass after {epochs} epochs")
        blending = scene.view.stage[row, slot] == Stage.BLENDING
        if blending and on_hold_at(scene.view, 0.0)[row, slot] and scene.view.alpha[row, slot] < FULL_ALPHA:
            return _Wish(Op.SET_ALPHA_TARGET, f"alpha rests at {scene.view.alpha[row, slot]:.2f}, short of 1")
        return _Wish(Op.WAIT, f"the gate cannot pass yet, {epochs} epochs in")

    def _judge_holding(self, scene: _Scene, row: int, slot: int) -> _Wish:
        memory, config = scene.memory, self.config
        count = int(memory.holding_count[row, slot])
        others = int(IS_LIVE[scene.view.stage[row]].sum()) - 1
        rush = scene.remaining[row] <= config.commit_epochs + others
        if count == 0 or (count < config.holding_epochs and not rush):
            return _Wish(Op.WAIT, f"contribution measured {count} of {config.holding_epochs} times")
        mean = float(memory.holding_sum[row, slot]) / count
        gain = float(memory.accuracy[row] - memory.birth_accuracy[row, slot])
        # This close to the end, an uncommitted seed is discarded anyway, and pruning it costs an action.
        reject = Op.WAIT if rush else Op.PRUNE
        if mean > config.dependence and gain < 0:
            reason = f"depended on ({mean:.1f} points) but accuracy is {-gain:.1f} points lower since it was planted"
            return _Wish(reject, reason, _beyond(mean - gain, config.dependence))
        if mean > config.min_contribution:
            reason = f"contributes {mean:.1f} points over {count} epochs"
            wanted = Op.FOSSILIZE if scene.fossilize[row, slot] else Op.WAIT
            return _Wish(wanted, reason, _beyond(mean, config.min_contribution))
        return _Wish(reject, f"contributes only {mean:.1f} points", _beyond(config.min_contribution, mean))

    def _plant(self, scene: _Scene, row: int, waits: list[str]) -> Decision:
        epoch = int(scene.view.epoch[row])
        obstacle = self._obstacle(scene, row, epoch)
        blueprint = None if obstacle else self._next_blueprint(scene, row)
        if blueprint is None:
            reason = "; ".join([*waits, f"no planting: {obstacle or 'every blueprint was pruned recently'}"])
            return Decision(row, epoch, Op.WAIT, None, None, 1.0, reason)
        slot = int(np.flatnonzero(scene.batch.legal[row, Op.GERMINATE])[0])
        plateau = int(scene.view.plateau_epochs[row])
        reason = f"plateau of {plateau} epochs and slot {self._names.slot(slot)} is empty"
        confidence = _beyond(plateau + 1, self.config.min_plateau)
        return Decision(row, epoch, Op.GERMINATE, slot, blueprint.name, confidence, reason)

    def _obstacle(self, scene: _Scene, row: int, epoch: int) -> str | None:
        """Return the first reason not to plant, or None."""
        config, view = self.config, scene.view
        pause = epoch - int(scene.memory.last_prune[row])
        conditions = (
            (epoch < config.min_epoch, f"epoch {epoch} of at least {config.min_epoch}"),
            (config.wait_for_stability and not view.host_stabilised[row], "the host has not stabilised"),
            (view.plateau_epochs[row] < config.min_plateau, f"plateau of {view.plateau_epochs[row]} epochs"),
            (pause < config.epochs_after_prune, f"pruned {pause} epochs ago"),
            (not scene.batch.legal[row, Op.GERMINATE].any(), "no slot is free"),
            (scene.remaining[row] < self.epochs_to_commit, f"{scene.remaining[row]} epochs left are too few"),
        )
        return next((reason for holds, reason in conditions if holds), None)

    def _next_blueprint(self, scene: _Scene, row: int) -> BlueprintEntry | None:
        """Return the next of the rotation that was not pruned recently and is offered, or None."""
        start = int(scene.memory.turn[row])
        for entry in (*self.rotation[start:], *self.rotation[:start]):
            recent = scene.memory.penalty[row, entry.value] >= self.config.penalty_threshold
            if not recent and scene.batch.offered[row, entry.value]:
                return entry
        return None

    def _fill(self, action: Actions, decision: Decision) -> None:
        """Write a decision into one row of actions; heads that its op does not read keep their defaults."""
        action[[Head.OP, Head.SLOT]] = int(decision.op), int(decision.slot or 0)
        if decision.op == Op.PRUNE:
            action[Head.ALPHA_SPEED] = self.config.prune_speed
        elif decision.op in (Op.GERMINATE, Op.SET_ALPHA_TARGET):
            action[[Head.STYLE, Head.ALPHA_TARGET]] = self.config.style, AlphaTarget.FULL
        if decision.op == Op.SET_ALPHA_TARGET:
            action[Head.ALPHA_SPEED] = AlphaSpeed.FAST
        elif decision.op == Op.GERMINATE and decision.blueprint is not None:
            action[Head.BLUEPRINT] = blueprint_entry(decision.blueprint, self.topology).value
            action[Head.TEMPO] = self.config.tempo


def _beyond(value: float, threshold: float) -> float:
    """Return a confidence: 0 at the threshold, approaching 1 far beyond it."""
    distance = max(value - threshold, 0.0)
    return distance / (1.0 + distance)
