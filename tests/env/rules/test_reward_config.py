"""Reward configurations accept what their mode reads, and nothing else."""

from __future__ import annotations

import math
import re

import pytest
from esper_env.rules.reward_config import MODE_WEIGHTS, RewardMode, reward_config


def test_accuracy_is_the_default_mode_with_the_documented_weights() -> None:
    config = reward_config()
    assert config.mode is RewardMode.ACCURACY
    assert (config.scale, config.rent_weight, config.op_cost, config.gamma) == (1.0, 0.05, 0.002, 0.98)


def test_weights_replace_defaults_and_leave_the_others() -> None:
    config = reward_config("contribution", {"scale": 2, "scaffold_cap": 3.0})
    assert (config.scale, config.scaffold_cap, config.rent_weight) == (2.0, 3.0, 0.05)
    assert isinstance(config.scale, float)


@pytest.mark.parametrize("mode", list(RewardMode))
def test_each_mode_takes_every_weight_it_lists(mode: RewardMode) -> None:
    for name in MODE_WEIGHTS[mode]:
        assert getattr(reward_config(mode, {name: 0.5}), name) == 0.5


@pytest.mark.parametrize(("mode", "name"), [("accuracy", "rents"), ("accuracy", "shock_weight"), ("sparse", "op_cost")])
def test_unused_weight_is_rejected_with_the_weights_of_the_mode(mode: str, name: str) -> None:
    known = ", ".join(MODE_WEIGHTS[RewardMode(mode)])
    with pytest.raises(ValueError, match=re.escape(f"`reward_weights` has ['{name}']; mode '{mode}' reads {known}")):
        reward_config(mode, {name: 1.0})


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "1", None])
def test_reward_config_rejects_weights_other_than_amounts(value: object) -> None:
    with pytest.raises(ValueError, match=r"`reward_weights.rent_weight` is .*expected a non-negative number"):
        reward_config("accuracy", {"rent_weight": value})  # type: ignore[dict-item]


@pytest.mark.parametrize(("name", "value"), [("gamma", 0.0), ("gamma", 1.01), ("scale", 0.0)])
def test_discounts_and_scales_out_of_range_are_rejected(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`reward_weights.{name}` is {value}"):
        reward_config("accuracy", {name: value})


def test_unknown_mode_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="`reward_mode` is 'shaped'; expected one of 'accuracy', 'sparse', 'contribution'"
    ):
        reward_config("shaped")
