"""Each network's own minibatches, drawn and augmented on the device the data lives on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_env.data import ImageData
from esper_env.networks.population.layout import normaliser


class TrainingImages:
    """The training split on a device: uint8, padded once for random crops, shared by every network."""

    def __init__(self, data: ImageData, device: torch.device, dtype: torch.dtype) -> None:
        pad = data.crop_padding
        images = torch.from_numpy(data.train_images.copy()).to(device)
        self.padded = torch.nn.functional.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1).contiguous()
        self.labels = torch.from_numpy(data.train_labels.copy()).to(device)
        self.size = int(data.train_images.shape[-1])
        self.offsets = 2 * pad + 1
        self.flip = data.flip
        self.scale, self.shift = normaliser(data.mean, data.std, dtype, device)
        count, _, _, channels = self.padded.shape
        stride = self.padded.stride()
        #: (N, offsets, offsets, H, W, C): every crop of every image, as a view
        self.crops = self.padded.as_strided(
            (count, self.offsets, self.offsets, self.size, self.size, channels),
            (stride[0], stride[1], stride[2], stride[1], stride[2], stride[3]),
        )


class MinibatchStream:
    """One network's endless stream of shuffled, augmented minibatches, from a generator of its own."""

    def __init__(self, data: TrainingImages, batch_size: int, batches: int) -> None:
        self._data = data
        self._batch, self._batches = batch_size, batches
        self._generator = torch.Generator(data.labels.device)
        self._left = torch.empty(0, dtype=torch.int64, device=data.labels.device)  # of the permutation under way

    def seed(self, seed: int) -> None:
        """Start the stream anew."""
        self._generator.manual_seed(seed)
        self._left = self._left[:0]

    def get_state(self) -> tuple[Tensor, Tensor]:
        """The generator's state (L,) uint8 on the CPU, and what is left (k,) of the permutation under way; copies."""
        return self._generator.get_state(), self._left.clone()

    def prepared(self, generator: NDArray[np.uint8], left: NDArray[np.int64]) -> tuple[torch.Generator, Tensor]:
        """What :meth:`go_on` takes, from :meth:`get_state`; ``ValueError`` for what no stream of this data can have."""
        count, device = len(self._data.labels), self._data.labels.device
        if ((left < 0) | (left >= count)).any() or len(np.unique(left)) < len(left):
            raise ValueError(
                f"a minibatch stream of the state has images left from {left.min()} to {left.max()}; "
                f"expected each number from 0 to {count - 1} once at most"
            )
        made = torch.Generator(device)
        try:
            made.set_state(torch.from_numpy(generator.copy()))
        except RuntimeError as error:
            raise ValueError(f"a minibatch stream of the state is no generator of this device ({error})") from error
        return made, torch.from_numpy(left.copy()).to(device)

    def go_on(self, generator: torch.Generator, left: Tensor) -> None:
        """Continue from what :meth:`prepared` returned."""
        self._generator, self._left = generator, left

    def draw(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The next epoch's image indices (T, B), crop offsets (2, T, B) and flips (T, B).

        Indices run through permutations of the training set, one after the other and on from epoch to epoch: no image
        comes for the n-th time before every other has come n - 1 times.
        """
        data, total = self._data, self._batch * self._batches
        device, generator = data.labels.device, self._generator
        count = len(data.labels)
        passes = max(0, -(-(total - len(self._left)) // count))
        orders = [torch.randperm(count, generator=generator, device=device) for _ in range(passes)]
        ahead = torch.cat([self._left, *orders])
        indices, self._left = ahead[:total].view(self._batches, self._batch), ahead[total:]
        shape = (self._batches, self._batch)
        crops = flips = None
        if data.offsets > 1:
            crops = torch.randint(data.offsets, (2, *shape), generator=generator, device=device)
        if data.flip:
            flips = torch.rand(shape, generator=generator, device=device) < 0.5
        return indices, crops, flips


class Draw(NamedTuple):
    """What one minibatch of n networks is made of: (n, B) image indices, (2, n, B) crop offsets, (n, B) flips."""

    images: Tensor
    crops: Tensor | None
    flips: Tensor | None

    def copy_(self, other: Draw) -> None:
        """Take another draw's values, in place."""
        for own, value in zip(self, other, strict=True):
            if own is not None and value is not None:
                own.copy_(value)

    def clone(self) -> Draw:
        """The same values in memory of their own."""
        return Draw._make(None if value is None else value.clone() for value in self)


def draw_epoch(streams: Sequence[MinibatchStream]) -> list[Draw]:
    """An epoch of draws, one row a stream."""
    indices, crops, flips = zip(*(stream.draw() for stream in streams), strict=True)
    index = torch.stack(indices, dim=1)  # (T, n, B)
    crop = [None] * len(index) if crops[0] is None else torch.stack(crops, dim=2).unbind(1)
    flip = [None] * len(index) if flips[0] is None else torch.stack(flips, dim=1)
    return [Draw(*parts) for parts in zip(index, crop, flip, strict=True)]


def assemble(data: TrainingImages, draw: Draw) -> tuple[Tensor, Tensor]:
    """The normalised images (n, B, C, H, W) and labels (n, B) of a draw."""
    index, crop, flip = draw
    cropped = data.padded[index] if crop is None else data.crops[index, crop[0], crop[1]]
    if flip is not None:
        cropped = torch.where(flip[..., None, None, None], cropped.flip(-2), cropped)
    images = cropped.permute(0, 1, 4, 2, 3).to(data.scale.dtype)  # from (n, B, H, W, C)
    return torch.addcmul(data.shift, images, data.scale), data.labels[index]


def minibatches(data: TrainingImages, streams: Sequence[MinibatchStream]) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of images (n, B, C, H, W) and labels (n, B), one row a stream."""
    return (assemble(data, draw) for draw in draw_epoch(streams))
