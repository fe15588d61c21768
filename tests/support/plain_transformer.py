"""A Transformer of a population as ordinary PyTorch: the library's own encoder layers, and a loop that trains them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from esper_env.data import TextData
from esper_env.hosts import TransformerHost
from esper_env.population import Optimisation, Population, Structure
from esper_env.population.training.minibatches import MinibatchStream, TrainingText, minibatches
from esper_env.rules.heads import Operator
from esper_env.seeding import derive_seed
from esper_env.seeds import blueprint_entry
from esper_env.seeds.blend import CausalBlendGate
from plain_seeds import blended
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, LAYERS, CONTEXT, SEGMENTS = 8, 2, 4, 6, 2
BATCH, BATCHES = 5, 4


def made_text(train: int = 400, held_out: int = 60) -> TextData:
    """Bytes that mostly count upwards: learnable, and too noisy to be learnt at once."""
    rng = np.random.default_rng(5)
    splits = []
    for size in (train, held_out, held_out):
        steps = np.where(rng.random(size) < 0.8, 1, rng.integers(0, 6, size))
        splits.append((97 + np.cumsum(steps) % 6).astype(np.uint8))
    return TextData("counting", *splits)


def small_transformer(**options: Any) -> Callable[[], nn.Module]:
    return lambda: TransformerHost(256, WIDTH, HEADS, LAYERS, CONTEXT, SEGMENTS, expansion=2, **options)


def text_batches(data: TextData, seed: int) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    """``text_batches(data, seed)()`` is the next epoch of the network with that seed: tokens and those that follow."""
    source = TrainingText(data, CONTEXT, torch.device("cpu"))
    stream = MinibatchStream(source, BATCH, BATCHES)
    stream.seed(derive_seed(seed, "minibatches"))
    return lambda: [(x[0], y[0]) for x, y in minibatches(source, [stream])]


class PlainTransformer(nn.Module):
    """One network of a population with seeds, from the library's embedding, encoder layers and LayerNorm."""

    def __init__(self, population: Population, row: int, structure: Structure) -> None:
        super().__init__()
        size = population.shards[0].rows
        self.shard, self.row = population.shards[row // size], row % size
        self.structure = structure.rows(slice(row, row + 1))
        self.tokens, self.positions = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.seeds, self.gates = nn.ModuleDict(), nn.ModuleDict()
        for slot in np.flatnonzero(self.structure.blended[0] | self.structure.training[0]):
            entry = blueprint_entry(int(self.structure.blueprint[0, slot]), "transformer")
            self.seeds[str(slot)] = self._copied(entry.factory(WIDTH), self.shard.seed_stack(int(slot), entry.value))
            if self.structure.operator[0, slot] == Operator.GATE:
                self.gates[str(slot)] = self._copied(CausalBlendGate(WIDTH), self.shard.gate_stack(int(slot)))
        self.to(self.shard.dtype)
        with torch.no_grad():
            for own, there in self.pairs().values():
                own.copy_(there)

    def _copied(self, module: nn.Module, stack: Any) -> nn.Module:
        module.to(self.shard.dtype).load_state_dict({name: v[self.row] for name, v in stack.parameters.items()})
        return module

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Own tensor and the population's, of everything that the network consists of."""
        host = {name: value[self.row] for name, value in self.shard.host.parameters.items()}
        found = {
            "tokens": (self.tokens.weight, host["segments.0.0.tokens.weight"]),
            "positions": (self.positions.weight, host["segments.0.0.positions.weight"]),
            "norm weight": (self.norm.weight, host[f"segments.{SEGMENTS}.0.weight"]),
            "norm bias": (self.norm.bias, host[f"segments.{SEGMENTS}.0.bias"]),
        }
        for index, layer in enumerate(self.layers):
            group, place = divmod(index, LAYERS // SEGMENTS)
            prefix = f"segments.{group}.{place + (group == 0)}."
            for ours, theirs in {
                "0.branch.0": layer.norm1,
                "1.branch.0": layer.norm2,
                "0.branch.1.output": layer.self_attn.out_proj,
                "1.branch.1": layer.linear1,
                "1.branch.3": layer.linear2,
            }.items():
                for kind in ("weight", "bias"):
                    found[f"layer {index} {ours} {kind}"] = (getattr(theirs, kind), host[f"{prefix}{ours}.{kind}"])
            for kind in ("weight", "bias"):
                own = getattr(layer.self_attn, f"in_proj_{kind}")
                found[f"layer {index} inputs {kind}"] = (own, host[f"{prefix}0.branch.1.inputs.{kind}"])
        for slot, seed in self.seeds.items():
            stack = self.shard.seed_stack(int(slot), int(self.structure.blueprint[0, int(slot)]))
            found |= {f"seed {slot} {k}": (v, stack.parameters[k][self.row]) for k, v in seed.named_parameters()}
        for slot, gate in self.gates.items():
            stack = self.shard.gate_stack(int(slot))
            found |= {f"gate {slot} {k}": (v, stack.parameters[k][self.row]) for k, v in gate.named_parameters()}
        return found

    def distance(self) -> float:
        return max(float((own.detach() - there).abs().max()) for own, there in self.pairs().values())

    def blend(self, slot: int, h: Tensor, alpha: float) -> Tensor:
        operator = Operator(int(self.structure.operator[0, slot]))
        gate = self.gates[str(slot)] if operator is Operator.GATE else None
        return blended(operator, h, self.seeds[str(slot)](h), alpha, gate)

    def group(self, index: int, h: Tensor) -> Tensor:
        """Through one group of layers."""
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], dtype=h.dtype)
        count = LAYERS // SEGMENTS
        for layer in self.layers[index * count : (index + 1) * count]:
            h = layer(h, src_mask=mask, is_causal=True)
        return h

    def from_slot(self, slot: int, h: Tensor, on: dict[int, float], seen: dict[int, Tensor]) -> Tensor:
        """Logits from the features in front of a slot; ``seen`` collects the features in front of every slot."""
        for place in range(slot, SEGMENTS):
            seen[place] = h
            if place in on:
                h = self.blend(place, h, on[place])
            if place + 1 < SEGMENTS:
                h = self.group(place + 1, h)
        return F.linear(self.norm(h), self.tokens.weight)

    def logits(self, tokens: Tensor, on: dict[int, float], seen: dict[int, Tensor] | None = None) -> Tensor:
        h = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.from_slot(0, self.group(0, h), on, {} if seen is None else seen)

    def blended(self) -> dict[int, float]:
        return {int(slot): float(self.structure.alpha[0, slot]) for slot in np.flatnonzero(self.structure.blended[0])}

    def isolated(self) -> list[int]:
        return [int(slot) for slot in np.flatnonzero(self.structure.training[0])]

    def train_epoch(self, batches: Iterable[tuple[Tensor, Tensor]], settings: Optimisation) -> float:
        """Clipped SGD with momentum on host and seeds; returns the mean loss in nats per byte."""
        host = [p for module in (self.tokens, self.positions, self.layers, self.norm) for p in module.parameters()]
        groups = [(host, torch.optim.SGD(host, lr=settings.host_lr, momentum=settings.momentum))]
        for slot in (*self.blended(), *self.isolated()):
            own = self._seed_parameters(slot)
            groups.append((own, torch.optim.SGD(own, lr=settings.seed_lr, momentum=settings.momentum)))
        losses = []
        for tokens, following in batches:
            self.zero_grad()
            seen: dict[int, Tensor] = {}
            loss = F.cross_entropy(self.logits(tokens, self.blended(), seen).transpose(1, 2), following)
            loss.backward()
            if self.isolated():
                self._shadow(seen, following)
            for parameters, optimizer in groups:
                torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                optimizer.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def _seed_parameters(self, slot: int) -> list[nn.Parameter]:
        gate = self.gates[str(slot)].parameters() if str(slot) in self.gates else []
        return [*self.seeds[str(slot)].parameters(), *gate]

    def _shadow(self, seen: dict[int, Tensor], following: Tensor) -> None:
        slots = self.isolated()
        on = {**self.blended(), **dict.fromkeys(slots, 1.0)}
        logits = self.from_slot(slots[0], seen[slots[0]].detach(), on, {})
        parameters = [p for slot in slots for p in self._seed_parameters(slot)]
        gradients = torch.autograd.grad(F.cross_entropy(logits.transpose(1, 2), following), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
