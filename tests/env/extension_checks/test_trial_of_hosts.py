"""Hosts of one's own tried when an environment is made: what cannot be played is told, what can be is."""

import threading
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from esper_env import register_task
from esper_env.hosts import CNNHost, SlotSpec, TransformerHost
from own_hosts import ALONE, LAYOUT, SMALL, TOGETHER, Images, Sequences, blobs, played, told_or_played, trees
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("own_tables")


class Squeezed(nn.Module):
    """``squeeze()`` without a dimension takes the sample away where there is only one."""

    def __init__(self):
        super().__init__()
        self.pool, self.out = nn.AdaptiveAvgPool2d(1), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.pool(x).squeeze())


@LAYOUT
def test_a_host_that_fails_on_a_single_sample_is_told_when_it_is_made(layout):
    """A last chunk has one, and so has the shadow pass of a batch of two."""
    told_or_played(lambda data: Images(data, second=Squeezed), blobs(328, 20), "norm", steps=6, **layout)


class Guarded(nn.Module):
    """Looks at its values in eval mode alone."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        out = self.conv(x)
        return out.clamp(-1, 1) if not self.training and out.abs().max().item() > 1e6 else out


class Spread(nn.Module):
    """Features that are one value spread over the map, as a view."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])


class Masking(nn.Module):
    """Dropout where it should not be."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return F.dropout(self.conv(x), 0.5, not self.training)


@LAYOUT
@pytest.mark.parametrize("kind", [Guarded, Spread, Masking])
def test_a_host_that_fails_where_it_is_measured_is_told_when_it_is_made(kind, layout):
    told_or_played(lambda data: Images(data, first=kind), blobs(), "norm", steps=6, **layout)


def test_a_host_of_ones_own_reads_tokens_in_mixed_precision():
    assert played(Sequences, trees(), "norm", precision="bfloat16", **TOGETHER)["val_loss"] > 0


class NumpyNoise(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return self.conv(x) * float(np.random.rand())  # noqa: NPY002


def batch_statistics(channels):
    return nn.Sequential(nn.Conv2d(channels, 5, 1), nn.BatchNorm2d(5, track_running_stats=False))


@pytest.mark.parametrize("first", [batch_statistics, NumpyNoise])
def test_a_host_whose_predictions_are_not_of_the_sample_alone_is_refused(first):
    with pytest.raises(ValueError, match="the host Images"):
        played(lambda data: Images(data, first=first), blobs(), "norm", **ALONE)


@pytest.mark.parametrize("settings", [{"momentum": None}, {"affine": False}], ids=str)
def test_a_host_with_an_unusual_batch_norm_is_played_among_others(settings):
    def first(channels):
        return nn.Sequential(nn.Conv2d(channels, 5, 1, bias=False), nn.BatchNorm2d(5, **settings), nn.ReLU())

    assert played(lambda data: Images(data, first=first), blobs(), "norm", **TOGETHER)["val_loss"] > 0


class Shifted(nn.Module):
    def forward(self, x):
        return x + torch.roll(x, -1, 1)


def mended(host, layer):
    """A host of the package with a layer behind its first segment."""
    host.segments[0] = nn.Sequential(host.segments[0], layer)
    return host


@pytest.mark.parametrize(
    "build",
    [Shifted, lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)],
    ids=["shifted", "attending to all"],
)
def test_a_host_of_the_package_with_a_layer_of_ones_own_is_tried_like_any_other(build):
    with pytest.raises(ValueError, match="the host TransformerHost looks ahead"):
        played(lambda _: mended(TransformerHost(256, 8, 2, 1, 8, 1), build()), trees(), "norm", **ALONE)


def test_a_host_of_the_package_for_other_classes_is_told():
    with pytest.raises(ValueError, match=r"the host CNNHost turns .*; expected .*: one logit for each of the 3 classe"):
        played(lambda _: CNNHost(7, 3, 4, 1, 1, in_channels=2, image_size=8), blobs(), "norm", **TOGETHER)


class Assigning(nn.Module):
    """Keeps a running mean as a new tensor each time."""

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
def test_a_buffer_that_is_assigned_is_told(layout):
    with pytest.raises(ValueError, match="the host Images assigns a new tensor to its buffer 'mean', which is lost"):
        played(lambda data: Images(data, first=partial(Assigning, lost=True)), blobs(), "norm", **layout)


@LAYOUT
def test_a_buffer_that_is_written_into_is_kept(layout):
    assert played(lambda data: Images(data, first=partial(Assigning, lost=False)), blobs(), "norm", **layout)


class ByProtocol(nn.Module):
    """All that ``HostProtocol`` asks for, which is no forward."""

    topology = "transformer"
    slots = (SlotSpec("r0c0", 8, "hidden", 0, 0, 0, (8, 8)),)
    execution_order = (0,)

    def __init__(self, _data):
        super().__init__()
        self.segments = nn.ModuleList([nn.Embedding(256, 8), nn.Linear(8, 256)])

    def forward_between(self, features, start, stop):
        if start is None:
            features = self.segments[0](features)
        return self.segments[1](features) if stop is None else features


class Normalised(ByProtocol):
    """Its forward is for whoever uses it elsewhere."""

    def forward(self, tokens):
        return self.forward_between(tokens, None, None).log_softmax(-1)


@pytest.mark.parametrize("host", [ByProtocol, Normalised])
def test_a_host_that_follows_the_protocol_is_played(host):
    assert played(host, trees(), "norm", **ALONE)["val_loss"] > 0


# What is refused and should not be, or with an error that is not ours


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.layer(self.table(tokens), src_mask=mask, is_causal=True)


def test_dropout_that_drops_nothing_is_no_dropout(own_blueprints):
    assert played(lambda data: Sequences(data, first=Encoder), trees(), "norm", **ALONE)["val_loss"] > 0
    own_blueprints("mine", lambda channels: nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Dropout(0.0)))
    gymnasium.make("Esper-Digits-v0").close()


def test_one_image_to_validate_on_is_enough_for_a_host_with_batch_norm():
    def head():
        return nn.Sequential(nn.Flatten(), nn.Linear(5 * 64, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))

    assert played(lambda data: Images(data, second=head), blobs(val=1), "norm", **ALONE)["val_loss"] > 0


class Locked(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, 5, 1)
        self.lock = threading.Lock()


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(
    "first", [Locked, lambda channels: nn.utils.weight_norm(nn.Conv2d(channels, 5, 1)), lambda _c: nn.LazyConv2d(5, 1)]
)
def test_a_host_that_cannot_be_copied_or_has_no_shape_yet_is_our_error(first):
    told_or_played(lambda data: Images(data, first=first), blobs(), "norm", **ALONE)


def with_changes(data, **changes):
    host = Images(data)
    for name, value in changes.items():
        host._modules.pop(name, None)
        object.__setattr__(host, name, value)
    return host


SLOT = SlotSpec("r0c0", 5, "hidden", 0, 0, 0, (5, 8, 8))


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 5},
        {"slots": (SLOT._replace(shape=5),)},
        {"slots": (SLOT._replace(slot_id=["x"]),)},
        {"slots": (SLOT._replace(channels=5.0),)},
        {"execution_order": None},
        {"execution_order": (False,)},
        {"topology": ["cnn"]},
        {"segments": [nn.Conv2d(2, 5, 1), nn.Linear(5, 3)]},
        {"segments": None},
    ],
    ids=lambda changes: str(next(iter(changes))),
)
def test_a_host_put_together_wrongly_is_our_error_when_it_is_made(changes):
    register_task("Own-v0", host=lambda data: with_changes(data, **changes), data=blobs(), **SMALL)
    with pytest.raises((ValueError, TypeError), match="the host Images"):
        gymnasium.make("Own-v0")
