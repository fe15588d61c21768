"""Minibatches of each network, drawn and augmented on the device that holds the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper_env.data import ImageData, TextData
from esper_env.persistence.tree import Tree
from esper_env.population.engine.layouts import normaliser


class Draw(NamedTuple):
    """The random numbers of a minibatch of n networks."""

    samples: Tensor  # (n, B) indices
    offsets: Tensor | None  # (cuts, n, B) where each sample is cut out
    flips: Tensor | None  # (n, B) True for samples to mirror

    def copy_(self, other: Draw) -> None:
        """Copy another draw's values, in place."""
        for own, value in zip(self, other, strict=True):
            if own is not None and value is not None:
                own.copy_(value)

    def clone(self) -> Draw:
        """Return a copy."""
        return Draw._make(None if value is None else value.clone() for value in self)


class TrainingImages:
    """Labelled uint8 images, padded once for random crops and shared by every network.

    A sample is cut from one of ``offsets`` places in each of ``cuts`` dimensions.
    """

    cuts = 2

    def __init__(self, data: ImageData, device: torch.device, dtype: torch.dtype) -> None:
        pad = data.crop_padding
        images = torch.from_numpy(data.train_images.copy()).to(device)
        self.padded = torch.nn.functional.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1).contiguous()
        self.labels = torch.from_numpy(data.train_labels.copy()).to(device)
        self.device, self.count = device, len(self.labels)
        self.offsets = 2 * pad + 1
        self.flip = data.flip
        self.scale, self.shift = normaliser(data.mean, data.std, dtype, device)
        _, height, width = data.image_shape
        #: (N, offsets, offsets, H, W, C) every crop of every image, as a view
        self.crops = self.padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)

    def assemble(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return the normalised images (n, B, C, H, W) and labels (n, B) of a draw."""
        index, offset, flip = draw
        cropped = self.padded[index] if offset is None else self.crops[index, offset[0], offset[1]]
        if flip is not None:
            cropped = torch.where(flip[..., None, None, None], cropped.flip(-2), cropped)
        images = cropped.permute(0, 1, 4, 2, 3).to(self.scale.dtype)  # from (n, B, H, W, C)
        return torch.addcmul(self.shift, images, self.scale), self.labels[index]


class TrainingText:
    """Windows of ``context`` bytes of a text, shared by every network.

    The text is cut into pieces of that length. Each pass takes every piece once, from a random offset, so a window can
    begin at any byte.
    """

    cuts = 1
    flip = False

    def __init__(self, data: TextData, context: int, device: torch.device) -> None:
        self.device, self.offsets = device, context
        text = data.train
        self.count = (len(text) - 1) // context - 1  # the offset takes up to one window
        if self.count < 1:
            raise ValueError(
                f"{data.name}: {len(text)} bytes to train on; a context of {context} needs at least {2 * context + 1}"
            )
        self._text = torch.from_numpy(text.copy()).to(device)
        self._places = torch.arange(context + 1, device=device)

    def assemble(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return the tokens and the tokens that follow them, (n, B, T) each."""
        assert draw.offsets is not None
        start = draw.samples * self.offsets + draw.offsets[0]
        window = self._text[start.unsqueeze(-1) + self._places].to(torch.int64)
        return window[..., :-1], window[..., 1:]


TrainingSamples = TrainingImages | TrainingText


class MinibatchStream:
    """Endless stream of shuffled, augmented minibatches for one network, with its own generator."""

    def __init__(self, data: TrainingSamples, batch_size: int, batches: int) -> None:
        self._data = data
        self._batch, self._batches = batch_size, batches
        self._generator = torch.Generator(data.device)
        self._left = torch.empty(0, dtype=torch.int64, device=data.device)  # rest of the current permutation

    def seed(self, seed: int) -> None:
        """Restart the stream from a seed."""
        self._generator.manual_seed(seed)
        self._left = self._left[:0]

    def get_state(self) -> Tree:
        """Return copies of the generator's state (L,) uint8 and of the rest (k,) of the current permutation."""
        return {"generator": self._generator.get_state().numpy(), "left": self._left.clone().cpu().numpy()}

    def set_state(self, state: Tree) -> None:
        """Continue from a state; raise ``ValueError`` for one that no stream of these samples can have."""
        left, count = state["left"], self._data.count
        if ((left < 0) | (left >= count)).any() or len(np.unique(left)) < len(left):
            raise ValueError(f"left has impossible sample numbers; expected distinct numbers from 0 to {count - 1}")
        generator = torch.Generator(self._data.device)
        try:
            generator.set_state(torch.from_numpy(state["generator"].copy()))
        except RuntimeError as error:
            raise ValueError(f"generator is not the state of a generator of this device: {error}") from error
        self._generator, self._left = generator, torch.from_numpy(left.copy()).to(self._data.device)

    def draw(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Draw the next epoch: sample indices (T, B), offsets of the cuts (cuts, T, B) and flips (T, B).

        Indices run through permutations of the training set, one after the other and across epochs. So no sample is
        drawn for the n-th time before every other sample was drawn n - 1 times.
        """
        data, total = self._data, self._batch * self._batches
        device, generator, count = data.device, self._generator, data.count
        passes = max(0, -(-(total - len(self._left)) // count))
        orders = [torch.randperm(count, generator=generator, device=device) for _ in range(passes)]
        ahead = torch.cat([self._left, *orders])
        indices, self._left = ahead[:total].view(self._batches, self._batch), ahead[total:]
        shape = (self._batches, self._batch)
        offsets = flips = None
        if data.offsets > 1:
            offsets = torch.randint(data.offsets, (data.cuts, *shape), generator=generator, device=device)
        if data.flip:
            flips = torch.rand(shape, generator=generator, dtype=torch.float32, device=device) < 0.5
        return indices, offsets, flips


def draw_epoch(streams: Sequence[MinibatchStream]) -> list[Draw]:
    """Draw an epoch of minibatches; each stream fills one row."""
    indices, offsets, flips = zip(*(stream.draw() for stream in streams), strict=True)
    index = torch.stack(indices, dim=1)  # (T, n, B)
    offset = [None] * len(index) if offsets[0] is None else torch.stack(offsets, dim=2).unbind(1)
    flip = [None] * len(index) if flips[0] is None else torch.stack(flips, dim=1)
    return [Draw(*columns) for columns in zip(index, offset, flip, strict=True)]
