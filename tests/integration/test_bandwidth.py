"""Limit of training from memory bandwidth."""

import pytest
import torch
from esper_env.population.build import host_builder
from esper_env.tasks import make_task
from torch import nn


@pytest.fixture
def bandwidth(throughput_modules):  # noqa: ARG001
    import bandwidth

    return bandwidth


class TinyHost(nn.Module):
    """A convolution, BatchNorm, pooling, ReLU and a linear layer."""

    def __init__(self, average):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.ReLU(), average
        )
        self.head = nn.Linear(2, 5)

    def forward(self, x):
        return self.head(self.layers(x))


def tiny_host():
    return TinyHost(
        next(m for m in host_builder(make_task("Esper-Digits-v0"))().modules() if "Average" in str(type(m)))
    )


def test_bytes_of_a_tiny_host_equal_a_manual_count(bandwidth):
    # For each of 7 samples: image 3*4*4 = 48, full map 2*4*4 = 32, pooled map 2*2*2 = 8, means 2, logits 5 values.
    image, full, pooled, means, logits = (7 * size for size in (48, 32, 8, 2, 5))
    convolution = image + full + (full + image)  # forward; gradient and saved input, and none for the images
    norm = (2 * full + full) + (2 * full + 2 * full + full)
    pool = (full + pooled) + (pooled + pooled + full)
    relu = (pooled + pooled) + (pooled + pooled + pooled)
    average = (pooled + means) + (means + pooled)
    linear = (means + logits) + (logits + means + means)
    loss = logits + logits
    parameters = 9 * (2 * 3 * 9 + (2 + 2) + (2 * 5 + 5))
    values = convolution + norm + pool + relu + average + linear + loss + parameters
    assert bandwidth.bytes_per_minibatch(tiny_host(), 7, (3, 4, 4), 4) == 4 * values
    assert bandwidth.bytes_per_minibatch(tiny_host(), 7, (3, 4, 4), 2) == 2 * values


def test_bytes_per_minibatch_leaves_the_host_unchanged(bandwidth):
    host = tiny_host().eval()
    before = {name: value.clone() for name, value in host.state_dict().items()}
    with torch.no_grad():
        counted = bandwidth.bytes_per_minibatch(host, 2, (3, 4, 4), 4)
    assert counted == bandwidth.bytes_per_minibatch(host.train(), 2, (3, 4, 4), 4)
    for name, value in host.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in host.modules())


@pytest.mark.parametrize("env_id", ["Esper-Digits-v0", "Esper-CIFAR-Surfaces-v0"])
def test_only_activations_grow_with_the_minibatch(bandwidth, env_id):
    task = make_task(env_id)
    host, spec = host_builder(task)(), task.host
    shape = (spec.in_channels, spec.image_size, spec.image_size)
    one, two, three = (bandwidth.bytes_per_minibatch(host, samples, shape, 4) for samples in (2, 4, 6))
    assert two - one == three - two
    assert one - (two - one) == 4 * 9 * sum(parameter.numel() for parameter in host.parameters())


def test_unknown_layer_is_rejected(bandwidth):
    with pytest.raises(ValueError, match="Softplus is not in TRAFFIC"):
        bandwidth.bytes_per_minibatch(nn.Sequential(nn.Flatten(), nn.Softplus()), 2, (1, 2, 2), 4)


def test_limit_is_bandwidth_over_bytes_per_sample(bandwidth):
    limit = bandwidth.bandwidth_limit(1e9, 64_000, 64, 250_000.0)
    assert limit.samples_per_second == pytest.approx(1e6)
    assert limit.share == pytest.approx(0.25)
    with pytest.raises(ValueError, match="bandwidth is 0"):
        bandwidth.bandwidth_limit(0.0, 64_000, 64, 1.0)


def test_copy_bandwidth_counts_reads_and_writes_in_the_median_time(bandwidth, monkeypatch):
    copies, seconds = [], iter([100.0, 4.0, 1.0, 2.0])  # the first is the warm-up

    def timed(target, source):
        copies.append((target.nbytes, source.nbytes))
        return next(seconds)

    monkeypatch.setattr(bandwidth, "_seconds", timed)
    assert bandwidth.copy_bandwidth(torch.device("cpu"), size=1000, repeats=3) == 1000.0  # 2 * 1000 bytes in 2 s
    assert copies == [(1000, 1000)] * 4


def test_timed_copy_copies(bandwidth):
    source, target = torch.arange(100), torch.zeros(100, dtype=torch.int64)
    assert bandwidth._seconds(target, source) > 0
    assert torch.equal(source, target)
    assert bandwidth.copy_bandwidth(torch.device("cpu"), size=1 << 16, repeats=2) > 0
    with pytest.raises(ValueError, match="repeats 0"):
        bandwidth.copy_bandwidth(torch.device("cpu"), size=1, repeats=0)
