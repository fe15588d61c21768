"""Warnings and errors as lines on a terminal."""

import io
from types import SimpleNamespace

from esper_agent.monitoring.console import ConsoleSink
from esper_env.telemetry import NumericalInstability, PlateauDetected, RewardHackingSuspected, Severity
from rich.console import Console


def event(payload, severity=None, **where):
    place = dict.fromkeys(("env", "episode", "epoch", "slot")) | where
    # 2023-11-14 22:13:20 UTC
    severity = payload.SEVERITY if severity is None else severity
    return SimpleNamespace(id=1, time=1.7e9, type=payload.TYPE, severity=severity, payload=payload, **place)


PLATEAU = PlateauDetected(timesteps=640, change=0.1, recent=50.0, previous=49.9, batches=3)
HACKING = RewardHackingSuspected(signature="overpaid", paid=31.25, improvement=0.0, ratio=None)
BROKEN = NumericalInstability(timesteps=640, quantity="loss [x]", value=float("nan"), threshold=None)


def shown(*events):
    stream = io.StringIO()
    sink = ConsoleSink(Console(file=stream, width=20))
    sink.write(events)
    sink.close()
    return stream.getvalue().splitlines()


def test_a_line_has_time_type_place_and_numbers():
    (line,) = shown(event(HACKING, env=3, episode=7, epoch=40))
    assert line == (
        "22:13:20 REWARD_HACKING_SUSPECTED env 3  episode 7  epoch 40  signature overpaid  paid 31.25  improvement 0"
    )


def test_only_warnings_and_worse_are_shown_and_nothing_is_taken_for_markup():
    lines = shown(event(PLATEAU), event(BROKEN), event(PLATEAU, Severity.WARNING))
    assert lines == [
        "22:13:20 NUMERICAL_INSTABILITY_DETECTED timesteps 640  quantity loss [x]  value nan",
        "22:13:20 PLATEAU_DETECTED timesteps 640  change 0.1  recent 50  previous 49.9  batches 3",
    ]


def test_of_each_type_the_first_are_shown_and_all_are_counted():
    stream = io.StringIO()
    sink = ConsoleSink(Console(file=stream, width=20), most=2)
    sink.write([event(HACKING)] * 3)
    sink.write([event(HACKING)] * 1_000 + [event(BROKEN)])
    sink.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("22:13")] == [HACKING.TYPE] * 2 + [BROKEN.TYPE]
    assert lines[2] == "REWARD_HACKING_SUSPECTED: more of them are only counted"
    assert lines[-1] == "REWARD_HACKING_SUSPECTED: 1,003 in all"
    assert len(lines) == 5
