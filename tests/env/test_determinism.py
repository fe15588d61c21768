"""Determinism: equal seeds and actions give equal bits, and global random generators are not used."""

import os
import random
import subprocess
import sys
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from esper_env.rules.heads import Op

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


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", torch.bfloat16)]
)
def test_results_are_independent_of_the_callers_mode(context, tiny, assert_same):
    """Rollouts are often collected under ``no_grad``."""
    kwargs = tiny("Esper-Digits-v0")
    plain = play("Esper-Digits-v0", 7, **kwargs)
    with context():
        guarded = play("Esper-Digits-v0", 7, **kwargs)
    assert_same(plain, guarded)
