"""Checks of custom hosts, and the errors for hosts that fail them."""

import numpy as np
import pytest
import torch
from custom_hosts import Images, Sequences
from esper_env.extension_checks.construction import seeded_construction
from esper_env.extension_checks.hosts import check_forward, check_host
from esper_env.hosts import CNNHost, SegmentedHost, SlotSpec, TransformerHost
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from plain_transformer import made_text
from torch import nn

pytestmark = pytest.mark.numeric


class Perceptron(SegmentedHost):
    """Two layers on 1x2x2 images, with a slot between them."""

    topology = "cnn"

    def __init__(self):
        super().__init__()
        with seeded_construction(0):  # other weights may leave every ReLU at zero, where there is nothing to mix
            self.segments = nn.ModuleList(
                [nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(12, 4))]
            )
        self.slots = (SlotSpec("r0c0", 3, "between", 0, 0, 0, (3, 2, 2)),)
        self.execution_order = (0,)


class PeekingHost(TransformerHost):
    """Its first segment adds the mean over all positions."""

    def __init__(self):
        super().__init__(10, 4, 2, 1, 6, 1)
        self.segments[0].append(MeanOfAll())


class HiddenPeekingHost(TransformerHost):
    """The same behind a scale that starts at zero."""

    def __init__(self):
        super().__init__(10, 4, 2, 1, 6, 1)
        self.segments[0].append(MeanOfAll(0.0))


class HiddenMixingHost(Perceptron):
    """Adds the mean over samples behind a scale that starts at zero, or the first sample to the others."""

    def __init__(self, place=None):
        super().__init__()
        self.segments[0].append(MeanOfAll(0.0, dim=0) if place is None else FirstToOthers())


class FirstToOthers(nn.Module):
    """Only the first sample is independent of the batch."""

    def forward(self, x):
        return torch.cat([x[:1], x[1:] + x[:1]])


class MeanOfAll(nn.Module):
    def __init__(self, scale=1.0, dim=1):
        super().__init__()
        self.scale, self.dim = nn.Parameter(torch.tensor(scale)), dim

    def forward(self, x):
        return x + self.scale * x.mean(dim=self.dim, keepdim=True)


def changed(**attributes):
    host = Perceptron()
    for name, value in attributes.items():
        host._modules.pop(name, None)
        object.__setattr__(host, name, value)
    return host


def with_extra_layer():
    host = Perceptron()
    host.extra = nn.Linear(2, 2)
    return host


def with_segments(*segments):
    host = Perceptron()
    host.segments = nn.ModuleList(segments)
    return host


def slot(**changes):
    return Perceptron().slots[0]._replace(**changes)


IMAGES = torch.linspace(-1, 1, 8).view(2, 1, 2, 2)
TOKENS = torch.arange(12).view(2, 6) % 10


def test_checks_accept_sound_hosts():
    for host, samples, classes in (
        (Perceptron(), IMAGES, 4),
        (CNNHost(4, 2, 2, 0, 1, in_channels=1, image_size=2), IMAGES, 4),
        (TransformerHost(10, 4, 2, 2, 6, 2), TOKENS, 10),
    ):
        check_host(host)
        check_forward(host, samples, classes)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (
            nn.Linear(2, 2),
            "the host is a Linear, which cannot be grown: it lacks topology, slots, execution_order, segments",
        ),
        (object(), "the host is a object, which cannot be grown"),
        (None, "the host is a NoneType"),
    ],
)
def test_check_host_rejects_objects_other_than_hosts(host, message):
    with pytest.raises(TypeError, match=message):
        check_host(host)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (changed(slots=5), "slots is 5, expected at least one SlotSpec"),
        (changed(slots=(slot(shape=5),)), "expected a string as id, integers, and a tuple of integers as shape"),
        (changed(slots=(slot(slot_id=["x"]),)), "expected a string as id"),
        (changed(slots=(slot(channels=5.0),)), "expected a string as id, integers"),
        (changed(execution_order=None), "execution_order is None, expected each of 0..0 once"),
        (changed(execution_order=(False,)), r"execution_order is \(False,\), expected each of 0..0 once"),
        (changed(topology=["cnn"]), r"topology is \['cnn'\], expected a string"),
        (changed(segments=[nn.Conv2d(2, 5, 1), nn.Linear(5, 3)]), "segments is a list, expected a torch.nn.ModuleList"),
        (changed(segments=None), "segments is a NoneType, expected a torch.nn.ModuleList"),
        (changed(slots=()), r"slots is \(\), expected at least one SlotSpec"),
        (changed(slots=("r0c0",)), "expected at least one SlotSpec"),
        (changed(slots=(slot(), slot())), "expected different ids"),
        (changed(slots=(slot(action_index=1),)), r"action indices of its slots are \[1\], expected 0, 1"),
        (changed(execution_order=(1,)), r"execution_order is \(1,\), expected each of 0..0 once"),
        (with_segments(*Perceptron().segments[:1]), "it has 1 segments for 1 slots, expected 2"),
        (changed(slots=(slot(shape=(3,)),)), r"the shapes of its slots are \[\(3,\)\], expected"),
        (changed(slots=(slot(channels=2),)), r"slot r0c0 has 2 channels and features of \(3, 2, 2\)"),
        (changed(topology="mine"), "topology 'mine' has no blueprints"),
        (with_extra_layer(), "extra.weight, extra.bias belong to none of its segments"),
        (with_segments(nn.Dropout(), nn.Linear(2, 2)), "it has dropout"),
    ],
)
def test_check_host_rejects_inconsistent_attributes(host, message):
    with pytest.raises(ValueError, match=message):
        check_host(host)


@pytest.mark.parametrize(
    ("host", "samples", "classes", "message"),
    [
        (changed(slots=(slot(shape=(3, 4, 4)),)), IMAGES, 4, r"features of \(3, 2, 2\) at slot r0c0, which decl"),
        (Perceptron(), IMAGES, 5, r"turns \(2, 1, 2, 2\) into \(2, 4\); expected \(2, 5\)"),
        (TransformerHost(10, 4, 2, 2, 6, 2), TOKENS, 11, r"expected \(2, 6, 11\)"),
        (PeekingHost(), TOKENS, 10, "looks ahead: its predictions before position 1 depend on the tokens from there"),
        (HiddenPeekingHost(), TOKENS, 10, "looks ahead: its predictions before position 1 depend on the tokens from"),
        (HiddenMixingHost(place=1), IMAGES, 4, "mixes samples"),
        (HiddenMixingHost(), IMAGES, 4, "mixes samples: in eval mode, its prediction for one depends on the others"),
    ],
)
def test_check_forward_rejects_wrong_behaviour(host, samples, classes, message):
    check_host(host)
    with pytest.raises(ValueError, match=message):
        check_forward(host, samples, classes)


# A custom host in every layout


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


@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_custom_host_trains_equally_in_every_layout(make_population, grow, stripes, kind):
    """Its statistics change in training and stay unchanged in measurement."""
    hosts = {
        "images": (lambda: Images(stripes, first=NormedBlock), stripes),
        "sequences": (lambda: Sequences(None, first=NormedTokens), made_text()),
    }
    host, data = hosts[kind]
    results = []
    for batched in (True, False):
        population = make_population(2, host=host, data=data, batched=batched, dtype=torch.float64)
        seeds = [(row, 0, "norm", Operator.ADD, stage) for row, stage in enumerate((Stage.HOLDING, Stage.TRAINING))]
        structure = grow(population, 2, *seeds)
        rows = []
        for _ in range(2):
            rows.append(population.train(structure).loss)
            statistics = [shard.host.buffers["segments.0.norm.running_mean"].clone() for shard in population.shards]
            rows += [population.measure(structure, np.ones(2, dtype=bool)).loss for _ in range(2)]
            after = [shard.host.buffers["segments.0.norm.running_mean"] for shard in population.shards]
            assert all(torch.equal(old, new) for old, new in zip(statistics, after, strict=True))
            rows.append(torch.cat(after).abs().sum(1).numpy().copy())
        results.append(np.array(rows))
    assert (results[0][3] > 0).all()
    np.testing.assert_array_equal(results[0][1], results[0][2])
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-9)


# Random numbers and statistics


class Dropping(nn.Module):
    """Functional dropout, which draws in training only."""

    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5, self.training)


def test_check_forward_rejects_random_numbers_in_training():
    host = with_segments(nn.Sequential(*Perceptron().segments[0], Dropping()), Perceptron().segments[1])
    check_host(host)
    state = torch.default_generator.get_state()
    with pytest.raises(ValueError, match="the host Perceptron draws from the global generator when it runs"):
        check_forward(host, IMAGES, 4)
    assert torch.equal(torch.default_generator.get_state(), state)


def test_check_forward_keeps_statistics():
    host = CNNHost(4, 2, 2, 0, 1, in_channels=1, image_size=2)
    before = {name: value.clone() for name, value in host.named_buffers()}
    check_forward(host, IMAGES, 4)
    assert all(torch.equal(value, before[name]) for name, value in host.named_buffers())
