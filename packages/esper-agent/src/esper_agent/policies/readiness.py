"""Gates that can pass, as far as the observation shows, so that no step is wasted on a certain failure."""

from __future__ import annotations

import numpy as np
from esper_env.checks import is_whole
from esper_env.rules import HOLD, GateConfig, ObservationView, Stage
from numpy.typing import NDArray

_ROUNDING = 1e-5  # features are float32


def check_horizon_and_gates(horizon: object, gates: object) -> None:
    """Check an episode's number of epochs and a gate configuration, which may be None.

    Raises:
        ValueError: ``horizon`` is not a positive integer.
        TypeError: ``gates`` is not a ``GateConfig``.
    """
    if not is_whole(horizon, least=1):
        raise ValueError(f"horizon is {horizon!r}; expected the number of epochs in an episode, at least 1")
    if gates is not None and not isinstance(gates, GateConfig):
        raise TypeError(
            f"gates is {gates!r}; expected a GateConfig, such as esper_env.rules.gates.gate_config('strict')"
        )


def ready_to_advance(view: ObservationView, gates: GateConfig) -> NDArray[np.bool_]:
    """Return slots (..., S) where ADVANCE passes its gate, as far as the observation shows.

    Strict gates also check the gradient ratio, which is not observed, so that the attempt can still fail.
    """
    trained = (
        (view.epochs_in_stage >= gates.min_training_epochs)
        & _healthy(view, gates)
        & _at_least(view.contribution, gates.min_prospective_contribution)
    )
    blended = on_hold_at(view, gates.full_alpha) & _at_least(view.epochs_in_stage, gates.min_blending_epochs)
    stage = view.stage
    return (stage == Stage.GERMINATED) | ((stage == Stage.TRAINING) & trained) | ((stage == Stage.BLENDING) & blended)


def ready_to_fossilize(view: ObservationView, gates: GateConfig) -> NDArray[np.bool_]:
    """Return slots (..., S) where FOSSILIZE passes its gate."""
    return (
        (view.stage == Stage.HOLDING)
        & view.contribution_measured
        & _healthy(view, gates)
        & _at_least(view.contribution, gates.min_contribution)
    )


def on_hold_at(view: ObservationView, alpha: float) -> NDArray[np.bool_]:
    """Return slots (..., S) without a ramp in progress whose alpha is at least ``alpha``."""
    return (view.alpha_mode == HOLD) & (view.alpha >= alpha - _ROUNDING)


def _healthy(view: ObservationView, gates: GateConfig) -> NDArray[np.bool_]:
    return ~view.gradient_exploding & (view.gradient_health >= gates.min_gradient_health - _ROUNDING)


def _at_least(values: NDArray, threshold: float | None) -> NDArray[np.bool_]:
    return np.ones(values.shape, dtype=bool) if threshold is None else values >= threshold - _ROUNDING
