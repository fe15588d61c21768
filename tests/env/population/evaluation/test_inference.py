"""The evaluated form of a host segment computes the same as the segment in eval mode."""

import pytest
import torch
from esper_env.hosts import CNNHost
from esper_env.population.engine.layouts import BatchedImages, SingleImages
from esper_env.population.evaluation.inference import ChannelShift, InferenceForm, Rectifier
from torch import nn

pytestmark = pytest.mark.numeric

COPIES = 2


def trained(build):
    """Copies whose parameters and running statistics are far from their initial values."""
    generator = torch.Generator().manual_seed(0)

    def draw(like):
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    modules = [build().double().eval() for _ in range(COPIES)]
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.copy_(draw(parameter))
            for name, buffer in module.named_buffers():
                if name.endswith("running_mean"):
                    buffer.copy_(draw(buffer))
                elif name.endswith("running_var"):
                    buffer.copy_(draw(buffer).square() + 0.1)
    return modules


def outputs(modules, x, layout):
    """Outputs of the modules for x (B, C, H, W), and of their evaluated forms."""
    rows = [dict([*module.named_parameters(), *module.named_buffers()]) for module in modules]
    stacked = {name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]}
    form = InferenceForm(modules[0])
    folded = form.tensors(stacked)
    expected = torch.stack([module(x) for module in modules])
    if isinstance(layout, BatchedImages):
        features = layout.from_samples(x.expand(COPIES, *x.shape))
        return expected, layout.call(form.module, folded, features, training=False).movedim(-1, 1)
    rows = [{name: value[k : k + 1] for name, value in folded.items()} for k in range(COPIES)]
    features = layout.from_samples(x.unsqueeze(0))
    out = torch.cat([layout.call(form.module, row, features, training=False) for row in rows])
    return expected, out.permute(0, 1, 4, 2, 3) if out.dim() == 5 else out


@torch.no_grad()
@pytest.mark.parametrize("layout", [BatchedImages(), SingleImages()], ids=["batched", "single"])
@pytest.mark.parametrize("surfaces", ["post", "both"])
@pytest.mark.parametrize("pools", [0, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_form_equals_every_segment_of_host(layout, surfaces, pools, kernel):
    def build():
        return CNNHost(10, 3, 4, pools, kernel, in_channels=2, image_size=8, surfaces=surfaces)

    hosts = trained(build)
    x = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    folded = 0
    for segments in zip(*(host.segments for host in hosts), strict=True):
        expected, out = outputs(segments, x, layout)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-10)
        form = InferenceForm(segments[0])
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in form.module.modules())
        folded += sum(isinstance(layer, ChannelShift) for layer in form.module.modules())
        x = expected[0]
    assert folded == 3


@torch.no_grad()
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)),  # a separate bias
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)),
        lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 1, bias=False)),
        lambda: nn.BatchNorm2d(2),
    ],
    ids=["bias", "apart", "not affine", "before", "alone"],
)
def test_form_leaves_other_layers_unchanged(build):
    modules = trained(build)
    x = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, out = outputs(modules, x, SingleImages())
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("layout", [BatchedImages(), SingleImages()], ids=["batched", "single"])
@pytest.mark.parametrize("place", ["0", "1", "2", "3", ""], ids=["conv", "norm", "pool", "relu", "segment"])
def test_form_calls_hooks_in_place(layout, place):
    def build():
        layers = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU())
        layers.get_submodule(place).register_forward_hook(lambda _module, _given, out: out * out - 1)
        return layers

    x = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, out = outputs(trained(build), x, layout)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)


def test_segment_keeps_its_layers():
    segment = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.ReLU())
    form = InferenceForm(segment)
    assert [type(layer) for layer in segment] == [nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.ReLU]
    assert [type(layer) for layer in form.module] == [nn.Conv2d, nn.MaxPool2d, ChannelShift, Rectifier]


@pytest.mark.parametrize("front", [nn.Identity, nn.Flatten, nn.BatchNorm2d], ids=lambda front: front.__name__)
@torch.no_grad()
def test_form_does_not_overwrite_its_input(front):
    """ReLU works in place only behind a layer that returns a new tensor."""
    layer = front(2) if front is nn.BatchNorm2d else front()
    for segment in (nn.Sequential(nn.ReLU()), nn.Sequential(layer, nn.ReLU())):
        x = torch.linspace(-1, 1, 16).view(2, 2, 2, 2)
        before = x.clone()
        InferenceForm(segment).module.eval()(x)
        assert torch.equal(x, before)
