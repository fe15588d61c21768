"""Names of ways to train networks, kept apart from the networks so that checking a task does not load PyTorch."""

from __future__ import annotations

#: Signal that a seed in TRAINING learns from; see ``esper_env.population.PopulationConfig``.
SHADOW, STRAIGHT_THROUGH = "shadow", "straight_through"
ISOLATIONS = (SHADOW, STRAIGHT_THROUGH)

#: Precision of the passes; "bfloat16" is mixed precision, in which parameters and updates stay float32.
FULL_PRECISION = "float32"
PRECISIONS = (FULL_PRECISION, "bfloat16")

#: What runs the networks: PyTorch, or programs that numba compiles; "auto" is "fused" where that can run.
AUTO, FUSED, TORCH = "auto", "fused", "torch"
ENGINES = (AUTO, FUSED, TORCH)

#: "auto" captures training steps as graphs if the device supports it.
CAPTURE_MODES = ("auto", "off")
