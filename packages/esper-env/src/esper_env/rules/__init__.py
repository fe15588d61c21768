"""The decision side: stages, actions, masks, lifecycle, gates, signals, observation, reward and governor.

Everything works on NumPy arrays of shape (environments, slots); nothing here imports PyTorch.
"""

from esper_env.rules.actions import ActionNames
from esper_env.rules.gates import (
    FULL_ALPHA,
    MAX_CONTRIBUTION_AGE,
    MIN_GRADIENT_HEALTH,
    MIN_TRAINING_EPOCHS,
    GateConfig,
    gate_config,
)
from esper_env.rules.heads import (
    ALPHA_TARGETS,
    HEAD_DEFAULTS,
    HEAD_NAMES,
    HEAD_RELEVANCE,
    HEAD_VALUES,
    NO_BLUEPRINT,
    NUM_BLUEPRINTS,
    NUM_HEADS,
    NUM_OPS,
    SPEED_TICKS,
    TEMPO_TICKS,
    AlphaSpeed,
    AlphaTarget,
    Head,
    Op,
    Style,
    Tempo,
    describe_head,
    head_sizes,
)
from esper_env.rules.masks import sample_valid_actions
from esper_env.rules.observation import BASE_FIELDS, SLOT_FIELDS, ObservationView, feature_count
from esper_env.rules.rejection import Rejection
from esper_env.rules.reward_config import GAMMA
from esper_env.rules.signals import HISTORY
from esper_env.rules.slot_table import HOLD, SlotTable
from esper_env.rules.stages import HAS_SEED, IS_LIVE, Stage

__all__ = [
    "ALPHA_TARGETS",
    "BASE_FIELDS",
    "FULL_ALPHA",
    "GAMMA",
    "HAS_SEED",
    "HEAD_DEFAULTS",
    "HEAD_NAMES",
    "HEAD_RELEVANCE",
    "HEAD_VALUES",
    "HISTORY",
    "HOLD",
    "IS_LIVE",
    "MAX_CONTRIBUTION_AGE",
    "MIN_GRADIENT_HEALTH",
    "MIN_TRAINING_EPOCHS",
    "NO_BLUEPRINT",
    "NUM_BLUEPRINTS",
    "NUM_HEADS",
    "NUM_OPS",
    "SLOT_FIELDS",
    "SPEED_TICKS",
    "TEMPO_TICKS",
    "ActionNames",
    "AlphaSpeed",
    "AlphaTarget",
    "GateConfig",
    "Head",
    "ObservationView",
    "Op",
    "Rejection",
    "SlotTable",
    "Stage",
    "Style",
    "Tempo",
    "describe_head",
    "feature_count",
    "gate_config",
    "head_sizes",
    "sample_valid_actions",
]
