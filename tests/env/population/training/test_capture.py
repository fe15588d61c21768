"""A step is captured once, replayed on other minibatches, alphas and freezings, and never waits for the device.

A CUDA graph replays kernels on fixed addresses. The stand-in here does the same with PyTorch's operations. It records
each operation with the tensors that it reads and writes, and replays it without running any Python of the step.
"""

from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from esper_env.population.training import trainer
from esper_env.population.training.capture import CapturedStep, captures_of
from esper_env.population.training.minibatches import Draw
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from small_networks import LAYOUTS, all_tensors, assert_same, everyone, reset_row
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

#: Operations that wait for the device to know their result or its size.
WAITS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.repeat_interleave,
    aten._unique2,
}


class WaitForDeviceError(AssertionError):
    """The step waits for a value."""


class NoWaiting(TorchDispatchMode):
    """Rejects operations that wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in WAITS or _index_by_mask(func, args):
            raise WaitForDeviceError(str(func))
        return func(*args, **(kwargs or {}))


def _index_by_mask(func, args):
    return func.overloadpacket is aten.index and any(i is not None and i.dtype == torch.bool for i in args[1])


class Tape(NoWaiting):
    """Records operations while they run."""

    def __init__(self):
        super().__init__()
        self._calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if not func.is_view:
            self._calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, recorded in self._calls:
            for place, value in zip(tree_leaves(recorded), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.detach().copy_(value)


class Recording(CapturedStep):
    """Steps recorded on a tape."""

    def _on_own_stream(self):
        return nullcontext()

    def _capture(self, inputs):
        before = [tensor.clone() for tensor in self.state()]
        with Tape() as tape:
            self._step(inputs)
        with torch.no_grad():
            for tensor, value in zip(self.state(), before, strict=True):
                tensor.copy_(value)  # capturing runs nothing
        return tape.replay

    def state(self):
        """Every tensor that a step changes and that outlives it."""
        trainer = self._step.__self__
        own = trainer._set
        return [
            own.theta,
            own.gradient,
            own._velocity,
            own._norm_sum,
            trainer._loss_sum,
            *trainer._shard.host.buffers.values(),
        ]


def without_cache(population):
    """The population with its trainers dropped before every epoch, so no state can survive in them."""
    train = population.train

    def train_afresh(structure):
        for trainers in population._trainers:
            trainers._kept.clear()
        return train(structure)

    population.train = train_afresh
    return population


@pytest.fixture
def both_ways(make_population, monkeypatch):
    """``both_ways(count, **options)``: equal populations, one without cached trainers and one with recorded steps."""

    def make(count, **options):
        eager = without_cache(make_population(count, **options))
        monkeypatch.setattr(trainer, "captures_of", lambda *_: partial(Recording, device=None, pool=None))
        return eager, make_population(count, **options)

    return make


def assert_equal(eager, recorded):
    assert_same(all_tensors(eager), all_tensors(recorded))


SEEDS = [
    (0, 0, "conv_light", Operator.GATE, Stage.BLENDING, 0.3),
    (0, 1, "norm", Operator.ADD, Stage.TRAINING),
    (1, 0, "conv_light", Operator.GATE, Stage.BLENDING, 0.6),
    (1, 2, "attention", Operator.MULTIPLY, Stage.HOLDING),
    (2, 1, "bottleneck", Operator.ADD, Stage.TRAINING),
    (2, 2, "depthwise", Operator.ADD, Stage.GERMINATED),
]


@LAYOUTS
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("isolation", ["shadow", "straight_through"])
def test_replaying_equals_running_bit_for_bit(both_ways, make_data, grow, batched, kernel, isolation):
    data = make_data(pad=2, flip=True)  # crops and flips are inputs of the step
    eager, recorded = both_ways(3, batched=batched, kernel=kernel, isolation=isolation, data=data)
    for epoch, alpha in enumerate((0.3, 0.7, 0.2)):
        seeds = [(*seed[:5], alpha, epoch == 2) if seed[4] == Stage.BLENDING else seed for seed in SEEDS]
        structures = [grow(population, 3, *seeds, attach=epoch == 0) for population in (eager, recorded)]
        stats = [p.train(s) for p, s in zip((eager, recorded), structures, strict=True)]
        for column in ("loss", "gradient_norm", "vanishing", "exploding", "sizes"):
            assert (getattr(stats[0], column) == getattr(stats[1], column)).all(), column
        assert_equal(eager, recorded)
    assert recorded.captures == len(recorded.shards)  # alphas and freezing are values: captured once
    assert eager.captures == 0


def test_new_structure_is_captured_and_old_capture_is_kept(both_ways, grow):
    eager, recorded = both_ways(3)
    grown = [grow(population, 3, *SEEDS) for population in (eager, recorded)]
    plans = [
        lambda population, _: grow(population, 3),
        lambda _, structure: structure,
        lambda population, _: grow(population, 3, *SEEDS[:3], attach=False),
        lambda _, structure: structure,
        lambda population, _: grow(population, 3),
        lambda _, structure: structure._replace(operator=np.where(structure.blended, Operator.ADD, structure.operator)),
        lambda _, structure: structure._replace(
            blended=structure.blended | structure.training, training=structure.training & False
        ),
    ]
    for plan in plans:
        for population, structure in zip((eager, recorded), grown, strict=True):
            population.train(plan(population, structure))
        assert_equal(eager, recorded)
    assert recorded.captures == 5


class Offset(nn.Module):
    """Adds a buffer, drawn in the constructor, times a parameter."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1))
        self.register_buffer("offset", torch.randn(channels, 1, 1))

    def forward(self, x):
        return x + self.scale * self.offset


def test_captured_step_trains_reset_networks_and_reads_buffers_of_newborn_seeds(both_ways, grow, own_blueprints):
    own_blueprints("offset", Offset)
    eager, recorded = both_ways(2)
    for seed in range(3):  # a reset and a birth in each epoch, under the same signature
        for population in (eager, recorded):
            reset_row(population, 1, seed)
            population.train(grow(population, 2, (0, 0, "offset", Operator.ADD, Stage.HOLDING)))
        assert_equal(eager, recorded)
    assert recorded.captures == 1


def test_latest_trainers_are_kept_and_dropped_captures_are_counted(both_ways, grow):
    _, recorded = both_ways(1)
    names = ["conv_light", "norm", "attention", "conv_small", "conv_light", "depthwise", "conv_light", "bottleneck"]
    for name in names:  # conv_light is used again before it is the oldest
        recorded.train(grow(recorded, 1, (0, 0, name, Operator.ADD, Stage.HOLDING)))
    assert recorded.captures == len(set(names)) == 6
    assert len(recorded._trainers[0]._kept) < 6


def test_steps_are_captured_on_cuda_if_enabled(monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "the pool")
    cuda = torch.device("cuda")
    assert captures_of(torch.device("cpu"), "auto") is captures_of(cuda, "off") is None
    assert captures_of(cuda, "auto").keywords == {"device": cuda, "pool": "the pool"}


@pytest.fixture
def cuda_calls(monkeypatch):
    """Calls on a stand-in for torch.cuda; test_cuda.py uses a real device."""
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            log.append(f"begin in {pool}, {capture_error_mode}")

        def capture_end(self):
            log.append("end")

        def replay(self):
            log.append("replay")

    @contextmanager
    def entered(what):
        log.append(f"on {getattr(what, 'name', what)}")
        yield
        log.append("back")

    fakes = {
        "Stream": lambda device: Stream(f"own stream of {device}"),
        "current_stream": lambda device: Stream(f"current stream of {device}"),
        "CUDAGraph": Graph,
        "stream": entered,
        "device": entered,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return log


def test_cuda_graph_warms_up_captures_and_replays_in_stream_order(cuda_calls):
    seen, inputs = [], [Draw(torch.tensor([[k]]), None, None) for k in range(4)]
    step = CapturedStep(lambda draw: (cuda_calls.append("step"), seen.append(draw.samples)), "cuda:1", "the pool")
    for draw in inputs:
        step(draw)
    around = ["own stream of cuda:1 waits for current stream of cuda:1", "on own stream of cuda:1"]
    behind = ["back", "current stream of cuda:1 waits for own stream of cuda:1"]
    replay = ["on cuda:1", "replay", "back"]
    warm_up = [*around, "step", *behind]
    captured = [*around, "begin in the pool, thread_local", "step", "end", *behind]
    assert cuda_calls == warm_up + captured + 3 * replay
    assert seen[0] is seen[1]  # fixed memory, not the caller's
    assert all(draw.samples is not seen[0] for draw in inputs)
    assert seen[0].item() == 3
    assert step.captures == 1


def test_uncapturable_step_ends_its_capture_warns_and_runs(cuda_calls):
    ran = []

    def work(draw):
        if cuda_calls[-1].startswith("begin"):
            raise RuntimeError("operation not permitted when stream is capturing\nand many lines more")
        ran.append(draw.samples.item())

    step = CapturedStep(work, "cuda:1", "the pool")
    step(Draw(torch.tensor([[0]]), None, None))
    with pytest.warns(RuntimeWarning, match=r"captured \(operation not permitted when stream is capturing\) and"):
        step(Draw(torch.tensor([[1]]), None, None))
    step(Draw(torch.tensor([[2]]), None, None))
    assert "end" in cuda_calls
    assert ran == [0, 1, 2]
    assert step.captures == 0


@LAYOUTS
@pytest.mark.parametrize("kernel", [1, 3])
def test_training_and_measuring_never_wait_for_device(make_population, grow, batched, kernel):
    population = make_population(3, batched=batched, kernel=kernel)
    structure = grow(population, 3, *SEEDS, (1, 1, "conv_heavy", Operator.ADD, Stage.FOSSILIZED))
    with NoWaiting():
        population.train(structure)
        population.measure(structure, everyone(3))
        population.appraise(structure, np.arange(3))


def test_no_waiting_detects_waiting_operations():
    with NoWaiting():
        for wait in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).any()), torch.nonzero):
            with pytest.raises(WaitForDeviceError):
                wait(torch.arange(3.0))
