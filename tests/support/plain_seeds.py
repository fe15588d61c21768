"""Seeds and blend operators by their documented formulas."""

import torch
from esper_env.rules.heads import Operator
from esper_env.seeds import blueprint_entry


def scrambled(name, topology, width):
    """Return a seed with random parameters, so that no factor near zero hides a term of its formula."""
    seed = blueprint_entry(name, topology).factory(width).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in seed.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.7)
    return seed


def blended(operator, h, s, alpha, gate):
    """Blend features h with a seed's output s; ``gate`` is a module."""
    if operator is Operator.ADD:
        return h + alpha * (s - h)
    if operator is Operator.MULTIPLY:
        return h * (1 + alpha * torch.tanh(s - h))
    return h + alpha * gate(h) * (s - h)
