"""Seeds and the way they are blended in, as they are written down."""

import torch
from esper_env.rules.heads import Operator
from esper_env.seeds import blueprint_entry


def scrambled(name, topology, width):
    """A seed far from birth, so that no term of its formula is hidden by a factor near zero."""
    seed = blueprint_entry(name, topology).factory(width).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in seed.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.7)
    return seed


def blended(operator, h, s, alpha, gate):
    """Features h with a seed's output s for them; ``gate`` is a module."""
    if operator is Operator.ADD:
        return h + alpha * (s - h)
    if operator is Operator.MULTIPLY:
        return h * (1 + alpha * torch.tanh(s - h))
    return h + alpha * gate(h) * (s - h)
