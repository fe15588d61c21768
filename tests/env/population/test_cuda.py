"""On a CUDA device, networks train as on a CPU, captured or not, and no step waits for the device."""

import numpy as np
import pytest
import torch
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from small_networks import LAYOUTS, all_tensors, everyone

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SEEDS = [
    (0, 0, "conv_light", Operator.GATE, Stage.BLENDING, 0.3),
    (0, 1, "norm", Operator.ADD, Stage.TRAINING),
    (1, 2, "attention", Operator.MULTIPLY, Stage.HOLDING),
    (2, 1, "bottleneck", Operator.ADD, Stage.TRAINING),
]


@LAYOUTS
@pytest.mark.parametrize("kernel", [1, 3])
def test_cuda_equals_cpu_for_same_minibatches(make_population, grow, batched, kernel, monkeypatch):
    """In double precision, with minibatches drawn on the CPU because the generators of the devices differ."""
    results = []
    for device, capture in (("cpu", "off"), ("cuda", "off"), ("cuda", "auto")):
        population = make_population(
            3, batched=batched, kernel=kernel, dtype=torch.float64, device=device, capture=capture
        )
        reference = make_population(3, batched=batched, kernel=kernel, dtype=torch.float64)
        for own, stream in zip(population._streams, reference._streams, strict=True):
            monkeypatch.setattr(own, "draw", _drawn_on_the_cpu(stream, device))
        structure = grow(population, 3, *SEEDS)
        losses = [population.train(structure).loss for _ in range(3)]
        results.append((losses, population.measure(structure, everyone(3)), list(all_tensors(population).values())))
        assert (population.captures > 0) == (capture == "auto")
    for losses, measured, own in results[1:]:
        np.testing.assert_allclose(losses, results[0][0], atol=1e-6)
        for mine, first in zip(measured, results[0][1], strict=True):
            np.testing.assert_allclose(mine, first, atol=1e-6)
        for mine, first in zip(own, results[0][2], strict=True):
            torch.testing.assert_close(mine.cpu(), first, atol=1e-6, rtol=0)


def _drawn_on_the_cpu(stream, device):
    return lambda: tuple(None if part is None else part.to(device) for part in stream.draw())


@LAYOUTS
def test_training_does_not_wait_for_device(make_population, grow, batched):
    population = make_population(3, batched=batched, kernel=3, device="cuda")
    structure = grow(population, 3, *SEEDS)
    population.train(structure).loss.sum()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stats = population.train(structure)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(stats.loss).all()


@LAYOUTS
def test_mixed_precision_trains(make_population, grow, batched):
    population = make_population(3, batched=batched, kernel=3, device="cuda", precision="bfloat16")
    structure = grow(population, 3, *SEEDS)
    losses = [population.train(structure).loss.mean() for _ in range(6)]
    assert losses[-1] < losses[0]
