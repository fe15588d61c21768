"""When to look whether seeds in TRAINING leave their hosts alone."""

from __future__ import annotations

import numpy as np

from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage

#: Steps from one inspection to the next. One takes as long as a twentieth of a step: this keeps inspections at a tenth
#: of the hundredth that telemetry may cost.
INSPECTION_STEPS = 100


class Inspections:
    """Inspects when a blueprint trains in a slot for the first time, and every so many steps as long as seeds train.

    What breaks isolation is mostly a module, wherever and whenever it is used: the first look finds it. The later ones
    are for what comes with the values.
    """

    def __init__(self) -> None:
        self._known: set[tuple[int, int]] = set()  # slot and blueprint
        self._since = 0  # steps since the last one

    def due(self, table: SlotTable) -> bool:
        """Whether to inspect the step that is about to train the networks of ``table``; every step asks once."""
        self._since += 1
        envs, slots = np.nonzero(table.stage == Stage.TRAINING)
        training = set(zip(slots.tolist(), table.blueprint[envs, slots].tolist(), strict=True))
        if not training or (self._since < INSPECTION_STEPS and training <= self._known):
            return False
        self._known |= training
        self._since = 0
        return True
