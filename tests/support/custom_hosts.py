"""Small custom hosts and data, and the first steps of an episode with them."""

import gymnasium
import numpy as np
import pytest
from esper_env import ImageData, TextData, register_task
from esper_env.hosts import SegmentedHost, SlotSpec
from torch import nn

SMALL = {"batch_size": 4, "batches_per_step": 2, "horizon": 6, "device": "cpu"}
SINGLE, BATCHED = {"auto_shard_size": 1}, {"auto_shard_size": 2}
LAYOUT = pytest.mark.parametrize("layout", [SINGLE, BATCHED], ids=["single", "batched"])


def blobs(val=30, size=8):
    rng = np.random.default_rng(0)
    parts = []
    for count in (60, val, 30):
        labels = rng.integers(3, size=count)
        images = rng.integers(0, 60, (count, 2, size, size)) + 60 * labels[:, None, None, None]
        parts += [images.astype(np.uint8), labels.astype(np.int64)]
    return ImageData("blobs", 3, *parts, mean=(0.5,) * 2, std=(0.25,) * 2, crop_padding=0, flip=False)


def trees():
    text = np.frombuffer(b"a tree is a tree is a tree, not the big apple. " * 60, dtype=np.uint8)
    return TextData("trees", text, text[:300], text[:300])


class Images(SegmentedHost):
    """Two segments with a slot between them."""

    topology = "cnn"

    def __init__(self, data, first=None, second=None, channels=5):
        super().__init__()
        inputs, height, width = data.image_shape
        self.segments = nn.ModuleList(
            [
                nn.Conv2d(inputs, channels, 1) if first is None else first(inputs),
                nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, data.classes))
                if second is None
                else second(),
            ]
        )
        self.slots = (SlotSpec("r0c0", channels, "hidden", 0, 0, 0, (channels, height, width)),)
        self.execution_order = (0,)


class Sequences(SegmentedHost):
    topology = "transformer"

    def __init__(self, _data, first=None):
        super().__init__()
        self.segments = nn.ModuleList([nn.Embedding(256, 8) if first is None else first(), nn.Linear(8, 256)])
        self.slots = (SlotSpec("r0c0", 8, "hidden", 0, 0, 0, (8, 8)),)
        self.execution_order = (0,)


def play(host, data, seed, steps=2, envs=1, precision="float32", **numbers):
    """Play the first steps of an episode with a seed planted; return the last infos."""
    base = "Esper-Digits-v0" if isinstance(data, ImageData) else "Esper-Text-v0"
    register_task("Own-v0", base=base, host=host, data=data, **(SMALL | numbers))
    made = gymnasium.make_vec("Own-v0", num_envs=envs, precision=precision)
    try:
        made.reset(seed=0, options={"topology": {"r0c0": seed}})
        rng = np.random.default_rng(0)
        for _ in range(steps):
            *_, infos = made.step(made.unwrapped.sample_valid_actions(rng))
    finally:
        made.close()
    return infos


def reject_or_play(host, data, seed, steps=2, envs=1, **numbers):
    """Play the first steps, unless making the environment raises a ``ValueError``."""
    register_task("Tried-v0", host=host, data=data, **(SMALL | numbers))
    try:
        gymnasium.make("Tried-v0").close()
    except ValueError:
        return
    play(host, data, seed, steps, envs, **numbers)
