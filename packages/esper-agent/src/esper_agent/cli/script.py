"""Scripts with flags and result files: the demonstration and the benchmarks.

Parsing and ``--help`` import no PyTorch.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from esper_env.persistence import check_writable, write_text
from rich.console import Console

from esper_agent.cli.flags import check_flags, check_required, defaults, parse_flags, show_ranges, unknown_argument
from esper_agent.cli.main import exit_code
from esper_agent.settings.config_file import ConfigError, expand_paths

S = TypeVar("S")


def run_script(
    kind: type[S],
    work: Callable[[S, list[str], Console], int],
    arguments: Sequence[str] | None = None,
    description: str | None = None,
    prog: str | None = None,
) -> int:
    """Parse flags, do the work, and return its exit code; errors become exit codes as in the `esper` command.

    Args:
        kind: dataclass of the settings.
        work: called with the settings, the flags as given, and the console; returns the exit code.
        arguments: the flags; None for those of the process.
        description: first text of the help; None for the docstring of ``kind``.
        prog: name of the script in the help; None for that of the process.
    """
    flags = list(sys.argv[1:] if arguments is None else arguments)

    def run(console: Console) -> int:
        show_ranges(kind)
        default, name = defaults(kind), prog or Path(sys.argv[0]).name
        check_flags(flags, default)
        check_required(flags, default, name)
        settings, foreign = parse_flags(kind, flags, prog=prog, description=description, default=default)
        if foreign:
            raise ConfigError(unknown_argument(foreign, name, settings))
        expand_paths(settings)
        return work(settings, flags, console)

    return exit_code(run)


def check_out(out: Path) -> None:
    """Raise ``ConfigError`` for the path of a result file that cannot be written."""
    try:
        check_writable(out)
    except ValueError as error:
        raise ConfigError(f"`out`: {error}") from None


def origin(script: str, flags: Sequence[str]) -> dict[str, Any]:
    """Command, machine and versions: the part of a result file that says how to repeat it."""
    import torch  # parsing flags needs neither

    from esper_agent.training.run_folder import package_versions

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "command": shlex.join(["python", script, *flags]),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {gpu}",
        "versions": package_versions(),
    }


def write_json(content: Mapping[str, Any], out: Path) -> None:
    """Write a result file, complete or not at all; NaN becomes null."""
    write_text(out, json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
