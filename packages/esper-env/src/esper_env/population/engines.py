"""Choice of what runs a shard: PyTorch, or compiled programs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from esper_env.population.config import PopulationConfig
from esper_env.population.shard import Shard
from esper_env.population.training.minibatches import TrainingImages, TrainingSamples
from esper_env.tasks.choices import AUTO, FULL_PRECISION, FUSED, TORCH

if TYPE_CHECKING:
    from esper_env.population.fused.shard import FusedShard


def fused_shard(shard: Shard, config: PopulationConfig, data: TrainingSamples, lanes: int) -> FusedShard | None:
    """Return what runs the shard in compiled programs, or None if PyTorch runs it.

    Args:
        shard: the networks.
        config: its ``engine`` is "torch", "fused" or "auto".
        data: the samples to train on.
        lanes: threads that may share the networks.

    Raises:
        ValueError: the engine is "fused", and compiled programs cannot run the shard.
    """
    if config.engine == TORCH:
        return None
    problem = _problem(config, data)
    if problem is None and (config.batched or config.engine == FUSED):
        from esper_env.population.fused.compiler import NotCompilableError  # numba is optional, and slow to import
        from esper_env.population.fused.shard import FusedShard

        assert isinstance(data, TrainingImages)
        try:
            return FusedShard(shard, config, data, lanes)
        except NotCompilableError as error:
            problem = f"the host cannot be compiled: {error}"
    if config.engine == AUTO:
        return None
    raise ValueError(f"`engine` is {FUSED!r}, and {problem}; use 'torch' or 'auto'")


def _problem(config: PopulationConfig, data: TrainingSamples) -> str | None:
    """Return why compiled programs cannot run these networks, whatever their layers are; None if they can."""
    if not isinstance(data, TrainingImages):
        return "it runs networks for images only"
    if config.device.type != "cpu":
        return f"it runs on a CPU, not on {config.device.type!r}"
    if config.precision != FULL_PRECISION:
        return f"it does not support precision {config.precision!r}"
    if find_spec("numba") is None:
        return "numba is not installed (pip install 'esper-env[fused]')"
    return None
