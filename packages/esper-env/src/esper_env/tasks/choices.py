"""How networks are trained, by name. Apart from the networks, so that a task is checked without loading PyTorch."""

from __future__ import annotations

#: What a seed in TRAINING learns from; see ``esper_env.population.Optimisation``.
SHADOW, STRAIGHT_THROUGH = "shadow", "straight_through"
ISOLATIONS = (SHADOW, STRAIGHT_THROUGH)

#: Of the passes; "bfloat16" is mixed precision, with parameters and their updates as they are.
FULL_PRECISION = "float32"
PRECISIONS = (FULL_PRECISION, "bfloat16")

#: Whether steps are captured as graphs where the device can.
CAPTURE_MODES = ("auto", "off")
