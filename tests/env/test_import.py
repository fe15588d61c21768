"""Importing the package registers the environments and costs nothing else."""

import importlib
import os
import subprocess
import sys

import esper_env
import gymnasium
import pytest


def run_python(code: str) -> str:
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_registers_every_id_and_loads_no_torch():
    out = run_python(
        "import sys, esper_env, gymnasium\n"
        "print([m for m in ('torch', 'sklearn', 'esper_env.vector_env') if m in sys.modules])\n"
        "print(sorted(i for i in gymnasium.registry if i.startswith('Esper-')))"
    )
    loaded, registered = out.splitlines()
    assert loaded == "[]"
    assert registered == str(
        [
            "Esper-CIFAR-Deep-v0",
            "Esper-CIFAR-Impaired-v0",
            "Esper-CIFAR-Surfaces-v0",
            "Esper-CIFAR-v0",
            "Esper-Digits-v0",
            "Esper-Text-v0",
            "Esper-TinyStories-v0",
        ]
    )


def test_an_id_with_the_module_in_front_needs_no_import():
    out = run_python("import gymnasium\nenv = gymnasium.make('esper_env:Esper-Digits-v0')\nprint(env.unwrapped)")
    assert "Esper-Digits-v0" in out


def test_registering_again_changes_nothing():
    before = {env_id: gymnasium.spec(env_id) for env_id in esper_env.ENV_IDS}
    importlib.reload(esper_env)
    assert all(gymnasium.spec(env_id) is spec for env_id, spec in before.items())


def test_a_users_registration_of_the_same_id_is_left_alone():
    env_id = "Esper-Digits-v0"
    original = gymnasium.registry.pop(env_id)
    try:
        gymnasium.register(env_id, entry_point="somewhere:Else")
        importlib.reload(esper_env)
        assert gymnasium.spec(env_id).entry_point == "somewhere:Else"
    finally:
        gymnasium.registry[env_id] = original


def test_public_names_are_there():
    for name in esper_env.__all__:
        assert getattr(esper_env, name) is not None
    assert issubclass(esper_env.EsperEnv, gymnasium.Env)
    assert issubclass(esper_env.EsperVectorEnv, gymnasium.vector.VectorEnv)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="EsperEnvironment"):
        _ = esper_env.EsperEnvironment
