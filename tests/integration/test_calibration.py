"""The calibration of the stand-in for CIFAR: what is judged, and that what is written down is what was measured."""

import importlib
import json
import math
from pathlib import Path

import pytest
from esper_agent.cli.main import BAD_INPUT, FAILED, OK

TASKS = Path(__file__).resolve().parents[2] / "benchmarks" / "tasks"


@pytest.fixture
def calibration(monkeypatch):
    monkeypatch.syspath_prepend(str(TASKS))
    return importlib.import_module("calibration")


def row(mean, std=3.0, episodes=4):
    """What is measured of a plan."""
    return {"test_accuracy_mean": mean, "test_accuracy_std": std, "episodes": episodes}


def plans(calibration, host=45.0, single=50.0, grown=70.0):
    """Measurements by plan: one for every single seed, one for every topology."""
    found = {
        calibration.HOST: host,
        **dict.fromkeys(calibration.SINGLE, single),
        **dict.fromkeys(calibration.GROWN, 60.0),
    }
    found[calibration.GROWN[-1]] = grown
    return {plan: row(value) for plan, value in found.items()}


def judged(calibration, impaired=20.0, changes=None, **accuracies):
    verdicts = calibration.judge(plans(calibration, **accuracies) | (changes or {}), {"host alone": row(impaired)})
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
    met, verdicts = judged(calibration, single=46.0, changes={"r0c0=conv_heavy": row(67.0)})
    assert met == [True, True, True, False, False, False]
    assert [verdict["value"] for verdict in verdicts[3:]] == [pytest.approx(22 / 25), 1, 1]
    assert verdicts[3]["plan"] == "r0c0=conv_heavy"


@pytest.mark.parametrize("index", range(3))
def test_the_best_topology_is_the_one_that_is_judged(calibration, index):
    best = calibration.GROWN[index]
    changes = {calibration.GROWN[-1]: row(60.0), best: row(73.0)}
    met, verdicts = judged(calibration, single=52.0, changes=changes)
    assert met == [True] * 6
    assert (verdicts[1]["plan"], verdicts[1]["value"]) == (best, 73.0)
    assert verdicts[3]["value"] == pytest.approx(7 / 28)


@pytest.mark.parametrize("host", [40.0, 50.0])
@pytest.mark.parametrize("impaired", [18.0, 25.0])
@pytest.mark.parametrize("grown", [65.0, 75.0])
def test_the_ends_of_the_ranges_are_in_them(calibration, host, impaired, grown):
    met, _ = judged(calibration, host=host, impaired=impaired, grown=grown, single=host + (grown - host) / 2)
    assert met == [True] * 6


@pytest.mark.parametrize(
    ("single", "best", "short"),
    [
        (row(0.0, 3.0, 4), row(70.0, 4.0, 4), 2 * 2.5),  # 9 / 4 + 16 / 4 = 2.5 ** 2
        (row(0.0, 6.0, 25), row(70.0, 16.0, 100), 2 * 2.0),  # 36 / 25 + 256 / 100 = 2 ** 2
        (row(0.0, 0.0, 4), row(70.0, 0.0, 4), 0.0),
    ],
)
@pytest.mark.parametrize(("beyond", "met"), [(-0.1, True), (0.1, False)])
def test_the_best_seed_stays_two_standard_errors_below_the_best_topology(calibration, single, best, short, beyond, met):
    single = single | {"test_accuracy_mean": 70.0 - short + beyond}
    _, verdicts = judged(calibration, single=46.0, changes={"r0c1=norm": single, calibration.GROWN[-1]: best})
    assert verdicts[3]["value"] == pytest.approx((25 - short + beyond) / 25)
    assert verdicts[3]["high"] == pytest.approx((25 - short) / 25)
    assert verdicts[3]["met"] is met


@pytest.mark.parametrize(("single", "helps"), [(52.0, True), (51.9, False)])
def test_a_seed_helps_from_a_quarter_of_the_gain(calibration, single, helps):
    _, verdicts = judged(calibration, host=46.0, grown=70.0, single=single)
    assert [verdict["value"] for verdict in verdicts[4:]] == ([7, 3] if helps else [0, 0])


@pytest.mark.parametrize(
    ("helpful", "met"),
    [
        (("r0c0=norm", "r0c1=attention", "r0c1=conv_light"), [True, True]),
        (("r0c0=norm", "r0c1=attention", "r0c2=norm"), [False, True]),
        (("r0c0=norm", "r0c0=attention", "r0c0=conv_light"), [True, False]),
    ],
)
def test_three_blueprints_and_two_slots_have_to_help(calibration, helpful, met):
    assert set(helpful) < set(calibration.SINGLE)
    _, verdicts = judged(calibration, single=46.0, changes={plan: row(56.0) for plan in helpful})
    assert [verdict["met"] for verdict in verdicts[4:]] == met


def test_every_blueprint_is_tried_in_every_slot(calibration):
    assert len(set(calibration.SINGLE)) == 7 * 3
    assert {"r0c0=norm", "r0c1=bottleneck", "r0c2=conv_heavy"} <= set(calibration.SINGLE)


def written(calibration, folder, **accuracies):
    """The measurements of both tasks as files in a folder; the path of the verdicts."""
    hosts = {calibration.IMPAIRED: accuracies.pop("impaired", 20.0), calibration.TASK: accuracies.get("host", 45.0)}
    found = plans(calibration, **accuracies)
    for one in calibration.measurements():
        content = {plan: found[plan] for plan in one.judged}
        content["host alone"] = row(hosts[one.env])
        content = {"machine": "a machine", "env": one.env, "dataset": "procedural-cifar", "plans": content}
        (folder / one.file).write_text(json.dumps(content | {"env_settings": []}), encoding="utf-8")
    return folder / "verdicts.json"


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


def test_one_episode_has_no_spread(calibration, tmp_path, capsys):
    assert calibration.main(["--out", str(tmp_path / "verdicts.json"), "--episodes", "1"]) == BAD_INPUT
    assert "episodes is 1; expected at least 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_result_in_place_of_a_measurement_is_bad_input(calibration, tmp_path, capsys):
    assert calibration.main(["--out", str(tmp_path / "headroom-cifar-v0.json")]) == BAD_INPUT
    assert "expected a JSON file beside those of the measurements" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_measured_is_what_is_judged(calibration, tmp_path, monkeypatch):
    """A few plans of a shrunken task, really trained."""
    headroom = importlib.import_module("headroom")
    made = headroom.make_vector
    small = {"horizon": 2, "batches_per_step": 1, "batch_size": 8}
    monkeypatch.setattr(headroom, "make_vector", lambda *a, **k: made(*a, **k, **small))
    monkeypatch.setattr(calibration, "SINGLE", ("r0c2=norm",))
    monkeypatch.setattr(calibration, "GROWN", ("r0c0=norm,r0c2=norm", "r0c1=norm,r0c2=norm", "r0c0=norm,r0c1=norm"))
    out = tmp_path / "verdicts.json"
    assert calibration.main(["--out", str(out), "--episodes", "2"]) == FAILED
    found = json.loads((tmp_path / "headroom-cifar-v0.json").read_text(encoding="utf-8"))
    assert list(found["plans"]) == ["host alone", *calibration.GROWN, "r0c2=norm"]
    assert found["dataset"] == "procedural-cifar"
    verdicts = json.loads(out.read_text(encoding="utf-8"))["verdicts"]
    assert verdicts[0]["value"] == found["plans"]["host alone"]["test_accuracy_mean"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content["plans"].update({"host alone": {}}), "lacks test_accuracy_mean of 'host alone';"),
        (
            lambda content: content["plans"].pop("host alone"),
            "lacks test_accuracy_mean of 'host alone'; measure again",
        ),
        (lambda content: content["plans"].update({"host alone": row(math.nan)}), "test_accuracy_mean of 'host alone';"),
        (lambda content: content["plans"].update({"host alone": row(45.0, std=None)}), "test_accuracy_std of 'host"),
        (lambda content: content["plans"].update({"host alone": row(45.0, episodes=1)}), "lacks episodes of 'host"),
        (lambda content: content["plans"].update({"host alone": 45.0}), "of 'host alone';"),
        (lambda content: content.pop("plans"), "lacks 'plans'; measure again, without --judge-only"),
        (lambda content: content.update(plans=[]), "lacks 'plans';"),
        (lambda content: content.pop("machine"), "lacks 'machine';"),
        (lambda content: content.clear(), "lacks 'machine', 'plans';"),
    ],
)
@pytest.mark.parametrize("name", ["cifar-v0", "cifar-impaired-v0"])
def test_what_measurements_lack_is_told(calibration, tmp_path, capsys, name, change, said):
    out = written(calibration, tmp_path, single=52.0)
    file = tmp_path / f"headroom-{name}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    assert calibration.main(["--out", str(out), "--judge-only"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert f"{file} lacks" in error
    assert said in error
    assert not out.exists()


def test_plans_that_were_not_measured_are_named(calibration, tmp_path, capsys):
    """As `headroom.py` leaves them where other plans are named."""
    out = written(calibration, tmp_path, single=52.0)
    file = tmp_path / "headroom-cifar-v0.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for plan in ("r0c0=norm", "r0c1=norm"):
        del content["plans"][plan]
    file.write_text(json.dumps(content), encoding="utf-8")
    assert calibration.main(["--out", str(out), "--judge-only"]) == BAD_INPUT
    lacking = "test_accuracy_mean of 'r0c0=norm', test_accuracy_mean of 'r0c1=norm'"
    assert f"{file} lacks {lacking}; measure again, without --judge-only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("env", "Esper-CIFAR-Deep-v0", "has env 'Esper-CIFAR-Deep-v0'; expected 'Esper-CIFAR-v0'"),
        ("dataset", "cifar10", "has dataset 'cifar10'; expected 'procedural-cifar'"),
        ("env_settings", ["horizon=1"], r"has env_settings ['horizon=1']; expected []"),
    ],
)
def test_measurements_of_something_else_are_not_judged(calibration, tmp_path, capsys, name, value, said):
    out = written(calibration, tmp_path, single=52.0)
    file = tmp_path / "headroom-cifar-v0.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {name: value}), encoding="utf-8")
    assert calibration.main(["--out", str(out), "--judge-only"]) == BAD_INPUT
    assert f"{file} {said}" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON: "), ("[]", "holds no JSON object; measure again")])
def test_what_are_no_measurements_is_told(calibration, tmp_path, capsys, text, said):
    out = written(calibration, tmp_path, single=52.0)
    file = tmp_path / "headroom-cifar-impaired-v0.json"
    file.write_text(text, encoding="utf-8")
    assert calibration.main(["--out", str(out), "--judge-only"]) == BAD_INPUT
    assert f"{file} {said}" in capsys.readouterr().err


@pytest.mark.parametrize("host", [60.0, 62.0])
def test_where_growth_gains_nothing_nobody_has_a_share_of_it(calibration, tmp_path, capsys, host):
    out = written(calibration, tmp_path, single=52.0, host=host, grown=45.0)
    assert calibration.main(["--out", str(out), "--judge-only"]) == FAILED
    share, *several = json.loads(out.read_text(encoding="utf-8"))["verdicts"][3:]
    assert (share["value"], share["plan"], share["met"]) == (None, "", False)
    assert [(one["value"], one["met"]) for one in several] == [(0, False), (0, False)]
    assert " none " in capsys.readouterr().out
