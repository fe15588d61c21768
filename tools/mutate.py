"""Put small faults into a copy of this checkout, one at a time, and check that the tests catch them.

    python tools/mutate.py                      # every fault of tools/mutations.toml, each with its own tests
    python tools/mutate.py --room rules ppo     # the faults of two rooms; --only takes names
    python tools/mutate.py --every-test         # each fault with all quick tests; takes hours

The checkout itself is never changed. First the listed tests run without a fault, and must pass. A fault is caught when
a test fails. A test file that cannot be loaded catches nothing. Tests that hang are stopped and catch nothing either.
Exit code 0 if every fault is caught, 1 if not, 2 for a bad list.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tools" / "mutations.toml"
SOURCES = ("packages/esper-env/src", "packages/esper-agent/src")
ROOMS = ("rules", "population", "ppo", "state", "data", "cli")
#: Names left out of the copy, in any folder and at the root.
LEFT_OUT = {".git", ".venv", "__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache", ".mypy_cache"}
LEFT_OUT_AT_ROOT = {"runs", "demo", "dist", "build"}
#: Verdicts by pytest's exit status; with any other status the tests did not run.
STATUSES = {0: "SURVIVED", 1: "caught"}
#: All quick tests except one, which fails if the process has enough free memory to allocate none.
UNSTEADY = "tests/env/telemetry/test_memory_watch.py::test_resident_size_grows_with_allocations"
QUICK = ["-m", "not slow", "--deselect", UNSTEADY]
#: Time limits in seconds for the tests of a fault, and for all quick tests.
LIMIT, LIMIT_OF_ALL = 600, 7200


class BadListError(Exception):
    """The list of faults is invalid."""


@dataclass(frozen=True)
class Mutation:
    """One fault: ``new`` replaces ``old`` in the sources, and one of ``tests`` must fail."""

    name: str
    room: str
    fault: str
    old: str
    new: str
    tests: list[str]


@dataclass(frozen=True)
class Verdict:
    """Outcome of a run of pytest."""

    what: str
    seconds: float
    output: str


def read_list(path: Path) -> list[Mutation]:
    """Read the list of faults. Raises ``BadListError`` for a malformed list."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("mutation", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadListError(f"{path} cannot be read: {error}") from error
    mutations = {entry.get("name"): _mutation(entry) for entry in entries}
    if len(mutations) < len(entries):
        raise BadListError(f"{path} has {len(entries)} faults and {len(mutations)} names; expected unique names")
    return list(mutations.values())


def _mutation(entry: dict[str, Any]) -> Mutation:
    name = entry.get("name", "an entry without a name")
    wanted = [field.name for field in fields(Mutation)]
    if sorted(entry) != sorted(wanted):
        raise BadListError(f"{name}: the keys are {', '.join(entry)}; expected {', '.join(wanted)}")
    if entry["room"] not in ROOMS:
        raise BadListError(f"{name}: the room is {entry['room']!r}; expected one of {', '.join(ROOMS)}")
    if not entry["tests"] or entry["old"] == entry["new"]:
        raise BadListError(f"{name}: expected at least one test, and a new text that differs from the old one")
    return Mutation(**entry)


def copy_checkout(place: Path) -> Path:
    """Copy the files that tests may read."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        return set(names) & (LEFT_OUT | LEFT_OUT_AT_ROOT if Path(folder) == ROOT else LEFT_OUT)

    return Path(shutil.copytree(ROOT, place / "checkout", ignore=left_out, symlinks=True))


def find_places(root: Path, mutations: Sequence[Mutation]) -> dict[str, Path]:
    """Source file of each fault. Raises ``BadListError`` if a text or a test file is missing."""
    texts = {path: path.read_text(encoding="utf-8") for place in SOURCES for path in (root / place).rglob("*.py")}
    places, wrong = {}, []
    for mutation in mutations:
        found = [path for path, text in texts.items() for _ in range(text.count(mutation.old))]
        if len(found) != 1:
            wrong.append(f"{mutation.name}: the old text occurs {len(found)} times in the sources; expected once")
        lost = [test for test in mutation.tests if not (root / test.partition("::")[0]).exists()]
        wrong += [f"{mutation.name}: {test} does not exist" for test in lost]
        places[mutation.name] = found[0] if found else root
    if wrong:
        raise BadListError("\n".join(wrong))
    return places


def environment(root: Path) -> dict[str, str]:
    """Variables for Python to import the copy, without compiled files, which could outlive a fault."""
    path = os.pathsep.join(str(root / place) for place in SOURCES)
    return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}


def check_imports(root: Path) -> None:
    """Exit unless Python imports both packages from the copy."""
    program = "import esper_agent, esper_env; print(esper_env.__file__, esper_agent.__file__, sep='\\n')"
    output = subprocess.check_output([sys.executable, "-c", program], cwd=root, env=environment(root), text=True)
    for name, place in zip(output.splitlines(), SOURCES, strict=True):
        if not Path(name).resolve().is_relative_to((root / place).resolve()):
            sys.exit(f"error: Python imports {name} and not the copy in {root / place}")


def run_tests(root: Path, tests: Sequence[str], limit: float) -> Verdict:
    """Run pytest in the copy until a test fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    own, started = environment(root), time.monotonic()
    try:
        result = subprocess.run(command, cwd=root, env=own, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return Verdict("HUNG", time.monotonic() - started, f"The tests were stopped after {limit:g} seconds.")
    seconds, output = time.monotonic() - started, f"{result.stdout}{result.stderr}exit status {result.returncode}"
    return Verdict(STATUSES.get(result.returncode, "BROKEN"), seconds, output)


def run_all(root: Path, mutations: Sequence[Mutation], places: dict[str, Path], *, every_test: bool) -> int:
    """Run the tests without a fault, then with each of them, and print the outcomes."""
    union = [test for mutation in mutations for test in mutation.tests]
    sound = run_tests(root, QUICK if every_test else union, LIMIT_OF_ALL)
    passed = sound.what == STATUSES[0]
    print(f"{'passed' if passed else 'FAILED':8}  {sound.seconds:6.1f} s  without a fault", flush=True)
    if not passed:
        print(sound.output)
        return 1  # failing tests cannot show a fault
    caught = 0
    for mutation in mutations:
        path = places[mutation.name]
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        verdict = run_tests(root, *((QUICK, LIMIT_OF_ALL) if every_test else (mutation.tests, LIMIT)))
        path.write_text(text, encoding="utf-8")
        test = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", verdict.output, re.MULTILINE)
        by = f"  by {test[1]}" if test else ""
        print(f"{verdict.what:8}  {verdict.seconds:6.1f} s  {mutation.name}{by}", flush=True)
        if verdict.what not in STATUSES.values():
            print(verdict.output)
        caught += verdict.what == STATUSES[1]
    print(f"{caught} of {len(mutations)} caught")
    return int(caught < len(mutations))


def main(arguments: Sequence[str]) -> int:
    """Apply the chosen faults; see the module for the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults")
    parser.add_argument("--room", nargs="+", choices=ROOMS, help="the faults of these rooms")
    parser.add_argument("--every-test", action="store_true", help="run all quick tests for each fault")
    options = parser.parse_args(arguments)
    try:
        mutations = read_list(LIST)
        known = [mutation.name for mutation in mutations]
        unknown = sorted(set(options.only or ()).difference(known))
        if unknown:
            raise BadListError(f"{LIST} has no {', '.join(unknown)}")
        names, rooms = options.only or known, options.room or ROOMS
        chosen = [each for each in mutations if each.name in names and each.room in rooms]
        with tempfile.TemporaryDirectory(prefix="esper-mutate-") as folder:
            root = copy_checkout(Path(folder))
            places = find_places(root, chosen)
            check_imports(root)
            return run_all(root, chosen, places, every_test=options.every_test)
    except BadListError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
