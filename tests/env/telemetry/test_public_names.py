"""Declarations of the events, exports of the package, and the tables of its page."""

import inspect
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest
from esper_env import telemetry
from esper_env.telemetry import PAYLOADS, Detail, Payload, events
from esper_env.telemetry.jsonl import ENVELOPE, field_types
from made_events import snapshot

PAGE = Path(__file__).resolve().parents[3] / "docs" / "telemetry.md"
#: Names of field types on the page.
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


def test_every_public_name_is_exported():
    own = {name for name, kind in vars(events).items() if getattr(kind, "__module__", "") == events.__name__}
    assert {name for name in own if not name.startswith("_")} <= set(telemetry.__all__)


def test_payload_class_declares_its_type_and_rejects_a_duplicate(monkeypatch):
    monkeypatch.setattr(events, "PAYLOADS", {})

    def declare(module):
        return type("Felled", (Payload,), {"TYPE": "TREE_FELLED", "__module__": module})

    first = declare("forest")
    assert {"TREE_FELLED": first} == events.PAYLOADS
    with pytest.raises(TypeError, match="TYPE of Felled is 'TREE_FELLED', which Felled of forest declares;"):
        declare("garden")
    assert {"TREE_FELLED": first} == events.PAYLOADS
    again = declare("forest")  # a notebook cell runs again
    assert {"TREE_FELLED": again} == events.PAYLOADS


def test_default_sentence_lists_the_fields():
    assert snapshot().sentence() == "GOVERNOR_SNAPSHOT (val_loss 1.0, fossilized ('r0c0',))."


def test_importing_telemetry_loads_no_torch_and_starts_no_thread():
    code = (
        "import sys, threading, esper_env.telemetry as t\n"
        "hub = t.Telemetry(); hub.add_sink(t.MemorySink())\n"
        "print('torch' in sys.modules, threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "1"]


@pytest.mark.parametrize("kind", PAYLOADS.values(), ids=PAYLOADS)
def test_payloads_are_frozen_and_documented(kind):
    assert kind.__dataclass_params__.frozen
    assert all(field.kw_only for field in fields(kind))
    assert inspect.getdoc(kind) != inspect.getdoc(Payload)


def test_page_lists_every_event_with_its_severity_and_fields():
    rows = re.findall(r"^\| ([A-Z_]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    listed = {name: (severity, described) for name, severity, _, described in rows}
    expected = {}
    for name, kind in PAYLOADS.items():
        severity = f"{kind.SEVERITY}, full detail" if kind.DETAIL == Detail.FULL else str(kind.SEVERITY)
        described = ", ".join(f"`{field}` {WORDS[hint]}" for field, hint in field_types(kind).items())
        expected[name] = (severity, described)
    assert listed == expected
    assert len(rows) == len(expected)


def test_page_lists_the_keys_of_a_line_and_the_schema():
    page = PAGE.read_text(encoding="utf-8")
    keys = re.findall(r"^\| ([a-z]+) \| ", page.split("## Lines")[1].split("## Reading")[0], re.M)
    assert keys == ["key", *ENVELOPE]
    assert f"| schema | {telemetry.SCHEMA} |" in page
