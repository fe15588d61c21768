"""Parts of error messages: the name that the user may have meant, and the value in few characters."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["closest", "did_you_mean", "shown"]

#: Maximum number of characters of a value in an error.
MOST_SHOWN = 100


def closest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to ``name``, ignoring case; None if no name is close."""
    if not isinstance(name, str):
        return None
    folded = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    return folded[near[0]] if near else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'digits'?"`` to append to an error, or "" if no known name is close."""
    near = closest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def shown(value: object) -> str:
    """Return the repr of a value, cut to ``MOST_SHOWN`` characters."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
