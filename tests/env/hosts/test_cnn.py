"""The convolutional host: sizes, slots, routing and clear errors."""

import pytest
import torch
from esper_env.hosts import CNNHost, HostProtocol
from esper_env.population.build import host_builder
from esper_env.tasks import TASKS, make_task
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.numeric

CIFAR = {"in_channels": 3, "image_size": 32}


def host(classes=10, n_blocks=3, base_channels=8, pool_layers=3, kernel=3, **options):
    return CNNHost(classes, n_blocks, base_channels, pool_layers, kernel, **{**CIFAR, **options})


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


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
def test_hosts_have_exactly_their_parameters(env_id, parameters):
    assert size(host_builder(TASKS[env_id])()) == parameters


@pytest.mark.parametrize("env_id", TASKS)
def test_no_task_has_a_slot_where_a_kernel_sees_a_single_pixel(env_id):
    built = host_builder(TASKS[env_id])()
    assert isinstance(built, HostProtocol)
    for spec in built.slots:
        assert min(spec.shape[-2:]) >= 2, spec


@pytest.mark.parametrize("surfaces", ["post", "both"])
@pytest.mark.parametrize("pool_layers", [1, 3])
def test_slots_say_what_arrives_there(surfaces, pool_layers):
    built = host(surfaces=surfaces, pool_layers=pool_layers)
    x = torch.rand(2, 3, 32, 32)
    for spec in built.slots:
        assert built.forward_between(x, None, spec.slot_id).shape == (2, *spec.shape)


def naive_forward(built, x, surfaces):
    """conv -> BatchNorm -> ReLU -> max-pool per block, global average pool, linear, from the host's own layers."""
    convs = [layer for layer in built.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in built.modules() if isinstance(layer, nn.BatchNorm2d)]
    (linear,) = (layer for layer in built.modules() if isinstance(layer, nn.Linear))
    seen = {}
    for block, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        x = F.relu(norm(conv(x)))
        if surfaces == "both":
            seen[f"r0c{block}"] = x
        x = F.max_pool2d(x, 2) if block < 2 else x
        seen[f"r{int(surfaces == 'both')}c{block}"] = x
    return linear(x.mean(dim=(2, 3))), seen


@pytest.mark.parametrize("surfaces", ["post", "both"])
def test_the_forward_pass_is_its_blocks_in_order(surfaces):
    built = host(surfaces=surfaces, pool_layers=2).eval()
    with torch.no_grad():
        for layer in built.modules():
            if isinstance(layer, nn.BatchNorm2d):  # statistics and weights that would betray a wrong order
                layer.running_mean.uniform_(-1, 1)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(-1, 1)
                layer.bias.uniform_(-1, 1)
        x = torch.randn(4, 3, 32, 32)
        logits, seen = naive_forward(built, x, surfaces)
        torch.testing.assert_close(built(x), logits)
        for slot_id, features in seen.items():
            torch.testing.assert_close(built.forward_between(x, None, slot_id), features)
            torch.testing.assert_close(built.forward_between(features, slot_id, None), logits)
        torch.testing.assert_close(
            built.forward_between(seen["r0c0"], "r0c0", "r0c2"), seen["r0c2"], msg="between two slots"
        )


def test_post_pool_slots_run_in_action_order():
    built = host()
    assert [spec.slot_id for spec in built.slots] == ["r0c0", "r0c1", "r0c2"]
    assert built.execution_order == (0, 1, 2)
    assert {spec.surface for spec in built.slots} == {"post-pool"}
    assert [spec.shape[:2] for spec in built.slots] == [(8, 16), (16, 8), (32, 4)]


def test_with_both_surfaces_action_order_is_row_major_and_execution_alternates():
    built = host(surfaces="both")
    assert [spec.slot_id for spec in built.slots] == ["r0c0", "r0c1", "r0c2", "r1c0", "r1c1", "r1c2"]
    assert [spec.action_index for spec in built.slots] == list(range(6))
    assert [spec.surface for spec in built.slots] == ["pre-pool"] * 3 + ["post-pool"] * 3
    assert [built.slots[index].slot_id for index in built.execution_order] == [
        *("r0c0", "r1c0", "r0c1", "r1c1", "r0c2", "r1c2")
    ]
    assert [spec.shape[1] for spec in built.slots] == [32, 16, 8, 16, 8, 4]


def test_a_subset_of_slots_leaves_the_network_as_it_is():
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


def test_convolutions_are_channels_last():
    for parameter in host().parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("start", "stop", "message"),
    [
        ("r0c1", "r0c0", "cannot run from slot 'r0c1' to slot 'r0c0': the host only runs forward"),
        ("r0c1", "r0c1", "cannot run from slot 'r0c1' to slot 'r0c1'"),
        ("r9c9", None, "slot 'r9c9' is not known; this host has r0c0, r0c1, r0c2"),
        (None, "r1c0", "slot 'r1c0' is not known; this host has r0c0, r0c1, r0c2"),
    ],
)
def test_a_misrouted_request_is_a_clear_error(start, stop, message):
    with pytest.raises(ValueError, match=message):
        host().forward_between(torch.rand(1, 3, 32, 32), start, stop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_blocks": 1}, "n_blocks is 1; a CNN host needs at least 2 blocks"),
        ({"kernel": 2}, "kernel is 2; expected an odd number"),
        ({"kernel": 0}, "kernel is 0; expected an odd number"),
        ({"classes": 1}, "classes is 1 and base_channels 8; expected at least 2 and 1"),
        ({"base_channels": 0}, "base_channels 0; expected at least 2 and 1"),
        ({"pool_layers": 4}, "pool_layers is 4; expected 0 to n_blocks = 3"),
        ({"pool_layers": -1}, "pool_layers is -1; expected 0 to n_blocks = 3"),
        ({"n_blocks": 5, "pool_layers": 5}, "5 pools shrink a 32x32 image below 2x2"),
        ({"surfaces": "pre"}, r"surfaces is 'pre'; expected one of \['both', 'post'\]"),
        ({"slots": ["r1c0"]}, r"slots \['r1c0'\] do not exist in this host"),
        ({"slots": []}, "slots is empty; an environment needs at least one slot"),
    ],
)
def test_a_geometry_that_makes_no_sense_is_a_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        host(**options)
