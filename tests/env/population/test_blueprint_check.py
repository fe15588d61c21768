"""A blueprint is tried when it is registered; only those that cannot be played are rejected."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from custom_hosts import SINGLE, Images, blobs, play
from esper_env import register_task
from esper_env.seeds import offered_blueprints, unregister_blueprint
from esper_env.tasks import TASKS
from torch import nn

pytestmark = pytest.mark.usefixtures("own_tables")

SHARED = nn.Conv2d(8, 8, 1)


class SeedsItself(nn.Conv2d):
    def __init__(self, channels):
        torch.manual_seed(0)
        super().__init__(channels, channels, 1)


class DrawsFromNumpy(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 1)
        self.weight.data += float(np.random.default_rng().random())


class ReadsItsOutput(nn.Conv2d):
    """Module with control flow on data, which torch.func.vmap does not support."""

    def __init__(self, channels):
        super().__init__(channels, channels, 1)

    def forward(self, x):
        out = super().forward(x)
        return out if out.sum().item() > 0 else -out


def with_hook(layer):
    layer.register_full_backward_hook(lambda *_: None)
    return layer


def with_parameter_hook(layer):
    layer.weight.register_hook(lambda gradient: gradient)
    return layer


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (ReadsItsOutput, "blueprint 'odd' (mixes samples|cannot be trained for many networks at once)"),
        (lambda c: nn.Conv2d(c, c + 1, 1), r"blueprint 'odd' turns \(3, 8, 4, 4\).*change the blueprint's factory"),
        (lambda c: nn.Conv2d(c, c, 1, groups=c + 1), "the factory of blueprint 'odd' fails for 8 channels"),
        (lambda c: nn.Conv2d(c, c, 1, groups=8), "the factory of blueprint 'odd' fails for 4 channels"),
        (lambda c: nn.GroupNorm(2, c), r"the factory of blueprint 'odd' fails for 1 channel \("),
        (lambda c: nn.Conv2d(c, c, 1).requires_grad_(c > 4), "blueprint 'odd': a Conv2d has frozen"),
        (lambda c: nn.LayerNorm((c, 4, 4)), r"blueprint 'odd' cannot run on \(3, 4, 8, 8\)"),
        (lambda: nn.Identity(), "the factory of blueprint 'odd' fails for 8 channels"),
        (nn.Conv2d(4, 4, 1), "the factory of blueprint 'odd' fails for 8 channels"),
        (lambda c: nn.Sequential(nn.Conv2d(c, c, 1), nn.Dropout(0.1)), r"draws from .* noise \(1 \(Dropout\)\)"),
        (lambda c: with_hook(nn.Conv2d(c, c, 1)), "blueprint 'odd' has a backward hook on itself, which is not called"),
        (lambda c: nn.Sequential(with_hook(nn.Conv2d(c, c, 1))), "has a backward hook on its layer '0'"),
        (lambda c: with_parameter_hook(nn.Conv2d(c, c, 1)), "blueprint 'odd' has a hook on its parameter 'weight'"),
        (lambda c: nn.Conv2d(c, c, 1).requires_grad_(False), "blueprint 'odd': a Conv2d has frozen, complex or lazy"),
        (lambda _: SHARED, "blueprint 'odd': a Conv2d built twice has the same parameters"),
        (SeedsItself, "blueprint 'odd': SeedsItself.__init__ seeds PyTorch's default generator"),
        (DrawsFromNumpy, "blueprint 'odd': a DrawsFromNumpy built twice from the same seed has other values in weight"),
    ],
)
def test_registration_rejects_unusable_blueprints(own_blueprints, factory, message):
    """Environments of the topology are made as before."""
    state = torch.default_generator.get_state()
    with pytest.raises(ValueError, match=message):
        own_blueprints("odd", factory)
    assert torch.equal(torch.default_generator.get_state(), state)
    assert "odd" not in [entry.name for entry in offered_blueprints("cnn")]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda c: nn.Conv2d(c, c, 1, groups=4 if c == 6 else 1), "the factory of .* fails for 6 channels"),
        (lambda c: nn.Conv2d(c, c, 1).requires_grad_(c != 6), "blueprint 'odd': a Conv2d has frozen"),
        (lambda c: nn.Conv2d(c, c + (c == 6), 1), r"blueprint 'odd' turns \(3, 6, 4, 4\)"),
    ],
)
def test_make_names_the_blueprint_that_does_not_fit_a_slot(own_blueprints, factory, message):
    own_blueprints("odd", factory)
    host = replace(TASKS["Esper-Digits-v0"].host, base_channels=6)
    register_task("Six-v0", base="Esper-Digits-v0", host=host)
    remedy = r"remove the blueprint with esper_env.unregister_blueprint\('odd', 'cnn'\)"
    with pytest.raises(ValueError, match=rf"slot r0c0 has features of shape \(6, 4, 4\), and {message}.*{remedy}"):
        gymnasium.make("Six-v0")
    unregister_blueprint("odd", "cnn")
    gymnasium.make("Six-v0").close()


def test_blueprint_is_tried_without_the_callers_switches(own_blueprints):
    """It trains, whatever the caller does; the caller's switches stay."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        entry = own_blueprints("mine", lambda c: nn.Conv2d(c, c, 1))
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert entry in offered_blueprints("cnn")


class Looped(nn.Module):
    """Module with control flow on each sample."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return torch.stack([one if one.abs().max().item() > 100 else self.conv(one[None])[0] for one in x])


def test_blueprint_without_vmap_support_runs_in_single_networks(own_blueprints):
    said = "blueprint 'looped' cannot be trained for many networks at once.*register the blueprint with batched=False"
    with pytest.raises(ValueError, match=said):
        own_blueprints("looped", Looped)
    entry = own_blueprints("looped", Looped, batched=False)
    env = gymnasium.make("Esper-Digits-v0").unwrapped  # a batched task of the same topology does not offer it
    assert entry.value not in env.offered_blueprints
    with pytest.raises(ValueError, match="'looped' was registered after this environment was made, or only runs"):
        env.reset(options={"topology": {"r0c0": "looped"}})
    env.close()
    assert play(Images, blobs(), "looped", **SINGLE)["val_loss"] > 0
