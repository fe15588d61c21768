"""Checks of a host's data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from esper_env.data import TextData
from esper_env.hosts.protocol import SlotSpec
from esper_env.population.splits import splits_for

TEXT = np.frombuffer(b"abcdefgh" * 100, dtype=np.uint8)
SLOT = SlotSpec("r0c0", 8, "post-layers", 0, 0, 0, (128, 8))


@pytest.mark.parametrize("split", ["val", "test"])
def test_splits_reject_text_shorter_than_context(split: str) -> None:
    short = TextData("alphabet", **{"train": TEXT, "val": TEXT, "test": TEXT} | {split: TEXT[:100]})
    said = f"alphabet, {split} split: 100 bytes are held out; a context of 128 needs at least 129: give more text"
    with pytest.raises(ValueError, match=said):
        splits_for(SLOT, short, torch.device("cpu"), torch.float32)
