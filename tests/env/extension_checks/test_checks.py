"""Checks of custom hosts and blueprints, and the errors for those that fail them."""

import pytest
import torch
from esper_env.extension_checks.checks import check_attributes, check_host, check_seed
from esper_env.extension_checks.construction import seeded_construction
from esper_env.hosts import CNNHost, SegmentedHost, SlotSpec, TransformerHost
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.numeric


class Perceptron(SegmentedHost):
    """Two layers on 1x2x2 images, with a slot between them; ``extra`` layers end the first segment."""

    topology = "cnn"

    def __init__(self, *extra):
        super().__init__()
        with seeded_construction(0):  # other weights may leave every ReLU at zero, where there is nothing to mix
            self.segments = nn.ModuleList(
                [nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), *extra), nn.Sequential(nn.Flatten(), nn.Linear(12, 4))]
            )
        self.slots = (SlotSpec("r0c0", 3, "between", 0, 0, 0, (3, 2, 2)),)
        self.execution_order = (0,)


class Function(nn.Module):
    """Adds a scaled function of the features; a scale of zero hides it."""

    def __init__(self, function, scale=1.0):
        super().__init__()
        self.scale, self.function = nn.Parameter(torch.tensor(scale)), function

    def forward(self, x):
        return x + self.scale * self.function(x)


class Bare(nn.Module):
    """A function of the features alone."""

    def __init__(self, function):
        super().__init__()
        self.scale, self.function = nn.Parameter(torch.ones(1)), function

    def forward(self, x):
        return self.function(x)


def changed(**attributes):
    host = Perceptron()
    for name, value in attributes.items():
        host._modules.pop(name, None)
        object.__setattr__(host, name, value)
    return host


def slot(**changes):
    return Perceptron().slots[0]._replace(**changes)


def transformer(*extra):
    host = TransformerHost(10, 4, 2, 2, 6, 2)
    host.segments[0].extend(extra)
    return host


def centre(dim):
    return lambda x: x.mean(dim=dim, keepdim=True)


IMAGES = torch.linspace(-1, 1, 8).view(2, 1, 2, 2)
TOKENS = torch.arange(12).view(2, 6) % 10


@pytest.mark.parametrize(
    ("host", "samples", "classes"),
    [
        (Perceptron(), IMAGES, 4),
        (CNNHost(4, 2, 2, 0, 1, in_channels=1, image_size=2), IMAGES, 4),
        (transformer(), TOKENS, 10),
    ],
)
def test_checks_accept_sound_hosts_and_keep_their_statistics(host, samples, classes):
    before = {name: value.clone() for name, value in host.named_buffers()}
    check_attributes(host)
    check_host(host, "the host", samples, classes)
    assert all(torch.equal(value, before[name]) for name, value in host.named_buffers())


@pytest.mark.parametrize("host", [nn.Linear(2, 2), object(), None])
def test_check_attributes_rejects_objects_other_than_hosts(host):
    with pytest.raises(TypeError, match=f"the host {type(host).__name__} cannot be grown: it lacks topology, slots"):
        check_attributes(host)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        *(
            ({"slots": slots}, "slots is .*, expected SlotSpecs with different ids")
            for slots in (
                *(5, (), ("r0c0",), (slot(shape=5),), (slot(slot_id=["x"]),), (slot(), slot())),
                *((slot(action_index=1),), (slot(shape=(3,)),), (slot(channels=2),)),
            )
        ),
        ({"execution_order": None}, "execution_order is None, expected each of 0..0 once"),
        ({"execution_order": (1,)}, r"execution_order is \(1,\), expected each of 0..0 once"),
        ({"topology": ["cnn"]}, r"topology \['cnn'\] has no blueprints"),
        (
            {"segments": [nn.Conv2d(2, 5, 1), nn.Linear(5, 3)]},
            "segments is a list, expected a torch.nn.ModuleList of 2",
        ),
        ({"segments": nn.ModuleList([nn.Flatten()])}, "is a ModuleList of 1, expected a torch.nn.ModuleList of 2"),
        ({"topology": "mine"}, "topology 'mine' has no blueprints"),
        ({"extra": nn.Parameter(torch.ones(1))}, "extra belong to none of its segments"),
    ],
)
def test_check_attributes_rejects_inconsistent_attributes(attributes, message):
    host = changed(**{name: value for name, value in attributes.items() if name != "extra"})
    if "extra" in attributes:
        host.extra = attributes["extra"]
    with pytest.raises(ValueError, match=message):
        check_attributes(host)


@pytest.mark.parametrize(
    ("host", "samples", "classes", "message"),
    [
        (changed(slots=(slot(shape=(3, 4, 4)),)), IMAGES, 4, r"features of \(3, 2, 2\) at slot r0c0, which decl"),
        (Perceptron(), IMAGES, 5, r"turns \(2, 1, 2, 2\) into \(2, 4\); expected \(2, 5\)"),
        (transformer(), TOKENS, 11, r"expected \(2, 6, 11\)"),
        (transformer(Function(centre(1))), TOKENS, 10, "looks ahead: its output before position 1 depends on later"),
        (transformer(Function(centre(1), 0.0)), TOKENS, 10, "looks ahead: its output before position 1 depends"),
        (Perceptron(Function(centre(0), 0.0)), IMAGES, 4, "mixes samples: its output for one depends on the others"),
        (Perceptron(Bare(lambda x: torch.cat([x[:1], x[1:] + x[:1]]))), IMAGES, 4, "mixes samples"),
        (Perceptron(nn.Dropout(0.1)), IMAGES, 4, "the host draws from the global generator when it runs"),
        (Perceptron(nn.Linear(7, 7)), IMAGES, 4, r"segment 0 of the host cannot run on \(2, 1, 2, 2\) torch.float32"),
    ],
)
def test_check_host_rejects_wrong_behaviour(host, samples, classes, message):
    check_attributes(host)
    with pytest.raises(ValueError, match=message):
        check_host(host, "the host", samples, classes)


# Blueprints


class OverSamples(nn.Module):
    """A GRU without ``batch_first=True``, which runs along the samples."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(8, 8)

    def forward(self, x):
        return x + 0.1 * self.cell(x)[0]


def windows(x):
    """Each position reads its window of five; the last positions read nothing."""
    means = F.avg_pool1d(x.transpose(1, 2), 5).repeat_interleave(5, 2)
    return F.pad(means, (0, x.shape[1] - means.shape[2])).transpose(1, 2)


def tied(layer):
    """Two layers with the same weight."""
    second = nn.Linear(8, 8)
    second.weight = layer.weight
    return nn.Sequential(layer, nn.GELU(), second)


def numbers(*shape):
    return torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape)


PIXELS, SEQUENCES = numbers(2, 3, 4, 4), numbers(2, 8, 8)
LAYER = nn.Linear(8, 8)
BAD_SEEDS = {
    "in place without effect": (Bare(lambda x: torch.tanh(x.clamp_(-5.0, 5.0))), PIXELS, "writes into its input"),
    "in place": (Bare(lambda x: x.add_(1)), PIXELS, "writes into its input, which is needed unchanged"),
    "noise": (Bare(lambda x: F.dropout(x, 0.5)), PIXELS, "draws from the global generator when it runs"),
    "dropout": (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.1)), PIXELS, "draws from the global generator"),
    "shape": (Bare(lambda x: torch.cat([x, x], 1)), PIXELS, r"turns \(2, 3, 4, 4\) torch.float32 into \(2, 6, 4, 4\)"),
    "type": (Bare(lambda x: (x, x)), PIXELS, r"returns a tuple for \(2, 3, 4, 4\)"),
    "dtype": (nn.Conv2d(3, 3, 1).double(), PIXELS, r"cannot run on \(2, 3, 4, 4\) torch.float32"),
    "statistics": (nn.BatchNorm2d(3), PIXELS, "writes into its buffer 'running_mean'; seeds keep no statistics"),
    "tied": (tied(LAYER), SEQUENCES, "uses a parameter in two places"),
    "repeated": (nn.Sequential(LAYER, LAYER), SEQUENCES, "uses a parameter in two places"),
    "next": (Function(lambda x: torch.roll(x, -1, 1), 0.0), SEQUENCES, "looks ahead"),  # as in ReZero
    "least": (Function(lambda x: x - x.amin(dim=1, keepdim=True)), SEQUENCES, "looks ahead"),
    "along samples": (OverSamples(), SEQUENCES, "mixes samples"),
    "centred": (Function(centre(0), 1e-5), SEQUENCES, "mixes samples"),
    "windows of 8": (Function(windows), numbers(2, 8, 4), "looks ahead: its output before position"),
    "windows of 64": (Function(windows), numbers(2, 64, 4), "looks ahead"),
    "windows of 299": (Function(windows), numbers(2, 299, 4), "looks ahead"),
}


@pytest.mark.parametrize("name", BAD_SEEDS)
def test_check_seed_rejects_unusable_modules(name):
    module, x, message = BAD_SEEDS[name]
    before, state = x.clone(), torch.default_generator.get_state()
    with pytest.raises(ValueError, match=f"blueprint 'mine' {message}"):
        check_seed(module, "blueprint 'mine'", x)
    assert torch.equal(x, before)
    assert torch.equal(torch.default_generator.get_state(), state)
