"""The legal transitions between stages, stated independently of the rules."""

import numpy as np

LEGAL_MOVES = {
    (1, 2),
    (2, 3),
    (2, 8),
    (3, 4),
    (3, 8),
    (4, 6),
    (4, 8),
    (6, 7),
    (6, 4),
    (6, 8),
    (8, 9),
    (9, 10),
    (10, 1),
}

#: ``CAN_MOVE[source, target]`` is True for a legal transition.
CAN_MOVE = np.zeros((11, 11), dtype=np.bool_)
CAN_MOVE[tuple(zip(*LEGAL_MOVES, strict=True))] = True
