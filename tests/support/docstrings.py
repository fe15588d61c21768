"""Google-style docstrings."""

import inspect
import re


def documented(kind):
    """Return the names under "Args:" in the docstring of a class."""
    section = inspect.getdoc(kind).partition("Args:\n")[2].partition("\n\n")[0]
    return set(re.findall(r"^    \**(\w+): \S", section, re.MULTILINE))
