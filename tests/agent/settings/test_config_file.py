"""Configuration files set the values that they name, and reject unknown names."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from esper_agent.settings.config_file import plain, read_config, with_values
from esper_agent.settings.named_values import (
    ConfigError,
    NamedValues,
    parse_assignments,
    parse_env_settings,
    training_env_settings,
)
from esper_env.checks import POSITIVE
from esper_env.rules.reward_config import GAMMA


@dataclass(frozen=True)
class Inner:
    learning_rate: Annotated[float, POSITIVE] = 1e-3
    target_kl: float | None = 0.1


@dataclass(frozen=True)
class Outer:
    out: Path = Path("x")
    num_envs: Annotated[int, POSITIVE] = 4
    progress: bool = True
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    values: NamedValues = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def test_values_replace_defaults_at_every_depth():
    values = {"num_envs": 8, "progress": False, "kind": "b", "names": ["p", "q"], "out": "runs/y"}
    settings = with_values(Outer(), values | {"inner": {"learning_rate": 5, "target_kl": None}}, "file")
    assert settings == Outer(Path("runs/y"), 8, False, "b", ("p", "q"), {}, Inner(5.0, None))
    assert isinstance(settings.inner.learning_rate, float)


def test_numbers_that_yaml_reads_as_text_are_converted():
    assert (yaml.safe_load("3e-4"), yaml.safe_load("1e3")) == ("3e-4", "1e3")
    settings = with_values(Outer(), {"num_envs": "1e3", "inner": {"learning_rate": "3e-4"}}, "file")
    assert (settings.num_envs, settings.inner.learning_rate) == (1000, 3e-4)


@pytest.mark.parametrize("given", [{"horizon": 10, "gates": "strict"}, ["horizon=10", "gates=strict"]])
def test_named_values_are_a_mapping_or_a_list_of_texts(given):
    assert with_values(Outer(), {"values": given}, "file").values == {"horizon": 10, "gates": "strict"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a: 1\na: 2\n", "'a' is given twice"),
        ("{b: {c: 1, c: 2}}", "'c' is given"),
        ("- a\n- b\n", "holds a list; expected `name: value` pairs"),
        ("a: [1", "is neither YAML nor JSON"),
        ("a: 2001-99-99", "is neither YAML nor JSON: month must be in"),
        ("[" * 20_000, "is neither YAML nor JSON: maximum recursion depth"),
    ],
)
def test_read_config_rejects_files_without_a_mapping(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_env": 3}, r"file: 'num_env' is not a setting; did you mean 'num_envs'\?"),
        ({"inner": {"learningrate": 3}}, "'inner.learningrate' is not .* mean `inner: {learning_rate: ...}`"),
        ({"inner.learning_rate": 3}, "'inner.learning_rate' is not .* mean `inner: {learning_rate: ...}`"),
        (
            {"zzz": 3},
            "the settings are 'out', 'num_envs', .*, `inner: {learning_rate: ...}`, `inner: {target_kl: ...}`",
        ),
        ({"num_envs": "many"}, "file: `num_envs` is 'many'; expected a positive integer"),
        ({"num_envs": True}, "`num_envs` is True; expected a positive integer"),
        ({"values": [3]}, r"^file: `values` is \[3\]; expected `name: value` pairs, or a list such as"),
        ({"values": ["x"]}, "'x' is not of the form NAME=VALUE"),
        ({"inner": {"target_kl": "low"}}, r"`inner\.target_kl` is 'low'; expected a finite number or null"),
        ({"inner": {"target_kl": 10**400}}, r"`inner\.target_kl` is 1000"),
        ({"inner": 3}, "`inner` is 3; expected `name: value` pairs"),
    ],
)
def test_with_values_rejects_unknown_names_and_bad_values(values, message):
    with pytest.raises(ConfigError, match=message):
        with_values(Outer(), values, "file")


def test_saved_settings_can_be_read_back(tmp_path):
    settings = Outer(Path("runs/y"), 8, names=("p",), values={"horizon": 4}, inner=Inner(target_kl=None))
    for name, text in (("c.yaml", yaml.safe_dump(plain(settings))), ("c.json", json.dumps(plain(settings)))):
        (tmp_path / name).write_text(text)
        assert with_values(Outer(), read_config(tmp_path / name), name) == settings


def test_read_config_names_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")


def test_assignments_are_read_as_yaml():
    parsed = parse_assignments(("horizon=20", "gates=strict", "slots=[r0c0]", "reward_weights={rent: 0.1}"))
    assert parsed == {"horizon": 20, "gates": "strict", "slots": ["r0c0"], "reward_weights": {"rent": 0.1}}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["horizon"], "is not of the form NAME=VALUE"),
        (["=3"], "is not of the form NAME=VALUE"),
        (["slots=[r0c0"], "the value of 'slots' in .* is not valid YAML"),
        (["horizon=4", "horizon=8"], "setting 'horizon' is given twice"),
        (["num_envs=3"], "`env_settings` has 'num_envs', which is not a setting of the environment"),
        ("horizon=4", "`env_settings` is 'horizon=4'; expected `name: value` pairs"),
        ({3: 4}, "`env_settings` is {3: 4}; expected `name: value` pairs"),
    ],
)
def test_parse_env_settings_rejects_malformed_input(texts, message):
    with pytest.raises(ConfigError, match=message):
        parse_env_settings(texts)


def test_training_environment_has_the_discount_of_the_learner():
    given = ("horizon=4", "reward_weights={op_cost: 0.0, gamma: 0.9}")
    weights = {"op_cost": 0.0, "gamma": 0.9}
    assert training_env_settings(given, 0.9) == {"horizon": 4, "reward_weights": weights}
    assert training_env_settings(("horizon=4",), GAMMA) == {"horizon": 4}
    assert training_env_settings(("reward_weights=3",), 0.9) == {"reward_weights": 3}, "the environment rejects it"
    with pytest.raises(ConfigError, match=r"gamma 0\.9, but the policy learns with 0\.98; set only the policy's gamma"):
        training_env_settings(given, 0.98)
