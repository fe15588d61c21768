"""The convolutional host: sizes, slots, segments and clear errors."""

import pytest
import torch
from esper_env.hosts import CNNHost
from esper_env.population.build import host_builder
from esper_env.tasks import TASKS, make_task
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.numeric

CIFAR = {"in_channels": 3, "image_size": 32}


def host(classes=10, n_blocks=3, base_channels=8, pool_layers=3, kernel=3, **options):
    return CNNHost(classes, n_blocks, base_channels, pool_layers, kernel, **{**CIFAR, **options})


@pytest.mark.parametrize(
    ("env_id", "parameters"),
    [
        ("Esper-CIFAR-v0", 6_418),
        ("Esper-CIFAR-Surfaces-v0", 6_418),
        ("Esper-CIFAR-Impaired-v0", 77),
        ("Esper-Digits-v0", 390),
        # convolutions 9 * (3*8 + 8*16 + 16*32 + 32*64 + 64*128), BatchNorm 2 * 248, linear 129 * 10
        ("Esper-CIFAR-Deep-v0", 9 * (24 + 128 + 512 + 2048 + 8192) + 496 + 1290),
    ],
)
def test_task_host_has_exact_number_of_parameters(env_id, parameters):
    assert sum(parameter.numel() for parameter in host_builder(TASKS[env_id])().parameters()) == parameters


def plain_features(built, x, surfaces, pools):
    """conv -> BatchNorm -> ReLU -> max-pool per block, global average pool, linear, from the host's own layers."""
    convs = [layer for layer in built.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in built.modules() if isinstance(layer, nn.BatchNorm2d)]
    (linear,) = (layer for layer in built.modules() if isinstance(layer, nn.Linear))
    features = {}
    for block, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        x = F.relu(norm(conv(x)))
        if surfaces == "both":
            features[f"r0c{block}"] = x
        x = F.max_pool2d(x, 2) if block < pools else x
        features[f"r{int(surfaces == 'both')}c{block}"] = x
    return linear(x.mean(dim=(2, 3))), features


@pytest.mark.parametrize("pools", [1, 2, 3])
@pytest.mark.parametrize("surfaces", ["post", "both"])
def test_segments_compute_blocks_in_order_with_declared_shapes(surfaces, pools):
    built = host(surfaces=surfaces, pool_layers=pools).eval()
    with torch.no_grad():
        for layer in built.modules():
            if isinstance(layer, nn.BatchNorm2d):  # statistics and weights that reveal a wrong order
                layer.running_mean.uniform_(-1, 1)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(-1, 1)
                layer.bias.uniform_(-1, 1)
        x = torch.randn(4, 3, 32, 32)
        logits, features = plain_features(built, x, surfaces, pools)
        torch.testing.assert_close(built(x), logits)
        for index, segment in zip(built.execution_order, built.segments[:-1], strict=True):
            x = segment(x)
            spec = built.slots[index]
            torch.testing.assert_close(x, features[spec.slot_id])
            assert x.shape == (4, *spec.shape)
        torch.testing.assert_close(built.segments[-1](x), logits)


@pytest.mark.parametrize(
    ("surfaces", "ids", "order", "kinds", "sizes"),
    [
        ("post", ["r0c0", "r0c1", "r0c2"], (0, 1, 2), 3 * ["post-pool"], [16, 8, 4]),
        (
            "both",
            ["r0c0", "r0c1", "r0c2", "r1c0", "r1c1", "r1c2"],
            (0, 3, 1, 4, 2, 5),
            3 * ["pre-pool"] + 3 * ["post-pool"],
            [32, 16, 8, 16, 8, 4],
        ),
    ],
)
def test_slots_are_row_major_and_run_in_order_of_the_blocks(surfaces, ids, order, kinds, sizes):
    built = host(surfaces=surfaces)
    assert built.execution_order == order
    columns = zip(*((s.slot_id, s.action_index, s.surface, s.shape[1]) for s in built.slots), strict=True)
    assert list(map(list, columns)) == [ids, list(range(len(ids))), kinds, sizes]


def test_subset_of_slots_leaves_network_unchanged():
    full, some = host(surfaces="both"), host(surfaces="both", slots=["r1c2", "r0c1"])
    assert [spec.slot_id for spec in some.slots] == ["r0c1", "r1c2"]
    assert [spec.action_index for spec in some.slots] == [0, 1]
    assert some.execution_order == (0, 1)
    assert len(some.segments) == 3
    with torch.no_grad():
        for mine, theirs in zip(some.parameters(), full.parameters(), strict=True):
            mine.copy_(theirs)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(some(x), full(x))
    assert host_builder(make_task("Esper-CIFAR-v0", slots=["r0c2"]))().slots[0].slot_id == "r0c2"


def test_convolution_weights_are_channels_last():
    for parameter in host().parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_blocks": 1}, "`n_blocks` is 1; expected an integer of at least 2"),
        ({"kernel": 2}, "kernel is 2; expected an odd number"),
        ({"kernel": 0}, "`kernel` is 0; expected a positive integer"),
        ({"classes": 1}, "`classes` is 1; expected an integer of at least 2"),
        ({"base_channels": 0}, "`base_channels` is 0; expected a positive integer"),
        ({"pool_layers": 4}, "pool_layers is 4; expected 0 to n_blocks = 3"),
        ({"pool_layers": -1}, "`pool_layers` is -1; expected a non-negative integer"),
        ({"n_blocks": 5, "pool_layers": 5}, "5 pools shrink a 32x32 image below 2x2"),
        ({"surfaces": "pre"}, "`surfaces` is 'pre'; expected one of 'post', 'both'"),
        ({"slots": ["r1c0"]}, r"slots \['r1c0'\] do not exist in this host"),
    ],
)
def test_host_rejects_bad_geometry(options, message):
    with pytest.raises(ValueError, match=message):
        host(**options)
