"""What a host of one's own must honour, and what is said of one that does not."""

import numpy as np
import pytest
import torch
from esper_env.extension_checks.hosts import check_forward, check_host
from esper_env.hosts import CNNHost, SegmentedHost, SlotSpec, TransformerHost
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from plain_transformer import CONTEXT, made_text
from torch import nn

pytestmark = pytest.mark.numeric


class Perceptron(SegmentedHost):
    """Two layers on 1x2x2 images, with a slot between them."""

    topology = "cnn"

    def __init__(self):
        super().__init__()
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
    """The same behind a scale that is zero at birth."""

    def __init__(self):
        super().__init__(10, 4, 2, 1, 6, 1)
        self.segments[0].append(MeanOfAll(0.0))


class HiddenMixingHost(Perceptron):
    """Adds what the samples have in common, behind a scale that is zero at birth; or the first one, to the others."""

    def __init__(self, place=None):
        super().__init__()
        self.segments[0].append(MeanOfAll(0.0, dim=0) if place is None else FirstToOthers())


class FirstToOthers(nn.Module):
    """What is made of the first sample is of that sample alone."""

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
        setattr(host, name, value)
    return host


def slot(**changes):
    return Perceptron().slots[0]._replace(**changes)


IMAGES = torch.linspace(-1, 1, 8).view(2, 1, 2, 2)
TOKENS = torch.arange(12).view(2, 6) % 10


def test_hosts_that_honour_it():
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
def test_what_is_no_host_is_a_type_error(host, message):
    with pytest.raises(TypeError, match=message):
        check_host(host)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (changed(slots=()), r"slots is \(\), expected at least one SlotSpec"),
        (changed(slots=("r0c0",)), "expected at least one SlotSpec"),
        (changed(slots=(slot(), slot())), "expected different ids"),
        (changed(slots=(slot(action_index=1),)), r"action indices of its slots are \[1\], expected 0, 1"),
        (changed(execution_order=(1,)), r"execution_order is \(1,\), expected each of 0..0 once"),
        (changed(segments=Perceptron().segments[:1]), "it has 1 segments for 1 slots, expected 2"),
        (changed(slots=(slot(shape=(3,)),)), r"the shapes of its slots are \[\(3,\)\], expected"),
        (changed(slots=(slot(channels=2),)), r"slot r0c0 has 2 channels and features of \(3, 2, 2\)"),
        (changed(topology="mine"), "topology 'mine' has no blueprints"),
        (changed(extra=nn.Linear(2, 2)), "extra.weight, extra.bias belong to none of its segments"),
        (changed(segments=nn.ModuleList([nn.Dropout(), nn.Linear(2, 2)])), "it has dropout"),
    ],
)
def test_a_host_that_does_not_fit_together_is_a_clear_error(host, message):
    with pytest.raises(ValueError, match=message):
        check_host(host)


@pytest.mark.parametrize(
    ("host", "samples", "classes", "message"),
    [
        (changed(slots=(slot(shape=(3, 4, 4)),)), IMAGES, 4, r"features of \(3, 2, 2\) at slot r0c0, which says"),
        (Perceptron(), IMAGES, 5, r"turns \(2, 1, 2, 2\) into \(2, 4\); expected \(2, 5\)"),
        (TransformerHost(10, 4, 2, 2, 6, 2), TOKENS, 11, r"expected \(2, 6, 11\)"),
        (PeekingHost(), TOKENS, 10, "looks ahead: what it predicts before position 1 depends on the tokens from there"),
        (HiddenPeekingHost(), TOKENS, 10, "looks ahead: what it predicts before position 1 depends on the tokens from"),
        (HiddenMixingHost(place=1), IMAGES, 4, "mixes samples"),
        (HiddenMixingHost(), IMAGES, 4, "mixes samples: in eval mode, what it predicts for one depends on the others"),
    ],
)
def test_a_host_that_does_something_else_than_it_says_is_a_clear_error(host, samples, classes, message):
    check_host(host)
    with pytest.raises(ValueError, match=message):
        check_forward(host, samples, classes)


# A host of one's own in every layout


class NormedBlock(nn.Module):
    """A convolution and a BatchNorm in a module that no batching rule knows."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return torch.tanh(self.norm(self.conv(x)))


class OwnImages(SegmentedHost):
    topology = "cnn"

    def __init__(self):
        super().__init__()
        self.segments = nn.ModuleList([NormedBlock(), nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))])
        self.slots = (SlotSpec("r0c0", 3, "hidden", 0, 0, 0, (3, 8, 8)),)
        self.execution_order = (0,)


class NormedTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(256, 4), nn.BatchNorm1d(4)

    def forward(self, tokens):
        return self.norm(self.table(tokens).transpose(1, 2)).transpose(1, 2)


class OwnSequences(SegmentedHost):
    topology = "transformer"

    def __init__(self):
        super().__init__()
        self.segments = nn.ModuleList([NormedTokens(), nn.Linear(4, 256)])
        self.slots = (SlotSpec("r0c0", 4, "hidden", 0, 0, 0, (CONTEXT, 4)),)
        self.execution_order = (0,)


@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_a_host_of_ones_own_is_the_same_in_every_layout(make_population, grow, stripes, kind):
    """Its statistics move while it trains, and stay while it is measured."""
    host, data = {"images": (OwnImages, stripes), "sequences": (OwnSequences, made_text())}[kind]
    seen = []
    for together in (True, False):
        population = make_population(2, host=host, data=data, together=together, dtype=torch.float64)
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
        seen.append(np.array(rows))
    assert (seen[0][3] > 0).all()
    np.testing.assert_array_equal(seen[0][1], seen[0][2])
    np.testing.assert_allclose(seen[0], seen[1], rtol=0, atol=1e-9)


# Random numbers and blueprints that do not fit


class Dropping(nn.Module):
    """Dropout as a function, which only training draws for."""

    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5, self.training)


def test_a_host_that_draws_random_numbers_in_training_is_refused():
    host = changed(
        segments=nn.ModuleList([nn.Sequential(*Perceptron().segments[0], Dropping()), Perceptron().segments[1]])
    )
    check_host(host)
    state = torch.default_generator.get_state()
    with pytest.raises(ValueError, match="the host Perceptron draws from the global generator when it runs"):
        check_forward(host, IMAGES, 4)
    assert torch.equal(torch.default_generator.get_state(), state)


def test_the_check_leaves_the_hosts_statistics_alone():
    host = CNNHost(4, 2, 2, 0, 1, in_channels=1, image_size=2)
    before = {name: value.clone() for name, value in host.named_buffers()}
    check_forward(host, IMAGES, 4)
    assert all(torch.equal(value, before[name]) for name, value in host.named_buffers())
