"""Calibration of the stand-in for CIFAR: verdicts, and their agreement with the measurements."""

import json

import calibration
import pytest
from esper_agent.cli.main import BAD_INPUT, FAILED, OK

HELPFUL = ("r0c0=norm", "r0c1=attention", "r0c1=conv_light")


def row(mean, std=3.0, episodes=4):
    """Measurement of a plan."""
    return {"test_accuracy_mean": mean, "test_accuracy_std": std, "episodes": episodes}


def plans(host=45.0, single=52.0, grown=70.0, changes=None):
    """Measurements of the host, every single seed and every topology; the last topology is the best."""
    accuracies = {calibration.HOST: host, **dict.fromkeys(calibration.SINGLE, single)}
    accuracies |= dict.fromkeys(calibration.GROWN, 60.0) | {calibration.GROWN[-1]: grown}
    return {plan: row(value) for plan, value in accuracies.items()} | (changes or {})


def judged(impaired=20.0, **measured):
    verdicts = calibration.judge(plans(**measured), {"host alone": row(impaired)})
    return [verdict["met"] for verdict in verdicts], verdicts


def test_judge_meets_every_target_of_a_calibrated_task():
    met, verdicts = judged()
    assert met == [True] * 6
    assert [verdict["value"] for verdict in verdicts] == [45.0, 70.0, 20.0, pytest.approx(7 / 25), 7, 3]
    assert verdicts[1]["plan"] == calibration.GROWN[-1]
    _, verdicts = judged(changes={calibration.GROWN[0]: row(73.0)})
    assert (verdicts[1]["plan"], verdicts[3]["value"]) == (calibration.GROWN[0], pytest.approx(7 / 28))


@pytest.mark.parametrize(
    ("measured", "missed"),
    [
        ({"host": 40.0, "impaired": 18.0, "grown": 65.0}, []),
        ({"host": 50.0, "impaired": 25.0, "grown": 75.0, "single": 57.0}, []),
        ({"host": 50.1, "single": 56.0}, [0]),
        ({"host": 39.0}, [0]),
        ({"grown": 64.9}, [1]),
        ({"grown": 75.1, "single": 54.0}, [1]),
        ({"impaired": 17.9}, [2]),
        ({"impaired": 25.1}, [2]),
        ({"single": 46.0, "changes": {"r0c0=conv_heavy": row(67.0)}}, [3, 4, 5]),
        ({"single": 46.0, "changes": {plan: row(56.0) for plan in HELPFUL}}, []),
        ({"single": 46.0, "changes": {plan: row(56.0) for plan in (*HELPFUL[:2], "r0c2=norm")}}, [4]),
        ({"single": 46.0, "changes": {f"r0c0={kind}": row(56.0) for kind in ("norm", "attention", "conv_light")}}, [5]),
        ({"host": 46.0, "single": 52.0}, []),
        ({"host": 46.0, "single": 51.9}, [4, 5]),
    ],
)
def test_judge_misses_targets_outside_their_ranges(measured, missed):
    met, _ = judged(**measured)
    assert [index for index, one in enumerate(met) if not one] == missed


@pytest.mark.parametrize(
    ("single", "best", "short"),
    [
        (row(0.0, 3.0, 4), row(70.0, 4.0, 4), 2 * 2.5),  # 9 / 4 + 16 / 4 = 2.5 ** 2
        (row(0.0, 6.0, 25), row(70.0, 16.0, 100), 2 * 2.0),  # 36 / 25 + 256 / 100 = 2 ** 2
    ],
)
@pytest.mark.parametrize(("beyond", "met"), [(-0.1, True), (0.1, False)])
def test_judge_keeps_the_best_seed_below_the_best_topology(single, best, short, beyond, met):
    single = single | {"test_accuracy_mean": 70.0 - short + beyond}
    _, verdicts = judged(single=46.0, changes={"r0c1=norm": single, calibration.GROWN[-1]: best})
    assert (verdicts[3]["plan"], verdicts[3]["met"]) == ("r0c1=norm", met)
    assert verdicts[3]["value"] == pytest.approx((25 - short + beyond) / 25)
    assert verdicts[3]["high"] == pytest.approx((25 - short) / 25)


def test_calibration_plans_every_blueprint_in_every_slot():
    assert len(set(calibration.SINGLE)) == 7 * 3
    assert {"r0c0=norm", "r0c1=bottleneck", "r0c2=conv_heavy"} <= set(calibration.SINGLE)


def written(folder, impaired=20.0, **measured):
    """Write the measurements of both tasks to a folder; return the path of the verdicts."""
    found = plans(**measured)
    for one in calibration.measurements():
        content = {plan: found[plan] for plan in one.judged}
        content["host alone"] = row(impaired) if one.env == calibration.IMPAIRED else found["host alone"]
        content = {"machine": "a machine", "env": one.env, "dataset": "procedural-cifar", "plans": content}
        (folder / one.file).write_text(json.dumps(content | {"env_settings": []}), encoding="utf-8")
    return folder / "verdicts.json"


@pytest.mark.parametrize(
    ("measured", "code", "met", "share"),
    [
        ({}, OK, 6, pytest.approx(7 / 25)),
        ({"impaired": 10.0}, FAILED, 5, pytest.approx(7 / 25)),
        ({"host": 60.0, "grown": 60.0}, FAILED, 1, None),  # without a gain, no seed has a share of it
    ],
)
def test_judge_only_judges_existing_files(tmp_path, capsys, measured, code, met, share):
    out = written(tmp_path, **measured)
    assert calibration.main(["--out", str(out), "--judge-only"]) == code
    content = json.loads(out.read_text(encoding="utf-8"))
    assert (content["machine"], len(content["verdicts"])) == ("a machine", 6)
    assert [one["met"] for one in content["verdicts"]].count(True) == met
    assert content["verdicts"][3]["value"] == share
    assert content["command"].endswith("--judge-only")
    assert "40 to 50" in capsys.readouterr().out


def test_calibration_judges_its_own_measurements(tmp_path, monkeypatch):
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
    assert calibration.main(["--out", str(out.with_name("headroom-cifar-v0.json"))]) == BAD_INPUT
    assert asked == []
    assert calibration.main(["--out", str(out), "--episodes", "2"]) == FAILED
    assert asked == [(env_id, "procedural") for env_id in ("Esper-CIFAR-v0", "Esper-CIFAR-Impaired-v0")]
    found = json.loads((tmp_path / "headroom-cifar-v0.json").read_text(encoding="utf-8"))
    assert list(found["plans"]) == ["host alone", *calibration.GROWN, "r0c2=norm"]
    verdicts = json.loads(out.read_text(encoding="utf-8"))["verdicts"]
    assert verdicts[0]["value"] == found["plans"]["host alone"]["test_accuracy_mean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "Esper-X-v0"}, "has env 'Esper-X-v0'; expected 'Esper-CIFAR-Impaired-v0'; measure again"),
        ({"dataset": "cifar10"}, "has dataset 'cifar10'; expected 'procedural-cifar'"),
        ({"env_settings": ["a=1"]}, "has env_settings ['a=1']; expected []"),
        ({"plans": {"host alone": row(45.0, std=None, episodes=1)}}, "lacks two episodes of 'host alone'"),
        ({"plans": {}}, "lacks two episodes of 'host alone'; measure again, without --judge-only"),
    ],
)
def test_judge_only_rejects_other_measurements(tmp_path, capsys, change, message):
    out = written(tmp_path)
    file = tmp_path / "headroom-cifar-impaired-v0.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    assert calibration.main(["--out", str(out), "--judge-only"]) == BAD_INPUT
    assert f"{file} {message}" in capsys.readouterr().err
    assert not out.exists()
