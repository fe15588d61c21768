"""Parts of messages: the closest known name, a shortened value, and a command to type."""

from __future__ import annotations

import difflib
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["closest", "did_you_mean", "esper_command", "shell_command", "shown"]

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
    """Return the repr of a value, cut to ``MOST_SHOWN`` characters; an array or a tensor is described by its shape."""
    shape = getattr(value, "shape", None)
    if hasattr(value, "__array__") and isinstance(shape, tuple) and shape:
        kind = "a tensor" if type(value).__name__ == "Tensor" else "an array"
        return f"{kind} of {getattr(value, 'dtype', 'objects')} with shape {tuple(shape)}"
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def esper_command(*arguments: str) -> str:
    """Return a command of esper-agent as :func:`shell_command` does."""
    return shell_command("esper", *arguments)


def shell_command(program: str, *arguments: str) -> str:
    """Return a command, quoted for a shell in the current folder.

    A program beside this Python that is not on PATH gets its path, as in ``.venv/bin/esper train``.
    """
    own = shutil.which(program, path=str(Path(sys.executable).parent))
    if own is not None and own != shutil.which(program):
        place, here = Path(own), Path.cwd()
        program = str(place.relative_to(here) if place.is_relative_to(here) else place)
    return shlex.join([program, *arguments])
