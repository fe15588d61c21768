"""Flags of the command line, derived from the annotations of settings: their ranges in ``--help``, and their errors."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import tyro
from esper_env.checks import Interval, describe, field_hints, is_valid, options
from esper_env.paths import user_path
from esper_env.suggestions import closest, shown
from esper_env.tasks import TASK_KWARGS

from esper_agent.settings.named_values import ConfigError, NamedValues, parse_assignments

#: Codes of styles on a terminal.
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def parse_flags(kind: Any, arguments: Sequence[str], **options: Any) -> tuple[Any, list[str]]:
    """Return what ``tyro.cli`` makes of the arguments with its ``options``, and the arguments that are not known.

    The description and the usage of ``--help`` are as wide as the rest: ``$COLUMNS``, or the terminal.

    Raises:
        SystemExit: tyro has printed the help, or an error about the flags.
    """
    help_text: Any = _WrappedStream(sys.stdout)
    with redirect_stdout(help_text):
        return tyro.cli(kind, args=list(arguments), return_unknown_args=True, **options)


class _WrappedStream:
    """A text stream that wraps lines at spaces. Other attributes are the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._width = stream, shutil.get_terminal_size().columns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        self._stream.write("\n".join(map(self._wrapped, text.split("\n"))))

    def _wrapped(self, line: str) -> str:
        if len(_STYLE.sub("", line)) <= self._width:
            return line
        return textwrap.fill(line, self._width, break_long_words=False, break_on_hyphens=False)


def show_ranges(kind: type) -> None:
    """Add ranges of numbers and empty defaults to the ``--help`` of a settings dataclass and of those nested in it."""
    for name, hint in field_hints(kind).items():
        nested: Any = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if is_dataclass(nested):
            show_ranges(nested)  # type: ignore[arg-type]
        ranged = any(isinstance(allowed, Interval) for _, allowed in options(hint))
        if ranged or hint == NamedValues or getattr(kind, name, None) == ():  # tyro prints nothing for an empty default
            shown = tyro.conf.arg(help_behavior_hint=partial(_hint, describe(hint) if ranged else ""))
            kind.__annotations__[name] = Annotated[hint, shown]


def _hint(words: str, default: str) -> str:
    return f"({words}{'; ' if words else ''}default: {default or 'none'})"


def flag_settings(settings: Any) -> dict[str, tuple[Any, Any]]:
    """Return the annotation of each setting that has a flag, and the dataclass instance that holds it, by name."""
    found: dict[str, tuple[Any, Any]] = {}
    kind: type = type(settings)
    for name, hint in field_hints(kind).items():
        value = getattr(settings, name)
        if tyro.conf.Suppress in get_args(hint):
            continue
        if is_dataclass(value):
            found |= flag_settings(value)
        else:
            found[name] = hint, settings
    return found


def check_flags(arguments: Sequence[str], settings: Any) -> None:
    """Check the values of known flags in the ``arguments`` after a subcommand; ``settings`` hold its defaults.

    Raises:
        ValueError: a path that is not UTF-8.
        ConfigError: a value that is missing, of another type or outside its range, or a flag with several values that
            is repeated, because tyro keeps only the last.
    """
    known = flag_settings(settings)
    starts = [place for place, argument in enumerate(arguments) if argument.startswith("--") or argument == "-h"]
    seen = set()
    for start, end in pairwise([*starts, len(arguments)]):
        flag, equals, value = arguments[start].partition("=")
        name = flag[2:].replace("-", "_")
        hint, owner = known.get(name, (bool, None))
        values = [*([value] if equals else []), *arguments[start + 1 : end]]
        kinds = [kind for kind, _ in options(hint)]
        if hint == NamedValues or get_origin(kinds[0]) is tuple:
            if name in seen:
                raise ConfigError(f"{flag} is given twice; name all values after one: {flag} A=1 B=2")
            seen.add(name)
            if hint == NamedValues:
                replace(owner, **{name: parse_assignments(values)})  # this check has a better message than tyro's
        elif name in known and bool not in kinds and not values:
            raise ConfigError(f"{flag} needs a value; expected {describe(hint)}")
        elif bool not in kinds and values and not any(is_valid(_read(values[0], kind), hint) for kind in kinds):
            default = getattr(owner, name)
            example = f", for example {default}" if isinstance(default, int | float) else ""
            raise ConfigError(f"{flag} is {values[0]!r}; expected {describe(hint)}{example}")
        elif Path in kinds:
            user_path(values[0])


def check_required(arguments: Sequence[str], settings: Any, command: str) -> None:
    """Check that the ``arguments`` have every flag without a default, unless they ask for help.

    Raises:
        ConfigError: flags are missing.
    """
    if "--help" in arguments or "-h" in arguments:
        return
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    needed = [name for name, (_, owner) in flag_settings(settings).items() if getattr(owner, name) is tyro.MISSING]
    missing = [flag for flag in (f"--{name.replace('_', '-')}" for name in needed) if flag not in given]
    if missing:
        raise ConfigError(f"{command} needs {' and '.join(missing)}; --help describes the options")


def unknown_argument(foreign: Sequence[str], command: str, settings: Any) -> str:
    """Error text for unknown arguments of a command, with the closest alternative."""
    flag, _, value = foreign[0].partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    known = flag_settings(settings)
    near = closest(name, known) if flag.startswith("--") else None
    hint = f"; did you mean --{near.replace('_', '-')}?" if near else ""
    if flag.startswith("--") and name in TASK_KWARGS and "env_settings" in known:
        hint = f"; it is a setting of the environment: --env-settings {name}={value or 'VALUE'}"
    what = "option" if flag.startswith("-") else "argument"
    return f"{command} has no {what} {shown(flag)}; --help lists its options{hint}"


def defaults(kind: type) -> Any:
    """An instance of the settings in which values without a default are marked as missing."""
    required = [field for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    return kind(**{field.name: tyro.MISSING for field in required})


def _read(text: str, kind: Any) -> Any:
    """The value of a flag, as tyro reads it; the text itself if it is not of this type."""
    try:
        return None if kind is NoneType and text == "None" else kind(text) if kind in (int, float) else text
    except ValueError:
        return text
