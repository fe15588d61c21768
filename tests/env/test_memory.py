"""Episodes leave nothing behind."""

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from blueprints import CNN_BLUEPRINTS
from esper_env.rules.gates import GateConfig

ENVS, HORIZON = 2, 3
STATM = Path("/proc/self/statm")  # Linux

#: Bytes that Python and NumPy may have gained: half of it is what they build up once and keep, such as shared keys of
#: dictionaries. The observations of the 270 steps between, if they were kept, would take four times as much.
SLACK = 1 << 16
#: Bytes that the allocator may give back or not between two looks at the process.
RESIDENT_SLACK = 1 << 23


def resident():
    """Bytes of the process in memory; 0 where the system does not tell."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else 0


def tensors_held():
    """How many tensors there are, and the bytes of all their storages."""
    gc.collect()
    storages = [item.untyped_storage() for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return len(storages), sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def play(vector, rounds, seed):
    """An episode of random legal actions in every environment, and another; returns the resident memory after each.

    Every other one starts from planted seeds, and five of those have had every blueprint in every slot. The rest begin
    when the episodes before them end.
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
def test_two_hundred_episodes_hold_no_more_memory_than_twenty(make_digits_vec):
    """The last twenty repeat the first, so that a cache of bounded size holds the same after both.

    It does if it is full by then: a bound up to about twenty structures is no leak, a larger one looks like one.
    """
    vector = make_digits_vec(ENVS, horizon=HORIZON, batches_per_step=1, batch_size=8)
    vector.unwrapped._growth._gates = GateConfig(min_training_epochs=0)  # blended in three steps
    seen = []
    tracemalloc.start()
    try:
        for rounds, seed in [(10, 0), (80, 1), (10, 0)]:
            memory = play(vector, rounds, seed)
            seen.append((*tensors_held(), tracemalloc.get_traced_memory()[0], memory))
    finally:
        tracemalloc.stop()
    (tensors, size, traced, early), _, (tensors_later, size_later, traced_later, late) = seen
    assert tensors_later <= tensors
    assert size_later <= size
    assert traced_later <= traced + SLACK
    assert min(late) <= max(early) + RESIDENT_SLACK
