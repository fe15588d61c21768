"""Tasks: frozen, JSON-typed, every number replaceable, and nothing unknown accepted."""

import dataclasses
import json

import pytest
from esper_env.tasks import TASK_KWARGS, TASKS, make_task, task_dict

DIGITS = "Esper-Digits-v0"


def test_the_registered_tasks():
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
def test_a_task_is_frozen(env_id):
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS[env_id].horizon = 3


@pytest.mark.parametrize("env_id", TASKS)
def test_a_tasks_numbers_are_json(env_id):
    numbers = task_dict(make_task(env_id, slots=["r0c0"], reward_weights={"rent_weight": 0.5}))
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["slots"] == ["r0c0"]
    assert numbers["host"] == dataclasses.asdict(TASKS[env_id].host)
    assert set(numbers) == {field.name for field in dataclasses.fields(TASKS[env_id])} - {"data"}


def test_the_keyword_arguments_are_the_documented_ones():
    documented = (
        "dataset data_dir batch_size batches_per_step horizon host_lr seed_lr slots max_seeds gates reward_mode "
        "reward_weights param_budget device shard_size"
    )
    assert set(documented.split()) <= set(TASK_KWARGS)
    assert set(TASK_KWARGS) <= {field.name for field in dataclasses.fields(TASKS[DIGITS])}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", "digits"),
        ("data_dir", "somewhere"),
        ("batch_size", 5),
        ("batches_per_step", 2),
        ("horizon", 9),
        ("host_lr", 0.5),
        ("seed_lr", 1),
        ("slots", ("r0c1",)),
        ("max_seeds", 1),
        ("gates", "strict"),
        ("isolation", "straight_through"),
        ("reward_mode", "sparse"),
        ("reward_weights", {"rent_weight": 2.0}),
        ("param_budget", 10),
        ("device", "cpu"),
        ("shard_size", 4),
    ],
)
def test_every_keyword_argument_replaces_its_number_and_no_other(name, value):
    task = make_task(DIGITS, **{name: value})
    assert getattr(task, name) == value
    assert dataclasses.replace(task, **{name: getattr(TASKS[DIGITS], name)}) == TASKS[DIGITS]


def test_slots_from_json_become_a_tuple():
    assert make_task(DIGITS, slots=["r0c2", "r0c0"]).slots == ("r0c2", "r0c0")


def test_a_misspelt_keyword_argument_names_the_right_one():
    with pytest.raises(TypeError, match="has no keyword argument 'horizn'; did you mean 'horizon'\\? known: dataset"):
        make_task(DIGITS, horizn=3)


@pytest.mark.parametrize("name", ["host", "family", "plateau_points", "num_envs"])
def test_what_is_no_keyword_argument_of_a_task_is_refused(name):
    with pytest.raises(TypeError, match=f"has no keyword argument '{name}'"):
        make_task(DIGITS, **{name: 1})


def test_an_unknown_id_names_the_known_ones():
    with pytest.raises(ValueError, match="environment 'Esper-MNIST-v0' is not known; expected one of Esper-CIFAR-v0"):
        make_task("Esper-MNIST-v0")
    with pytest.raises(ValueError, match=r"did you mean 'Esper-Text-v0'\?"):
        make_task("esper-text-v0")


@pytest.mark.parametrize("name", ["batch_size", "batches_per_step", "horizon", "param_budget"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, None])
def test_counts_are_whole_numbers_of_at_least_one(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}; expected a whole number of at least 1"):
        make_task(DIGITS, **{name: value})


@pytest.mark.parametrize("name", ["host_lr", "seed_lr"])
@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf"), "fast", True, None])
def test_learning_rates_are_positive_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}; expected a positive number"):
        make_task(DIGITS, **{name: value})


def test_batch_normalisation_needs_two_samples():
    with pytest.raises(ValueError, match="batch_size is 1; batch normalisation needs at least 2 samples"):
        make_task(DIGITS, batch_size=1)


@pytest.mark.parametrize("value", [0, -3, "all", True])
def test_a_shard_holds_at_least_one_network(value):
    with pytest.raises(ValueError, match=f"shard_size is {value!r}; expected 'auto' or a whole number"):
        make_task(DIGITS, shard_size=value)


def test_slots_given_as_one_word_are_an_error():
    with pytest.raises(ValueError, match=r"slots is 'r0c0'; expected a list of slot ids such as \['r0c0', 'r0c1'\]"):
        make_task(DIGITS, slots="r0c0")
