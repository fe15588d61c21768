"""A Transformer of a population in ordinary PyTorch: the library's own encoder layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from esper_env.data import TextData
from esper_env.hosts import TransformerHost
from esper_env.population import Population, Structure
from esper_env.population.training.minibatches import TrainingText
from plain_network import PlainNetwork, epochs_of
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, LAYERS, CONTEXT, SEGMENTS = 8, 2, 4, 6, 2
BATCH, BATCHES = 5, 4


def made_text(train: int = 400, held_out: int = 60) -> TextData:
    """Bytes that mostly count upwards: learnable, but not at once."""
    rng = np.random.default_rng(5)
    splits = []
    for size in (train, held_out, held_out):
        steps = np.where(rng.random(size) < 0.8, 1, rng.integers(0, 6, size))
        splits.append((97 + np.cumsum(steps) % 6).astype(np.uint8))
    return TextData("counting", *splits)


def small_transformer(**options: Any) -> Callable[[], nn.Module]:
    return lambda: TransformerHost(256, WIDTH, HEADS, LAYERS, CONTEXT, SEGMENTS, expansion=2, **options)


def text_batches(data: TextData, seed: int) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    """``text_batches(data, seed)()`` is the next epoch of the network with that seed: tokens and following tokens."""
    return epochs_of(TrainingText(data, CONTEXT, torch.device("cpu")), seed, BATCH, BATCHES)


class PlainTransformer(PlainNetwork):
    """A network with a host of :func:`small_transformer`."""

    topology, dims = "transformer", 2

    def __init__(self, population: Population, row: int, structure: Structure) -> None:
        super().__init__(population, row, structure)
        self.tokens, self.positions = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.copy_from_population()

    def host_pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        host = self.shard.host
        yield from self.rows("tokens ", self.tokens, host, "segments.0.0.tokens.")
        yield from self.rows("positions ", self.positions, host, "segments.0.0.positions.")
        yield from self.rows("norm ", self.norm, host, f"segments.{SEGMENTS}.0.")
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
                yield from self.rows(f"layer {index} {ours} ", theirs, host, f"{prefix}{ours}.")
            for kind in ("weight", "bias"):
                own = getattr(layer.self_attn, f"in_proj_{kind}")
                yield f"layer {index} {kind}", own, host.parameters[f"{prefix}0.branch.1.inputs.{kind}"][self.row]

    def group(self, index: int, h: Tensor) -> Tensor:
        """Run one group of layers."""
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], dtype=h.dtype)
        count = LAYERS // SEGMENTS
        for layer in self.layers[index * count : (index + 1) * count]:
            h = layer(h, src_mask=mask, is_causal=True)
        return h

    def start(self, x: Tensor) -> Tensor:
        return self.group(0, self.tokens(x) + self.positions.weight[: x.shape[1]])

    def from_slot(self, slot: int, h: Tensor, on: dict[int, float], seen: dict[int, Tensor] | None = None) -> Tensor:
        for place in range(slot, SEGMENTS):
            if seen is not None:
                seen[place] = h
            if place in on:
                h = self.blend(place, h, on[place])
            if place + 1 < SEGMENTS:
                h = self.group(place + 1, h)
        return F.linear(self.norm(h), self.tokens.weight)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.transpose(1, 2), labels)
