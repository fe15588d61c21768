"""Trials of custom hosts and blueprints when an environment is made: only those that cannot be played are rejected."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from custom_hosts import BATCHED, LAYOUT, SINGLE, Images, Sequences, blobs, play, reject_or_play, trees
from esper_env.hosts import CNNHost, SlotSpec, TransformerHost
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from plain_transformer import made_text
from small_networks import everyone, host_tensors
from torch import nn
from torch.nn import functional as F

pytestmark = [pytest.mark.usefixtures("own_tables"), pytest.mark.numeric]


class Front(nn.Conv2d):
    """A first segment: a 1x1 convolution, then a function of (module, features)."""

    def __init__(self, channels, after=lambda _, x: x):
        super().__init__(channels, 5, 1)
        self.after = after

    def forward(self, x):
        return self.after(self, super().forward(x))


class Locked(Front):
    """A module that cannot be copied."""

    def __init__(self, channels):
        super().__init__(channels)
        self.lock = threading.Lock()


class Squeezed(nn.Module):
    """``squeeze()`` without a dimension removes the batch dimension of a single sample."""

    def __init__(self):
        super().__init__()
        self.pool, self.out = nn.AdaptiveAvgPool2d(1), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.pool(x).squeeze())


def guarded(module, x):
    """Waits for a value in eval mode only."""
    return x.clamp(-1, 1) if not module.training and x.abs().max().item() > 1e6 else x


def spread(_module, x):
    """Features that are an expanded view of one value."""
    return x.mean((2, 3), keepdim=True).expand(x.shape)


def masked(module, x):
    """Functional dropout in eval mode."""
    return F.dropout(x, 0.5, not module.training)


UNUSUAL = {
    "guarded": {"first": partial(Front, after=guarded)},
    "spread": {"first": partial(Front, after=spread)},
    "masked": {"first": partial(Front, after=masked)},
    "locked": {"first": Locked},
    "weight norm": {"first": lambda channels: nn.utils.weight_norm(nn.Conv2d(channels, 5, 1))},
    "lazy": {"first": lambda _: nn.LazyConv2d(5, 1)},
    "squeezed": {"second": Squeezed},  # the last chunk can have one sample, and so can the shadow pass
}


@LAYOUT
@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("name", UNUSUAL)
def test_environment_rejects_or_plays_unusual_host(layout, name):
    data = blobs(328, 20) if name == "squeezed" else blobs()
    reject_or_play(lambda given: Images(given, **UNUSUAL[name]), data, "norm", steps=6, **layout)


class Remembering(nn.Module):
    """Keeps a tensor with a graph from the last pass."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.last = nn.Conv2d(channels, channels, 1), 0.0

    def forward(self, x):
        out = x + 1e-3 * self.conv(x) + 1e-5 * self.last
        self.last = out.mean()
        return out


class Scattered(nn.Module):
    """Writes to the channels listed in a buffer."""

    def __init__(self, _channels):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.register_buffer("places", torch.tensor([0, 2]))

    def forward(self, x):
        out = x.clone()
        out[:, self.places] = self.conv(x[:, self.places])
        return out


@LAYOUT
@pytest.mark.parametrize("kind", [Remembering, Scattered])
def test_environment_rejects_or_plays_unusual_blueprint(own_blueprints, kind, layout):
    try:
        own_blueprints("mine", kind, batched=layout is BATCHED)
    except ValueError:
        return
    reject_or_play(Images, blobs(), "mine", envs=2, **layout)


class Assigning(nn.Module):
    """Keeps a running mean, optionally as a new tensor each time."""

    def __init__(self, channels, *, lost):
        super().__init__()
        self.conv, self.lost = nn.Conv2d(channels, 5, 1), lost
        self.register_buffer("mean", torch.zeros(5, 1, 1))

    def forward(self, x):
        x = self.conv(x)
        if self.training:
            mean = 0.5 * self.mean + 0.5 * x.detach().mean((0, 2, 3))[:, None, None]
            if self.lost:
                self.mean = mean
            else:
                self.mean.copy_(mean)
        return x - self.mean


def batch_statistics(channels):
    return nn.Sequential(nn.Conv2d(channels, 5, 1), nn.BatchNorm2d(5, track_running_stats=False))


def numpy_noise(_module, x):
    return x * float(np.random.rand())  # noqa: NPY002


def attending_to_all(_data):
    """A host of the package with a layer behind its first segment."""
    host = TransformerHost(256, 8, 2, 1, 8, 1)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    host.segments[0] = nn.Sequential(host.segments[0], layer)
    return host


@LAYOUT
@pytest.mark.parametrize(
    ("host", "data", "message"),
    [
        (partial(Images, first=batch_statistics), blobs(), "the host Images"),
        (partial(Images, first=partial(Front, after=numpy_noise)), blobs(), "the host Images"),
        (
            partial(Images, first=partial(Assigning, lost=True)),
            blobs(),
            "the host Images assigns a new tensor to its buffer 'mean', which is lost",
        ),
        (attending_to_all, trees(), "the host TransformerHost looks ahead"),
        (
            lambda _: CNNHost(7, 3, 4, 1, 1, in_channels=2, image_size=8),
            blobs(),
            "the host CNNHost turns .*; expected .*: one logit for each of the 3 classes",
        ),
    ],
    ids=["batch statistics", "noise", "assigned buffer", "look-ahead", "classes"],
)
def test_environment_rejects_host(layout, host, data, message):
    with pytest.raises(ValueError, match=message):
        play(host, data, "norm", **layout)


def test_environment_rejects_batched_host_with_cumulative_batch_norm():
    with pytest.raises(ValueError, match=r"cannot be trained for many networks at once.*with shard_size=1"):
        play(partial(Images, first=normed(momentum=None)), blobs(), "norm", **BATCHED)


class ByProtocol(nn.Module):
    """Has the attributes of ``HostProtocol``. Its own forward pass fails: only the segments may be called."""

    topology = "transformer"
    slots = (SlotSpec("r0c0", 8, "hidden", 0, 0, 0, (8, 8)),)
    execution_order = (0,)

    def __init__(self, _data):
        super().__init__()
        self.segments = nn.ModuleList([nn.Embedding(256, 8), nn.Linear(8, 256)])

    def forward(self, tokens):
        raise NotImplementedError


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.layer(self.table(tokens), src_mask=mask, is_causal=True)


def normed(**settings):
    return lambda channels: nn.Sequential(
        nn.Conv2d(channels, 5, 1, bias=False), nn.BatchNorm2d(5, **settings), nn.ReLU(), nn.Dropout(0.0)
    )


def normed_head():
    return nn.Sequential(nn.Flatten(), nn.Linear(5 * 64, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


PLAYED = {
    "own buffer": (partial(Images, first=partial(Assigning, lost=False)), blobs(), BATCHED),
    "own buffer, single": (partial(Images, first=partial(Assigning, lost=False)), blobs(), SINGLE),
    "cumulative BatchNorm": (partial(Images, first=normed(momentum=None)), blobs(), SINGLE),
    "BatchNorm without weights": (partial(Images, first=normed(affine=False)), blobs(), BATCHED),
    "one validation image": (partial(Images, second=normed_head), blobs(val=1), SINGLE),
    "protocol": (ByProtocol, trees(), SINGLE),
    "encoder": (partial(Sequences, first=Encoder), trees(), SINGLE),
    "mixed precision": (Sequences, trees(), BATCHED | {"precision": "bfloat16"}),
}


@pytest.mark.parametrize("name", PLAYED)
def test_environment_plays_host(name):
    host, data, settings = PLAYED[name]
    assert play(host, data, "norm", **settings)["val_loss"] > 0


class NormedBlock(nn.Module):
    """A convolution and a BatchNorm in a module without a batching rule."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 5, 3, padding=1), nn.BatchNorm2d(5)

    def forward(self, x):
        return torch.tanh(self.norm(self.conv(x)))


class NormedTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(256, 8), nn.BatchNorm1d(8)

    def forward(self, tokens):
        return self.norm(self.table(tokens).transpose(1, 2)).transpose(1, 2)


def hosts(stripes):
    """Custom hosts and their data; the last one has a slot at its input, so its seeds read the images."""
    return {
        "images": (lambda: Images(stripes, first=NormedBlock), stripes),
        "sequences": (lambda: Sequences(None, first=NormedTokens), made_text()),
        "slot at the input": (lambda: Images(stripes, first=lambda _: nn.Identity(), channels=1), stripes),
    }


@pytest.mark.parametrize("kind", hosts(None))
def test_custom_host_trains_equally_in_every_layout(make_population, grow, stripes, kind):
    """Its statistics change in training and stay unchanged in measurement."""
    (host, data), results = hosts(stripes)[kind], []
    for batched in (True, False):
        population = make_population(2, host=host, data=data, batched=batched, dtype=torch.float64)
        seeds = [(row, 0, "norm", Operator.ADD, stage) for row, stage in enumerate((Stage.HOLDING, Stage.TRAINING))]
        structure, rows = grow(population, 2, *seeds), []
        for _ in range(2):
            rows.append(population.train(structure).loss)
            before = [*host_tensors(population).values(), *(split.samples.clone() for split in population._splits[1:])]
            rows += [population.measure(structure, everyone(2)).loss for _ in range(2)]
            after = [*host_tensors(population).values(), *(split.samples for split in population._splits[1:])]
            assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
            norms = [shard.host.buffers.get("segments.0.norm.running_mean") for shard in population.shards]
            if norms[0] is not None:
                rows.append(torch.cat(norms).abs().sum(1).numpy().copy())
        results.append(np.array(rows))
    np.testing.assert_array_equal(results[0][1], results[0][2])
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-9)
