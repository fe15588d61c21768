"""Blend operators: formulas, exact identity at alpha 0, and a graph without branches."""

import pytest
import torch
from esper_env.rules.heads import Operator
from esper_env.seeds import blend as blend_module
from esper_env.seeds.blend import BlendGate, blend
from plain_seeds import blended

pytestmark = pytest.mark.numeric

EVERY_OPERATOR = pytest.mark.parametrize("operator", Operator)


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    h, s = (torch.randn(3, 5, 2, 2, generator=generator, dtype=dtype) for _ in range(2))
    gate = torch.rand(3, 1, 1, 1, generator=generator, dtype=dtype)
    return h, s, gate


@EVERY_OPERATOR
def test_blend_equals_its_formula_with_clamped_alpha_of_each_row(operator):
    h, s, gate = tensors()
    alpha = torch.tensor([-0.5, 0.3, 1.5], dtype=h.dtype).view(-1, 1, 1, 1)
    out = blend(operator, h, s, alpha, gate)
    torch.testing.assert_close(out, blended(operator, h, s, alpha.clamp(0.0, 1.0), lambda _: gate))


@EVERY_OPERATOR
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blend_is_the_exact_identity_at_alpha_0_and_keeps_the_dtype_of_the_host(operator, dtype):
    h, s, gate = tensors()
    assert torch.equal(blend(operator, h.to(dtype), s * 1e6, torch.tensor(0.0), gate), h.to(dtype))


@EVERY_OPERATOR
def test_blend_traces_as_one_graph(operator):
    """The trace at one alpha is right at another, so no branch depends on the data."""
    h, s, gate = tensors()
    traced = torch.fx.symbolic_trace(lambda h, s, a, g: blend_module._OPERATORS[int(operator)](h, s, a, g))
    for alpha in (0.0, 0.7):
        a = torch.tensor(alpha, dtype=h.dtype)
        torch.testing.assert_close(traced(h, s, a, gate), blended(operator, h, s, a, lambda _: gate))


def test_blend_gate_is_computed_per_sample_from_pooled_features():
    assert BlendGate(1).squeeze.out_features == 1
    gate = BlendGate(8).double()
    assert sum(p.numel() for p in gate.parameters()) == (8 * 2 + 2) + (2 + 1)
    x = torch.randn(4, 8, 3, 3, dtype=torch.float64)
    out = gate(x)
    assert out.shape == (4, 1, 1, 1)
    assert ((out > 0) & (out < 1)).all()
    pooled = x.mean(dim=(2, 3))
    torch.testing.assert_close(gate(pooled[:, :, None, None].expand(-1, -1, 5, 5)), out)
    hidden = pooled @ gate.squeeze.weight.T + gate.squeeze.bias
    hidden = hidden * torch.sigmoid(hidden)
    logit = hidden @ gate.excite.weight.T + gate.excite.bias
    torch.testing.assert_close(out.flatten(), torch.sigmoid(logit).flatten())


def test_gate_operator_without_a_gate_is_an_error():
    h, s, _ = tensors()
    with pytest.raises(ValueError, match="the GATE operator needs the gate's output"):
        blend(Operator.GATE, h, s, torch.tensor(1.0))
