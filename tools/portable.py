"""Run the numeric tests with the instruction sets of other x86 CPUs and with more than one thread.

    python tools/portable.py            # AVX2 and SSE4, each with one and two threads
    python tools/portable.py --quick    # the same without the slow tests
    python tools/portable.py --short    # SSE4 with one thread, a sixth of the quick tests; what CI runs
    python tools/portable.py --every    # every ATen level with every oneDNN level, one and two threads,
                                        # a third of the tests in each

Float32 sums depend on the instruction set, and training amplifies the difference. A test that passes only on its
author's CPU is likely to fail here. Only tests marked ``numeric`` run. Other options are passed on to pytest.
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

#: Variables that limit each library to the kernels of an older CPU.
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
#: Variables that would override the ones above.
OVERRIDES = {"DNNL_MAX_CPU_ISA"}
THREADS = (1, 2)
#: Exit statuses of pytest.
PASSED, USAGE_ERROR, NO_TESTS = 0, 4, 5
INTERRUPTED = 130


class Variant(NamedTuple):
    """A machine to imitate: kernel levels of ATen and oneDNN, and the number of intra-op threads."""

    aten: str
    onednn: str
    threads: int

    def environment(self) -> dict[str, str]:
        """Environment variables of this process with the variant's kernel levels and threads."""
        levels = {name for table in (ATEN, ONEDNN, BLAS) for level in table.values() for name in level} | OVERRIDES
        inherited = {name: value for name, value in os.environ.items() if name not in levels}
        chosen = ATEN[self.aten] | ONEDNN[self.onednn] | BLAS[self.aten]
        # Waiting threads yield their core, because there are more test processes and threads than cores.
        return inherited | chosen | {"ESPER_TEST_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}

    def third(self) -> int:
        """Third of the tests that ``--every`` runs, so that each test meets every level of ATen and of oneDNN."""
        return (list(ATEN).index(self.aten) + list(ONEDNN).index(self.onednn)) % 3

    def __str__(self) -> str:
        return f"ATen {self.aten}, oneDNN {self.onednn}, {self.threads} thread{'s' * (self.threads > 1)}"


def variants(*, short: bool, every: bool) -> list[Variant]:
    """Machines to imitate, in order."""
    if short:
        return [Variant("SSE4", "SSE4", 1)]
    if every:
        return [Variant(*values) for values in itertools.product(ATEN, ONEDNN, THREADS)]
    return [Variant(level, level, threads) for level in ("AVX2", "SSE4") for threads in THREADS]


def run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Exit status of a command; Ctrl-C interrupts the command too, and this waits for its end."""
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def capability(environment: dict[str, str]) -> str:
    """Instruction set that PyTorch reports under these variables."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def main(arguments: Sequence[str]) -> int:
    """Run the variants one after the other.

    Returns 0 if the tests passed in all of them, 1 if some failed or none ran, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--short", action="store_true", help="one variant, a sixth of the quick tests")
    which.add_argument("--every", action="store_true", help="all 18 variants, a third of the tests in each")
    parser.add_argument("--quick", action="store_true", help="leave out the slow tests")
    options, passed_on = parser.parse_known_args(arguments)
    if "-m" in passed_on:
        parser.error("-m cannot be passed on, because the marker `numeric` selects the tests; use -k or --quick")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        print(f"skipped: this machine is {platform.machine()}; only x86-64 CPUs can imitate older ones")
        return PASSED
    marker = "numeric and not slow" if options.quick or options.short else "numeric"
    results = []
    for variant in variants(short=options.short, every=options.every):
        environment = variant.environment()
        print(f"== {variant} (PyTorch uses {capability(environment)})", flush=True)
        sample = ["--one-in", "6", "-q"] if options.short else []
        if options.every:
            sample = ["--one-in", "3", "--first", str(variant.third()), "-q"]
        started = time.monotonic()
        status = run([sys.executable, "-m", "pytest", "-m", marker, *sample, *passed_on], environment)
        if status == USAGE_ERROR:
            return 1  # the same in every variant
        results.append((variant, status, time.monotonic() - started))
    print("== Summary")
    for variant, status, seconds in results:
        verdict = {PASSED: "passed", NO_TESTS: "no tests"}.get(status, "FAILED")
        print(f"{verdict:8}  {seconds:6.0f} s  {variant}")
    statuses = {status for _, status, _ in results}
    return int(PASSED not in statuses or not statuses <= {PASSED, NO_TESTS})


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
