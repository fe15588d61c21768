"""Paths from users, as both packages read them."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from esper_env.suggestions import shown

__all__ = ["user_path"]


def user_path(path: str | PathLike[str]) -> Path:
    """Return a path with ``~`` and ``~user`` expanded; ``~`` of an unknown user stays unchanged.

    Both packages read every path of an argument, a flag and a configuration file with this function.

    Raises:
        ValueError: the path is empty, or it is not UTF-8 or has a NUL byte, so files that record it could not be
            written.
    """
    text = fspath(path)
    if not text:  # pathlib and many programs take it for the current folder
        raise ValueError("the path is ''; expected a path that is not empty, such as '.' for the current folder")
    if "\0" in text:
        raise ValueError(f"the path {shown(text)} has a NUL byte; expected a path without one: use another name")
    if any("\ud800" <= character <= "\udfff" for character in text):  # surrogates stand for other bytes
        raise ValueError(f"the path {shown(text)} is not UTF-8 text; expected a path in UTF-8: use another name")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
