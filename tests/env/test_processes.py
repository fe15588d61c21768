"""Environments in other processes."""

import subprocess
import sys

import pytest

SCRIPT = """
import gymnasium, esper_env

env = gymnasium.make("Esper-Digits-v0", horizon=3)
env.reset(seed=0)
env.step(env.action_space.sample())  # the forking process has trained a network
kwargs = {"num_envs": 2, "horizon": 3, "batches_per_step": 2}
envs = gymnasium.make_vec("Esper-Digits-v0", vectorization_mode="async", **kwargs)
observations, _ = envs.reset(seed=0)
for _ in range(3):
    observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
print(observations["features"].shape, terminated.all())
envs.close()
"""


@pytest.mark.slow
def test_forked_processes_train_with_two_threads(monkeypatch):
    """After a parallel region, the children of a forking process would hang."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "(2, 121) True"
