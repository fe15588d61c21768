"""Packaging: pins, declared dependencies, direction of imports, commands, and files of the repository."""

import ast
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"esper-env": "esper_env", "esper-agent": "esper_agent"}
PROJECTS = {name: tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text()) for name in PACKAGES}
DEVELOPMENT_TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
PINS = {
    canonicalize_name(line.split("==")[0]): line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
}
RULES = ROOT / "packages/esper-env/src/esper_env/rules"

# Forbidden in the repository. The patterns do not match this file.
MACHINE_PATH = re.compile(r"(?<![\w.~})\]>-])/(?:home|work|tmp|root|opt|mnt|Users)\b")
REGISTRY_HOST = re.compile(
    r"pypi[.]org|pythonhosted[.]org|npmjs[.]org|download[.]pytorch[.]org|(?:deb|security)[.]debian"
)
# torch builds for accelerators depend on packages that torch pins.
ACCELERATOR_PACKAGE = re.compile(r"nvidia-|cuda-|triton|pytorch-triton")


# Imitation of Python 3.9.2 for `--version` and `-c PROGRAM`.
OLD_PYTHON = (
    "import sys; sys.version_info = (3, 9, 2); "
    'print("Python 3.9.2") if sys.argv[1] == "--version" else exec(sys.argv[2])'
)


@cache
def imports(module: str) -> list[tuple[Path, str, list[str]]]:
    """Absolute imports of a package: file, dotted name of the module, and the names taken from it."""
    (folder,) = ROOT.glob(f"packages/*/src/{module}")
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [(path, alias.name, []) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.append((path, node.module or "", [alias.name for alias in node.names]))
    return found


def top_levels(module: str, folder: str = "") -> set[str]:
    """Top-level names of everything that a package imports, or one folder of it."""
    return {name.split(".")[0] for path, name, _ in imports(module) if not folder or folder in path.parts}


def declared_requirements(project: str) -> list[Requirement]:
    table = PROJECTS[project]["project"]
    extras = [text for texts in table.get("optional-dependencies", {}).values() for text in texts]
    return [Requirement(text) for text in [*table["dependencies"], *extras]]


def all_declared_requirements() -> list[Requirement]:
    builds = [text for project in PROJECTS.values() for text in project["build-system"]["requires"]]
    found = [Requirement(text) for text in (*DEVELOPMENT_TOOLS, *builds)]
    return found + [requirement for name in PACKAGES for requirement in declared_requirements(name)]


def third_party_closure(requirements: list[Requirement]) -> set[str]:
    """Canonical names of all direct and indirect requirements on this machine."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in found or ACCELERATOR_PACKAGE.match(key[0]):
            continue
        found.add(key)
        for text in importlib.metadata.requires(requirement.name) or []:
            needed = Requirement(text)
            extras = {"", *requirement.extras}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return {name for name, _ in found} - PACKAGES.keys()


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make without the variables of a make that runs these tests."""
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "VENV", "PYTEST_OPTIONS", "TEST_WORKERS")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def write_command(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def tree() -> dict[str, str]:
    """Name and text of every text file of the repository, including new ones."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode != 0:
        pytest.skip(f"this is not a git checkout: {listing.stderr.strip()}")
    contents = {name: (ROOT / name).read_bytes() for name in listing.stdout.split("\0") if (ROOT / name).is_file()}
    return {name: content.decode() for name, content in contents.items() if b"\0" not in content}


# Pins


def test_every_pin_is_one_exact_version():
    assert [line for line in PINS.values() if not re.fullmatch(r"[\w.-]+==\d[\w.]*", line)] == []


def test_every_declared_requirement_admits_the_pinned_version():
    for requirement in all_declared_requirements():
        if requirement.name in PACKAGES:
            version = PROJECTS[requirement.name]["project"]["version"]
        else:
            version = PINS[canonicalize_name(requirement.name)].split("==")[1]
        assert requirement.specifier.contains(version), requirement
        assert any(part.operator == ">=" for part in requirement.specifier), f"{requirement} lacks a lower bound"


def test_every_direct_or_indirect_requirement_is_pinned():
    needed = third_party_closure(all_declared_requirements())
    assert {"torch", "sympy", "pytest", "iniconfig", "trove-classifiers"} <= needed
    assert sorted(needed - PINS.keys()) == []


# Imports


@pytest.mark.parametrize("project", PACKAGES)
def test_every_third_party_import_is_declared(project: str):
    module = PACKAGES[project]
    distributions = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in declared_requirements(project)}
    third_party = top_levels(module) - sys.stdlib_module_names - {module}
    owners = {name: {canonicalize_name(each) for each in distributions.get(name, [name])} for name in third_party}
    assert {name for name, own in owners.items() if not declared & own} == set()


def test_environment_does_not_import_agents():
    assert top_levels("esper_env") & {"esper_agent", "stable_baselines3", "sb3_contrib"} == set()


def test_agents_import_only_public_names_of_the_environment():
    """Public are ``esper_env`` and its rooms, and there the names in ``__all__``."""
    private = []
    for path, module, names in imports("esper_agent"):
        if module.split(".")[0] == "esper_env":
            is_room = module.count(".") <= 1
            public = getattr(importlib.import_module(module), "__all__", ()) if is_room else ()
            private += [f"{path.name}: {module}.{name}" for name in names if name not in public]
            private += [f"{path.name}: {module}"] if not names and "." in module else []
    assert private == []


def test_decision_side_does_not_import_torch():
    assert "numpy" in top_levels("esper_env", "rules")
    assert "torch" not in top_levels("esper_env", "rules")


def test_import_of_packages_and_rules_registers_ids_without_torch():
    modules = ["esper_agent", "esper_env", "esper_env.seeding"]
    modules += [f"esper_env.rules.{path.stem}" for path in sorted(RULES.glob("*.py")) if path.stem != "__init__"]
    assert "esper_env.rules.masks" in modules
    program = (
        "import importlib, sys, gymnasium\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'sklearn', 'stable_baselines3', 'esper_env.vector_env'}.intersection(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
        "print(*sorted(id for id in gymnasium.registry if id.startswith('Esper-')))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True)
    cifar = ["Esper-CIFAR-Deep-v0", "Esper-CIFAR-Impaired-v0", "Esper-CIFAR-Surfaces-v0", "Esper-CIFAR-v0"]
    assert done.stdout.split() == [*cifar, "Esper-Digits-v0", "Esper-Text-v0", "Esper-TinyStories-v0"]


@pytest.mark.parametrize("module", PACKAGES.values())
def test_exports_are_the_objects_that_type_checkers_see(module: str):
    """Type checkers read the imports under ``if TYPE_CHECKING``; at run time, ``__getattr__`` finds the names."""
    package = importlib.import_module(module)
    blocks = [node for node in ast.parse(Path(str(package.__file__)).read_text()).body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for block in blocks for node in block.body for alias in node.names}
    assert all(getattr(package, name) is getattr(importlib.import_module(home), name) for name, home in seen.items())
    assert set(package.__all__) == seen.keys() | set(package.__all__) & vars(package).keys()
    assert set(package.__all__) <= set(dir(package))


def test_learning_side_does_not_import_rewards_or_observations():
    rooms = {"hosts", "seeds", "population", "extension_checks"}
    learning = [(rooms.intersection(path.parts), name) for path, name, _ in imports("esper_env")]
    assert set().union(*(own for own, _ in learning)) == rooms
    forbidden = {f"esper_env.rules.{name}" for name in ("reward", "observation", "signals", "masks", "governor")}
    assert {name for own, name in learning if own} & forbidden == set()


# What is shipped


@pytest.mark.parametrize("project", PACKAGES)
def test_package_ships_types_licence_and_readme(project: str):
    folder = ROOT / "packages" / project
    assert (folder / "src" / PACKAGES[project] / "py.typed").is_file()
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (folder / "README.md").read_text().startswith(f"# {project}\n")


def test_packages_have_the_version_of_the_changelog():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert {project["project"]["version"] for project in PROJECTS.values()} == {newest[1]}


@pytest.mark.slow
def test_installing_the_root_fails_and_names_the_packages(tmp_path: Path):
    arguments = ["install", "--no-index", "--no-deps", "--target", str(tmp_path), "."]
    result = subprocess.run(
        [sys.executable, "-m", "pip", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "the root of this repository is not a package" in result.stdout + result.stderr
    assert "./packages/esper-env ./packages/esper-agent" in result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


# The commands of a checkout


def test_readme_begins_with_make_demo_and_make_test_which_runs_every_test():
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"^make \w+", readme, re.MULTILINE)[:2] == ["make demo", "make test"]
    commands = run_make("--dry-run", "test").stdout
    assert "-m pytest" in commands
    assert "not slow" not in commands


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (f"exec {sys.executable} -c '{OLD_PYTHON}' \"$@\"", "is Python 3.9.2; Python 3.11 or newer is needed"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "On Debian and Ubuntu: apt install python3-venv"),
        (None, "python' was not found. Install Python 3.11 or newer"),
    ],
    ids=["too old", "without venv", "missing"],
)
def test_make_names_an_unusable_python_with_the_remedy(tmp_path: Path, script: str | None, message: str):
    python = tmp_path / "python"
    if script is not None:
        write_command(python, script)
    result = run_make("install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    assert message in result.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(("failing", "status"), [("none", 0), ("lint", 1), ("test-portable", 1), ("test", 1)])
def test_ci_runs_lint_and_tests_and_ends_with_the_summary(tmp_path: Path, failing: str, status: int):
    write_command(
        tmp_path / "make",
        'for target; do :; done; echo "ran $target CI=$CI"; [ "$target" = test ] && echo "== 3 passed in 1s =="\n'
        f'[ "$target" != {failing} ] || {{ echo "make: *** [Makefile:30: $target] Error 1" >&2; exit 2; }}',
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        [str(ROOT / ".ci/run")], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == status
    ran = [f"ran {target} CI=true" for target in ("lint", "test-portable", "test")]
    assert result.stdout.splitlines() == [*ran, "== 3 passed in 1s =="]


# The tree


def test_no_file_is_longer_than_400_lines(tree: dict[str, str]):
    written = (".py", ".md", ".toml", ".sh", ".yml", "Makefile", ".ci/run")
    lengths = {name: len(text.splitlines()) for name, text in tree.items() if name.endswith(written)}
    assert "Makefile" in lengths
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST], ids=["machine path", "package registry"])
def test_no_file_names_a_machine_path_or_a_package_registry(tree: dict[str, str], pattern: re.Pattern[str]):
    assert [f"{name}: {match[0]}" for name, text in tree.items() for match in pattern.finditer(text)] == []


def test_machine_path_matches_absolute_paths_only():
    paths = [f"cd {'/'}home/ada/esper", f'open("{"/"}tmp/x.csv")', f"data={'/'}work"]
    others = [f"rollout{'/'}work/x", f"https://example.com{'/'}home/x", f".{'/'}tmp/x"]
    assert [line for line in [*paths, *others] if MACHINE_PATH.search(line)] == paths


# The test run itself


def test_tests_run_on_one_thread_with_fixed_examples():
    assert torch.get_num_threads() == 1
    assert hypothesis.settings().derandomize
    assert hypothesis.settings().deadline is None
