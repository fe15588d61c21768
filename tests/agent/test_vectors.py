"""Vectors of any registered id, also of one that a module of the user's registers."""

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
        ("Nothing-v0", "'Nothing-v0' is not a registered environment; expected one of Esper-CIFAR-v0"),
        ("Nothing-v0", "; a task of your own needs the module that registers it in front: my_tasks:Nothing-v0$"),
        ("no_such_module_here:Nothing-v0", "'no_such_module_here:Nothing-v0' names a module that cannot be imported"),
        ("math:Nothing-v0", "'Nothing-v0' is not a registered environment"),
        ("esper-digits-v0", r"expected one of .*; did you mean 'Esper-Digits-v0'\?"),
        (3, "3 is not a registered environment"),
    ],
)
def test_an_id_that_is_not_known_is_a_clear_error(env_id, message):
    with pytest.raises(ValueError, match=message):
        make_vector(env_id, 1, AutoresetMode.DISABLED)


@pytest.mark.parametrize(
    ("name", "meant"), [("Namd-v0", "{module}:Named-v0"), ("esper-digits-v0", "Esper-Digits-v0"), ("X-v0", None)]
)
def test_what_an_error_suggests_can_be_followed(named, name, meant):
    """The tasks that the module has registered are among the known ones, as they have to be written."""
    module = named.partition(":")[0]
    with pytest.raises(ValueError, match=f"expected one of {named}, Esper-CIFAR-v0, ") as caught:
        find_id(f"{module}:{name}")
    said = str(caught.value)
    assert "my_tasks" not in said
    suggested = re.search(r"did you mean '(.*)'\?$", said)
    if meant is None:
        assert suggested is None
    else:
        assert suggested.group(1) == meant.format(module=module)
        assert find_id(suggested.group(1)) in gymnasium.registry


def test_a_task_that_is_registered_already_is_suggested_without_its_module(named):
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
def test_the_path_of_a_module_is_told_how_to_be_written(named, module, instead):
    name, _, place = instead.partition("'")
    said = f"write '{name}:Named-v0'{place}"
    with pytest.raises(ValueError, match=f"has the path of a file in front; .*{said}$"):
        find_id(f"{module}:Named-v0")
    assert named.partition(":")[0] not in sys.modules


def test_the_command_says_so(capsys):
    assert main(["evaluate", "--policy", "wait", "--env", "no_such_module_here:X-v0", "--episodes", "1"]) == BAD_INPUT
    assert "cannot be imported" in capsys.readouterr().err


def script(folder, path, *arguments):
    """The command run in ``folder`` by a script in ``path``: as installed, without the current folder on its path."""
    code = "import sys\nfrom esper_agent.__main__ import main\nsys.exit(main())"
    (path / "esper").write_text(code, encoding="utf-8")
    command = [sys.executable, str(path / "esper"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_module_of_the_current_folder_is_found(tmp_path):
    for folder in ("bin", "work", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "work" / "my_named_tasks.py").write_text(MODULE, encoding="utf-8")
    arguments = ["evaluate", "--policy", "wait", "--env", "my_named_tasks:Named-v0", "--episodes", "1"]
    done = script(tmp_path / "work", tmp_path / "bin", *arguments)
    assert (done.returncode, done.stderr) == (OK, "")
    assert "Named-v0" in done.stdout
    done = script(tmp_path / "other", tmp_path / "bin", *arguments)
    assert done.returncode == BAD_INPUT
    assert "run the command in the folder that holds my_named_tasks" in done.stderr


def test_the_current_folder_comes_last_and_once(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for _ in range(2):
        sys.modules.pop("colorsys", None)
        with pytest.raises(ValueError, match="'X-v0' is not a registered"):
            find_id("colorsys:X-v0")
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_a_module_that_lacks_another_one_says_which(tmp_path, monkeypatch):
    (tmp_path / "lacking_tasks.py").write_text("import nowhere_to_be_found", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"No module named 'nowhere_to_be_found'$"):
        find_id("lacking_tasks:X-v0")


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
@pytest.mark.parametrize(
    "command",
    [
        ["train", "--out", "run"],
        ["evaluate", "--policy", "wait"],
        ["evaluate", "--policy", "random"],
        ["benchmark", "--policies", "wait", "--out", "b"],
    ],
)
def test_what_is_no_task_is_said(tmp_path, monkeypatch, capsys, command, env_id):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--env", env_id]) == BAD_INPUT
    error = capsys.readouterr().err
    assert f"Error: {env_id} is no Esper task" in error
    assert "Esper-CIFAR-Deep-v0, " in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("leaving", "said"),
    [("sys.exit(3)", "SystemExit(3);"), ("sys.exit()", "SystemExit();"), ("sys.exit('bye')", "SystemExit('bye');")],
)
def test_a_module_that_ends_the_process_is_told(tmp_path, monkeypatch, capsys, leaving, said):
    (tmp_path / "leaving_tasks.py").write_text(f"import sys\n{leaving}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["evaluate", "--policy", "wait", "--env", "leaving_tasks:X-v0"]) == BAD_INPUT
    error = " ".join(capsys.readouterr().err.split())
    assert "'leaving_tasks:X-v0' names a module that ends the process while it is imported: " + said in error


def test_where_the_current_folder_is_searched_already_it_is_not_added(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = ["", *(entry for entry in sys.path if entry)]
    monkeypatch.setattr(sys, "path", list(before))
    with pytest.raises(ValueError, match="'X-v0' is not a registered"):
        find_id("colorsys:X-v0")
    assert sys.path == before


def test_a_module_in_a_package_that_is_not_there_is_told_with_the_folder_to_run_in():
    with pytest.raises(ValueError, match=r"; install its package, or run the command in .* holds no_such$"):
        find_id("no_such.package.tasks:X-v0")


def test_a_module_that_its_package_lacks_is_told():
    with pytest.raises(ValueError, match=r"No module named 'json\.tasks'; .* in the folder that holds json$"):
        find_id("json.tasks:X-v0")
