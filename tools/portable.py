"""Run the numeric tests with the instruction sets of other x86 CPUs and with more than one thread.

    python tools/portable.py            # AVX2 and SSE4, each with one and two threads
    python tools/portable.py --short    # SSE4 with one thread, every sixth quick test; what CI runs
    python tools/portable.py --every    # every kernel level of ATen with every one of oneDNN, one and two threads,
                                        # a third of the tests each: every test meets every level

Float32 sums depend on the instruction set, and training amplifies the difference. A test that holds only on the CPU it
was written on fails here. Other options are passed on to pytest; without a file it runs every test marked ``numeric``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

#: What makes the libraries use the kernels of an older CPU.
ATEN: dict[str, dict[str, str]] = {
    "own": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "SSE4": {"ATEN_CPU_CAPABILITY": "default"},
}
ONEDNN: dict[str, dict[str, str]] = {
    "own": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE4": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
}
#: Matrix products of PyTorch (MKL) and of NumPy (OpenBLAS) follow ATen's level.
BLAS: dict[str, dict[str, str]] = {
    "own": {},
    "AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
    "SSE4": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OPENBLAS_CORETYPE": "Nehalem"},
}
THREADS = (1, 2)
#: pytest's exit status after Ctrl-C.
INTERRUPTED = 2


class Variant(NamedTuple):
    """A machine to imitate: kernel levels of ATen and oneDNN, and the number of intra-op threads."""

    aten: str
    onednn: str
    threads: int

    def environment(self) -> dict[str, str]:
        """The variables that select it; those of this process are inherited, except for other levels."""
        chosen = ATEN[self.aten] | ONEDNN[self.onednn] | BLAS[self.aten]
        levels = {name for table in (ATEN, ONEDNN, BLAS) for level in table.values() for name in level}
        inherited = {name: value for name, value in os.environ.items() if name not in levels}
        return inherited | chosen | {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}

    def __str__(self) -> str:
        return f"ATen {self.aten}, oneDNN {self.onednn}, {self.threads} thread{'s' * (self.threads > 1)}"


def variants(*, short: bool, every: bool) -> list[Variant]:
    """The machines to imitate, in order."""
    if short:
        return [Variant("SSE4", "SSE4", 1)]
    if every:
        return [Variant(*values) for values in itertools.product(ATEN, ONEDNN, THREADS)]
    return [Variant(level, level, threads) for level in ("AVX2", "SSE4") for threads in THREADS]


def main(arguments: Sequence[str]) -> int:
    """Run the variants one after the other; 0 if the tests passed in all of them, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--short", action="store_true", help="one variant, every sixth quick test")
    which.add_argument("--every", action="store_true", help="all 18 variants, a third of the tests in each")
    options, passed_on = parser.parse_known_args(arguments)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        parser.error(f"this machine is {platform.machine()}; instruction sets can be chosen on x86_64 only")
    results = []
    for variant in variants(short=options.short, every=options.every):
        print(f"== {variant}", flush=True)
        started = time.monotonic()
        chosen = ["-m", "numeric"]
        if options.short:
            chosen = ["-m", "numeric and not slow", "--one-in", "6", "-q"]
        elif options.every:
            first = (list(ATEN).index(variant.aten) + list(ONEDNN).index(variant.onednn)) % 3
            chosen += ["--one-in", "3", "--first", str(first), "-q"]
        command = [sys.executable, "-m", "pytest", *chosen, *passed_on]
        status = subprocess.run(command, env=variant.environment(), check=False).returncode
        if status == INTERRUPTED:
            return INTERRUPTED
        results.append((variant, status, time.monotonic() - started))
    print("== Summary")
    for variant, status, seconds in results:
        print(f"{'passed' if status == 0 else 'FAILED'}  {seconds:6.0f} s  {variant}")
    return int(any(status != 0 for _, status, _ in results))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
