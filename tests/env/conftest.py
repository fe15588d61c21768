"""Tiny environments, and comparisons of everything they return."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from esper_env.rules.heads import Blueprint, Op, Style, Tempo
from growing import built_with
from plain_rules import action as build_action
from stepping import new_env

#: Small enough that a step takes milliseconds.
TINY = {"horizon": 6, "batches_per_step": 2, "batch_size": 16}
CIFAR_TINY = {"horizon": 2, "batches_per_step": 1, "batch_size": 8, "dataset": "procedural"}
TINYSTORIES_TINY = TINY | {"dataset": "grammar"}


@pytest.fixture
def make_digits():
    """``make_digits(**kwargs)``: a tiny single environment on digits; closed afterwards."""
    opened = []

    def make(**kwargs):
        opened.append(gymnasium.make("Esper-Digits-v0", **(TINY | kwargs)))
        return opened[-1]

    yield make
    for env in opened:
        env.close()


@pytest.fixture
def make_digits_vec():
    """``make_digits_vec(num_envs, **kwargs)``: a tiny vector of them; closed afterwards."""
    opened = []

    def make(num_envs, **kwargs):
        opened.append(gymnasium.make_vec("Esper-Digits-v0", num_envs=num_envs, **(TINY | kwargs)))
        return opened[-1]

    yield make
    for env in opened:
        env.close()


@pytest.fixture(scope="session")
def tiny():
    """``tiny(env_id)``: the kwargs that make an episode of the task short."""
    kwargs = {"CIFAR": CIFAR_TINY, "TinyStories": TINYSTORIES_TINY}
    return lambda env_id: dict(kwargs.get(env_id.split("-")[1], TINY))


@pytest.fixture(scope="session")
def action():
    """``action(op, slot, blueprint=..., style=...)``: one action; other heads have their defaults."""
    return build_action


@pytest.fixture(scope="session")
def script(action):
    """The shortest life of a seed in a slot, from germination to fossilization, as a list of actions."""

    def build(slot=0, blueprint=Blueprint.CONV_LIGHT):
        return [
            action(Op.GERMINATE, slot, blueprint=blueprint, style=Style.LINEAR_ADD, tempo=Tempo.FAST),
            action(Op.ADVANCE, slot),  # into TRAINING
            *[action()] * 2,
            action(Op.ADVANCE, slot),  # three epochs trained: into BLENDING, for three ticks
            *[action()] * 2,
            action(Op.ADVANCE, slot),  # alpha is 1: into HOLDING
            action(Op.FOSSILIZE, slot),
        ]

    return build


@pytest.fixture(scope="session")
def assert_same():
    """``assert_same(left, right, atol=0)``: equal structure, types, dtypes and shapes; floats within ``atol``."""
    return _assert_same


def _assert_same(left, right, atol=0.0, path=""):
    assert type(left) is type(right), f"{path}: {type(left)} and {type(right)}"
    if isinstance(left, dict):
        assert left.keys() == right.keys(), f"{path}: {sorted(left)} and {sorted(right)}"
        for key in left:
            _assert_same(left[key], right[key], atol, f"{path}/{key}")
    elif isinstance(left, (tuple, list)):
        _assert_same(dict(enumerate(left)), dict(enumerate(right)), atol, path)
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, path
        assert left.shape == right.shape, path
        if left.dtype == object:
            for index, (a, b) in enumerate(zip(left, right, strict=True)):
                _assert_same(a, b, atol, f"{path}[{index}]")
        else:
            np.testing.assert_allclose(left, right, rtol=0.0, atol=atol, err_msg=path)
    elif isinstance(left, float):
        assert abs(left - right) <= atol or left != left != right, f"{path}: {left} and {right}"
    else:
        assert left == right, f"{path}: {left} and {right}"


@pytest.fixture
def use_threads():
    """Set PyTorch's number of intra-op threads for the rest of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def float64_networks():
    """Environments made in the test train float64 networks, whose trajectories agree within 1e-6 on any CPU.

    Training amplifies float32 rounding beyond any bound that a test could state. Features stay float32.
    """
    with built_with(torch.float64):
        yield


@pytest.fixture
def make():
    """Call :func:`stepping.new_env`; close the environments after the test."""
    opened = []

    def build(num_envs=3, **kwargs):
        opened.append(new_env(num_envs, **kwargs))
        return opened[-1]

    yield build
    for env in opened:
        env.close()
