"""CNN blueprints: sizes, identity at birth, and formulas."""

import gymnasium
import numpy as np
import pytest
import torch
from blueprints import CNN_BLUEPRINTS
from esper_env.extension_checks.seeds import check_seed
from esper_env.rules.heads import Blueprint
from esper_env.seeds import blueprint_entry, offered_blueprints
from plain_seeds import scrambled
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.numeric

ENTRIES = offered_blueprints("cnn")
EVERY_BLUEPRINT = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def features(channels, size=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(channels)
    return torch.rand(5, channels, size, size, generator=generator, dtype=dtype) * 3


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


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
    assert size(factory(4)) == at_4
    assert size(factory(32)) == at_32


def test_bottleneck_narrows_only_wide_features():
    assert blueprint_entry("bottleneck", "cnn").factory(64).branch[0].out_channels == 16
    assert blueprint_entry("bottleneck", "cnn").factory(8).branch[0].out_channels == 8


@EVERY_BLUEPRINT
@pytest.mark.parametrize("channels", [1, 4, 24])
def test_newborn_seed_is_close_to_the_identity(entry, channels):
    x = features(channels, dtype=torch.float32)
    seed = entry.factory(channels)
    out = seed(x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert (out - x).abs().max() < 0.02
    assert not torch.equal(out, x)


@EVERY_BLUEPRINT
def test_seeds_have_no_buffers_and_no_randomness(entry):
    seed = entry.factory(4)
    assert not list(seed.buffers())
    x = features(4, dtype=torch.float32)
    assert torch.equal(seed.train()(x), seed.eval()(x))


@EVERY_BLUEPRINT
def test_samples_are_independent(entry):
    seed, x = scrambled(entry.name, "cnn", 8), features(8)
    torch.testing.assert_close(seed(x)[2:3], seed(x[2:3]))


def group_norm(x, weight, bias):
    """Normalise every sample over channels and space."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


FORMULAS = {
    "norm": lambda p, x: (
        x + torch.tanh(p["gate"]).view(-1, 1, 1) * (group_norm(x, p["norm.weight"], p["norm.bias"]) - x)
    ),
    "attention": lambda p, x: (
        x
        * 2
        * torch.sigmoid(
            F.silu(x.mean(dim=(2, 3)) @ p["squeeze.weight"].T + p["squeeze.bias"]) @ p["excite.weight"].T
            + p["excite.bias"]
        )[:, :, None, None]
    ),
    "conv_small": lambda p, x: (
        x
        + p["scale"].view(-1, 1, 1)
        * group_norm(
            torch.einsum("oi,bihw->bohw", p["branch.0.weight"][:, :, 0, 0], x), p["branch.1.weight"], p["branch.1.bias"]
        )
    ),
    "conv_light": lambda p, x: (
        x
        + p["scale"].view(-1, 1, 1)
        * group_norm(F.conv2d(x, p["branch.0.weight"], padding=1), p["branch.1.weight"], p["branch.1.bias"])
    ),
    "conv_heavy": lambda p, x: (
        x
        + p["scale"].view(-1, 1, 1)
        * group_norm(
            F.conv2d(
                F.relu(
                    group_norm(F.conv2d(x, p["branch.0.weight"], padding=1), p["branch.1.weight"], p["branch.1.bias"])
                ),
                p["branch.3.weight"],
                padding=1,
            ),
            p["branch.4.weight"],
            p["branch.4.bias"],
        )
    ),
    "depthwise": lambda p, x: (
        x
        + p["scale"].view(-1, 1, 1)
        * F.conv2d(
            F.relu(
                group_norm(
                    torch.cat(
                        [F.conv2d(x[:, c : c + 1], p["branch.0.weight"][c : c + 1], padding=1) for c in range(8)], 1
                    ),
                    p["branch.1.weight"],
                    p["branch.1.bias"],
                )
            ),
            p["branch.3.weight"],
        )
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_seed_equals_its_formula(name):
    seed, x = scrambled(name, "cnn", 8), features(8)
    torch.testing.assert_close(seed(x), FORMULAS[name](dict(seed.named_parameters()), x))


def test_no_branch_ends_in_relu():
    """A scale behind a dead ReLU would get no gradient."""
    for entry in ENTRIES:
        branch = getattr(entry.factory(8), "branch", None)
        assert branch is None or not isinstance(branch[-1], nn.ReLU), entry.name


class Widens(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], dim=1)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class WritesIntoInput(nn.Module):
    def forward(self, x):
        return x.add_(1)


class Noisy(nn.Module):
    """Module with functional dropout."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class ChangesNothingInPlace(nn.Module):
    def forward(self, x):
        return torch.tanh(x.clamp_(-5.0, 5.0))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (ChangesNothingInPlace(), "blueprint 'mine' writes into its input"),
        (Noisy(), "blueprint 'mine' draws from the global generator when it runs"),
        (Widens(), r"blueprint 'mine' turns \(2, 3, 4, 4\) torch.float32 into \(2, 6, 4, 4\)"),
        (Pair(), "into tuple; change the blueprint's factory to keep both"),
        (WritesIntoInput(), "blueprint 'mine' writes into its input"),
        (nn.BatchNorm2d(3), "blueprint 'mine' writes into its buffer 'running_mean'; seeds keep no statistics"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.1)), "blueprint 'mine' has dropout"),
        (nn.Sequential(nn.Conv2d(3, 3, 1).double()), r"blueprint 'mine' cannot run on \(2, 3, 4, 4\) torch.float32"),
    ],
    ids=["in place without effect", "noise", "shape", "type", "in place", "statistics", "dropout", "dtype"],
)
def test_check_seed_rejects_unusable_modules(module, message):
    x = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
    before, state = x.clone(), torch.default_generator.get_state()
    with pytest.raises(ValueError, match=message):
        check_seed(module, "mine", x)
    assert torch.equal(x, before)
    assert torch.equal(torch.default_generator.get_state(), state)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_make_rejects_blueprints_with_another_output_shape(own_blueprints, num_envs):
    own_blueprints("odd", lambda channels: nn.Conv2d(channels, channels + 1, 1))
    with pytest.raises(ValueError, match=r"blueprint 'odd' turns \(3, 4, 4, 4\).*change the blueprint's factory"):
        gymnasium.make_vec("Esper-Digits-v0", num_envs=num_envs)


class ReadsItsOutput(nn.Conv2d):
    """Module with control flow on data, which torch.func.vmap does not support."""

    def __init__(self, channels):
        super().__init__(channels, channels, 1)

    def forward(self, x):
        out = super().forward(x)
        return out if out.sum().item() > 0 else -out


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (ReadsItsOutput, "blueprint 'odd' (mixes samples|cannot be trained for many networks at once)"),
        (lambda c: nn.Conv2d(c, c, 1, groups=c + 1), "the factory of blueprint 'odd' fails for 4 channels"),
        (lambda: nn.Identity(), "the factory of blueprint 'odd' fails for 4 channels"),
        (nn.Conv2d(4, 4, 1), "the factory of blueprint 'odd' fails for 4 channels"),
        (lambda c: nn.Conv2d(c, c, 1).requires_grad_(False), "a Conv2d has frozen parameters"),
    ],
)
def test_make_rejects_unusable_blueprints(own_blueprints, factory, message):
    own_blueprints("odd", factory)
    with pytest.raises(ValueError, match=message):
        gymnasium.make("Esper-Digits-v0")


class Looped(nn.Module):
    """Module with control flow on each sample."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return torch.stack([one if one.abs().max().item() > 100 else self.conv(one[None])[0] for one in x])


def test_blueprint_without_vmap_support_runs_in_single_networks(own_blueprints):
    own_blueprints("looped", Looped)
    with pytest.raises(ValueError, match="blueprint 'looped' cannot be trained for many networks at once"):
        gymnasium.make("Esper-Digits-v0")
    env = gymnasium.make(
        "Esper-CIFAR-Impaired-v0", dataset="procedural", horizon=2, batches_per_step=1, batch_size=4, device="cpu"
    )
    env.reset(seed=0, options={"topology": {"r0c0": "looped"}})
    env.step(np.zeros(8, dtype=np.int64))
    env.close()


def test_make_rejects_factories_with_numpy_randomness(own_blueprints):
    rng = np.random.default_rng(0)

    def factory(channels):
        layer = nn.Conv2d(channels, channels, 1)
        layer.weight.data += float(rng.random())
        return layer

    own_blueprints("drawn", factory)
    with pytest.raises(ValueError, match="a Conv2d built twice from the same seed has other values in weight"):
        gymnasium.make("Esper-Digits-v0")
