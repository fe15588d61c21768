"""Start of the command: help and errors load no slow library, and every subcommand finds its function."""

import subprocess
import sys
from pkgutil import resolve_name
from typing import get_type_hints

import pytest
from esper_agent.cli.commands import COMMANDS, RESUME

#: Runs the command with each line of standard input as its arguments, and prints the libraries that are loaded then.
PROGRAM = """
import sys
from {module} import main
lines = [line.split() for line in sys.stdin]
for arguments in lines:
    sys.argv[1:] = arguments
    code = main()
    slow = {{"torch", "scipy", "sklearn", "stable_baselines3", "sb3_contrib", "matplotlib", "tensorboard", "pooch"}}
    print(" ".join(arguments), code, sorted(slow & set(sys.modules)), file=sys.stderr)
"""


def loaded_after(*lines, module="esper_agent.__main__"):
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_version_and_help_load_no_slow_library():
    lines = ["--version", "--help", *(f"{name} --help" for name in COMMANDS), "data fetch --help"]
    lines.append("train --resume RUN --help")
    assert loaded_after(*lines) == [f"{line} 0 []" for line in lines]


def test_help_and_bad_flags_of_the_demonstration_load_no_slow_library():
    done = loaded_after("--help", "--seed x", module="esper_agent.demo")
    assert [done[0], done[-1]] == ["--help 0 []", "--seed x 2 []"]


def test_bad_flags_load_no_slow_library():
    lines = ["trains", "train --out RUN --seed x", "evaluate --policy wait --episodes 0", "info --verbose"]
    assert loaded_after(*lines)[1::2] == [f"{line} 2 []" for line in lines]


def test_data_commands_load_no_pytorch(tmp_path):
    lines = [f"data {name} --data-dir {tmp_path}" for name in ("list", "verify")]
    assert loaded_after(*lines) == [f"{line} 0 ['scipy']" for line in lines]  # without scipy's subpackages


@pytest.mark.parametrize(("kind", "work"), [*COMMANDS.values(), RESUME])
def test_function_of_a_subcommand_takes_its_settings(kind, work):
    taken, *_, returned = get_type_hints(resolve_name(work)).values()
    assert issubclass(kind, taken)
    assert returned is int
