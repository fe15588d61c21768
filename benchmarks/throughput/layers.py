"""The convolutions of a task, found by running its host and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from esper_env.extension_checks.construction import seeded_construction
from esper_env.hosts import HostProtocol
from esper_env.population import host_builder
from esper_env.seeds import blueprint_entry
from esper_env.tasks import TaskConfig
from torch import Tensor, nn

SEED = "conv_light"


@dataclass(frozen=True)
class Case:
    """A convolution that keeps the size of its map, in each of n networks."""

    place: str  # "host", or the slot that holds the seed
    inputs: int
    outputs: int
    kernel: int
    height: int
    width: int
    input_gradient: bool  # images need none

    @property
    def name(self) -> str:
        """Place, channels, kernel and size of the map."""
        kernel, size = f"{self.kernel}x{self.kernel}", f"{self.height}x{self.width}"
        return f"{self.place} {self.inputs}->{self.outputs}, {kernel} at {size}"


def cases(task: TaskConfig) -> list[Case]:
    """Convolutions of the task's host, then of a ``conv_light`` seed at each slot."""
    spec = task.host
    with seeded_construction(0):
        host = host_builder(task)()
        assert isinstance(host, HostProtocol)
        found = list(_convolutions("host", host, torch.zeros(2, spec.in_channels, spec.image_size, spec.image_size)))
        for slot in host.slots:
            features = torch.zeros(2, *slot.shape, requires_grad=True)
            seed = blueprint_entry(SEED, host.topology).factory(slot.channels)
            found += _convolutions(f"{SEED} at {slot.slot_id}", seed, features)
    return found


def _convolutions(place: str, module: nn.Module, x: Tensor) -> Iterator[Case]:
    """Convolutions that ``module`` runs on x, in order."""
    seen: list[Case] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Any) -> None:
        assert isinstance(layer, nn.Conv2d)
        kernel, (height, width) = layer.kernel_size[0], inputs[0].shape[2:]
        wanted = inputs[0].requires_grad
        seen.append(Case(place, layer.in_channels, layer.out_channels, kernel, height, width, wanted))

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    module(x)
    yield from seen
