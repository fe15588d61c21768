"""CNN blueprints: sizes, identity at birth, and formulas."""

import pytest
import torch
from blueprints import CNN_BLUEPRINTS
from esper_env.rules.heads import Blueprint
from esper_env.seeds import blueprint_entry, offered_blueprints
from plain_seeds import scrambled
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.numeric

ENTRIES = offered_blueprints("cnn")
EVERY_BLUEPRINT = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def features(channels, dtype=torch.float64):
    generator = torch.Generator().manual_seed(channels)
    return torch.rand(5, channels, 4, 4, generator=generator, dtype=dtype) * 3


def test_cnn_hosts_offer_the_standard_blueprints():
    assert {entry.value for entry in ENTRIES} == set(CNN_BLUEPRINTS)
    assert all(Blueprint(entry.value).name.lower() == entry.name for entry in ENTRIES)


@pytest.mark.parametrize(
    ("name", "at_4", "at_32"),
    [
        # convolutions without bias, GroupNorm 2 per channel, LayerScale 1 per channel
        ("norm", 12, 96),
        ("attention", (4 + 1) + (4 + 4), (32 * 8 + 8) + (8 * 32 + 32)),
        ("depthwise", 36 + 8 + 16 + 4, 9 * 32 + 64 + 32 * 32 + 32),
        ("bottleneck", 4 * 8 + 16 + 9 * 64 + 16 + 8 * 4 + 4, 32 * 8 + 16 + 9 * 64 + 16 + 8 * 32 + 32),
        ("conv_small", 16 + 8 + 4, 32 * 32 + 96),
        ("conv_light", 156, 9 * 32 * 32 + 96),
        ("conv_heavy", 308, 2 * (9 * 32 * 32 + 64) + 32),
    ],
)
def test_parameter_counts_equal_documented_numbers(name, at_4, at_32):
    factory = blueprint_entry(name, "cnn").factory
    assert [sum(p.numel() for p in factory(channels).parameters()) for channels in (4, 32)] == [at_4, at_32]


def test_bottleneck_narrows_only_wide_features():
    assert blueprint_entry("bottleneck", "cnn").factory(64).branch[0].out_channels == 16


@EVERY_BLUEPRINT
@pytest.mark.parametrize("channels", [1, 4, 24])
def test_newborn_seed_is_close_to_the_identity(entry, channels):
    x = features(channels, dtype=torch.float32)
    seed = entry.factory(channels)
    out = seed(x)
    assert (out - x).abs().max() < 0.02
    assert not torch.equal(out, x)
    assert torch.equal(seed.eval()(x), out)


def group_norm(p, layer, x):
    """Normalise every sample over channels and space."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
    weight, bias = (p[f"{layer}.{name}"].view(-1, 1, 1) for name in ("weight", "bias"))
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def conv(p, place, x, **options):
    return F.conv2d(x, p[f"branch.{place}.weight"], **options)


def channel_attention(p, x):
    hidden = F.silu(x.mean(dim=(2, 3)) @ p["squeeze.weight"].T + p["squeeze.bias"])
    return x * 2 * torch.sigmoid(hidden @ p["excite.weight"].T + p["excite.bias"])[:, :, None, None]


def conv_heavy(p, x):
    hidden = F.relu(group_norm(p, "branch.1", conv(p, 0, x, padding=1)))
    return group_norm(p, "branch.4", conv(p, 3, hidden, padding=1))


def depthwise(p, x):
    weight = p["branch.0.weight"]
    spatial = [F.conv2d(x[:, c : c + 1], weight[c : c + 1], padding=1) for c in range(8)]
    return conv(p, 3, F.relu(group_norm(p, "branch.1", torch.cat(spatial, 1))))


def bottleneck(p, x):
    inner = F.relu(group_norm(p, "branch.1", conv(p, 0, x)))
    return conv(p, 6, F.relu(group_norm(p, "branch.4", conv(p, 3, inner, padding=1))))


BRANCHES = {
    "conv_small": lambda p, x: group_norm(p, "branch.1", conv(p, 0, x)),
    "conv_light": lambda p, x: group_norm(p, "branch.1", conv(p, 0, x, padding=1)),
    "conv_heavy": conv_heavy,
    "depthwise": depthwise,
    "bottleneck": bottleneck,
}
FORMULAS = {
    "norm": lambda p, x: x + torch.tanh(p["gate"]).view(-1, 1, 1) * (group_norm(p, "norm", x) - x),
    "attention": channel_attention,
}


@EVERY_BLUEPRINT
def test_seed_equals_its_formula_and_keeps_samples_apart(entry):
    seed, x = scrambled(entry.name, "cnn", 8), features(8)
    p = dict(seed.named_parameters())
    if entry.name in FORMULAS:
        expected = FORMULAS[entry.name](p, x)
    else:
        expected = x + p["scale"].view(-1, 1, 1) * BRANCHES[entry.name](p, x)
    torch.testing.assert_close(seed(x), expected)
    torch.testing.assert_close(seed(x)[2:3], seed(x[2:3]))


def test_no_branch_ends_in_relu():
    """A scale behind a dead ReLU would get no gradient."""
    for entry in ENTRIES:
        branch = getattr(entry.factory(8), "branch", None)
        assert branch is None or not isinstance(branch[-1], nn.ReLU), entry.name
