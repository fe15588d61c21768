"""Configuration files set what they name, and a typo is never silently ignored."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from esper_agent.configuration import ConfigError, parse_assignments, plain, read_config, with_values


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
        ({"learning_rate": 3}, r"'learning_rate' is not a setting; did you mean 'inner.learning_rate'\?"),
        ({"zzz": 3}, "the settings are out, num_envs, progress, kind, names, inner.learning_rate, inner.target_kl"),
        ({"num_envs": "many"}, "file: num_envs is 'many'; expected int"),
        ({"num_envs": 2.5}, r"num_envs is 2\.5; expected int"),
        ({"num_envs": True}, "num_envs is True; expected int"),
        ({"progress": 1}, "progress is 1; expected bool"),
        ({"kind": "c"}, "kind is 'c'; expected 'a' or 'b'"),
        ({"names": "p"}, "names is 'p'; expected a list of str"),
        ({"inner": {"target_kl": "low"}}, r"inner\.target_kl is 'low'; expected float or null"),
        ({"inner": 3}, "inner is 3; expected Inner"),
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
