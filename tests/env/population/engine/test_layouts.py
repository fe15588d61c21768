"""The layout of a single network: a workaround for GroupNorm."""

import pytest
import torch
from esper_env.population.engine.layouts import SingleImages
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.numeric


class Functional(nn.GroupNorm):
    """A custom module, which calls GroupNorm as a function."""

    def forward(self, x):
        return F.group_norm(x, 1, self.weight, self.bias)


@pytest.mark.parametrize("kind", [nn.GroupNorm, Functional])
@pytest.mark.parametrize("size", [2, 16])
def test_single_group_norm_trains_on_features_without_gradient(kind, size):
    """PyTorch's own backward pass crashes the process here in channels_last."""
    own = kind(1, 8)
    tensors = {name: torch.randn(1, 8).requires_grad_() for name in ("weight", "bias")}
    x = torch.randn(1, 4, size, size, 8)
    (SingleImages().call(own, tensors, x, training=True) ** 2).sum().backward()
    own.load_state_dict({name: value[0].detach() for name, value in tensors.items()})
    (own(x[0].permute(0, 3, 1, 2).contiguous()) ** 2).sum().backward()
    for name, value in tensors.items():
        torch.testing.assert_close(value.grad[0], getattr(own, name).grad, atol=1e-3, rtol=1e-4)
    assert x.grad is None
