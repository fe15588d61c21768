"""Determinism: equal seeds and actions give equal bits, and global random generators are not used."""

import os
import random
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import cache, partial

import gymnasium
import numpy as np
import pytest
import torch
from esper_env import register_blueprint, register_task
from esper_env.rules.heads import Blueprint, Op
from esper_env.vector_env import EsperVectorEnv
from plain_rules import action as build_action
from plain_transformer import made_text
from stepping import TINY
from torch import nn

ROLLOUT = """
import hashlib, gymnasium, numpy as np
envs = gymnasium.make_vec("esper_env:Esper-Digits-v0", num_envs=3, horizon=11, batches_per_step=3, batch_size=16)
digest = hashlib.sha256()
def add(tree):
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, dict):
            add(value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            digest.update(key.encode() + value.tobytes())
observations, infos = envs.reset(seed=17)
rng = np.random.default_rng(5)
for step in range(16):
    actions = envs.unwrapped.sample_valid_actions(rng)
    if step % 5 == 4:
        actions = rng.integers(0, envs.single_action_space.nvec, size=actions.shape)
    observations, rewards, terminated, truncated, infos = envs.step(actions)
    add(observations); add(infos); add({"r": rewards, "te": terminated, "tr": truncated})
print(digest.hexdigest())
"""


def test_another_process_gives_the_same_digest(capsys):
    """The other process only imports Gymnasium: the id names the module. Its warnings are errors."""
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", ROLLOUT], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) == 64
    exec(ROLLOUT, {})
    assert capsys.readouterr().out == done.stdout


def play(env_id, steps, count=2, **kwargs):
    """Results of a new vector under random legal actions."""
    envs = gymnasium.make_vec(env_id, num_envs=count, **kwargs)
    results = [envs.reset(seed=3)]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        results.append(envs.step(envs.unwrapped.sample_valid_actions(rng)))
    envs.close()
    return results


def global_state():
    """Global state that the environment shares with other code."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return (
        random.getstate(),
        (kind, keys.tolist(), *rest),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.parametrize("env_id", ["Esper-Digits-v0", "Esper-Text-v0"])
def test_environments_ignore_global_random_generators(env_id, tiny, assert_same):
    # The first use of a library may fill caches.
    kwargs = tiny(env_id)
    first = play(env_id, 2, **kwargs)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)  # noqa: NPY002
    before = global_state()
    second = play(env_id, 2, **kwargs)
    assert global_state() == before
    assert_same(first, second)


def test_every_blueprint_and_style_keeps_the_global_generators(make_digits, action):
    env = make_digits(horizon=60)
    env.reset(seed=0)
    before = global_state()
    for blueprint in env.unwrapped.offered_blueprints:
        for style in range(4):
            _, _, _, _, info = env.step(action(Op.GERMINATE, 0, blueprint=blueprint, style=style))
            assert info["action_succeeded"]
            env.reset()
    assert global_state() == before


@contextmanager
def set_to(setter, value, getter):
    """Set a switch of the process, and restore it."""
    before = getter()
    setter(value)
    try:
        yield
        assert getter() == value  # the environment left it as it was
    finally:
        setter(before)


@contextmanager
def filled_memory():
    """Deterministic algorithms; memory that nothing has been written to is NaN."""
    with set_to(torch.use_deterministic_algorithms, True, torch.are_deterministic_algorithms_enabled):
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield


@contextmanager
def printing():
    torch.set_printoptions(precision=1, sci_mode=True, threshold=1)
    try:
        with np.printoptions(precision=1, threshold=2, legacy="1.13"):
            yield
    finally:
        torch.set_printoptions("default")


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
        assert str(torch.get_default_device()) == device
    finally:
        torch.set_default_device(None)


@contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def default_dtype(dtype):
    return set_to(torch.set_default_dtype, dtype, torch.get_default_dtype)


#: What the caller may have set, for its thread or for the process.
SWITCHES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "gradients off": partial(torch.set_grad_enabled, False),
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "float64": partial(default_dtype, torch.float64),
    "bfloat16": partial(default_dtype, torch.bfloat16),
    "device": partial(default_device, "meta"),
    "device of a block": partial(torch.device, "meta"),
    "floating-point errors": partial(np.errstate, all="raise"),
    "deterministic": filled_memory,
    "anomalies": torch.autograd.detect_anomaly,
    "warn always": partial(set_to, torch.set_warn_always, True, torch.is_warn_always_enabled),
    "printing": printing,
    "warnings": warnings_as_errors,
    "saved tensors": torch.autograd.graph.save_on_cpu,
}
OF_THE_PROCESS = ("float64", "deterministic", "anomalies", "warn always", "printing", "warnings")
VARIANTS = {
    "straight through": {"isolation": "straight_through"},
    "bfloat16": {"precision": "bfloat16"},
    "one network per shard": {"shard_size": 1},
    "single layout": {"env_id": "Single-v0"},
    "text": {"env_id": "Counting-v0"},
}


def whole_life(env_id="Esper-Digits-v0", **settings):
    """Results of every public method of two networks, whose seeds pass through most stages."""
    envs = EsperVectorEnv(env_id, 2, render_mode="ansi", **(TINY | settings))
    results = [envs.reset(seed=3, options={"topology": {"r0c1": "norm"}})]
    germinate = np.array([build_action(Op.GERMINATE, 0, blueprint=envs.offered_blueprints[k], style=3) for k in (1, 2)])
    advance = np.array([build_action(Op.ADVANCE, 0)] * 2)
    wait = np.array([build_action()] * 2)
    moves = [germinate, advance, wait, wait, advance, wait, wait]
    for move in moves[:3]:
        results.append(envs.step(move))
    state = envs.get_state()
    for move in moves[3:]:
        results.append(envs.step(move))
    results += [envs.get_state(), envs.render(), envs.observe(), envs.action_masks()]
    envs.set_state(state)
    results += [envs.step(move) for move in moves[3:]]
    results.append(deepcopy(envs).step(wait))
    return results


@cache
def plain_life():
    return whole_life()


# Rollouts are often collected under ``no_grad``, and settings for an agent are often set for the process.
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("switch", SWITCHES)
def test_results_are_independent_of_what_the_caller_has_set(switch, assert_same):
    expected = plain_life()
    with SWITCHES[switch]():
        found = whole_life()
    assert_same(found, expected)


@pytest.mark.usefixtures("own_tables")
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("variant", VARIANTS)
def test_results_of_every_kind_are_independent_of_switches_of_the_process(variant, assert_same):
    register_task("Single-v0", auto_shard_size=1)
    register_task("Counting-v0", base="Esper-Text-v0", data=made_text(2000, 200))
    expected = whole_life(**VARIANTS[variant])
    with ExitStack() as stack:
        for switch in OF_THE_PROCESS:
            stack.enter_context(SWITCHES[switch]())
        found = whole_life(**VARIANTS[variant])
    assert_same(found, expected)


class Everything(nn.Module):
    """A seed with the kinds of numbers that constructors draw and make."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.mix = nn.Parameter(torch.randn(channels, channels) / channels**0.5)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-3) + torch.tensor(1e-4))
        nn.init.orthogonal_(self.conv.weight)

    def forward(self, x):
        return x + self.scale * torch.tanh(torch.einsum("oc,bchw->bohw", self.mix, self.conv(x)))


@pytest.mark.usefixtures("own_tables")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_custom_modules_are_independent_of_the_default_dtype(dtype, make, assert_same):
    register_blueprint("everything", "cnn", Everything)
    states = []
    for default in (torch.float32, dtype):
        with default_dtype(default):
            env = make(1)
            env.reset(seed=1, options={"topology": {"r0c0": "everything"}})
            env.step(np.array([build_action()]))
            states.append(env.get_state())
    assert_same(*states)


# Threads


def test_environments_in_two_threads_reset_as_one_after_the_other(make, assert_same):
    """Meanwhile, a third thread draws from the default generator, whose numbers do not change."""
    envs = [make(1, batches_per_step=1) for _ in range(2)]
    germinate = np.array([build_action(Op.GERMINATE, 0, blueprint=Blueprint.ATTENTION)])

    def work(index):
        results = []
        for episode in range(30):
            results.append(envs[index].reset(seed=100 * episode + index, options={"topology": {"r0c2": "conv_light"}}))
            results.append(envs[index].step(germinate))
        return results

    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = [torch.rand(3) for _ in range(200)]
        torch.manual_seed(7)
        in_turn = [work(0), work(1)]
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(work, index) for index in range(2)]
            drawn = []
            while not all(each.done() for each in running) and len(drawn) < len(expected):
                drawn.append(torch.rand(3))
                time.sleep(0.001)
            together = [each.result() for each in running]
        drawn += [torch.rand(3) for _ in range(len(expected) - len(drawn))]
    assert_same(together, in_turn)
    assert all(map(torch.equal, drawn, expected))
