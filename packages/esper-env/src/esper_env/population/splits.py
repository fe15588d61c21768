"""The three splits of a dataset on a device, in the form that a host takes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from esper_env.data import ImageData, TextData
from esper_env.hosts.protocol import SlotSpec
from esper_env.population.evaluation.held_out import HeldOut, held_out_images, held_out_text
from esper_env.population.training.minibatches import TrainingImages, TrainingSamples, TrainingText


class Splits(NamedTuple):
    """The samples to train on, to measure with every step, and to report at the end of an episode."""

    train: TrainingSamples
    validation: HeldOut
    test: HeldOut


def splits_for(slot: SlotSpec, data: ImageData | TextData, device: torch.device, dtype: torch.dtype) -> Splits:
    """Return the splits for a host with such a slot.

    Raises:
        ValueError: a host of sequences with images, or the other way round; a text that is shorter than the context.
    """
    if len(slot.shape) == 2:
        if not isinstance(data, TextData):
            raise ValueError(f"the host reads sequences and {data.name} is made of images; use a TextData")
        held_out = (held_out_text(data, split, slot.shape, device) for split in ("val", "test"))
        return Splits(TrainingText(data, slot.shape[0], device), *held_out)
    if not isinstance(data, ImageData):
        raise ValueError(f"the host sees images and {data.name} is a text; use an ImageData")
    images = ((data.val_images, data.val_labels), (data.test_images, data.test_labels))
    return Splits(
        TrainingImages(data, device, dtype), *(held_out_images(*split, data, device, dtype) for split in images)
    )
