"""A toy with the spaces, masks, infos and autoreset of the real environments, but no networks."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from blueprints import CNN_BLUEPRINTS
from command_line import SMALL
from esper_agent.cli.main import OK, main
from esper_env.rules.heads import NO_BLUEPRINT, Head, Op, head_sizes
from esper_env.rules.masks import ActionRules
from esper_env.rules.rejection import Rejection
from esper_env.rules.reward_config import reward_config
from esper_env.rules.stages import HAS_SEED, IS_BLENDED, STAGE_INDEX, Stage
from esper_env.seeds import offered_blueprints
from esper_env.tasks import TASKS
from esper_env.telemetry import Telemetry
from gymnasium.spaces import Box, Dict, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit

TOY_ID = "GrowthToy-v0"
SLOTS = 2
NEXT_STAGE = {
    Stage.GERMINATED: Stage.TRAINING,
    Stage.TRAINING: Stage.BLENDING,
    Stage.BLENDING: Stage.HOLDING,
}
RULES = ActionRules(SLOTS, CNN_BLUEPRINTS, SLOTS)
LEGAL_STAGES = {
    Op.WAIT: set(Stage),
    Op.GERMINATE: {Stage.DORMANT},
    Op.SET_ALPHA_TARGET: {Stage.HOLDING},
    Op.PRUNE: {Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING},
    Op.FOSSILIZE: {Stage.HOLDING},
    Op.ADVANCE: set(NEXT_STAGE),
}


class GrowthToy(gymnasium.Env):
    """Accuracy drifts up with noise, and every blended seed adds ten points.

    A prune frees its slot at once, and fails in the epoch after the seed came to its stage.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, horizon: int = 12, render_mode: str | None = None, reward_weights: dict | None = None) -> None:
        self.horizon, self.render_mode, self.reward_weights = horizon, render_mode, reward_weights
        self.stage, self.in_stage, self.blueprint = [Stage.DORMANT] * SLOTS, [0] * SLOTS, [NO_BLUEPRINT] * SLOTS
        self.epoch, self.accuracy = 0, 0.0
        self.nvec = head_sizes(SLOTS)
        self.observation_space = Dict(
            features=Box(-2, 2, (31 + 30 * SLOTS,), np.float32),
            blueprints=Box(0, NO_BLUEPRINT, (SLOTS,), np.int64),
            action_mask=Box(0, 1, (sum(self.nvec),), np.int8),
            op_slot_mask=Box(0, 1, (len(Op) * SLOTS,), np.int8),
        )
        self.action_space = MultiDiscrete(self.nvec)
        self.slot_ids = ("r0c0", "r0c1")
        self.topology, self.offered_blueprints = "cnn", CNN_BLUEPRINTS
        self.blueprint_names = {entry.value: entry.name for entry in offered_blueprints("cnn")}
        self.dataset_name, self.data_digest = "toy", "0123456789abcdef" * 2
        self.host_parameters = 100
        self.task = replace(TASKS["Esper-Digits-v0"], env_id=TOY_ID, horizon=horizon, max_seeds=SLOTS)

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.stage = [Stage.DORMANT] * SLOTS
        self.in_stage = [0] * SLOTS
        self.blueprint = [NO_BLUEPRINT] * SLOTS
        self.epoch, self.accuracy = 0, float(self.np_random.uniform(10, 20))
        return self._observation(), self._info(Op.WAIT, True, True)

    def step(self, action):
        op, slot = Op(int(action[Head.OP])), int(action[Head.SLOT])
        valid = bool(self._op_slot()[op, slot])
        effective = op if valid else Op.WAIT
        succeeded = valid and not (op == Op.PRUNE and self.in_stage[slot] == 1)
        if succeeded:
            self._apply(effective, slot, int(action[Head.BLUEPRINT]))
        before, self.epoch = self.accuracy, self.epoch + 1
        blended = sum(bool(IS_BLENDED[stage]) for stage in self.stage)
        self.accuracy = float(20 + self.epoch + 10 * blended + self.np_random.normal())
        self.in_stage = [count + bool(HAS_SEED[stage]) for count, stage in zip(self.in_stage, self.stage, strict=True)]
        terminated = self.epoch >= self.horizon
        info = self._info(effective, valid, succeeded, slot, final=terminated)
        return self._observation(), (self.accuracy - before) / 100, terminated, False, info

    def action_masks(self):
        return self._marginal_mask().astype(bool)

    def get_state(self):
        names = ("stage", "in_stage", "blueprint", "epoch", "accuracy")
        plain = {name: json.loads(json.dumps(getattr(self, name))) for name in names}
        return plain | {"rng": self.np_random.bit_generator.state}

    def set_state(self, state):
        for name in state.keys() - {"rng", "stage"}:
            setattr(self, name, state[name])
        self.stage = [Stage(stage) for stage in state["stage"]]
        self.np_random.bit_generator.state = state["rng"]

    def _apply(self, op, slot, blueprint):
        moves = {
            Op.GERMINATE: Stage.GERMINATED,
            Op.PRUNE: Stage.DORMANT,
            Op.FOSSILIZE: Stage.FOSSILIZED,
            Op.ADVANCE: NEXT_STAGE.get(self.stage[slot]),
        }
        if op in moves:
            self.stage[slot], self.in_stage[slot] = moves[op], 0
            self.blueprint[slot] = {Op.GERMINATE: blueprint, Op.PRUNE: NO_BLUEPRINT}.get(op, self.blueprint[slot])

    def _op_slot(self):
        return np.array([[stage in LEGAL_STAGES[op] for stage in self.stage] for op in Op], dtype=np.int8)

    def _marginal_mask(self):
        return RULES.marginal(self._op_slot()[None].astype(bool))[0]

    def _observation(self):
        features = np.zeros(31 + 30 * SLOTS, dtype=np.float32)
        features[0] = self.epoch / self.horizon
        features[3] = self.accuracy / 100
        features[12:17] = self.accuracy / 100
        features[24] = 1.0
        for slot, stage in enumerate(self.stage):
            row = features[31 + 30 * slot : 61 + 30 * slot]
            if HAS_SEED[stage]:
                row[0] = 1.0
                row[1 + STAGE_INDEX[stage]] = 1.0
                row[[11, 12]] = float(IS_BLENDED[stage]), 1.0
                row[19] = self.in_stage[slot] / self.horizon
                row[21] = row[29] = 1.0
        assert len(Stage) == 10
        return {
            "features": features,
            "blueprints": np.array(self.blueprint, dtype=np.int64),
            "action_mask": self._marginal_mask(),
            "op_slot_mask": self._op_slot().ravel(),
        }

    def _info(self, op, valid, succeeded, slot=0, final=False):
        info = {
            "action_mask": self._marginal_mask(),
            "action_valid": valid,
            "action_succeeded": succeeded,
            "op": int(op),
            "slot": int(slot),
            "rejection": int(Rejection.NONE if succeeded else Rejection.G3_FULL_ALPHA if valid else Rejection.ILLEGAL),
            "slot_blueprint": np.array(self.blueprint),
            "val_accuracy": self.accuracy,
            "slot_stage": np.array([int(stage) for stage in self.stage]),
            "contribution": np.zeros(SLOTS),
            "contribution_measured": np.zeros(SLOTS, dtype=bool),
            "rollback": self.epoch == 5,
            "rollbacks": int(self.epoch >= 5),
            "parameters_added": 7 * sum(bool(HAS_SEED[stage]) for stage in self.stage),
            "reward_accuracy": 0.5,
            "reward_rent": -0.25,
            "committed_measured": final,
        }
        if final:
            committed = sum(stage == Stage.FOSSILIZED for stage in self.stage)
            info |= {
                "committed_val_accuracy": self.accuracy,
                "test_accuracy": self.accuracy - 1.0,
                "committed_parameters_added": 7 * committed,
                "shapley": np.arange(SLOTS, dtype=np.float64),
            }
        return info


class GrowthToyVector(VectorEnv):
    """The toy as a vector environment of its own, with vector-wide attributes and masks like the real one."""

    def __init__(self, num_envs=1, autoreset_mode="SameStep", max_episode_steps=None, render_mode=None, **kwargs):
        limit = 10**6 if max_episode_steps is None else max_episode_steps
        rows = [lambda: TimeLimit(GrowthToy(**kwargs), limit)] * num_envs
        self._sync = SyncVectorEnv(rows, autoreset_mode=AutoresetMode(autoreset_mode))
        self.rows, self.num_envs, self.render_mode = self._sync.envs, num_envs, render_mode
        self.reset, self.step, self.metadata = self._sync.reset, self._sync.step, self._sync.metadata
        self.get_attr = self._sync.get_attr
        for name in ("observation_space", "action_space"):
            setattr(self, name, getattr(self._sync, name))
            setattr(self, f"single_{name}", getattr(self._sync, f"single_{name}"))
        shared = "slot_ids topology offered_blueprints blueprint_names dataset_name data_digest host_parameters task"
        for name in (*shared.split(), "reward_weights"):
            setattr(self, name, getattr(self.rows[0].unwrapped, name))
        self.telemetry, self.reward_config = Telemetry(), reward_config()

    def action_masks(self):
        return np.stack([row.unwrapped.action_masks() for row in self.rows])

    def get_state(self):
        steps = np.array([row._elapsed_steps or 0 for row in self.rows])
        return {"steps": steps, "envs": [row.unwrapped.get_state() for row in self.rows]}

    def set_state(self, state):
        if len(state["envs"]) != self.num_envs:
            raise ValueError(f"{len(state['envs'])} environments; expected {self.num_envs}")
        for row, steps, own in zip(self.rows, state["steps"].tolist(), state["envs"], strict=True):
            row._elapsed_steps = steps
            row.unwrapped.set_state(own)


@pytest.fixture(scope="session")
def toy_id():
    """The toy's registered id: 2 slots, 12 epochs."""
    gymnasium.register(TOY_ID, entry_point=GrowthToy, vector_entry_point=GrowthToyVector)
    yield TOY_ID
    del gymnasium.registry[TOY_ID]


@pytest.fixture(scope="module")
def run_folder(toy_id, tmp_path_factory):
    """A run that the command itself trained."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--env", toy_id, "--out", str(folder), "--device", "cpu", *SMALL]) == OK
    return folder
