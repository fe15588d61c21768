"""Observations in the form that rule-based policies use, and estimates of which gates pass.

Policies check these estimates before they act, so that no step is wasted on a certain failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from esper_env.rules import (
    FULL_ALPHA,
    HEAD_DEFAULTS,
    HOLD,
    MAX_CONTRIBUTION_AGE,
    MIN_GRADIENT_HEALTH,
    MIN_TRAINING_EPOCHS,
    NO_BLUEPRINT,
    NUM_OPS,
    TEMPO_TICKS,
    GateConfig,
    Head,
    ObservationView,
    Stage,
    Tempo,
    feature_count,
    head_sizes,
)
from numpy.typing import NDArray

Actions = NDArray[np.int64]

_KEYS = ("features", "blueprints", "action_mask", "op_slot_mask")
_ROUNDING = 1e-5  # features are float32


@dataclass(frozen=True)
class ObservationBatch:
    """Observations of N environments with S slots, and the actions that they allow."""

    features: NDArray[np.float32]  # (N, 31 + 30 S)
    blueprints: NDArray[np.int64]  # (N, S)
    legal: NDArray[np.bool_]  # (N, 6, S) True where (op, slot) is legal
    offered: NDArray[np.bool_]  # (N, 13) True for blueprints that GERMINATE accepts
    single: bool  # the observation has no batch axis

    @classmethod
    def of(cls, observation: Mapping[str, NDArray]) -> ObservationBatch:
        """Convert a ``Dict`` observation of one environment, or of N with a leading axis.

        Raises:
            ValueError: the observation is not a dict, a key is missing, the shapes do not match, a feature is not
                finite, or blueprints or masks have impossible values.
        """
        if not isinstance(observation, Mapping):
            raise ValueError(
                f"the observation is a {type(observation).__name__}; expected the dict of an Esper environment, with "
                f"{', '.join(_KEYS)}: do not flatten it"
            )
        missing = [key for key in _KEYS if key not in observation]
        if missing:
            raise ValueError(f"the observation lacks {missing}; expected the dict of an Esper environment")
        arrays = {key: np.asarray(observation[key]) for key in _KEYS}
        single = arrays["features"].ndim == 1
        if single:
            arrays = {key: array[None] for key, array in arrays.items()}
        shapes = {key: array.shape for key, array in arrays.items()}
        rows, slots = shapes["blueprints"] if len(shapes["blueprints"]) == 2 else (0, 0)
        sizes = head_sizes(max(slots, 1))
        expected = {"op_slot_mask": (rows, NUM_OPS * slots), "action_mask": (rows, sum(sizes))}
        features = (rows, feature_count(slots)) if slots else ()
        if slots == 0 or shapes["features"] != features or any(shapes[key] != expected[key] for key in expected):
            raise ValueError(f"observation parts of shapes {shapes} do not belong to the same environments and slots")
        if arrays["features"].dtype.kind not in "fiu" or not np.isfinite(arrays["features"]).all():
            raise ValueError("the observation's features are not all finite; expected numbers of an Esper environment")
        for key, most in (("blueprints", NO_BLUEPRINT), ("action_mask", 1), ("op_slot_mask", 1)):
            if arrays[key].dtype.kind not in "biu" or (arrays[key] < 0).any() or (arrays[key] > most).any():
                raise ValueError(
                    f"the observation's {key} has values other than integers from 0 to {most}; expected the array "
                    "that the environment returned: do not normalise it"
                )
        first = sum(sizes[: Head.BLUEPRINT])
        return cls(
            features=arrays["features"],
            blueprints=arrays["blueprints"],
            legal=arrays["op_slot_mask"].reshape(rows, NUM_OPS, slots).astype(bool),
            offered=arrays["action_mask"][:, first : first + sizes[Head.BLUEPRINT]].astype(bool),
            single=single,
        )

    @property
    def num_envs(self) -> int:
        """Number of environments."""
        return len(self.blueprints)

    @property
    def num_slots(self) -> int:
        """Number of slots of a network."""
        return self.blueprints.shape[1]

    def waiting(self) -> Actions:
        """Return WAIT actions (N, 8), with every other head at its default."""
        return np.tile(np.asarray(HEAD_DEFAULTS, dtype=np.int64), (self.num_envs, 1))

    def returned(self, actions: Actions) -> Actions:
        """Return the actions in the form of the observation, (8,) for a single one."""
        return actions[0] if self.single else actions


def starting_rows(episode_start: NDArray[np.bool_] | None, has_state: bool, num_envs: int) -> NDArray[np.bool_]:
    """Return the rows (N,) that begin an episode: all without a state, otherwise the flagged ones."""
    if not has_state:
        return np.ones(num_envs, dtype=bool)
    if episode_start is None:
        return np.zeros(num_envs, dtype=bool)
    starts = np.asarray(episode_start, dtype=bool)
    if starts.shape not in ((), (1,), (num_envs,)):
        raise ValueError(f"episode_start has shape {starts.shape}; expected ({num_envs},), one flag per environment")
    return np.broadcast_to(starts, (num_envs,)).copy()


def check_state(state: Any, expected: Any, num_envs: int) -> None:
    """Raise ``ValueError`` unless a policy's state, an array or a tuple, has the shapes of ``expected``."""
    if _form(state) != _form(expected):
        raise ValueError(
            f"the state is {_form(state)}; expected {_form(expected)}, because the observation has {num_envs} "
            "environments: pass the state that the policy's own last predict returned, or None to begin"
        )


def _form(state: Any) -> str:
    """Describe a state by the shapes of its arrays, or by its type."""
    if isinstance(state, np.ndarray):
        return f"an array {state.shape}"
    if isinstance(state, tuple | list):
        return " and ".join(f"{count} x {form}" for form, count in Counter(map(_form, state)).items()) or "empty"
    return f"a {type(state).__name__}"


def epochs_to_commit(tempo: Tempo, gates: GateConfig, holding: int = 1) -> int:
    """Return the least number of actions from planting a seed to fossilizing it, after ``holding`` epochs in HOLDING.

    Both of these actions are included.
    """
    blending = max(int(TEMPO_TICKS[tempo]), gates.min_blending_epochs or 0)
    return 2 + MIN_TRAINING_EPOCHS + blending + holding


def ready_to_advance(view: ObservationView, gates: GateConfig) -> NDArray[np.bool_]:
    """Return slots (..., S) where ADVANCE passes its gate, as far as the observation shows.

    Strict gates also check the gradient ratio, which is not observed, so that the attempt can still fail.
    """
    trained = (
        (view.epochs_in_stage >= MIN_TRAINING_EPOCHS)
        & _healthy(view)
        & _contributes(view, gates.min_prospective_contribution)
    )
    blended = on_hold_at(view, FULL_ALPHA) & _at_least(view.epochs_in_stage, gates.min_blending_epochs)
    stage = view.stage
    return (stage == Stage.GERMINATED) | ((stage == Stage.TRAINING) & trained) | ((stage == Stage.BLENDING) & blended)


def ready_to_fossilize(view: ObservationView, gates: GateConfig) -> NDArray[np.bool_]:
    """Return slots (..., S) where FOSSILIZE passes its gate."""
    measured = recently_measured(view)
    contributes = _contributes(view, gates.min_contribution)
    return (view.stage == Stage.HOLDING) & measured & contributes & _healthy(view)


def recently_measured(view: ObservationView) -> NDArray[np.bool_]:
    """Return True (..., S) where gates accept the contribution: measured, and not too long ago."""
    return view.contribution_measured & (view.contribution_age <= MAX_CONTRIBUTION_AGE)


def on_hold_at(view: ObservationView, alpha: float) -> NDArray[np.bool_]:
    """Return slots (..., S) without a ramp in progress whose alpha is at least ``alpha``."""
    return (view.alpha_mode == HOLD) & (view.alpha >= alpha - _ROUNDING)


def _healthy(view: ObservationView) -> NDArray[np.bool_]:
    return ~view.gradient_exploding & (view.gradient_health >= MIN_GRADIENT_HEALTH - _ROUNDING)


def _contributes(view: ObservationView, threshold: float | None) -> NDArray[np.bool_]:
    """Check a minimal contribution, which needs a recent measurement; True everywhere without a threshold."""
    enough = _at_least(view.contribution, threshold)
    return enough if threshold is None else enough & recently_measured(view)


def _at_least(values: NDArray, threshold: float | None) -> NDArray[np.bool_]:
    return np.ones(values.shape, dtype=bool) if threshold is None else values >= threshold - _ROUNDING
