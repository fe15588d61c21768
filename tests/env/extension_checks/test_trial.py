"""Blueprints tried when an environment is made: no legal action fails afterwards, and nothing learns by peeking."""

import subprocess
import sys

import pytest
import torch
from esper_env.extension_checks.seeds import check_seed
from esper_env.population.engine.layouts import LAYOUTS
from own_hosts import ALONE, LAYOUT, Images, blobs, played, told_or_played
from torch import nn

pytestmark = pytest.mark.usefixtures("own_tables")


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


@pytest.mark.parametrize(
    ("kind", "says"),
    [(Peeking, "looks ahead"), (Least, "looks ahead"), (OverSamples, "mixes samples"), (Centred, "mixes samples")],
)
def test_a_seed_that_looks_where_it_must_not_is_refused_whatever_its_scale_at_birth(kind, says):
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 2 * 8 * 8).view(2, 8, 8)
    with pytest.raises(ValueError, match=says):
        check_seed(kind(8), "mine", x)


class Windows(nn.Module):
    """Each position sees its window of five, the last positions none."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        means = nn.functional.avg_pool1d(x.transpose(1, 2), 5).repeat_interleave(5, 2)
        padded = nn.functional.pad(means, (0, x.shape[1] - means.shape[2]))
        return x + 0.1 * self.mix(padded.transpose(1, 2))


@pytest.mark.parametrize("length", [8, 64, 299])
def test_a_seed_that_looks_ahead_in_places_is_refused(length):
    with pytest.raises(ValueError, match="blueprint 'mine' looks ahead: what it makes of the positions before"):
        check_seed(Windows(4), "mine", torch.linspace(-1, 1, 2 * length * 4).view(2, length, 4))


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


def test_group_norm_as_a_function_does_not_end_the_process():
    done = subprocess.run([sys.executable, "-c", FUNCTIONAL_GROUP_NORM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
