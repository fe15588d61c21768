"""Registration of the ids, and exports of the package."""

import importlib
import subprocess
import sys

import esper_env
import gymnasium
import pytest


def test_reload_keeps_the_registered_specs():
    before = {env_id: gymnasium.spec(env_id) for env_id in esper_env.ENV_IDS}
    importlib.reload(esper_env)
    assert all(gymnasium.spec(env_id) is spec for env_id, spec in before.items())


def test_import_keeps_a_users_registration_of_the_same_id():
    env_id = "Esper-Digits-v0"
    original = gymnasium.registry.pop(env_id)
    try:
        gymnasium.register(env_id, entry_point="somewhere:Else")
        importlib.reload(esper_env)
        assert gymnasium.spec(env_id).entry_point == "somewhere:Else"
    finally:
        gymnasium.registry[env_id] = original


def test_blueprints_of_the_package_are_registered_without_trials():
    code = (
        "import sys, esper_env\n"
        "print(len(esper_env.action('wait')), 'torch' in sys.modules)\n"
        "from esper_env.seeds import offered_blueprints\n"
        "print(*(len(offered_blueprints(name)) for name in ('cnn', 'transformer')))\n"
        "print([name for name in sys.modules if name.startswith(('esper_env.extension', 'esper_env.population'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["8 False", "7 7", "[]"]


def test_exports_are_available():
    for name in esper_env.__all__:
        assert getattr(esper_env, name) is not None
    assert issubclass(esper_env.EsperEnv, gymnasium.Env)
    assert issubclass(esper_env.EsperVectorEnv, gymnasium.vector.VectorEnv)
    with pytest.raises(AttributeError, match="EsperEnvironment"):
        _ = esper_env.EsperEnvironment
