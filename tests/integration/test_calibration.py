"""The calibration of the stand-in for CIFAR: what is judged, and that what is written down is what was measured."""

import importlib
import json
from pathlib import Path

import pytest
from esper_agent.cli import BAD_INPUT, FAILED, OK

TASKS = Path(__file__).resolve().parents[2] / "benchmarks" / "tasks"


@pytest.fixture
def calibration(monkeypatch):
    monkeypatch.syspath_prepend(str(TASKS))
    return importlib.import_module("calibration")


def plans(calibration, host=45.0, single=50.0, grown=70.0, **others):
    """Accuracies by plan: one for every single seed, one for every topology; ``others`` by plan."""
    found = {
        calibration.HOST: host,
        **dict.fromkeys(calibration.SINGLE, single),
        **dict.fromkeys(calibration.GROWN, 60),
    }
    found[calibration.GROWN[-1]] = grown
    return {plan: {"test_accuracy_mean": value} for plan, value in (found | others).items()}


def judged(calibration, impaired=20.0, changes=None, **accuracies):
    verdicts = calibration.judge(
        plans(calibration, **accuracies) | (changes or {}), {"host alone": {"test_accuracy_mean": impaired}}
    )
    return [verdict["met"] for verdict in verdicts], verdicts


def test_a_calibrated_task_meets_every_target(calibration):
    met, verdicts = judged(calibration, single=52.0)
    assert met == [True] * 6
    assert [verdict["value"] for verdict in verdicts] == [45.0, 70.0, 20.0, pytest.approx(7 / 25), 7, 3]
    assert verdicts[1]["plan"] == calibration.GROWN[-1]


@pytest.mark.parametrize(
    ("accuracies", "missed"),
    [
        ({"host": 50.1, "single": 56.0}, 0),
        ({"host": 39.0, "single": 50.0}, 0),
        ({"grown": 64.9}, 1),
        ({"grown": 75.1, "single": 54.0}, 1),
        ({"impaired": 17.9}, 2),
        ({"impaired": 25.1}, 2),
    ],
)
def test_a_range_that_is_left_is_missed(calibration, accuracies, missed):
    met, _ = judged(calibration, **({"single": 52.0} | accuracies))
    assert met == [index != missed for index in range(6)]


def test_one_seed_that_explains_the_gain_is_missed(calibration):
    met, verdicts = judged(calibration, single=46.0, changes={"r0c0=conv_heavy": {"test_accuracy_mean": 63.0}})
    assert met == [True, True, True, False, False, False]
    assert [verdict["value"] for verdict in verdicts[3:]] == [pytest.approx(18 / 25), 1, 1]
    assert verdicts[3]["plan"] == "r0c0=conv_heavy"


def test_every_blueprint_is_tried_in_every_slot(calibration):
    assert len(set(calibration.SINGLE)) == 7 * 3
    assert {"r0c0=norm", "r0c1=bottleneck", "r0c2=conv_heavy"} <= set(calibration.SINGLE)


def written(calibration, folder, **accuracies):
    """The measurements of both tasks as files in a folder; the path of the verdicts."""
    out = folder / "verdicts.json"
    impaired = {"host alone": {"test_accuracy_mean": accuracies.pop("impaired", 20.0)}}
    for content, file in zip(
        (plans(calibration, **accuracies), impaired), calibration.files(out).values(), strict=True
    ):
        file.write_text(json.dumps({"machine": "a machine", "plans": content}), encoding="utf-8")
    return out


def test_files_that_are_there_are_judged(calibration, tmp_path, capsys):
    out = written(calibration, tmp_path, single=52.0)
    assert calibration.main(["--out", str(out), "--judge-only"]) == OK
    content = json.loads(out.read_text(encoding="utf-8"))
    assert (content["machine"], len(content["verdicts"])) == ("a machine", 6)
    assert content["command"].endswith("--judge-only")
    assert "40 to 50" in capsys.readouterr().out


def test_a_missed_target_is_written_down_and_fails(calibration, tmp_path):
    out = written(calibration, tmp_path, single=52.0, impaired=10.0)
    assert calibration.main(["--out", str(out), "--judge-only"]) == FAILED
    assert [one["met"] for one in json.loads(out.read_text(encoding="utf-8"))["verdicts"]].count(False) == 1


def test_nothing_to_judge_is_bad_input(calibration, tmp_path, capsys):
    assert calibration.main(["--out", str(tmp_path / "verdicts.json"), "--judge-only"]) == BAD_INPUT
    assert "headroom-cifar-v0.json is not there; measure first" in capsys.readouterr().err


def test_a_result_in_place_of_a_measurement_is_bad_input(calibration, tmp_path, capsys):
    assert calibration.main(["--out", str(tmp_path / "headroom-cifar-v0.json")]) == BAD_INPUT
    assert "expected a JSON file beside those of the measurements" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_measured_is_what_is_judged(calibration, tmp_path, monkeypatch):
    """Two plans of a shrunken task, really trained."""
    headroom = importlib.import_module("headroom")
    made = headroom.make_vector
    small = {"horizon": 2, "batches_per_step": 1, "batch_size": 8}
    monkeypatch.setattr(headroom, "make_vector", lambda *a, **k: made(*a, **k, **small))
    monkeypatch.setattr(calibration, "SINGLE", ("r0c2=norm",))
    monkeypatch.setattr(calibration, "GROWN", ("r0c0=norm,r0c2=norm",))
    out = tmp_path / "verdicts.json"
    assert calibration.main(["--out", str(out), "--episodes", "1"]) == FAILED
    found = json.loads((tmp_path / "headroom-cifar-v0.json").read_text(encoding="utf-8"))
    assert list(found["plans"]) == ["host alone", "r0c0=norm,r0c2=norm", "r0c2=norm"]
    assert found["dataset"] == "procedural-cifar"
    verdicts = json.loads(out.read_text(encoding="utf-8"))["verdicts"]
    assert verdicts[0]["value"] == found["plans"]["host alone"]["test_accuracy_mean"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["plans"].pop("r0c1=norm"),
        lambda content: content.pop("plans"),
        lambda content: content.pop("machine"),
        lambda content: content["plans"].update({plan: {"test_accuracy_mean": 45.0} for plan in content["plans"]}),
    ],
    ids=["a plan lacks", "no plans", "no machine", "nothing gained"],
)
def test_measurements_of_something_else_are_no_crash(calibration, tmp_path, change):
    """As `headroom.py` writes them where other plans are named."""
    out = written(calibration, tmp_path, single=52.0)
    file = calibration.files(out)["Esper-CIFAR-v0"]
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    assert calibration.main(["--out", str(out), "--judge-only"]) in (BAD_INPUT, FAILED)
