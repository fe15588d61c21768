"""Tasks are frozen and JSON-typed; keyword arguments replace their settings, and unknown ones are rejected."""

import dataclasses
import inspect
import json

import pytest
from docstrings import documented
from esper_env import EsperEnv, EsperVectorEnv
from esper_env.rules.reward_config import RewardConfig
from esper_env.tasks import TASKS, CNNSpec, TaskConfig, TransformerSpec, make_task, task_dict

DIGITS = "Esper-Digits-v0"


def test_registered_tasks_have_documented_values():
    assert set(TASKS) == {
        "Esper-CIFAR-v0",
        "Esper-CIFAR-Deep-v0",
        "Esper-CIFAR-Impaired-v0",
        "Esper-CIFAR-Surfaces-v0",
        "Esper-Digits-v0",
        "Esper-Text-v0",
        "Esper-TinyStories-v0",
    }
    assert all(task.env_id == env_id for env_id, task in TASKS.items())


@pytest.mark.parametrize("env_id", TASKS)
def test_settings_of_a_task_are_json(env_id):
    numbers = task_dict(make_task(env_id, slots=["r0c0"], reward_weights={"rent_weight": 0.5}))
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["slots"] == ["r0c0"]
    assert numbers["host"] == dataclasses.asdict(TASKS[env_id].host)
    assert set(numbers) == {field.name for field in dataclasses.fields(TASKS[env_id])} - {"data"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", "digits"),
        ("data_dir", "somewhere"),
        ("seed_lr", 1),
        ("slots", ("r0c1",)),
        ("max_seeds", 1),
        ("gates", "strict"),
        ("reward_weights", {"rent_weight": 2.0}),
        ("shard_size", 4),
    ],
)
def test_keyword_argument_replaces_its_setting_alone(name, value):
    task = make_task(DIGITS, **{name: value})
    assert getattr(task, name) == value
    assert dataclasses.replace(task, **{name: getattr(TASKS[DIGITS], name)}) == TASKS[DIGITS]


def test_slots_from_json_become_a_tuple():
    assert make_task(DIGITS, slots=["r0c2", "r0c0"]).slots == ("r0c2", "r0c0")


def test_misspelt_keyword_argument_is_rejected_with_the_closest():
    with pytest.raises(
        TypeError, match="got an unexpected keyword argument 'horizn'; did you mean 'horizon'\\? known: dataset"
    ):
        make_task(DIGITS, horizn=3)


@pytest.mark.parametrize("name", ["host", "plateau_points", "num_envs"])
def test_make_rejects_fields_other_than_keyword_arguments(name):
    with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{name}'"):
        make_task(DIGITS, **{name: 1})


def test_unknown_id_is_rejected_with_the_known_ids():
    with pytest.raises(ValueError, match="environment 'Esper-MNIST-v0' is not known; expected one of Esper-CIFAR-v0"):
        make_task("Esper-MNIST-v0")
    with pytest.raises(ValueError, match=r"did you mean 'Esper-Text-v0'\?"):
        make_task("esper-text-v0")


@pytest.mark.parametrize("kind", [TaskConfig, CNNSpec, TransformerSpec, RewardConfig])
def test_every_field_is_documented(kind):
    assert documented(kind) == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", [EsperEnv, EsperVectorEnv])
def test_every_argument_of_an_environment_is_documented(kind):
    assert documented(kind) == set(inspect.signature(kind).parameters)
