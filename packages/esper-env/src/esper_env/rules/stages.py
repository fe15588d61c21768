"""Stages of a slot, and lookup tables over them; ``lifecycle.py`` has the transitions."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stage(IntEnum):
    """Stage of a slot. Never renumber the values: they are part of observations and saved states."""

    UNKNOWN = 0
    DORMANT = 1  # an empty slot
    GERMINATED = 2
    TRAINING = 3
    BLENDING = 4
    # 5 is reserved and rejected
    HOLDING = 6
    FOSSILIZED = 7
    PRUNED = 8
    EMBARGOED = 9
    RESETTING = 10


NUM_STAGES = len(Stage)
STAGE_VALUES = max(Stage) + 1  # length of a lookup table over stage values


def _lookup(*stages: Stage) -> NDArray[np.bool_]:
    """Return a boolean table over stage values, True for the given stages."""
    table = np.zeros(STAGE_VALUES, dtype=np.bool_)
    table[list(stages)] = True
    table.flags.writeable = False
    return table


def _contiguous_index() -> NDArray[np.int64]:
    index = np.full(STAGE_VALUES, -1, dtype=np.int64)
    index[[int(stage) for stage in Stage]] = np.arange(NUM_STAGES)
    index.flags.writeable = False
    return index


#: Stage value -> position in a one-hot of length ``NUM_STAGES``; -1 for the reserved value.
STAGE_INDEX = _contiguous_index()

#: Lookup tables over stage values: ``HAS_SEED[table.stage]`` and so on.
HAS_SEED = _lookup(Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
#: The slot holds a seed that is not committed.
IS_LIVE = _lookup(Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)
#: The host's features pass through the blend operator.
IS_BLENDED = _lookup(Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
IN_COOLDOWN = _lookup(Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING)

EMBARGO_TICKS = 5
RESETTING_TICKS = 1
