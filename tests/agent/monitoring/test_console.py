"""Warnings and errors as sentences on a terminal."""

import io
from types import SimpleNamespace

import pytest
from esper_agent.monitoring.console import ConsoleSink
from esper_agent.monitoring.payloads import (
    CheckpointSaved,
    DegradationDetected,
    EntropyCollapse,
    GradientAnomaly,
    NumericalInstability,
    PlateauDetected,
    RatioCollapse,
    RatioExplosion,
    RewardHackingSuspected,
    ValueCollapse,
)
from esper_env.telemetry import (
    PAYLOADS,
    GovernorPanic,
    GovernorRollback,
    IsolationViolation,
    MemoryWarning,
    Severity,
)
from rich.console import Console

NAN = float("nan")


def event(payload, severity=None, **where):
    place = dict.fromkeys(("env", "episode", "epoch", "slot")) | where
    # 2023-11-14 22:13:20 UTC
    severity = payload.SEVERITY if severity is None else severity
    return SimpleNamespace(id=1, time=1.7e9, type=payload.TYPE, severity=severity, payload=payload, **place)


TREND = {"timesteps": 640, "rollouts": 3}
PLATEAU = PlateauDetected(change=0.1, recent=50.0, previous=49.9, **TREND)
HACKING = RewardHackingSuspected(signature="overpaid", paid=31.25, improvement=0.0, ratio=None)
BROKEN = NumericalInstability(timesteps=640, quantity="loss [x]", value=NAN, threshold=None)


def anomaly(kind, quantity, value, threshold):
    return kind(timesteps=320, quantity=quantity, value=value, threshold=threshold)


def panic(reason, loss, threshold):
    return GovernorPanic(reason=reason, loss=loss, threshold=threshold, panics=2)


def rollback(*pruned):
    rest = {"rollbacks": 2, "snapshot_epoch": 10, "skipped_op": "ADVANCE"}
    return GovernorRollback(**vars(panic("non-finite", NAN, None)), pruned=pruned, **rest)


COLLAPSE = anomaly(ValueCollapse, "explained_variance", 0.005578, 0.1)
MEMORY = MemoryWarning(kind="resident", used_mib=14500.4, limit_mib=14400.0)

#: Payloads and their sentences.
SENTENCES = [
    (panic("non-finite", NAN, None), "the network is not finite (validation loss nan); panic 2 in a row."),
    (panic("collapse", 2.31, 2.3), "the validation loss 2.31 is back at that of guessing (2.3); panic 2 in a row."),
    (panic("divergence", 9.0, 4.5), "the validation loss 9 diverges (threshold 4.5); panic 2 in a row."),
    (
        rollback("r0c0", "r0c2"),
        "the network is not finite (validation loss nan); the governor restored the snapshot of epoch 10, pruned the "
        "seeds in r0c0, r0c2 and skipped ADVANCE (rollback 2 of this episode).",
    ),
    (
        IsolationViolation(slots=("r0c0", "r0c1"), what="outputs"),
        "a seed in TRAINING in r0c0 or r0c1 changed the outputs of its host.",
    ),
    (MEMORY, "the resident memory in use is 14,500 MiB (threshold 14,400 MiB)."),
    (
        anomaly(RatioExplosion, "alpha_target_ratio_high", 7.25, 5.0),
        "the 95% quantile of the alpha target head's probability ratios is 7.25 (threshold 5).",
    ),
    (
        anomaly(RatioCollapse, "op_ratio_low", 0.0123, 0.1),
        "the 5% quantile of the op head's probability ratios is 0.0123 (threshold 0.1).",
    ),
    (COLLAPSE, "the critic explains only 0.6% of the return variance (threshold 10%)."),
    (
        anomaly(ValueCollapse, "explained_variance", -3.0, 0.1),
        "the critic explains only -300.0% of the return variance (threshold 10%).",
    ),
    (
        anomaly(ValueCollapse, "explained_variance", NAN, None),
        "the critic explains only nan% of the return variance.",
    ),
    (anomaly(NumericalInstability, "skipped_updates", 2.0, 0.0), "training skipped 2 updates that were not finite."),
    (BROKEN, "the policy's loss [x] is nan; expected a finite number."),
    (anomaly(GradientAnomaly, "grad_norm", 123.4, 100.0), "the mean norm of the gradients is 123 (threshold 100)."),
    (
        anomaly(EntropyCollapse, "op_choice_entropy", 0.15, 0.2),
        "the op head has stopped exploring: its normalised entropy is 0.15 (threshold 0.2).",
    ),
    (PLATEAU, "the committed accuracy changed from 49.9% to 50.0% (+0.1 points; means of 3 rollouts)."),
    (
        DegradationDetected(change=-3.0, recent=43.0, previous=46.0, **TREND),
        "the committed accuracy changed from 46.0% to 43.0% (-3.0 points; means of 3 rollouts).",
    ),
    (HACKING, "the episode was rewarded with 31.2 points for growth, but its committed seeds are worth 0.0."),
    (
        RewardHackingSuspected(signature="ransomware", paid=15.0, improvement=-10.0, ratio=None),
        "removing the seed would cost 15.0 points of accuracy, but the accuracy is 10.0 points lower than before the "
        "seed was planted.",
    ),
]


def shown(*events, most=10):
    stream = io.StringIO()
    sink = ConsoleSink(Console(file=stream, width=20), most)
    sink.write(events[:3])
    sink.write(events[3:])
    sink.close()
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(("payload", "sentence"), SENTENCES, ids=lambda value: getattr(value, "TYPE", ""))
def test_payload_is_a_sentence(payload, sentence):
    assert payload.sentence() == sentence


def test_console_types_all_have_a_tested_sentence():
    shown_types = {name for name, kind in PAYLOADS.items() if kind.SEVERITY is not Severity.INFO}
    assert shown_types <= {payload.TYPE for payload, _ in SENTENCES}


def test_line_has_time_severity_place_and_sentence():
    assert shown(event(HACKING, env=3, episode=7, epoch=40, slot="r0c0"), event(COLLAPSE), event(MEMORY)) == [
        f"22:13:20 Warning in environment 3, episode 7, epoch 40, slot r0c0: {HACKING.sentence()}",
        "22:13:20 Warning at step 320: the critic explains only 0.6% of the return variance (threshold 10%).",
        f"22:13:20 Warning: {MEMORY.sentence()}",
    ]


def test_console_shows_only_warnings_and_errors_and_no_markup():
    saved = CheckpointSaved(path="checkpoints/1", timesteps=1024)
    lines = shown(event(PLATEAU), event(BROKEN), event(saved, Severity.WARNING))
    assert lines == [
        "22:13:20 Error at step 640: the policy's loss [x] is nan; expected a finite number.",
        "22:13:20 Warning at step 1,024: CHECKPOINT_SAVED (path checkpoints/1, timesteps 1024).",
    ]


def test_console_shows_the_first_events_of_a_type_and_counts_all():
    lines = shown(*[event(HACKING)] * 1_003, event(BROKEN), most=2)
    assert [line.split()[1].strip(":") for line in lines if line.startswith("22:13")] == ["Warning", "Warning", "Error"]
    assert lines[2] == "Further REWARD_HACKING_SUSPECTED events are counted but not shown."
    assert lines[-1] == "There were 1,003 REWARD_HACKING_SUSPECTED events."
    assert len(lines) == 5
