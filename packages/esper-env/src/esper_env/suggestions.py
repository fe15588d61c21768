"""Errors about values that users give: the name they may have meant, and the value in few characters."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Characters of a value that an error repeats, at most.
MOST_SHOWN = 100


def closest(name: object, known: Iterable[str]) -> str | None:
    """The known name that is nearly ``name``, whatever the case; None if there is none."""
    if not isinstance(name, str):
        return None
    folded = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    return folded[near[0]] if near else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of an error that lists the known names: ``"; did you mean 'digits'?"``, or nothing."""
    near = closest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def shown(value: object) -> str:
    """The value as Python writes it, cut where that is long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
