"""Configuration files set what they name, and a typo is never silently ignored."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from esper_agent.settings.config_file import (
    ConfigError,
    parse_assignments,
    parse_env_settings,
    plain,
    read_config,
    training_env_settings,
    with_values,
)
from esper_env.rules.reward_config import GAMMA


@dataclass(frozen=True)
class Inner:
    learning_rate: float = 1e-3
    target_kl: float | None = 0.1


@dataclass(frozen=True)
class Outer:
    out: Path = Path("x")
    num_envs: int = 4
    progress: bool = True
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def test_values_replace_defaults_at_every_depth():
    values = {"num-envs": 8, "progress": False, "kind": "b", "names": ["p", "q"], "out": "runs/y"}
    settings = with_values(Outer(), values | {"inner": {"learning_rate": 5}}, "file")
    assert settings == Outer(Path("runs/y"), 8, False, "b", ("p", "q"), Inner(learning_rate=5.0))
    assert isinstance(settings.inner.learning_rate, float)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert yaml.safe_load("3e-4") == "3e-4"
    assert with_values(Outer(), {"inner": {"learning_rate": "3e-4"}}, "file").inner.learning_rate == 3e-4


def test_values_are_taken_flat_and_dotted_as_well_as_nested():
    wanted = with_values(Outer(), {"inner": {"learning_rate": 5, "target_kl": 1}}, "file")
    assert with_values(Outer(), {"learning-rate": 5, "inner.target_kl": 1}, "file") == wanted


def test_a_mapping_is_taken_as_assignments():
    settings = with_values(Outer(), {"names": {"horizon": 10, "gates": "strict", "shard_size": None}}, "file")
    assert parse_assignments(settings.names) == {"horizon": 10, "gates": "strict", "shard_size": None}


def test_a_whole_number_may_be_written_with_an_exponent():
    assert with_values(Outer(), {"num_envs": yaml.safe_load("1e3")}, "file").num_envs == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("a: 1\na: 2\n", "'a' is given twice"), ("{b: {c: 1, c: 2}}", "'c' is given")],
)
def test_a_file_that_does_not_say_what_is_meant_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.yaml")


def test_a_setting_given_twice_or_not_of_the_environment_is_refused():
    with pytest.raises(ConfigError, match="setting 'horizon' is given twice"):
        parse_assignments(("horizon=4", "horizon=8"))
    with pytest.raises(ConfigError, match="env_settings names 'num_envs', which is not a setting of the environment"):
        parse_env_settings(("num_envs=3",))
    assert parse_env_settings(("horizon=4", "max_episode_steps=2")) == {"horizon": 4, "max_episode_steps": 2}


def test_null_is_allowed_where_it_means_something():
    assert with_values(Outer(), {"inner": {"target_kl": None}}, "file").inner.target_kl is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_env": 3}, r"file: 'num_env' is not a setting; did you mean 'num_envs'\?"),
        (
            {"inner": {"learningrate": 3}},
            r"'inner.learningrate' is not a setting; did you mean 'inner.learning_rate'\?",
        ),
        ({"learnin_rate": 3}, r"'learnin_rate' is not a setting; did you mean 'inner.learning_rate'\?"),
        ({"learning_rate": 3, "inner": {"learning_rate": 4}}, r"'inner.learning_rate' is given twice"),
        ({"num-envs": 3, "num_envs": 4}, r"'num_envs' is given twice"),
        ({"zzz": 3}, "the settings are out, num_envs, progress, kind, names, inner.learning_rate, inner.target_kl"),
        ({"num_envs": "many"}, "file: num_envs is 'many'; expected a whole number"),
        ({"num_envs": 2.5}, r"num_envs is 2\.5; expected a whole number"),
        ({"num_envs": True}, "num_envs is True; expected a whole number"),
        ({"progress": 1}, "progress is 1; expected true or false"),
        ({"kind": "c"}, "kind is 'c'; expected 'a' or 'b'"),
        ({"names": "p"}, "names is 'p'; expected a list such as"),
        ({"inner": {"target_kl": "low"}}, r"inner\.target_kl is 'low'; expected a number or null"),
        ({"inner": 3}, "inner is 3; expected `name: value` pairs"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        with_values(Outer(), values, "file")


def test_saved_settings_can_be_read_back(tmp_path):
    settings = Outer(Path("runs/y"), 8, names=("p",), inner=Inner(target_kl=None))
    for name, text in (("c.yaml", yaml.safe_dump(plain(settings))), ("c.json", json.dumps(plain(settings)))):
        (tmp_path / name).write_text(text)
        assert with_values(Outer(), read_config(tmp_path / name), name) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "holds a list; expected `name: value` pairs"), ("a: [1", "is neither YAML nor JSON")],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")


def test_assignments_are_read_as_yaml():
    parsed = parse_assignments(("horizon=20", "gates=strict", "slots=[r0c0]", "reward_weights={rent: 0.1}"))
    assert parsed == {"horizon": 20, "gates": "strict", "slots": ["r0c0"], "reward_weights": {"rent": 0.1}}


@pytest.mark.parametrize("text", ["horizon", "=3"])
def test_assignments_need_a_name_and_a_value(text):
    with pytest.raises(ConfigError, match="is not of the form NAME=VALUE"):
        parse_assignments((text,))


def test_an_assignment_that_is_no_yaml_is_refused():
    with pytest.raises(ConfigError, match=r"the value of 'slots' in .* is not readable"):
        parse_assignments(("slots=[r0c0",))


def test_the_environment_a_policy_learns_in_takes_over_its_discount():
    given = ("horizon=4", "reward_weights={op_cost: 0.0, gamma: 0.9}")
    weights = {"op_cost": 0.0, "gamma": 0.9}
    assert training_env_settings(given, 0.9) == {"horizon": 4, "reward_weights": weights}
    assert training_env_settings(("horizon=4",), GAMMA) == {"horizon": 4}
    assert training_env_settings(("reward_weights=3",), 0.9) == {"reward_weights": 3}, "the environment refuses it"
    with pytest.raises(ConfigError, match=r"gamma 0\.9, and the policy learns with 0\.98; give gamma alone"):
        training_env_settings(given, 0.98)
