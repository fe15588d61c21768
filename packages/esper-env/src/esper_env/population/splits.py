"""The splits of a dataset on a device: samples to train on, and held-out ones in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_env.data import ImageData, TextData
from esper_env.hosts.protocol import SlotSpec
from esper_env.population.engine.layouts import normaliser
from esper_env.population.shard import Shard
from esper_env.population.training.minibatches import TrainingImages, TrainingSamples, TrainingText


class Grain(NamedTuple):
    """Scalars of input that a shard evaluates at a time, and scalars of features that pass a seed at a time."""

    chunk: int
    block: int


#: On a CPU, small enough for a core's cache and large enough to outweigh the cost of a call. On an accelerator, large
#: enough to fill it and small enough to leave most of its memory free.
CPU_GRAIN, ACCELERATOR_GRAIN = Grain(1 << 18, 1 << 17), Grain(1 << 26, 1 << 30)


def grain(device: torch.device) -> Grain:
    """Return the grain of evaluation on a device."""
    return CPU_GRAIN if device.type == "cpu" else ACCELERATOR_GRAIN


class HeldOut:
    """Samples (N, ...) and labels (N, ...) of a split, shared by every network.

    ``scalars`` is the size of a sample, for the size of chunks.
    """

    def __init__(self, samples: Tensor, labels: Tensor, scalars: int) -> None:
        self.samples, self.labels, self._scalars = samples, labels, scalars
        self.count, self.predictions = len(labels), labels.numel()
        self._in_chunks: dict[int, NDArray[Any]] = {}

    def chunk_size(self, shard: Shard) -> int:
        """Return the number of samples in a chunk, which falls with the number of networks in the shard."""
        return max(1, grain(shard.device).chunk // (shard.rows * self._scalars))

    def in_chunks(self, size: int) -> NDArray[Any]:
        """Return images as (chunks, C * H * W * size), samples last; zeros pad the last chunk."""
        if size not in self._in_chunks:
            chunks = -(-self.count // size)
            samples = np.zeros((chunks * size, self.samples[0].numel()), self.samples.numpy().dtype)
            samples[: self.count] = self.samples.reshape(self.count, -1).numpy()
            features = samples.reshape(chunks, size, -1).transpose(0, 2, 1).reshape(chunks, -1)
            self._in_chunks[size] = np.ascontiguousarray(features)
        return self._in_chunks[size]

    def chunks(self, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield samples (b, ...) and labels (b, ...)."""
        size = self.chunk_size(shard)
        return zip(torch.split(self.samples, size), torch.split(self.labels, size), strict=True)


def held_out_images(data: ImageData, split: str, device: torch.device, dtype: torch.dtype) -> HeldOut:
    """Normalise the images (N, C, H, W) of a split once."""
    scale, shift = normaliser(data.mean, data.std, dtype, device)
    pixels, labels = (torch.from_numpy(getattr(data, f"{split}_{kind}").copy()) for kind in ("images", "labels"))
    samples = torch.addcmul(shift, pixels.to(device, dtype), scale)
    return HeldOut(samples, labels.to(device), samples[0].numel())


def held_out_text(data: TextData, split: str, shape: tuple[int, ...], device: torch.device) -> HeldOut:
    """Cut a split into windows for features of ``shape`` (T, C), labelled with the next bytes; drop a shorter rest."""
    text, context = getattr(data, split), shape[0]
    count = (len(text) - 1) // context
    if count < 1:
        raise ValueError(
            f"{data.name}, {split} split: {len(text)} bytes are held out; a context of {context} needs at least "
            f"{context + 1}: give more text"
        )
    tokens = torch.from_numpy(text[: count * context + 1].astype(np.int64)).to(device)
    return HeldOut(tokens[:-1].view(-1, context), tokens[1:].view(-1, context), prod(shape))


class Splits(NamedTuple):
    """The samples to train on, to measure with every step, and to report at the end of an episode."""

    train: TrainingSamples
    validation: HeldOut
    test: HeldOut


def splits_for(slot: SlotSpec, data: ImageData | TextData, device: torch.device, dtype: torch.dtype) -> Splits:
    """Return the splits for a host with such a slot; raise ``ValueError`` for data of the other kind or too short."""
    if len(slot.shape) == 2:
        if not isinstance(data, TextData):
            raise ValueError(f"the host reads sequences and {data.name} is made of images; use a TextData")
        validation, test = (held_out_text(data, split, slot.shape, device) for split in ("val", "test"))
        return Splits(TrainingText(data, slot.shape[0], device), validation, test)
    if not isinstance(data, ImageData):
        raise ValueError(f"the host sees images and {data.name} is a text; use an ImageData")
    validation, test = (held_out_images(data, split, device, dtype) for split in ("val", "test"))
    return Splits(TrainingImages(data, device, dtype), validation, test)
