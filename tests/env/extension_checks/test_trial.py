"""Trials of custom blueprints when an environment is made."""

import subprocess
import sys

import pytest
import torch
from custom_hosts import LAYOUT, SINGLE, Images, blobs, play, reject_or_play
from esper_env.extension_checks.seeds import check_seed
from esper_env.population.engine.layouts import LAYOUTS
from torch import nn

pytestmark = pytest.mark.usefixtures("own_tables")


class Peeking(nn.Module):
    """Reads the next position, behind a scale that starts at zero, as in ReZero."""

    def __init__(self, width):
        super().__init__()
        self.mix, self.scale = nn.Linear(width, width), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return x + self.scale * self.mix(torch.roll(x, -1, 1))


class Least(nn.Module):
    """Reads the minimum over all positions, which is the first value of a ramp."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        return x + 0.1 * self.mix(x - x.amin(dim=1, keepdim=True))


class OverSamples(nn.Module):
    """A GRU without ``batch_first=True``, which runs along the samples."""

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


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Peeking, "looks ahead"), (Least, "looks ahead"), (OverSamples, "mixes samples"), (Centred, "mixes samples")],
)
def test_check_seed_rejects_look_ahead_and_mixing_at_any_initial_scale(kind, message):
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 2 * 8 * 8).view(2, 8, 8)
    with pytest.raises(ValueError, match=message):
        check_seed(kind(8), "mine", x)


class Windows(nn.Module):
    """Each position reads its window of five; the last positions read nothing."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        means = nn.functional.avg_pool1d(x.transpose(1, 2), 5).repeat_interleave(5, 2)
        padded = nn.functional.pad(means, (0, x.shape[1] - means.shape[2]))
        return x + 0.1 * self.mix(padded.transpose(1, 2))


@pytest.mark.parametrize("length", [8, 64, 299])
def test_check_seed_rejects_look_ahead_within_windows(length):
    with pytest.raises(ValueError, match="blueprint 'mine' looks ahead: its output before position"):
        check_seed(Windows(4), "mine", torch.linspace(-1, 1, 2 * length * 4).view(2, length, 4))


class Remembering(nn.Module):
    """Keeps a tensor with a graph from the last pass."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.last = nn.Conv2d(channels, channels, 1), 0.0

    def forward(self, x):
        out = x + 1e-3 * self.conv(x) + 1e-5 * self.last
        self.last = out.mean()
        return out


class Spectral(nn.Module):
    """Complex weights, which ``module.to(torch.float32)`` would make real."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(channels, dtype=torch.complex64))

    def forward(self, x):
        return x + torch.fft.ifft2(torch.fft.fft2(x) * self.weight[:, None, None]).real


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
    own_blueprints("mine", kind)
    reject_or_play(Images, blobs(), "mine", envs=2, **layout)


@pytest.mark.filterwarnings("ignore:Casting complex")
def test_environment_rejects_complex_parameters(own_blueprints):
    own_blueprints("mine", Spectral)
    with pytest.raises(ValueError, match="complex"):
        play(Images, blobs(), "mine", **SINGLE)


def hooked(channels):
    layer = nn.Conv2d(channels, channels, 1)
    layer.register_forward_hook(lambda _module, _given, out: out * 2)
    return layer


def one_pass(module, x, *, batched):
    layout = LAYOUTS[3, batched]()
    tensors = {name: value.detach()[None] for name, value in [*module.named_parameters(), *module.named_buffers()]}
    out = layout.call(module, tensors, layout.from_samples(x[None]), training=True)
    return out[0].movedim(-1, 0) if batched else out[0].permute(0, 3, 1, 2)


@pytest.mark.parametrize("batched", [False, True])
def test_hooks_run_in_every_layout(batched):
    torch.manual_seed(0)
    module, x = hooked(4), torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(one_pass(module, x, batched=batched), module(x))


FUNCTIONAL_GROUP_NORM = """
import gymnasium, torch
from esper_env.seeds import register_blueprint
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


def test_functional_group_norm_does_not_crash_process():
    done = subprocess.run([sys.executable, "-c", FUNCTIONAL_GROUP_NORM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
