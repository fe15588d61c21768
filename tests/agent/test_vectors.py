"""Vectors of any registered id, also of one that a module of the user's registers."""

import sys

import gymnasium
import pytest
from esper_agent.cli import BAD_INPUT, OK, main
from esper_agent.vectors import make_vector
from esper_env import tasks
from gymnasium.vector import AutoresetMode

MODULE = """
from esper_env import register_task

register_task("Named-v0", base="Esper-Digits-v0", horizon=2, batches_per_step=1, batch_size=8)
"""


@pytest.fixture
def named(tmp_path, monkeypatch):
    """A module that registers Named-v0 can be imported, once."""
    (tmp_path / "my_named_tasks.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_named_tasks:Named-v0"
    sys.modules.pop("my_named_tasks", None)
    tasks.TASKS.pop("Named-v0", None)
    gymnasium.registry.pop("Named-v0", None)


def test_a_module_in_front_of_the_id_is_imported(named):
    envs = make_vector(named, 2, AutoresetMode.DISABLED)
    assert envs.unwrapped.task.horizon == 2
    assert envs.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    envs.close()


def test_the_command_plays_tasks_of_ones_own(named, capsys):
    assert main(["evaluate", "--policy", "wait", "--env", named, "--episodes", "2"]) == OK
    assert "Named-v0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Nothing-v0", "'Nothing-v0' is not a registered environment; expected one of Esper-CIFAR-Deep-v0"),
        ("no_such_module_here:Nothing-v0", "'no_such_module_here:Nothing-v0' names a module that cannot be imported"),
        ("math:Nothing-v0", "'Nothing-v0' is not a registered environment"),
        ("esper-digits-v0", r"expected one of .*; did you mean 'Esper-Digits-v0'\?"),
        (3, "3 is not a registered environment"),
    ],
)
def test_an_id_that_is_not_known_is_a_clear_error(env_id, message):
    with pytest.raises(ValueError, match=message):
        make_vector(env_id, 1, AutoresetMode.DISABLED)


def test_the_command_says_so(capsys):
    assert main(["evaluate", "--policy", "wait", "--env", "no_such_module_here:X-v0", "--episodes", "1"]) == BAD_INPUT
    assert "cannot be imported" in capsys.readouterr().err
