"""Faults written into networks between two steps, which the governor must undo.

A fault is ``fault(growth, row, slot)``; ``growth`` is ``env.unwrapped._growth`` of a vector, or ``growth_of(env)``. It
goes into network ``row``; faults in a seed or a gate are about the one in ``slot``, which must hold a seed.
"""

from functools import partial

import torch
from esper_env.rules.heads import NO_BLUEPRINT


def growth_of(env):
    """Return the ``Growth`` of a single or vector environment."""
    inner = env.unwrapped
    return getattr(inner, "_vector", inner)._growth


def stack_of(growth, row, slot, place):
    """Return the stack of a network's "host", or of the "seed" or "gate" in a slot, and the network's row in it."""
    shard, local = growth._population._locate(row)
    if place == "host":
        return shard.host, local
    blueprint = int(growth.table.blueprint[row, slot])
    assert blueprint != NO_BLUEPRINT, f"slot {slot} of network {row} holds no seed"
    return (shard.seed_stack(slot, blueprint) if place == "seed" else shard.gate_stack(slot)), local


@torch.no_grad()
def write(growth, row, slot, place, name, value):
    """Overwrite the first number of a tensor whose name ends with ``name``; "" means the first tensor."""
    stack, local = stack_of(growth, row, slot, place)
    tensor = next(tensor for key, tensor in stack.values().items() if key.endswith(name))
    tensor[local].view(-1)[0] = value


def classifier(growth, row):
    """Return views of weight and bias of a network's last layer."""
    host, local = stack_of(growth, row, 0, "host")
    return list(host.parameters.values())[-2][local], list(host.parameters.values())[-1][local]


@torch.no_grad()
def explode(growth, row, slot=0, factor=1e6):  # noqa: ARG001
    """Scale the classifier, so that losses are far above ln K but finite for many epochs."""
    for tensor in classifier(growth, row):
        tensor.mul_(factor)


@torch.no_grad()
def die(growth, row, slot=0):  # noqa: ARG001
    """Kill every ReLU, so that all images look the same."""
    host, local = stack_of(growth, row, 0, "host")
    norms = {name.rsplit(".", 1)[0] for name in host.buffers}
    for norm in norms:
        host.parameters[f"{norm}.weight"][local] = 0.0
        host.parameters[f"{norm}.bias"][local] = -100.0
    _, bias = classifier(growth, row)
    bias.zero_()


#: Non-finite values, by their place.
IN_HOST = {
    "NaN weight": partial(write, place="host", name="weight", value=torch.nan),
    "Inf weight": partial(write, place="host", name="weight", value=torch.inf),
    "Inf variance": partial(write, place="host", name="running_var", value=torch.inf),
}
IN_SEED = {
    "NaN seed": partial(write, place="seed", name="", value=torch.nan),
    "-Inf seed": partial(write, place="seed", name="", value=-torch.inf),
    "NaN gate": partial(write, place="gate", name="", value=torch.nan),
}
