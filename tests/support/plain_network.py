"""A network of a population as an ordinary module, trained by an ordinary loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from esper_env.population import Population, Structure
from esper_env.population.training.minibatches import MinibatchStream, TrainingSamples, draw_epoch
from esper_env.rules.heads import NO_BLUEPRINT, Operator
from esper_env.seeding import derive_seed
from esper_env.seeds import blueprint_entry
from esper_env.seeds.blend import GATES
from plain_seeds import blended
from torch import Tensor, nn


def minibatches(data: TrainingSamples, streams: list[MinibatchStream]) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of samples (n, B, ...) and labels (n, B, ...)."""
    return (data.assemble(draw) for draw in draw_epoch(streams))


def epochs_of(
    source: TrainingSamples, seed: int, batch: int, batches: int
) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    """Return a function whose calls return one epoch after the other of the network with that seed."""
    stream = MinibatchStream(source, batch, batches)
    stream.seed(derive_seed(seed, "minibatches"))
    return lambda: [(x[0], y[0]) for x, y in minibatches(source, [stream])]


class PlainNetwork(nn.Module):
    """One network of a population as an ordinary module, trained by an ordinary loop.

    A subclass builds the host's layers, calls :meth:`copy_from_population`, and implements the abstract methods.
    """

    topology: str
    dims: int  # of a sample's features

    def __init__(self, population: Population, row: int, structure: Structure) -> None:
        super().__init__()
        self.shard, self.row = population._locate(row)
        self.place, self.order, self.settings = row, self.shard.execution_order, population._config
        self.structure = structure.rows(slice(row, row + 1))
        self.seeds, self.gates = nn.ModuleDict(), nn.ModuleDict()
        self.optimizers: dict[str, torch.optim.SGD] = {}

    @abstractmethod
    def start(self, x: Tensor) -> Tensor:
        """Features in front of the first slot."""

    @abstractmethod
    def from_slot(self, slot: int, h: Tensor, on: dict[int, float], seen: dict[int, Tensor] | None = None) -> Tensor:
        """Logits from the features in front of a slot; ``seen`` collects the features in front of every slot."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss."""

    @abstractmethod
    def host_pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, own tensor, the population's tensor) of the host."""

    def copy_from_population(self) -> None:
        self._add_seeds()
        self.to(self.shard.dtype)
        with torch.no_grad():
            for name, own, there in self.pairs():
                assert own.shape == there.shape, name
                own.copy_(there)

    def follow(self, structure: Structure) -> None:
        """Continue under another structure, before the population trains its first epoch.

        The optimizer of a seed restarts if the seed was frozen or its operator changes.
        """
        before, self.structure = self.structure, structure.rows(slice(self.place, self.place + 1))
        gone = self.structure.blueprint == NO_BLUEPRINT
        restarted = before.frozen | self.structure.frozen | (before.operator != self.structure.operator)
        for slot in map(str, np.flatnonzero((gone | restarted)[0])):
            self.optimizers.pop(f"seed {slot}", None)
        for slot in map(str, np.flatnonzero(gone[0])):
            for modules in (self.seeds, self.gates):
                if slot in modules:
                    del modules[slot]
        self._add_seeds()

    def _add_seeds(self) -> None:
        """Copy the seeds and gates that the structure has and this network lacks."""
        for slot in np.flatnonzero(self.structure.blueprint[0] != NO_BLUEPRINT):
            key, channels = str(slot), self.shard.slots[slot].channels
            entry = blueprint_entry(int(self.structure.blueprint[0, slot]), self.topology)
            if key not in self.seeds:
                self.seeds[key] = self._copied(entry.factory(channels), self.shard.seed_stack(int(slot), entry.value))
            if self._gated(slot) and key not in self.gates:
                self.gates[key] = self._copied(GATES[self.dims](channels), self.shard.gate_stack(int(slot)))

    def _copied(self, module: nn.Module, stack: Any) -> nn.Module:
        rows = {name: value[self.row] for name, value in stack.values().items()}
        module.to(self.shard.dtype).load_state_dict(rows)
        return module

    def _gated(self, slot: int) -> bool:
        return bool(self.structure.operator[0, slot] == Operator.GATE)

    def rows(self, prefix: str, module: nn.Module, stack: Any, there: str = "") -> Iterator[tuple[str, Tensor, Tensor]]:
        stored = stack.values()
        for name, own in [*module.named_parameters(), *module.named_buffers()]:
            yield prefix + name, own, stored[there + name][self.row]

    def pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, own tensor, the population's tensor) of the whole network."""
        yield from self.host_pairs()
        for slot, seed in self.seeds.items():
            stack = self.shard.seed_stack(int(slot), int(self.structure.blueprint[0, int(slot)]))
            yield from self.rows(f"seed {slot} ", seed, stack)
        for slot, gate in self.gates.items():
            yield from self.rows(f"gate {slot} ", gate, self.shard.gate_stack(int(slot)))

    def distances(self) -> dict[str, float]:
        """Largest difference to the population's network, by tensor."""
        return {name: float((own.detach() - there).abs().max()) for name, own, there in self.pairs()}

    def distance(self) -> float:
        return max(self.distances().values())

    def blend(self, slot: int, h: Tensor, alpha: float) -> Tensor:
        operator = Operator(int(self.structure.operator[0, slot]))
        gate = self.gates[str(slot)] if operator is Operator.GATE else None
        return blended(operator, h, self.seeds[str(slot)](h), alpha, gate)

    def logits(self, x: Tensor, on: dict[int, float]) -> Tensor:
        return self.from_slot(self.order[0], self.start(x), on)

    def blended(self) -> dict[int, float]:
        return {int(slot): float(self.structure.alpha[0, slot]) for slot in np.flatnonzero(self.structure.blended[0])}

    def isolated(self) -> list[int]:
        """TRAINING seeds in order of execution."""
        return [slot for slot in self.order if self.structure.training[0, slot]]

    def seed_parameters(self, slot: int) -> list[nn.Parameter]:
        gate = self.gates[str(slot)].parameters() if self._gated(slot) else []
        return [*self.seeds[str(slot)].parameters(), *gate]

    def host_parameters(self) -> list[nn.Parameter]:
        grown = {id(p) for modules in (self.seeds, self.gates) for p in modules.parameters()}
        return [p for p in self.parameters() if id(p) not in grown]

    def train_epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Train by clipped SGD with momentum on host and seeds; return the mean loss."""
        settings = self.settings
        groups = {"host": (self.host_parameters(), settings.host_lr)}
        frozen = {slot for slot in self.blended() if self.structure.frozen[0, slot]}
        for slot in [*self.blended(), *self.isolated()]:
            if slot not in frozen:
                groups[f"seed {slot}"] = (self.seed_parameters(slot), settings.seed_lr)
        for name, (parameters, rate) in groups.items():
            if name not in self.optimizers:
                self.optimizers[name] = torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum)
        losses = []
        for x, labels in batches:
            self.zero_grad()
            self.train()
            seen: dict[int, Tensor] = {}
            loss = self.loss(self.from_slot(self.order[0], self.start(x), self.blended(), seen), labels)
            loss.backward()
            if self.isolated():
                self._shadow(seen, labels)
            for name, (parameters, _) in groups.items():
                torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                self.optimizers[name].step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def _shadow(self, seen: dict[int, Tensor], labels: Tensor) -> None:
        self.eval()
        slots = self.isolated()
        on = {**self.blended(), **dict.fromkeys(slots, 1.0)}
        loss = self.loss(self.from_slot(slots[0], seen[slots[0]].detach(), on), labels)
        parameters = [p for slot in slots for p in self.seed_parameters(slot)]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
