"""What is tried when an environment is made: no legal action fails afterwards, nothing is learned that is no learning,
and what PyTorch has no objection to is no reason to refuse."""

import subprocess
import sys
import threading

import gymnasium
import numpy as np
import pytest
import torch
from esper_env import ImageData, TextData, register_task, tasks
from esper_env.networks.hosts import SegmentedHost, SlotSpec
from esper_env.networks.population.layout import LAYOUTS
from esper_env.networks.seeds.contract import check_seed
from torch import nn
from torch.nn import functional as F

SMALL = {"batch_size": 4, "batches_per_step": 2, "horizon": 6, "device": "cpu"}
ALONE, TOGETHER = {"auto_shard_size": 1}, {"auto_shard_size": 2}
LAYOUT = pytest.mark.parametrize("layout", [ALONE, TOGETHER], ids=["alone", "together"])


@pytest.fixture(autouse=True)
def own_tables():
    """What is registered here is forgotten afterwards."""
    before, known = dict(tasks.TASKS), dict(gymnasium.registry)
    yield
    for table, old in ((tasks.TASKS, before), (gymnasium.registry, known)):
        table.clear()
        table.update(old)


def blobs(val=30, size=8):
    rng = np.random.default_rng(0)
    parts = []
    for count in (60, val, 30):
        labels = rng.integers(3, size=count)
        images = rng.integers(0, 60, (count, 2, size, size)) + 60 * labels[:, None, None, None]
        parts += [images.astype(np.uint8), labels.astype(np.int64)]
    return ImageData("blobs", 3, *parts, mean=(0.5,) * 2, std=(0.25,) * 2, crop_padding=0, flip=False)


def trees():
    text = np.frombuffer(b"a tree is a tree is a tree, not the big apple. " * 60, dtype=np.uint8)
    return TextData("trees", text, text[:300], text[:300])


class Images(SegmentedHost):
    """Two segments with a slot of 5 channels between them."""

    topology = "cnn"

    def __init__(self, data, first=None, second=None):
        super().__init__()
        channels, height, width = data.image_shape
        self.segments = nn.ModuleList(
            [
                nn.Conv2d(channels, 5, 1) if first is None else first(channels),
                nn.Sequential(nn.Flatten(), nn.Linear(5 * height * width, 3)) if second is None else second(),
            ]
        )
        self.slots = (SlotSpec("r0c0", 5, "hidden", 0, 0, 0, (5, height, width)),)
        self.execution_order = (0,)


class Sequences(SegmentedHost):
    topology = "transformer"

    def __init__(self, _data, first=None):
        super().__init__()
        self.segments = nn.ModuleList([nn.Embedding(256, 8) if first is None else first(), nn.Linear(8, 256)])
        self.slots = (SlotSpec("r0c0", 8, "hidden", 0, 0, 0, (8, 8)),)
        self.execution_order = (0,)


def played(host, data, seed, steps=2, envs=1, precision="float32", **numbers):
    """An episode's beginning with a seed planted; the last infos."""
    base = "Esper-Digits-v0" if isinstance(data, ImageData) else "Esper-Text-v0"
    register_task("Own-v0", base=base, host=host, data=data, **(SMALL | numbers))
    made = gymnasium.make_vec("Own-v0", num_envs=envs, precision=precision)
    try:
        made.reset(seed=0, options={"topology": {"r0c0": seed}})
        rng = np.random.default_rng(0)
        for _ in range(steps):
            *_, infos = made.step(made.unwrapped.sample_valid_actions(rng))
    finally:
        made.close()
    return infos


def told_or_played(host, data, seed, steps=2, envs=1, **numbers):
    """Either it is a ``ValueError`` when it is made, or it is played."""
    register_task("Tried-v0", host=host, data=data, **(SMALL | numbers))
    try:
        gymnasium.make("Tried-v0").close()
    except ValueError:
        return
    played(host, data, seed, steps, envs, **numbers)


# Seeds that get through and should not


class Peeking(nn.Module):
    """Shows a position the next one, behind a scale that begins with nothing, as ReZero does."""

    def __init__(self, width):
        super().__init__()
        self.mix, self.scale = nn.Linear(width, width), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return x + self.scale * self.mix(torch.roll(x, -1, 1))


class Least(nn.Module):
    """Looks at the least value of all times, which a ramp has first."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        return x + 0.1 * self.mix(x - x.amin(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", [Peeking, Least])
def test_a_seed_that_looks_ahead_is_refused_whatever_its_scale_at_birth(kind):
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 2 * 8 * 8).view(2, 8, 8)
    with pytest.raises(ValueError, match="looks ahead"):
        check_seed(kind(8), "mine", x)


class OverSamples(nn.Module):
    """A GRU whose ``batch_first=True`` was forgotten: it runs along the samples."""

    def __init__(self, width):
        super().__init__()
        self.cell = nn.GRU(width, width)

    def forward(self, x):
        return x + 0.1 * self.cell(x)[0]


class Centred(nn.Module):
    """Batch statistics behind a small scale."""

    def __init__(self, width):
        super().__init__()
        self.mix, self.scale = nn.Linear(width, width), nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x):
        hidden = self.mix(x)
        return x + self.scale * (hidden - hidden.mean(0))


@pytest.mark.parametrize("kind", [OverSamples, Centred])
def test_a_seed_that_mixes_samples_is_refused_whichever_it_mixes(kind):
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 2 * 8 * 8).view(2, 8, 8)
    with pytest.raises(ValueError, match="mixes samples"):
        check_seed(kind(8), "mine", x)


class Remembering(nn.Module):
    """Keeps something of the last pass, which is a tensor with a graph."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.last = nn.Conv2d(channels, channels, 1), 0.0

    def forward(self, x):
        out = x + 1e-3 * self.conv(x) + 1e-5 * self.last
        self.last = out.mean()
        return out


class Spectral(nn.Module):
    """Complex weights, of which ``module.to(torch.float32)`` takes the imaginary parts away."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(channels, dtype=torch.complex64))

    def forward(self, x):
        return x + torch.fft.ifft2(torch.fft.fft2(x) * self.weight[:, None, None]).real


class Scattered(nn.Module):
    """Writes to the channels that a buffer names."""

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
def test_a_seed_that_cannot_be_played_is_told_when_an_environment_is_made(own_blueprints, kind, layout):
    own_blueprints("mine", kind)
    told_or_played(Images, blobs(), "mine", envs=2, **layout)


@pytest.mark.filterwarnings("ignore:Casting complex")
def test_complex_weights_are_kept_or_refused(own_blueprints):
    own_blueprints("mine", Spectral)
    with pytest.raises(ValueError, match="complex"):
        played(Images, blobs(), "mine", **ALONE)


def hooked(channels):
    layer = nn.Conv2d(channels, channels, 1)
    layer.register_forward_hook(lambda _module, _given, out: out * 2)
    return layer


def one_pass(module, x, *, together):
    layout = LAYOUTS[3, together]()
    tensors = {name: value.detach()[None] for name, value in [*module.named_parameters(), *module.named_buffers()]}
    out = layout.call(module, tensors, layout.from_samples(x[None]), training=True)
    return out[0].movedim(-1, 0) if together else out[0].permute(0, 3, 1, 2)


@pytest.mark.parametrize("together", [False, True])
def test_a_module_with_hooks_computes_in_a_layout_what_it_does_by_itself(together):
    torch.manual_seed(0)
    module, x = hooked(4), torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(one_pass(module, x, together=together), module(x))


FUNCTIONAL_GROUP_NORM = """
import gymnasium, torch
from esper_env.networks.seeds import register_blueprint
from torch import nn

class Normed(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.weight = nn.Conv2d(channels, channels, 1), nn.Parameter(torch.full((channels,), 0.1))
    def forward(self, x):
        return x + nn.functional.group_norm(x, 1, self.weight)

register_blueprint("normed", "cnn", Normed)
gymnasium.make("Esper-CIFAR-Impaired-v0", dataset="procedural", device="cpu").close()
"""


def test_group_norm_as_a_function_does_not_end_the_process():
    done = subprocess.run([sys.executable, "-c", FUNCTIONAL_GROUP_NORM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]


# Hosts that get through and should not


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
