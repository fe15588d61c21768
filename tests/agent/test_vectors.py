"""Vectors of registered ids, including those that a user's module registers."""

import sys

import gymnasium
import pytest
from esper_agent.cli.main import BAD_INPUT, main
from esper_agent.vectors import UnexpectedArgumentError, find_id, make_vector
from esper_env.tasks import TASKS
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.registration import VectorizeMode
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

MODULE = """
from esper_env import register_task

register_task("Named-v0", base="Esper-Digits-v0", horizon=2, batches_per_step=1, batch_size=8)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a module that registers Named-v0 and others that fail; Python's path lacks it."""
    for name, code in {
        "my_named_tasks": MODULE,
        "lacking_tasks": "import nowhere_to_be_found",
        "leaving_tasks": "raise SystemExit(3)",
        "colorsys": "raise RuntimeError",  # the standard library comes first
    }.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in ("my_named_tasks", "colorsys"):
        sys.modules.pop(name, None)
    TASKS.pop("Named-v0", None)
    gymnasium.registry.pop("Named-v0", None)


def test_make_vector_imports_the_module_of_an_id(folder):
    for _ in range(2):
        envs = make_vector("my_named_tasks:Named-v0", 2, AutoresetMode.DISABLED)
        assert envs.unwrapped.task.horizon == 2
        assert envs.metadata["autoreset_mode"] == AutoresetMode.DISABLED
        envs.close()
    assert sys.path[-1] == str(folder)
    assert sys.path.count(str(folder)) == 1


@pytest.mark.usefixtures("folder")
def test_find_id_keeps_a_path_with_the_current_folder(monkeypatch):
    before = ["", *sys.path]
    monkeypatch.setattr(sys, "path", list(before))
    with pytest.raises(ValueError, match="'X-v0' is not a registered"):
        find_id("math:X-v0")
    assert sys.path == before


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Nothing-v0", "'Nothing-v0' is not a registered environment; expected one of Esper-CIFAR-v0"),
        ("Nothing-v0", "; put the module that registers a custom task in front: my_tasks:Nothing-v0$"),
        ("esper-digits-v0", r"expected one of .*; did you mean 'Esper-Digits-v0'\?"),
        ("my_named_tasks:Namd-v0", r"expected one of .*, Named-v0; did you mean 'Named-v0'\?$"),
        ("my_named_tasks.py:Named-v0", "'my_named_tasks.py:Named-v0' names a module that cannot be imported: "),
        ("./my_named_tasks:Named-v0", "cannot be imported: .*; expected the dotted name of a module that registers"),
        ("lacking_tasks:X-v0", r"No module named 'nowhere_to_be_found'; expected .*, such as my_tasks:MyTask-v0$"),
        ("colorsys:X-v0", "'X-v0' is not a registered environment"),
        ("leaving_tasks:X-v0", "cannot be imported: SystemExit: 3; expected"),
        (3, "3 is not a registered environment"),
    ],
)
def test_find_id_rejects_unknown_ids_and_modules(env_id, message):
    with pytest.raises(ValueError, match=message):
        find_id(env_id)


def test_make_vector_names_the_tasks_if_settings_do_not_fit_another_environment():
    with pytest.raises(ValueError, match=r"with these settings: .*; it is not one of the Esper tasks Esper-"):
        make_vector("Acrobot-v1", 1, AutoresetMode.DISABLED, horizon=3)


@pytest.mark.parametrize(
    ("arguments", "mode", "kind"),
    [
        ({}, AutoresetMode.NEXT_STEP, CartPoleVectorEnv),  # which has no other mode
        ({}, AutoresetMode.SAME_STEP, SyncVectorEnv),
        ({"vector_kwargs": {"copy": False}}, AutoresetMode.DISABLED, SyncVectorEnv),
        ({"vectorization_mode": "sync", "max_episode_steps": 7}, AutoresetMode.NEXT_STEP, SyncVectorEnv),
        ({"vectorization_mode": VectorizeMode.ASYNC}, AutoresetMode.SAME_STEP, AsyncVectorEnv),
    ],
)
def test_make_vector_sets_the_mode_of_every_vectorization(arguments, mode, kind):
    envs = make_vector("CartPole-v1", 2, mode, **arguments)
    assert type(envs) is kind
    assert envs.metadata["autoreset_mode"] is mode
    assert getattr(envs, "copy", True) is ("vector_kwargs" not in arguments)
    envs.close()


class FixedMode(SyncVectorEnv):
    """A vector of its own whose autoreset mode cannot be set."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs=1, max_episode_steps=None):  # noqa: ARG002
        super().__init__([lambda: gymnasium.make("CartPole-v1")] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.usefixtures("own_tables")
def test_make_vector_uses_a_vector_that_has_the_mode_already():
    gymnasium.register("Fixed-v0", entry_point=lambda: gymnasium.make("CartPole-v1"), vector_entry_point=FixedMode)
    kinds = [type(make_vector("Fixed-v0", 1, mode)) for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)]
    assert kinds == [FixedMode, SyncVectorEnv]


@pytest.mark.parametrize(
    ("env_id", "arguments", "message"),
    [
        (
            "CartPole-v1",
            {"vectorization_mode": "vector_entry_point"},
            "CartPole-v1 has no vector with .*'sync' or 'async'",
        ),
        (
            "Acrobot-v1",
            {"vectorization_mode": "vector_entry_point"},
            "Acrobot-v1 has no vector with .*'sync' or 'async'",
        ),
        ("CartPole-v1", {"vectorization_mode": "threads"}, "Invalid vectorization mode: 'threads'"),
        (
            "CartPole-v1",
            {"autoreset_mode": "NextStep"},
            "`autoreset_mode` is 'NextStep'; expected .*SAME_STEP, or",
        ),
        ("CartPole-v1", {"vector_kwargs": {"autoreset_mode": "NextStep"}}, "`autoreset_mode` is 'NextStep'; expected"),
        ("CartPole-v1", {"num_envs": 3}, "multiple values for keyword argument 'num_envs'"),
    ],
)
def test_make_vector_rejects_other_modes(env_id, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_vector(env_id, 1, AutoresetMode.SAME_STEP, **arguments)


def test_make_vector_accepts_its_own_mode_as_an_argument():
    for given in (AutoresetMode.SAME_STEP, "SameStep", "SAME_STEP"):
        envs = make_vector("CartPole-v1", 1, AutoresetMode.SAME_STEP, autoreset_mode=given)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@pytest.mark.parametrize("env_id", ["Esper-Digits-v0", "CartPole-v1"])
@pytest.mark.parametrize("kind", [TypeError, ValueError, UnexpectedArgumentError])
def test_make_vector_rejects_unknown_arguments_as_types_and_as_values(env_id, kind):
    with pytest.raises(kind, match="got an unexpected keyword argument 'horizn'") as caught:
        make_vector(env_id, 1, AutoresetMode.DISABLED, horizn=3)
    assert caught.value.argument == "horizn"


@pytest.mark.parametrize(
    ("command", "env_id"),
    [
        (["train", "--out", "run"], "CartPole-v1"),
        (["evaluate", "--policy", "wait"], "Acrobot-v1"),
        (["benchmark", "--policies", "random", "--out", "b"], "Pendulum-v1"),
    ],
)
def test_commands_reject_environments_of_others(tmp_path, monkeypatch, capsys, command, env_id):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--env", env_id]) == BAD_INPUT
    error = capsys.readouterr().err
    assert f"Error: {env_id} " in error
    assert "is not an Esper task" in error
    assert "Esper-CIFAR-Deep-v0, " in error
    assert list(tmp_path.iterdir()) == []
