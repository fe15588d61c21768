"""Observations for tests of the heuristic."""

from dataclasses import dataclass, field, replace

import numpy as np
from blueprints import CNN_BLUEPRINTS
from esper_agent.policies.heuristic import HeuristicConfig, HeuristicPolicy
from esper_env.rules.heads import NO_BLUEPRINT, Blueprint, Head, Op, head_sizes
from esper_env.rules.observation import CONTRIBUTION, feature_count
from esper_env.rules.stages import Stage
from plain_rules import base_index, slot_index

HORIZON = 60
LIVE = (Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)


@dataclass(frozen=True)
class Seed:
    """Seed in one slot, by default healthy and without a ramp."""

    stage: Stage
    epochs: int = 1
    blueprint: Blueprint = Blueprint.CONV_LIGHT
    contribution: float | None = 0.0
    alpha: float | None = None
    mode: int = 0
    health: float = 1.0
    exploding: bool = False


@dataclass(frozen=True)
class Moment:
    """One observation; ``replace`` makes the next."""

    epoch: int = 20
    accuracies: tuple[float, ...] = (50.0,) * 5
    plateau: int = 5
    stabilised: bool = True
    seeds: dict[int, Seed] = field(default_factory=dict)
    slots: int = 3
    succeeded: bool = True
    illegal: tuple[tuple[Op, int], ...] = ()
    offered: tuple[int, ...] = CNN_BLUEPRINTS

    def observation(self):
        features = np.zeros(feature_count(self.slots), dtype=np.float32)
        values = {
            "epoch": self.epoch / HORIZON,
            "val_accuracy": self.accuracies[-1] / 100,
            "plateau_epochs": self.plateau / 20,
            "host_stabilised": self.stabilised,
            "last_action_succeeded": self.succeeded,
            **{f"accuracy_history_{i}": value / 100 for i, value in enumerate(self.accuracies)},
        }
        for name, value in values.items():
            features[base_index(name)] = value
        legal = np.zeros((6, self.slots), dtype=np.int8)
        legal[Op.WAIT] = 1
        blueprints = np.full(self.slots, NO_BLUEPRINT)
        for slot in range(self.slots):
            seed = self.seeds.get(slot)
            if seed is None:
                legal[Op.GERMINATE, slot] = 1
                continue
            self._show(features, slot, seed)
            if seed.stage in (*LIVE, Stage.FOSSILIZED):
                blueprints[slot] = seed.blueprint
            legal[Op.ADVANCE, slot] = seed.stage in LIVE[:3]
            legal[Op.FOSSILIZE, slot] = seed.stage == Stage.HOLDING
            legal[Op.PRUNE, slot] = seed.stage in LIVE and seed.mode == 0
            legal[Op.SET_ALPHA_TARGET, slot] = seed.stage in LIVE[2:] and seed.mode == 0
        for op, slot in self.illegal:
            legal[op, slot] = 0
        sizes = head_sizes(self.slots)
        mask = np.ones(sum(sizes), dtype=np.int8)
        mask[sizes[0] : sizes[0] + sizes[1]] = np.isin(np.arange(13), self.offered)
        return {"features": features, "blueprints": blueprints, "action_mask": mask, "op_slot_mask": legal.ravel()}

    @staticmethod
    def _show(features, slot, seed):
        features[slot_index(f"stage_{seed.stage.name.lower()}", slot)] = 1
        if seed.stage not in (*LIVE, Stage.FOSSILIZED):
            return
        alpha = seed.alpha if seed.alpha is not None else float(seed.stage in (Stage.BLENDING, Stage.HOLDING))
        values = {
            "active": 1,
            "alpha": alpha,
            "alpha_mode": seed.mode / 2,
            "epochs_in_stage": seed.epochs / HORIZON,
            "gradient_health": seed.health,
            "gradient_exploding": seed.exploding,
        }
        if seed.contribution is not None:
            values["contribution"] = CONTRIBUTION.encode(np.array(seed.contribution))
            values["counterfactual_freshness"] = 1.0
        for name, value in values.items():
            features[slot_index(name, slot)] = value


def policy_with(gates="permissive", **settings):
    return HeuristicPolicy(HORIZON, "cnn", gates, HeuristicConfig(**settings))


def decide(*moments, policy=None):
    """Return the decision at the last of consecutive moments of one episode."""
    policy, state = policy or policy_with(), None
    for index, moment in enumerate(moments):
        action, state = policy.predict(moment.observation(), state, np.array([index == 0]))
    decision = policy.decisions[0][-1]
    assert action[Head.OP] == decision.op
    assert decision.slot is None or action[Head.SLOT] == decision.slot
    return decision


def aged(moment, seeds, epochs=1, **changes):
    return replace(moment, epoch=moment.epoch + epochs, seeds=seeds, **changes)


#: Seeds that can advance at once, by stage.
READY = {
    Stage.GERMINATED: Seed(Stage.GERMINATED),
    Stage.TRAINING: Seed(Stage.TRAINING, 3),
    Stage.BLENDING: Seed(Stage.BLENDING, 5),
}
