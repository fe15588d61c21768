"""Which numbers make sense for training, and which devices there are: checked before anything is built."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch

from esper_agent.settings.config_file import ConfigError


class _Range(NamedTuple):
    words: str
    holds: Callable[[float], bool]
    whole: bool = False


_AT_LEAST_0 = _Range("a number of at least 0", lambda value: value >= 0)
_AT_LEAST_1 = _Range("a whole number of at least 1", lambda value: value >= 1, whole=True)
_POSITIVE = _Range("a positive number", lambda value: value > 0)
_UP_TO_1 = _Range("a number in (0, 1]", lambda value: 0 < value <= 1)
_SEED = _Range("a whole number from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32, whole=True)

#: Settings of a run.
RUN_RANGES = {
    "total_timesteps": _AT_LEAST_1,
    "num_envs": _AT_LEAST_1,
    "seed": _SEED,
    "eval_every": _AT_LEAST_0,
    "eval_episodes": _AT_LEAST_1,
    "checkpoint_every": _AT_LEAST_0,
}
#: Settings of the learner; None, where a setting may be it, always makes sense.
PPO_RANGES = {
    "learning_rate": _POSITIVE,
    "n_steps": _AT_LEAST_1,
    "batch_size": _Range("a whole number of at least 2", lambda value: value >= 2, whole=True),
    "n_epochs": _AT_LEAST_1,
    "gamma": _UP_TO_1,
    "gae_lambda": _Range("a number in [0, 1]", lambda value: 0 <= value <= 1),
    "clip_range": _POSITIVE,
    "clip_range_vf": _POSITIVE,
    "ent_coef": _AT_LEAST_0,
    "final_ent_coef": _AT_LEAST_0,
    "vf_coef": _AT_LEAST_0,
    "max_grad_norm": _POSITIVE,
    "target_kl": _POSITIVE,
}
OPTIONAL = frozenset({"seed", "ent_coef", "clip_range_vf", "target_kl"})


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for the first of these settings that makes no sense; schedules are left to the learner."""
    ranges = RUN_RANGES | PPO_RANGES
    for name, value in values.items():
        if callable(value) or (value is None and name in OPTIONAL):
            continue
        allowed = ranges[name]
        number = Integral if allowed.whole else Real  # NumPy's are among them
        known = isinstance(value, number) and not isinstance(value, bool)
        if not known or not abs(value) <= sys.float_info.max or not allowed.holds(value):
            raise ConfigError(f"{name} is {value!r}; expected {allowed.words}")


def check_device(device: str) -> None:
    """Raise ``ConfigError`` for a device that torch does not know or this machine does not have."""
    if device == "auto":
        return
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        wanted = torch.device("meta")
    if wanted.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; expected auto, cpu, cuda or cuda:N")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {device!r}, but torch sees {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
