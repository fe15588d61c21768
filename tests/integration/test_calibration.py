"""Calibration of the stand-in for CIFAR: verdicts, and their agreement with the measurements."""

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
    """Measurement of a plan."""
    return {"test_accuracy_mean": mean, "test_accuracy_std": std, "episodes": episodes}


def plans(calibration, host=45.0, single=50.0, grown=70.0):
    """Measurements of the host, every single seed and every topology."""
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


def test_judge_meets_every_target_of_a_calibrated_task(calibration):
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
def test_judge_misses_a_target_outside_its_range(calibration, accuracies, missed):
    met, _ = judged(calibration, **({"single": 52.0} | accuracies))
    assert met == [index != missed for index in range(6)]


def test_judge_misses_when_one_seed_explains_the_gain(calibration):
    met, verdicts = judged(calibration, single=46.0, changes={"r0c0=conv_heavy": row(67.0)})
    assert met == [True, True, True, False, False, False]
    assert [verdict["value"] for verdict in verdicts[3:]] == [pytest.approx(22 / 25), 1, 1]
    assert verdicts[3]["plan"] == "r0c0=conv_heavy"


@pytest.mark.parametrize("index", range(3))
def test_judge_uses_the_best_topology(calibration, index):
    best = calibration.GROWN[index]
    changes = {calibration.GROWN[-1]: row(60.0), best: row(73.0)}
    met, verdicts = judged(calibration, single=52.0, changes=changes)
    assert met == [True] * 6
    assert (verdicts[1]["plan"], verdicts[1]["value"]) == (best, 73.0)
    assert verdicts[3]["value"] == pytest.approx(7 / 28)


@pytest.mark.parametrize(("host", "impaired", "grown"), [(40.0, 18.0, 65.0), (50.0, 25.0, 75.0)])
def test_judge_includes_the_ends_of_the_ranges(calibration, host, impaired, grown):
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
def test_judge_keeps_the_best_seed_below_the_best_topology(calibration, single, best, short, beyond, met):
    single = single | {"test_accuracy_mean": 70.0 - short + beyond}
    _, verdicts = judged(calibration, single=46.0, changes={"r0c1=norm": single, calibration.GROWN[-1]: best})
    assert verdicts[3]["value"] == pytest.approx((25 - short + beyond) / 25)
    assert verdicts[3]["high"] == pytest.approx((25 - short) / 25)
    assert verdicts[3]["met"] is met


@pytest.mark.parametrize(("single", "helps"), [(52.0, True), (51.9, False)])
def test_judge_counts_a_seed_from_a_quarter_of_the_gain(calibration, single, helps):
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
def test_judge_needs_three_blueprints_and_two_slots(calibration, helpful, met):
    assert set(helpful) < set(calibration.SINGLE)
    _, verdicts = judged(calibration, single=46.0, changes={plan: row(56.0) for plan in helpful})
    assert [verdict["met"] for verdict in verdicts[4:]] == met


def test_calibration_plans_every_blueprint_in_every_slot(calibration):
    assert len(set(calibration.SINGLE)) == 7 * 3
    assert {"r0c0=norm", "r0c1=bottleneck", "r0c2=conv_heavy"} <= set(calibration.SINGLE)


def written(calibration, folder, **accuracies):
    """Write the measurements of both tasks to a folder; return the path of the verdicts."""
    hosts = {calibration.IMPAIRED: accuracies.pop("impaired", 20.0), calibration.TASK: accuracies.get("host", 45.0)}
    found = plans(calibration, **accuracies)
    for one in calibration.measurements():
        content = {plan: found[plan] for plan in one.judged}
        content["host alone"] = row(hosts[one.env])
        content = {"machine": "a machine", "env": one.env, "dataset": "procedural-cifar", "plans": content}
        (folder / one.file).write_text(json.dumps(content | {"env_settings": []}), encoding="utf-8")
    return folder / "verdicts.json"


@pytest.mark.parametrize(("impaired", "code"), [(20.0, OK), (10.0, FAILED)])
def test_judge_only_judges_existing_files(calibration, tmp_path, capsys, impaired, code):
    out = written(calibration, tmp_path, single=52.0, impaired=impaired)
    assert calibration.main(["--out", str(out), "--judge-only"]) == code
    content = json.loads(out.read_text(encoding="utf-8"))
    assert (content["machine"], len(content["verdicts"])) == ("a machine", 6)
    assert [one["met"] for one in content["verdicts"]].count(False) == int(code == FAILED)
    assert content["command"].endswith("--judge-only")
    assert "40 to 50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("verdicts.json", ["--judge-only"], "headroom-cifar-v0.json does not exist; measure first"),
        ("verdicts.json", ["--episodes", "1"], "episodes is 1; expected at least 2"),
        ("headroom-cifar-v0.json", [], "expected a JSON file with a name that no measurement has"),
    ],
)
def test_calibration_rejects_bad_input(calibration, tmp_path, capsys, name, flags, message):
    assert calibration.main(["--out", str(tmp_path / name), *flags]) == BAD_INPUT
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_calibration_judges_its_own_measurements(calibration, tmp_path, monkeypatch):
    """A few plans, trained on Digits for two short epochs."""
    made, asked = calibration.headroom.make_vector, []

    def make_vector(env_id, num_envs, mode, dataset):
        asked.append((env_id, dataset))
        return made("Esper-Digits-v0", num_envs, mode, horizon=2, batches_per_step=1, batch_size=8)

    monkeypatch.setattr(calibration.headroom, "make_vector", make_vector)
    monkeypatch.setattr(calibration, "DATASET", "digits")
    monkeypatch.setattr(calibration, "SINGLE", ("r0c2=norm",))
    monkeypatch.setattr(calibration, "GROWN", ("r0c0=norm,r0c2=norm", "r0c1=norm,r0c2=norm", "r0c0=norm,r0c1=norm"))
    monkeypatch.setattr(calibration, "IMPAIRED_ALONE", (101.0, 102.0))
    out = tmp_path / "verdicts.json"
    assert calibration.main(["--out", str(out), "--episodes", "2"]) == FAILED
    assert asked == [(env_id, "procedural") for env_id in ("Esper-CIFAR-v0", "Esper-CIFAR-Impaired-v0")]
    found = json.loads((tmp_path / "headroom-cifar-v0.json").read_text(encoding="utf-8"))
    assert list(found["plans"]) == ["host alone", *calibration.GROWN, "r0c2=norm"]
    verdicts = json.loads(out.read_text(encoding="utf-8"))["verdicts"]
    assert verdicts[0]["value"] == found["plans"]["host alone"]["test_accuracy_mean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["plans"].update({"host alone": {}}), "lacks test_accuracy_mean of 'host alone';"),
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
def test_judge_only_names_missing_numbers(calibration, tmp_path, capsys, change, message):
    out = written(calibration, tmp_path, single=52.0)
    file = tmp_path / "headroom-cifar-impaired-v0.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    assert calibration.main(["--out", str(out), "--judge-only"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert f"{file} lacks" in error
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("env", "Esper-CIFAR-Deep-v0", "has env 'Esper-CIFAR-Deep-v0'; expected 'Esper-CIFAR-v0'"),
        ("dataset", "cifar10", "has dataset 'cifar10'; expected 'procedural-cifar'"),
        ("env_settings", ["horizon=1"], r"has env_settings ['horizon=1']; expected []"),
    ],
)
def test_judge_only_rejects_other_measurements(calibration, tmp_path, capsys, name, value, message):
    out = written(calibration, tmp_path, single=52.0)
    file = tmp_path / "headroom-cifar-v0.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {name: value}), encoding="utf-8")
    assert calibration.main(["--out", str(out), "--judge-only"]) == BAD_INPUT
    assert f"{file} {message}" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON: "), ("[]", "holds no JSON object; measure again")])
def test_judge_only_rejects_other_files(calibration, tmp_path, capsys, text, message):
    out = written(calibration, tmp_path, single=52.0)
    file = tmp_path / "headroom-cifar-impaired-v0.json"
    file.write_text(text, encoding="utf-8")
    assert calibration.main(["--out", str(out), "--judge-only"]) == BAD_INPUT
    assert f"{file} {message}" in capsys.readouterr().err


@pytest.mark.parametrize("host", [60.0, 62.0])
def test_judge_has_no_shares_without_a_gain(calibration, tmp_path, capsys, host):
    out = written(calibration, tmp_path, single=52.0, host=host, grown=45.0)
    assert calibration.main(["--out", str(out), "--judge-only"]) == FAILED
    share, *several = json.loads(out.read_text(encoding="utf-8"))["verdicts"][3:]
    assert (share["value"], share["plan"], share["met"]) == (None, "", False)
    assert [(one["value"], one["met"]) for one in several] == [(0, False), (0, False)]
    assert " none " in capsys.readouterr().out
