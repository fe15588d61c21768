"""What the package exports, and what its page says about it."""

import inspect
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from esper_env import telemetry
from esper_env.telemetry import PAYLOADS, Detail, Payload, payloads, training_payloads
from made_events import epoch_completed, event

PAGE = Path(__file__).resolve().parents[3] / "docs" / "telemetry.md"
#: How the page calls the types of fields.
WORDS = {
    int: "integer",
    int | None: "integer or null",
    float: "number",
    float | None: "number or null",
    str: "text",
    bool: "true or false",
    tuple[str, ...]: "list of texts",
    Mapping[str, float]: "object of numbers",
    Mapping[str, str]: "object of texts",
}
#: Every type there is. A new one is added here, to the page and to what emits it.
TYPES = {
    "run": "TRAINING_STARTED EPISODE_COMPLETED EPOCH_COMPLETED",
    "seed": "SEED_GERMINATED SEED_STAGE_CHANGED SEED_GATE_EVALUATED SEED_FOSSILIZED SEED_PRUNED",
    "measurement": "COUNTERFACTUAL_COMPUTED HOST_STABILIZED",
    "command": "COMMAND_ISSUED COMMAND_SUCCEEDED COMMAND_REJECTED",
    "governor": "GOVERNOR_PANIC GOVERNOR_ROLLBACK GOVERNOR_SNAPSHOT",
    "machine": "ISOLATION_VIOLATION MEMORY_WARNING",
    "update": "PPO_UPDATE_COMPLETED NUMERICAL_INSTABILITY_DETECTED GRADIENT_ANOMALY_DETECTED ENTROPY_COLLAPSE_DETECTED",
    "policy": "RATIO_EXPLOSION_DETECTED RATIO_COLLAPSE_DETECTED VALUE_COLLAPSE_DETECTED",
    "trend": "PLATEAU_DETECTED DEGRADATION_DETECTED IMPROVEMENT_DETECTED REWARD_HACKING_SUSPECTED",
    "checkpoint": "CHECKPOINT_SAVED CHECKPOINT_LOADED",
}


def test_every_type_has_its_class():
    assert sorted(PAYLOADS) == sorted(" ".join(TYPES.values()).split())
    assert all(name == kind.TYPE for name, kind in PAYLOADS.items())
    assert len(set(PAYLOADS.values())) == len(PAYLOADS)


def test_every_public_name_is_exported():
    for name in telemetry.__all__:
        assert getattr(telemetry, name) is not None
    for module in (payloads, training_payloads):
        own = {name for name, kind in vars(module).items() if getattr(kind, "__module__", "") == module.__name__}
        assert own <= set(telemetry.__all__)
    assert {kind.__name__ for kind in PAYLOADS.values()} <= set(telemetry.__all__)


def test_importing_telemetry_loads_no_torch_and_starts_no_thread():
    code = (
        "import sys, threading, esper_env.telemetry as t\n"
        "hub = t.Telemetry(); hub.add_sink(t.MemorySink())\n"
        "print('torch' in sys.modules, threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "1"]


@pytest.mark.parametrize("kind", PAYLOADS.values(), ids=PAYLOADS)
def test_payloads_are_frozen_documented_and_of_json_types(kind):
    hints = get_type_hints(kind)
    assert all(hints[field.name] in WORDS and field.kw_only for field in fields(kind))
    assert kind.__dataclass_params__.frozen
    assert inspect.getdoc(kind) != inspect.getdoc(Payload)


def test_an_event_cannot_be_changed():
    made = event(3)
    with pytest.raises(AttributeError):
        made.id = 4
    with pytest.raises(AttributeError):
        epoch_completed().reward = 1.0
    assert not hasattr(made, "__dict__")


def test_the_page_lists_every_event_with_its_severity_and_fields():
    rows = re.findall(r"^\| ([A-Z_]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    listed = {name: (severity, described) for name, severity, _, described in rows}
    expected = {}
    for name, kind in PAYLOADS.items():
        hints = get_type_hints(kind)
        severity = f"{kind.SEVERITY}, full detail" if kind.DETAIL == Detail.FULL else str(kind.SEVERITY)
        described = ", ".join(f"`{field.name}` {WORDS[hints[field.name]]}" for field in fields(kind))
        expected[name] = (severity, described)
    assert listed == expected
    assert len(rows) == len(expected)


def test_the_page_names_the_keys_of_a_line_and_the_schema():
    page = PAGE.read_text(encoding="utf-8")
    keys = re.findall(r"^\| ([a-z]+) \| ", page.split("## Lines")[1].split("## Reading")[0], re.M)
    assert keys == ["key", "schema", "id", "type", "time", "env", "episode", "epoch", "slot", "severity", "payload"]
    assert f"| schema | {telemetry.SCHEMA} |" in page
