"""Batching rules for sequences equal each module."""

import pytest
import torch
from esper_env.hosts.attention import CausalSelfAttention
from esper_env.population.engine import sequences
from esper_env.population.engine.vmapped import run_mapped
from esper_env.seeds.blend import CausalBlendGate
from torch import nn
from torch.func import functional_call

pytestmark = pytest.mark.numeric

NETWORKS, SAMPLES, LENGTH, WIDTH = 3, 2, 5, 4
REPEATED = nn.Linear(WIDTH, WIDTH)


class Odd(nn.Module):
    """A layer without a rule."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return torch.sin(x * self.weight)


MODULES = {
    "linear": nn.Linear(WIDTH, 7),
    "linear without bias": nn.Linear(WIDTH, 7, bias=False),
    "layer norm": nn.LayerNorm(WIDTH, eps=0.1),
    "layer norm without bias": nn.LayerNorm(WIDTH, bias=False),
    "layer norm without parameters": nn.LayerNorm(WIDTH, elementwise_affine=False),
    "layer norm over time": nn.LayerNorm((LENGTH, WIDTH)),
    "attention": CausalSelfAttention(WIDTH, 2),
    "gate": CausalBlendGate(WIDTH),
    "functions": nn.Sequential(nn.GELU(approximate="tanh"), nn.SiLU(), nn.Tanh(), nn.Identity()),
    "a layer that comes twice": nn.Sequential(REPEATED, nn.ReLU(), REPEATED),
    "no rule": nn.Sequential(nn.Linear(WIDTH, WIDTH), Odd(), nn.Sigmoid()),
}


def stacked(module):
    """Different values for every network."""
    generator = torch.Generator().manual_seed(1)
    values = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: torch.rand((NETWORKS, *value.shape), generator=generator, dtype=torch.float64) for name, value in values
    }


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("prefix", ["", "deep.inside."])
def test_rules_equal_modules(name, prefix):
    module, generator = MODULES[name].double(), torch.Generator().manual_seed(2)
    tensors = stacked(module)
    x = torch.rand(NETWORKS, SAMPLES, LENGTH, WIDTH, generator=generator, dtype=torch.float64) * 4 - 2
    given = tensors
    if name == "a layer that comes twice":
        given = tensors | {key.replace("0.", "2."): value for key, value in tensors.items()}
    out = sequences.run(module, {prefix + key: value for key, value in given.items()}, x, prefix)
    for row in range(NETWORKS):
        alone = functional_call(module, {key: value[row] for key, value in tensors.items()}, (x[row],))
        torch.testing.assert_close(out[row], alone, rtol=1e-12, atol=1e-12)


def test_run_mapped_keeps_precision_of_tensors_under_autocast():
    module, x = Odd(), torch.linspace(-1, 1, 2 * 3 * WIDTH).view(2, 1, 3, WIDTH).bfloat16()
    tensors = {"weight": torch.full((2, WIDTH), 1.2345)}
    with torch.autocast("cpu", torch.bfloat16):
        out = run_mapped(module, tensors, "", x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, torch.sin(x.float() * 1.2345).bfloat16())
    assert not torch.equal(out, torch.sin(x * torch.tensor(1.2345).bfloat16()))
