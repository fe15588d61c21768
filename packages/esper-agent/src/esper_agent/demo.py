"""Demonstration: train on Esper-Digits-v0, then compare the model with other policies. This takes some minutes.

    python -m esper_agent.demo

The folder demo/ then has the settings, the run folder with the model, episodes.csv (one line per evaluated episode),
summary.csv and training.png. ``--help`` imports no PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from esper_agent.__main__ import leaving_on_interrupt
from esper_agent.cli.script import run_script
from esper_agent.settings.demo import DemoSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code, as ``esper`` does."""
    return run_script(DemoSettings, _run, argv, prog="python -m esper_agent.demo")


def _run(settings: DemoSettings, flags: Sequence[str], console: Console) -> int:
    with leaving_on_interrupt():
        from esper_agent.cli.demo import run_demo  # loads PyTorch

    return run_demo(settings, flags, console)


if __name__ == "__main__":
    sys.exit(main())
