"""Trials of custom hosts when an environment is made: it rejects hosts that cannot be played, and no others."""

import threading
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from custom_hosts import BATCHED, LAYOUT, SINGLE, Images, Sequences, blobs, play, reject_or_play, trees
from esper_env.hosts import CNNHost, SlotSpec, TransformerHost
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("own_tables")


class Squeezed(nn.Module):
    """``squeeze()`` without a dimension removes the batch dimension of a single sample."""

    def __init__(self):
        super().__init__()
        self.pool, self.out = nn.AdaptiveAvgPool2d(1), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.pool(x).squeeze())


@LAYOUT
def test_environment_rejects_or_plays_host_that_fails_on_single_sample(layout):
    """The last chunk can have one sample, and so can the shadow pass."""
    reject_or_play(lambda data: Images(data, second=Squeezed), blobs(328, 20), "norm", steps=6, **layout)


class Guarded(nn.Module):
    """Waits for a value in eval mode only."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        out = self.conv(x)
        return out.clamp(-1, 1) if not self.training and out.abs().max().item() > 1e6 else out


class Spread(nn.Module):
    """Features that are an expanded view of one value."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])


class Masking(nn.Module):
    """Functional dropout in eval mode."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return F.dropout(self.conv(x), 0.5, not self.training)


@LAYOUT
@pytest.mark.parametrize("kind", [Guarded, Spread, Masking])
def test_environment_rejects_or_plays_host_that_is_unusual_in_eval_mode(kind, layout):
    reject_or_play(lambda data: Images(data, first=kind), blobs(), "norm", steps=6, **layout)


def test_custom_host_reads_tokens_in_mixed_precision():
    assert play(Sequences, trees(), "norm", precision="bfloat16", **BATCHED)["val_loss"] > 0


class NumpyNoise(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return self.conv(x) * float(np.random.rand())  # noqa: NPY002


def batch_statistics(channels):
    return nn.Sequential(nn.Conv2d(channels, 5, 1), nn.BatchNorm2d(5, track_running_stats=False))


@pytest.mark.parametrize("first", [batch_statistics, NumpyNoise])
def test_environment_rejects_host_whose_predictions_depend_on_batch_or_chance(first):
    with pytest.raises(ValueError, match="the host Images"):
        play(lambda data: Images(data, first=first), blobs(), "norm", **SINGLE)


@pytest.mark.parametrize("settings", [{"momentum": None}, {"affine": False}], ids=str)
def test_environment_plays_batched_host_with_unusual_batch_norm(settings):
    def first(channels):
        return nn.Sequential(nn.Conv2d(channels, 5, 1, bias=False), nn.BatchNorm2d(5, **settings), nn.ReLU())

    assert play(lambda data: Images(data, first=first), blobs(), "norm", **BATCHED)["val_loss"] > 0


class Shifted(nn.Module):
    def forward(self, x):
        return x + torch.roll(x, -1, 1)


def extended(host, layer):
    """A host of the package with a layer behind its first segment."""
    host.segments[0] = nn.Sequential(host.segments[0], layer)
    return host


@pytest.mark.parametrize(
    "build",
    [Shifted, lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)],
    ids=["shifted", "attending to all"],
)
def test_environment_tries_package_host_with_custom_layer(build):
    with pytest.raises(ValueError, match="the host TransformerHost looks ahead"):
        play(lambda _: extended(TransformerHost(256, 8, 2, 1, 8, 1), build()), trees(), "norm", **SINGLE)


def test_environment_rejects_package_host_with_wrong_classes():
    with pytest.raises(ValueError, match=r"the host CNNHost turns .*; expected .*: one logit for each of the 3 classe"):
        play(lambda _: CNNHost(7, 3, 4, 1, 1, in_channels=2, image_size=8), blobs(), "norm", **BATCHED)


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


@LAYOUT
def test_environment_rejects_host_that_assigns_buffer(layout):
    with pytest.raises(ValueError, match="the host Images assigns a new tensor to its buffer 'mean', which is lost"):
        play(lambda data: Images(data, first=partial(Assigning, lost=True)), blobs(), "norm", **layout)


@LAYOUT
def test_environment_plays_host_that_writes_into_buffer(layout):
    assert play(lambda data: Images(data, first=partial(Assigning, lost=False)), blobs(), "norm", **layout)


class ByProtocol(nn.Module):
    """Has the attributes of ``HostProtocol`` and no forward pass."""

    topology = "transformer"
    slots = (SlotSpec("r0c0", 8, "hidden", 0, 0, 0, (8, 8)),)
    execution_order = (0,)

    def __init__(self, _data):
        super().__init__()
        self.segments = nn.ModuleList([nn.Embedding(256, 8), nn.Linear(8, 256)])


class OtherForward(ByProtocol):
    """Its methods are for other users; ``forward_between`` was part of an earlier protocol."""

    def forward_between(self, features, start, stop):
        raise NotImplementedError

    def forward(self, tokens):
        return self.segments[1](self.segments[0](tokens)).log_softmax(-1)


@pytest.mark.parametrize("host", [ByProtocol, OtherForward])
def test_environment_plays_host_that_follows_protocol(host):
    assert play(host, trees(), "norm", **SINGLE)["val_loss"] > 0


# Hosts that are easily rejected by mistake, or with an error of another library


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.layer(self.table(tokens), src_mask=mask, is_causal=True)


def test_environment_plays_dropout_with_probability_zero(own_blueprints):
    assert play(lambda data: Sequences(data, first=Encoder), trees(), "norm", **SINGLE)["val_loss"] > 0
    own_blueprints("mine", lambda channels: nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Dropout(0.0)))
    gymnasium.make("Esper-Digits-v0").close()


def test_environment_plays_batch_norm_host_with_one_validation_image():
    def head():
        return nn.Sequential(nn.Flatten(), nn.Linear(5 * 64, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))

    assert play(lambda data: Images(data, second=head), blobs(val=1), "norm", **SINGLE)["val_loss"] > 0


class Locked(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, 5, 1)
        self.lock = threading.Lock()


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(
    "first", [Locked, lambda channels: nn.utils.weight_norm(nn.Conv2d(channels, 5, 1)), lambda _c: nn.LazyConv2d(5, 1)]
)
def test_environment_rejects_or_plays_host_that_is_lazy_or_cannot_be_copied(first):
    reject_or_play(lambda data: Images(data, first=first), blobs(), "norm", **SINGLE)
