"""A data set's three splits on a device, in the form that a host takes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from esper_env.data import ImageData, TextData
from esper_env.hosts.protocol import SlotSpec
from esper_env.population.evaluation.scoring import HeldOut, HeldOutImages, HeldOutText
from esper_env.population.training.minibatches import TrainingImages, TrainingSamples, TrainingText


class Splits(NamedTuple):
    """What is trained on, measured with, and reported."""

    train: TrainingSamples
    validation: HeldOut
    test: HeldOut


def splits_for(slot: SlotSpec, data: ImageData | TextData, device: torch.device, dtype: torch.dtype) -> Splits:
    """The splits for a host with such a slot.

    Raises:
        ValueError: a host of sequences and images, or the other way round; a text that is too short for the context.
    """
    if len(slot.shape) == 2:
        if not isinstance(data, TextData):
            raise ValueError(f"the host reads sequences and {data.name} is made of images; give it a TextData")
        context = slot.shape[0]
        held_out = (_held_out(data, split, context, device) for split in ("val", "test"))
        return Splits(TrainingText(data, context, device), *held_out)
    if not isinstance(data, ImageData):
        raise ValueError(f"the host sees images and {data.name} is a text; give it an ImageData")
    images = ((data.val_images, data.val_labels), (data.test_images, data.test_labels))
    return Splits(
        TrainingImages(data, device, dtype), *(HeldOutImages(*split, data, device, dtype) for split in images)
    )


def _held_out(data: TextData, split: str, context: int, device: torch.device) -> HeldOutText:
    try:
        return HeldOutText(getattr(data, split), context, device)
    except ValueError as error:
        raise ValueError(f"{data.name}, {split} split: {error}") from error
