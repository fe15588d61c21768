"""Consoles of a command, and their width."""

from __future__ import annotations

import os
import sys

from rich.console import Console

#: Columns of a file or a log, unless ``$COLUMNS`` is set: tables are not cut to the 80 columns that Rich assumes.
FILE_WIDTH = 110


def new_console(stderr: bool = False) -> Console:
    """Return a console on standard output or standard error, as wide as its terminal or as ``$COLUMNS``."""
    stream = sys.stderr if stderr else sys.stdout
    own_width = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if own_width else FILE_WIDTH)
