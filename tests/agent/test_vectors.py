"""Vectors of registered ids, including those that a user's module registers."""

import re
import subprocess
import sys

import gymnasium
import pytest
from esper_agent.cli.main import BAD_INPUT, OK, main
from esper_agent.vectors import find_id, make_vector
from esper_env.tasks import config as tasks
from gymnasium.vector import AutoresetMode

MODULE = """
from esper_env import register_task

register_task("Named-v0", base="Esper-Digits-v0", horizon=2, batches_per_step=1, batch_size=8)
"""


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Id of a task in an importable module."""
    (tmp_path / "my_named_tasks.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_named_tasks:Named-v0"
    sys.modules.pop("my_named_tasks", None)
    tasks.TASKS.pop("Named-v0", None)
    gymnasium.registry.pop("Named-v0", None)


def test_make_vector_imports_the_module_of_an_id(named):
    envs = make_vector(named, 2, AutoresetMode.DISABLED)
    assert envs.unwrapped.task.horizon == 2
    assert envs.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    envs.close()


def test_evaluate_plays_a_custom_task(named, capsys):
    assert main(["evaluate", "--policy", "wait", "--env", named, "--episodes", "2"]) == OK
    assert "Named-v0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Nothing-v0", "'Nothing-v0' is not a registered environment; expected one of Esper-CIFAR-v0"),
        ("Nothing-v0", "; put the module that registers a custom task in front: my_tasks:Nothing-v0$"),
        ("no_such_module_here:Nothing-v0", "'no_such_module_here:Nothing-v0' names a module that cannot be imported"),
        ("math:Nothing-v0", "'Nothing-v0' is not a registered environment"),
        ("esper-digits-v0", r"expected one of .*; did you mean 'Esper-Digits-v0'\?"),
        (3, "3 is not a registered environment"),
    ],
)
def test_make_vector_rejects_unknown_ids(env_id, message):
    with pytest.raises(ValueError, match=message):
        make_vector(env_id, 1, AutoresetMode.DISABLED)


@pytest.mark.parametrize(
    ("name", "meant"), [("Namd-v0", "{module}:Named-v0"), ("esper-digits-v0", "Esper-Digits-v0"), ("X-v0", None)]
)
def test_find_id_suggests_a_valid_id(named, name, meant):
    """The list of known ids includes the tasks of the module."""
    module = named.partition(":")[0]
    with pytest.raises(ValueError, match=f"expected one of {named}, Esper-CIFAR-v0, ") as caught:
        find_id(f"{module}:{name}")
    message = str(caught.value)
    assert "my_tasks" not in message
    suggested = re.search(r"did you mean '(.*)'\?$", message)
    if meant is None:
        assert suggested is None
    else:
        assert suggested.group(1) == meant.format(module=module)
        assert find_id(suggested.group(1)) in gymnasium.registry


def test_find_id_suggests_a_registered_task_without_its_module(named):
    find_id(named)
    with pytest.raises(ValueError, match=r"expected one of Named-v0, .*; did you mean 'Named-v0'\?$"):
        find_id("Namd-v0")


@pytest.mark.parametrize(
    ("module", "instead"),
    [
        ("my_named_tasks.py", "my_named_tasks"),
        ("./my_named_tasks", "my_named_tasks"),
        ("./my_named_tasks.py", "my_named_tasks"),
        (".\\my_named_tasks.py", "my_named_tasks"),
        (".my_named_tasks", "my_named_tasks"),
        ("tasks/more/own.py", "tasks.more.own"),
        ("../own.py", "own' in the folder that holds own"),
        ("/somewhere/own", "own' in the folder that holds own"),
    ],
)
def test_find_id_corrects_the_path_of_a_module(named, module, instead):
    name, _, place = instead.partition("'")
    message = f"write '{name}:Named-v0'{place}"
    with pytest.raises(ValueError, match=f"starts with the path of a file; .*{message}$"):
        find_id(f"{module}:Named-v0")
    assert named.partition(":")[0] not in sys.modules


def script(folder, path, *arguments):
    """Run the command in ``folder`` as installed, without the current folder on Python's path."""
    code = "import sys\nfrom esper_agent.__main__ import main\nsys.exit(main())"
    (path / "esper").write_text(code, encoding="utf-8")
    command = [sys.executable, str(path / "esper"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_command_imports_a_module_of_the_current_folder(tmp_path, monkeypatch, capsys):
    for folder in ("bin", "work", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "work" / "my_named_tasks.py").write_text(MODULE, encoding="utf-8")
    arguments = ["evaluate", "--policy", "wait", "--env", "my_named_tasks:Named-v0", "--episodes", "1"]
    done = script(tmp_path / "work", tmp_path / "bin", *arguments)
    assert (done.returncode, done.stderr) == (OK, "")
    assert "Named-v0" in done.stdout
    monkeypatch.chdir(tmp_path / "other")
    assert main(arguments) == BAD_INPUT
    assert "run the command in the folder that holds my_named_tasks" in capsys.readouterr().err


def test_find_id_appends_the_current_folder_once(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for _ in range(2):
        sys.modules.pop("colorsys", None)
        with pytest.raises(ValueError, match="'X-v0' is not a registered"):
            find_id("colorsys:X-v0")
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_find_id_names_a_missing_import_of_the_module(tmp_path, monkeypatch):
    (tmp_path / "lacking_tasks.py").write_text("import nowhere_to_be_found", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"No module named 'nowhere_to_be_found'$"):
        find_id("lacking_tasks:X-v0")


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
    assert f"Error: {env_id} is not an Esper task" in error
    assert "Esper-CIFAR-Deep-v0, " in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("leaving", "message"),
    [("sys.exit(3)", "SystemExit(3);"), ("sys.exit()", "SystemExit();"), ("sys.exit('bye')", "SystemExit('bye');")],
)
def test_evaluate_rejects_a_module_that_exits(tmp_path, monkeypatch, capsys, leaving, message):
    (tmp_path / "leaving_tasks.py").write_text(f"import sys\n{leaving}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["evaluate", "--policy", "wait", "--env", "leaving_tasks:X-v0"]) == BAD_INPUT
    error = " ".join(capsys.readouterr().err.split())
    assert "'leaving_tasks:X-v0' names a module that exits during its import: " + message in error


def test_find_id_keeps_a_path_with_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = ["", *(entry for entry in sys.path if entry)]
    monkeypatch.setattr(sys, "path", list(before))
    with pytest.raises(ValueError, match="'X-v0' is not a registered"):
        find_id("colorsys:X-v0")
    assert sys.path == before


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("no_such.package.tasks", "; install its package, or run the command in the folder that holds no_such"),
        ("json.tasks", r"No module named 'json\.tasks'; .* in the folder that holds json"),
    ],
)
def test_find_id_names_the_folder_of_a_missing_module(module, remedy):
    with pytest.raises(ValueError, match=f"{remedy}$"):
        find_id(f"{module}:X-v0")
