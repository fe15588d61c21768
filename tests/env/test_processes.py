"""Environments in other processes."""

import os
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


FORK = """
import os, threading
import numpy as np, torch
from esper_env.vector_env import EsperVectorEnv

torch.set_num_threads(2)
kwargs = {"horizon": 9, "batches_per_step": 2, "batch_size": 8, "device": "cpu"}
envs = EsperVectorEnv("Esper-Digits-v0", 3, shard_size=1, **kwargs)
other = EsperVectorEnv("Esper-Digits-v0", 2, **kwargs)
germinate, advance = np.array([[0, 1, 2, 0, 2, 0, 0, 1]] * 3), np.array([[0, 1, 2, 0, 2, 0, 0, 5]] * 3)
envs.reset(seed=0)
envs.step(germinate)
other.reset(seed=0)
ended = threading.Event()

def train():
    while not ended.is_set():
        other.step(np.zeros((2, 8), dtype=np.int64))

busy = threading.Thread(target=train)
busy.start()  # the parent forks while threads of another environment train
reading, writing = os.pipe()
child = os.fork()
values = []
for action in (advance, advance, germinate):
    observations, rewards, *_, infos = envs.step(action)
    values += [observations["features"].tolist(), rewards.tolist(), infos["val_loss"].tolist()]
found = repr(values).encode()
if child == 0:
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(found)
    os._exit(0)
ended.set()
busy.join()
os.close(writing)
with os.fdopen(reading, "rb") as pipe:
    assert pipe.read() == found
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_vector_with_worker_threads_steps_like_its_parent():
    # Python 3.12 warns of each fork of a process with threads.
    environment = os.environ | {"PYTHONWARNINGS": "error,ignore::DeprecationWarning"}
    command = [sys.executable, "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
