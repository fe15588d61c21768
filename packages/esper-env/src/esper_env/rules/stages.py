"""The life of a seed: stage values, legal transitions, and what each stage means for the forward pass."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stage(IntEnum):
    """Stage of a slot. The values are part of the observation and of saved states: never renumber them."""

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
STAGE_VALUES = max(Stage) + 1  # length of a lookup table indexed by stage value

#: Successors of each stage; the only source for transitions, masks and gates.
TRANSITIONS: dict[Stage, tuple[Stage, ...]] = {
    Stage.UNKNOWN: (),
    Stage.DORMANT: (Stage.GERMINATED,),
    Stage.GERMINATED: (Stage.TRAINING, Stage.PRUNED),
    Stage.TRAINING: (Stage.BLENDING, Stage.PRUNED),
    Stage.BLENDING: (Stage.HOLDING, Stage.PRUNED),
    Stage.HOLDING: (Stage.FOSSILIZED, Stage.BLENDING, Stage.PRUNED),
    Stage.FOSSILIZED: (),
    Stage.PRUNED: (Stage.EMBARGOED,),
    Stage.EMBARGOED: (Stage.RESETTING,),
    Stage.RESETTING: (Stage.DORMANT,),
}


def _lookup(*stages: Stage) -> NDArray[np.bool_]:
    """Boolean table over stage values, True for the given stages."""
    table = np.zeros(STAGE_VALUES, dtype=np.bool_)
    table[list(stages)] = True
    table.flags.writeable = False
    return table


def _transition_matrix() -> NDArray[np.bool_]:
    matrix = np.zeros((STAGE_VALUES, STAGE_VALUES), dtype=np.bool_)
    for source, targets in TRANSITIONS.items():
        matrix[source, list(targets)] = True
    matrix.flags.writeable = False
    return matrix


def _contiguous_index() -> NDArray[np.int64]:
    index = np.full(STAGE_VALUES, -1, dtype=np.int64)
    index[[int(stage) for stage in Stage]] = np.arange(NUM_STAGES)
    index.flags.writeable = False
    return index


#: ``CAN_MOVE[source, target]`` is True for a legal transition.
CAN_MOVE = _transition_matrix()
#: Stage value -> position in a one-hot of length ``NUM_STAGES``; -1 for the reserved value.
STAGE_INDEX = _contiguous_index()

#: Lookup tables over stage values: ``HAS_SEED[table.stage]`` and so on.
HAS_SEED = _lookup(Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
#: A seed that is neither committed nor gone: what the agent can still decide about.
IS_LIVE = _lookup(Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)
#: The host's forward pass goes through the blend operator.
IS_BLENDED = _lookup(Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
IN_COOLDOWN = _lookup(Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING)

EMBARGO_TICKS = 5
RESETTING_TICKS = 1


def validate_stage(value: int) -> Stage:
    """The stage of a stored value; the reserved value 5 and anything else unknown is a ``ValueError``."""
    try:
        return Stage(value)
    except ValueError:
        known = ", ".join(f"{stage.name}={stage.value}" for stage in Stage)
        raise ValueError(f"stage value {value!r} is not known; expected one of {known}") from None
