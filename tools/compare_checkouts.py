"""Run the same scenarios in two checkouts on one machine and compare the results bit for bit.

    python tools/compare_checkouts.py 3374426 .              # a revision with the working tree
    python tools/compare_checkouts.py ../before ../after --only info heuristic
    python tools/compare_checkouts.py HEAD . --ids Esper-Digits-v0 Esper-Text-v0

OLD and NEW are folders with a checkout, or revisions of this repository. Each scenario runs in its own process, with
the packages of that checkout and the libraries of this interpreter:

    environments  every registered id through one script of growth: germination, pruning, a retarget, fossilization, a
                  rollback, an episode and the start of the next; single and vector, both isolations, float32 and
                  bfloat16
    telemetry     the events of such an episode: type, environment, episode, epoch and slot
    heuristic     the heuristic's decisions over an episode, and the resulting rewards and infos
    training      a short `esper train`, killed after a checkpoint and resumed: weights, optimizer, normaliser, curves
    info          what `esper info` prints

The scenarios use the public interface only, so the modules of the two packages may lie anywhere. Exit code 0 if
everything is equal, 1 if something differs, 2 for bad input or a scenario that fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
PLAYER = Path(__file__).resolve().with_name("checkout_scenarios.py")
PACKAGES = ("packages/esper-env/src", "packages/esper-agent/src")
#: In order of play, quick ones first.
SCENARIOS = ("info", "telemetry", "heuristic", "training", "environments")
Record = dict[str, NDArray[Any]]


class ComparisonError(Exception):
    """A checkout is invalid, or a scenario failed."""


@contextmanager
def checkout(name: str) -> Iterator[Path]:
    """Folder of a checkout; a revision is exported to a temporary folder."""
    if Path(name).is_dir():
        yield checked(Path(name).resolve(), name)
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "revision.tar"
        made = subprocess.run(
            ["git", "-C", str(ROOT), "archive", "--output", str(archive), name], capture_output=True, text=True
        )
        if made.returncode != 0:
            raise ComparisonError(f"{name!r} is neither a folder nor a revision of this repository")
        with tarfile.open(archive) as file:
            file.extractall(folder)  # git has just written it
        yield checked(Path(folder), name)


def checked(folder: Path, name: str) -> Path:
    """Return the folder if it has both packages."""
    missing = [package for package in PACKAGES if not (folder / package).is_dir()]
    if missing:
        raise ComparisonError(f"{name!r} has no folder {missing[0]}; expected a checkout of this repository")
    return folder


def environment(folder: Path, threads: int) -> dict[str, str]:
    """Environment variables of a process that imports a checkout's packages."""
    paths = os.pathsep.join(str(folder / package) for package in PACKAGES)
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}


def require_packages(folder: str) -> None:
    """Raise ``ComparisonError`` unless this process imports the packages of the checkout."""
    for name in ("esper_env", "esper_agent"):
        place = str(import_module(name).__file__)
        if not Path(place).is_relative_to(folder):
            raise ComparisonError(f"{name} was imported from {place}, not from {folder}")


def play(folder: Path, scenario: str, ids: Sequence[str]) -> tuple[Record, float]:
    """Run a scenario with a checkout's packages; return its record and the seconds it took."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "record.npz"
        command = [sys.executable, str(PLAYER), str(folder), scenario, str(result), *ids]
        started = time.monotonic()
        done = subprocess.run(command, env=environment(folder, 1), cwd=scratch, capture_output=True, text=True)
        if done.returncode != 0:
            raise ComparisonError(f"{scenario} failed with {folder}:\n{done.stderr[-4000:]}")
        with np.load(result) as stored:
            names = stored["names"].tolist()
            return {name: stored[str(index)] for index, name in enumerate(names)}, time.monotonic() - started


def differences(old: Record, new: Record) -> list[str]:
    """Describe every value that differs."""
    found = [f"{name}: only in OLD" for name in old if name not in new]
    found += [f"{name}: only in NEW" for name in new if name not in old]
    for name in old.keys() & new.keys():
        left, right = old[name], new[name]
        if (left.dtype.kind, left.shape) != (right.dtype.kind, right.shape):
            found.append(f"{name}: {left.dtype} {left.shape} in OLD, {right.dtype} {right.shape} in NEW")
        elif left.dtype.kind == "U":
            if left.tolist() != right.tolist():
                found.append(f"{name}: {left.tolist()!r} in OLD, {right.tolist()!r} in NEW")
        elif left.dtype != right.dtype or left.tobytes() != right.tobytes():
            found.append(f"{name}: {brief(left)} in OLD, {brief(right)} in NEW")
    return sorted(found)


def brief(array: NDArray[Any]) -> str:
    """Short description of an array."""
    return repr(array.tolist()) if array.size <= 4 else f"{array.dtype} {array.shape}, sum {array.sum()!r}"


def main(arguments: Sequence[str]) -> int:
    """Compare; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="scenarios to play")
    parser.add_argument("--ids", nargs="+", default=[], help="ids to play; info and training have none")
    options = parser.parse_args(arguments)
    equal = True
    with checkout(options.old) as old, checkout(options.new) as new:
        for scenario in options.only:
            with ThreadPoolExecutor(2) as both:
                (before, seconds), (after, _) = both.map(play, (old, new), [scenario] * 2, [options.ids] * 2)
            found = differences(before, after)
            equal = equal and not found
            verdict = f"{len(found)} DIFFER" if found else "equal"
            print(f"{scenario:14}{len(before):8,} values, {verdict} ({seconds:.0f} s each)", flush=True)
            for line in found[:8]:
                print(f"    {line}", flush=True)
            if len(found) > 8:
                print(f"    and {len(found) - 8} more", flush=True)
    return 0 if equal else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ComparisonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
