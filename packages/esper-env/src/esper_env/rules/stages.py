"""Stages of a slot, and lookup tables over them; ``lifecycle.py`` has the transitions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

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


STAGE_VALUES = max(Stage) + 1  # length of a lookup table over stage values


def lookup(values: Mapping[Stage, float], default: float) -> NDArray[Any]:
    """Return a read-only array over stage values, with the given values and the default elsewhere."""
    table = np.full(STAGE_VALUES, default)
    table[list(values)] = list(values.values())
    table.flags.writeable = False
    return table


def _one_of(*stages: Stage) -> NDArray[np.bool_]:
    return lookup(dict.fromkeys(stages, True), False)


#: Stage value -> position in a one-hot; -1 for the reserved value.
STAGE_INDEX = lookup({stage: index for index, stage in enumerate(Stage)}, -1)

#: Lookup tables over stage values: ``HAS_SEED[table.stage]`` and so on.
HAS_SEED = _one_of(Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
#: The slot holds a seed that is not committed.
IS_LIVE = _one_of(Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)
#: The host's features pass through the blend operator.
IS_BLENDED = _one_of(Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
IN_COOLDOWN = _one_of(Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING)
