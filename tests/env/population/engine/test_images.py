"""Batching rules for images equal each module: outputs, gradients and running statistics."""

import pytest
import torch
from esper_env.hosts import CNNHost
from esper_env.population.engine import images as batched
from esper_env.population.engine.vmapped import rule_of
from esper_env.seeds import offered_blueprints
from esper_env.seeds.blend import BlendGate
from torch import nn

pytestmark = pytest.mark.numeric

COPIES, SAMPLES = 3, 5
ACT = nn.ReLU()


def copies(build):
    """Modules with different weights, far from their initial values."""
    generator = torch.Generator().manual_seed(0)
    modules = [build().double() for _ in range(COPIES)]
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return modules


def features(*shape):
    return torch.randn(COPIES, SAMPLES, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def check(modules, x, *, training=True, tolerance=1e-9, input_gradient=True):
    """Compare ``batched.run`` on stacked tensors with calling each module."""
    tensors = {}
    for name, _ in [*modules[0].named_parameters(), *modules[0].named_buffers()]:
        rows = [dict([*m.named_parameters(), *m.named_buffers()])[name].detach().clone() for m in modules]
        tensors[name] = torch.stack(rows)
    for name, _ in modules[0].named_parameters():
        tensors[name].requires_grad_()
    separate, joint = (x.clone().requires_grad_(input_gradient) for _ in range(2))
    for module in modules:
        module.train(training)
    expected = torch.stack([module(separate[row]) for row, module in enumerate(modules)])
    samples_last = joint.movedim(1, -1).contiguous()
    out = batched.run(modules[0], tensors, samples_last, training=training).movedim(-1, 1)
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=expected.dtype)
    (expected * weights).sum().backward()
    (out * weights).sum().backward()
    if input_gradient:
        torch.testing.assert_close(joint.grad, separate.grad, atol=tolerance, rtol=tolerance)
    for name, _ in modules[0].named_parameters():
        gradients = torch.stack([dict(module.named_parameters())[name].grad for module in modules])
        torch.testing.assert_close(tensors[name].grad, gradients, atol=tolerance, rtol=tolerance, msg=name)
    for name, _ in modules[0].named_buffers():
        buffers = torch.stack([dict(module.named_buffers())[name] for module in modules])
        torch.testing.assert_close(tensors[name], buffers, msg=name)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("surfaces", ["post", "both"])
@pytest.mark.parametrize("size", [8, 16])
def test_hosts_equal_modules(training, surfaces, size):
    def build():
        host = CNNHost(10, 3, 4, 2, 3, in_channels=2, image_size=size, surfaces=surfaces)
        for layer in host.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.running_mean, -1, 1)
                nn.init.uniform_(layer.running_var, 0.5, 2)
        return nn.Sequential(*host.segments)

    check(copies(build), features(2, size, size), training=training)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("pools", [0, 2])
@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["from the input", "from the output"])
def test_first_layer_on_grey_images_equals_modules(monkeypatch, channels, kernel, pools, limit):
    """In two passes, so the second one starts from the updated statistics."""
    monkeypatch.setattr(batched, "GREY_MIN_VALUES", limit)
    calls = []
    grey_start = batched._grey_start
    monkeypatch.setattr(batched, "_grey_start", lambda *args: (calls.append(1), grey_start(*args))[1])
    modules = copies(
        lambda: nn.Sequential(*CNNHost(10, 3, 4, pools, kernel, in_channels=channels, image_size=8).segments)
    )
    for _ in range(2):
        check(modules, features(channels, 8, 8) + 0.3, input_gradient=False)
        for module in modules:
            module.zero_grad()
    assert bool(calls) is (channels == 1 and kernel == 1 and limit == 0)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_group_norm_equals_module_without_gradients(eps):
    modules = copies(lambda: nn.GroupNorm(1, 3, eps=eps))
    x = 5 + 3 * features(3, 4, 2)
    stacked = {name: torch.stack([getattr(m, name).detach() for m in modules]) for name in ("weight", "bias")}
    with torch.no_grad():
        out = batched.run(modules[0], stacked, x.movedim(1, -1).contiguous(), training=False).movedim(-1, 1)
        expected = torch.stack([module(x[row]) for row, module in enumerate(modules)])
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("entry", offered_blueprints("cnn"), ids=lambda entry: entry.name)
@pytest.mark.parametrize(("channels", "size"), [(1, 4), (4, 2), (8, 6)], ids=str)
def test_blueprints_equal_modules(entry, channels, size):
    check(copies(lambda: entry.factory(channels)), features(channels, size, size))


@pytest.mark.parametrize("front", [nn.Identity, lambda: nn.Conv2d(1, 3, 1, bias=False)], ids=["alone", "behind"])
@pytest.mark.parametrize("settings", [{"affine": False}, {"track_running_stats": False}], ids=str)
def test_unusual_batch_norms_equal_modules(monkeypatch, front, settings):
    """With different numbers of minibatches so far, in training and then in eval mode."""
    monkeypatch.setattr(batched, "GREY_MIN_VALUES", 0)
    modules = copies(lambda: nn.Sequential(front(), nn.BatchNorm2d(1 if front is nn.Identity else 3, **settings)))
    for seen, module in enumerate(modules):
        if module[1].track_running_stats:
            module[1].num_batches_tracked.fill_(seen)
    for training in (True, True, False):
        check(modules, features(1, 4, 3) + 0.3, training=training, input_gradient=front is nn.Identity)
        for module in modules:
            module.zero_grad()


@pytest.mark.parametrize("hooked_layer", range(3))
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_layers_with_hooks_are_not_fused(monkeypatch, hooked_layer, training):
    monkeypatch.setattr(batched, "GREY_MIN_VALUES", 0)

    def build():
        layers = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3), nn.MaxPool2d(2))
        layers[hooked_layer].register_forward_hook(lambda _module, _given, out: out * out)
        return layers

    check(copies(build), features(1, 4, 4) + 0.3, training=training, input_gradient=False)


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_layer_with_any_hook_has_no_rule(kind):
    rules, layer = {nn.ReLU: "rule"}, nn.ReLU()
    assert rule_of(rules, layer) == "rule"
    getattr(layer, f"register_{kind}_hook")(lambda *_: None)
    assert rule_of(rules, layer) is None


CONVOLUTIONS = {
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "3x3": lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "5x5": lambda: nn.Conv2d(4, 6, 5, padding=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "depthwise 1x1": lambda: nn.Conv2d(4, 4, 1, groups=4),
    "depthwise multiplier": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding=0),
    "even": lambda: nn.Conv2d(4, 6, 2, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2),
    "dilated": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "oblong": lambda: nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
}


@pytest.mark.parametrize("size", [(3, 3), (4, 4), (3, 5), (5, 5), (3, 9)], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_equal_modules(name, size):
    """On small maps, which are unrolled, and on larger ones; unusual kinds run through vmap."""
    check(copies(CONVOLUTIONS[name]), features(4, *size))


OTHERS = {
    "pool": lambda: nn.MaxPool2d(2),
    "ceil": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "overlapping": lambda: nn.MaxPool2d(3, stride=1, padding=1),
    "dilated": lambda: nn.MaxPool2d(2, dilation=2),
    "one group": lambda: nn.GroupNorm(1, 4),
    "two groups": lambda: nn.GroupNorm(2, 4),
    "without weights": lambda: nn.GroupNorm(1, 4, affine=False),
    "BatchNorm": lambda: nn.BatchNorm2d(4),
    "gate": lambda: BlendGate(4),
    "nested": lambda: nn.Sequential(nn.SiLU(), nn.Conv2d(4, 4, 1), nn.Sequential(nn.GELU(), nn.Tanh(), nn.Identity())),
    "repeated": lambda: nn.Sequential(ACT, nn.Conv2d(4, 4, 1), ACT),
    "last axis": lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5), nn.Softplus()),
    "leaky": lambda: nn.LeakyReLU(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_equal_modules(name):
    check(copies(OTHERS[name]), features(4, 5, 5))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_vectors_equals_modules(bias):
    check(copies(lambda: nn.Linear(6, 3, bias=bias)), features(6))


def test_subclass_does_not_use_rule_of_its_parent():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    check(copies(lambda: Doubled(4, 4, 3, padding=1)), features(4, 4, 4))
