"""On a CUDA device: networks train as they do on the CPU, captured or not, and nothing waits before the end."""

import numpy as np
import pytest
import torch
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SEEDS = [
    (0, 0, "conv_light", Operator.GATE, Stage.BLENDING, 0.3),
    (0, 1, "norm", Operator.ADD, Stage.TRAINING),
    (1, 2, "attention", Operator.MULTIPLY, Stage.HOLDING),
    (2, 1, "bottleneck", Operator.ADD, Stage.TRAINING),
]
EVERYONE = np.ones(3, dtype=np.bool_)
LAYOUTS = pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])


def tensors(population):
    stacks = [s for shard in population.shards for s in (shard.host, *shard._seeds.values(), *shard._gates.values())]
    return [t for s in stacks for kind in (s.parameters, s.momentum, s.buffers) for t in kind.values()]


@LAYOUTS
@pytest.mark.parametrize("kernel", [1, 3])
def test_captured_or_not_it_measures_what_the_cpu_does_for_the_same_minibatches(
    make_population, grow, together, kernel, monkeypatch
):
    """In double precision, with each network's minibatches drawn on the CPU: the devices have other generators."""
    results = []
    for device, capture in (("cpu", "off"), ("cuda", "off"), ("cuda", "auto")):
        population = make_population(
            3, together=together, kernel=kernel, dtype=torch.float64, device=device, capture=capture
        )
        reference = make_population(3, together=together, kernel=kernel, dtype=torch.float64)
        for own, stream in zip(population._streams, reference._streams, strict=True):
            monkeypatch.setattr(own, "draw", _drawn_on_the_cpu(stream, device))
        structure = grow(population, 3, *SEEDS)
        losses = [population.train(structure).loss for _ in range(3)]
        results.append((losses, population.measure(structure, EVERYONE), tensors(population)))
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
def test_nothing_waits_for_the_device_between_minibatches(make_population, grow, together):
    population = make_population(3, together=together, kernel=3, device="cuda")
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
def test_mixed_precision_trains(make_population, grow, together):
    population = make_population(3, together=together, kernel=3, device="cuda", precision="bfloat16")
    structure = grow(population, 3, *SEEDS)
    losses = [population.train(structure).loss.mean() for _ in range(6)]
    assert losses[-1] < losses[0]
