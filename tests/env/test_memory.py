"""Memory over many episodes."""

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from blueprints import CNN_BLUEPRINTS
from esper_env.rules import gates

ENVS, HORIZON = 2, 3
STATM = Path("/proc/self/statm")  # Linux

#: Bytes that Python and NumPy may gain. Half of them allow for objects that are built once, such as shared keys of
#: dictionaries. A leak of the observations of the measured 105 steps would exceed the limit.
SLACK = 1 << 16
#: Bytes that the allocator may keep or return between two readings.
RESIDENT_SLACK = 1 << 23


def resident():
    """Resident bytes of the process; 0 if the system has no such reading."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else 0


def tensors_held():
    """Number of tensors, and bytes of their storages."""
    gc.collect()
    storages = [item.untyped_storage() for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return len(storages), sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def play(vector, rounds, seed):
    """Play rounds of episodes under random legal actions; return the resident memory after each.

    Every other round starts from planted seeds. Five of these cover every blueprint in every slot.
    """
    rng, memory = np.random.default_rng(seed), []
    vector.reset(seed=seed)
    for index in range(rounds):
        for row in range(ENVS) if index % 2 == 0 else ():
            names = [CNN_BLUEPRINTS[(index + row + slot) % len(CNN_BLUEPRINTS)].name.lower() for slot in range(3)]
            topology = {f"r0c{slot}": name for slot, name in enumerate(names)}
            vector.reset(options={"reset_mask": np.arange(ENVS) == row, "topology": topology})
        for _ in range(HORIZON):
            *_, terminated, _, _ = vector.step(vector.unwrapped.sample_valid_actions(rng))
        assert terminated.all()
        memory.append(resident())
    return memory


@pytest.mark.slow
def test_episodes_free_their_memory(make_digits_vec, monkeypatch):
    """The last rounds repeat the first, so a bounded cache holds the same after both.

    A cache of more than about twenty structures would look like a leak.
    """
    vector = make_digits_vec(ENVS, horizon=HORIZON, batches_per_step=1, batch_size=8, autoreset_mode="SameStep")
    monkeypatch.setattr(gates, "MIN_TRAINING_EPOCHS", 0)  # blending takes three steps
    seen = []
    tracemalloc.start()
    try:
        for rounds, seed in [(10, 0), (25, 1), (10, 0)]:
            memory = play(vector, rounds, seed)
            seen.append((*tensors_held(), tracemalloc.get_traced_memory()[0], memory))
    finally:
        tracemalloc.stop()
    (tensors, size, traced, early), _, (tensors_later, size_later, traced_later, late) = seen
    assert tensors_later <= tensors
    assert size_later <= size
    assert traced_later <= traced + SLACK
    assert min(late) <= max(early) + RESIDENT_SLACK
