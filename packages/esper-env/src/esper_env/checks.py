"""What counts as a number where a user gives one: bools, text, NaN and infinity do not."""

from __future__ import annotations

import sys
from typing import TypeGuard


def is_whole(value: object, least: int = 0) -> TypeGuard[int]:
    """Whether ``value`` is an ``int`` of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_finite(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an ``int`` or ``float`` that a float can hold, NaN and the infinities excluded."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
