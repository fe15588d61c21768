"""The benchmarks of throughput, the decision side and telemetry."""

import json

import numpy as np
import pytest
import torch
from esper_agent.cli.main import BAD_INPUT, OK

pytestmark = pytest.mark.numeric

TINY = {"batches_per_step": 2, "horizon": 4}


@pytest.fixture
def throughput(throughput_modules):  # noqa: ARG001
    import throughput

    return throughput


def assert_same_hosts(networks, shards):
    size = shards[0].rows
    for row, network in enumerate(networks):
        stack = shards[row // size].host.parameters
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter, stack[name][row % size], atol=1e-5, rtol=1e-4)


def test_throughput_records_every_contender(throughput, tmp_path, capsys):
    out = tmp_path / "t.json"
    arguments = ["--out", str(out), "--counts", "1", "2", "--rounds", "3", "--seconds", "0.01", "--threads", "1"]
    assert throughput.main([*arguments, "--env-settings", "batches_per_step=1", "horizon=4"]) == OK
    assert "native faster by" in capsys.readouterr().out
    content = json.loads(out.read_text())
    assert [result["n"] for result in content["results"]] == [1, 2]
    for result in content["results"]:
        assert sum(result["native_time_shares"].values()) == pytest.approx(1.0)
        assert min(result["native_time_shares"].values()) > 0
        rows = result["contenders"]
        assert list(rows) == ["native", "plain loop", "bare loop", "SyncVectorEnv", "AsyncVectorEnv"]
        shares = result["native_time_shares"]
        assert result["evaluation_over_training"] == pytest.approx(shares["evaluate"] / shares["train"])
        own = np.array(rows["native"]["rounds"])
        for row in rows.values():
            assert len(row["rounds"]) == 3
            seconds = np.median(row["rounds"])
            assert row["env_steps_per_second"] == pytest.approx(result["n"] / seconds)
            assert row["training_samples_per_second"] == pytest.approx(64 * result["n"] / seconds)
            assert row["native_is_faster_by"] == pytest.approx(np.median(np.array(row["rounds"]) / own))


@pytest.mark.parametrize("env_id", ["Esper-Digits-v0", "Esper-CIFAR-v0"])
def test_bare_loop_equals_plain_loop_without_clipping(throughput, env_id, monkeypatch):
    settings = TINY | ({"dataset": "procedural"} if "CIFAR" in env_id else {})
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    plain, bare = throughput.PlainLoop(env_id, 2, threads=1, **settings), throughput.BareLoop(env_id, 2, **settings)
    plain.step()
    bare.step()
    assert_same_hosts(plain.networks, bare.shards)
    bare.close()


@pytest.mark.usefixtures("throughput")
def test_shares_of_a_step_account_for_training_and_evaluation():
    from comparison import Shares, shares_of_a_step

    rows = {name: {} for name in ("native", "bare loop", "plain loop")}
    shares = Shares(lambda: None, {"step": 10.0, "train": 5.0, "evaluate": 4.0}, steps=10)
    rows["plain loop"]["native_is_faster_by"] = 3.0
    times = {"native": [1.0, 2.0, 4.0], "bare loop": [0.5, 0.5, 0.5], "plain loop": [3.0, 6.0, 12.0]}
    result = shares_of_a_step(rows, times, shares, samples=100)
    assert rows["bare loop"]["native_step_without_evaluation_over_it"] == pytest.approx(0.6 * 2.0 / 0.5)
    assert rows["plain loop"]["native_trains_faster_by"] == pytest.approx(6.0)
    assert result["evaluation_over_training"] == pytest.approx(0.8)
    assert result["training_samples_per_second_while_training"] == pytest.approx(100 * 10 / 5.0)


@pytest.mark.parametrize("workload", ["growing", "planted"])
def test_workloads_with_seeds_exclude_the_loops(throughput, tmp_path, capsys, workload):
    out = tmp_path / "t.json"
    arguments = ["--out", str(out), "--counts", "2", "--rounds", "1", "--seconds", "0.01", "--workload", workload]
    assert throughput.main([*arguments, "--env-settings", "batches_per_step=1", "horizon=4"]) == OK
    contenders = json.loads(out.read_text())["results"][0]["contenders"]
    assert list(contenders) == ["native", "SyncVectorEnv", "AsyncVectorEnv"]
    capsys.readouterr()


def test_planted_workload_keeps_a_seed_in_every_slot(throughput):
    contender = throughput.Environments("Esper-Digits-v0", 2, "planted", None, batches_per_step=1, horizon=2)
    for _ in range(5):
        contender.step()
    assert contender._envs.unwrapped._growth.table.has_seed.all()
    contender.close()


def test_bandwidth_flag_reports_the_share_of_the_limit(throughput, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(throughput, "copy_bandwidth", lambda _: 1e9)
    out = tmp_path / "t.json"
    arguments = ["--out", str(out), "--counts", "2", "--rounds", "1", "--seconds", "0.01", "--rivals", "bare"]
    assert throughput.main([*arguments, "--bandwidth", "--env-settings", "batches_per_step=1", "horizon=4"]) == OK
    result = json.loads(out.read_text())["results"][0]
    limit = result["bandwidth"]
    assert limit["limit_samples_per_second"] == pytest.approx(1e9 * 64 / limit["bytes_per_minibatch"])
    measured = result["training_samples_per_second_while_training"]
    assert limit["share"] == pytest.approx(measured / limit["limit_samples_per_second"])
    assert f"{limit['share']:.1%} of the limit" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("throughput")
def test_decisions_times_every_part_and_restores_it(tmp_path, capsys):
    import decisions

    apply, out = decisions.lifecycle.apply, tmp_path / "d.json"
    assert decisions.main(["--out", str(out), "--n", "3", "--steps", "4"]) == OK
    parts = json.loads(out.read_text())["parts"]
    calls = {name: row["calls_per_step"] for name, row in parts.items()}
    assert min(row["milliseconds"] for row in parts.values()) > 0
    assert calls["transitions"] == calls["reward"] == calls["features"] == calls["decoding"] == 1
    assert decisions.lifecycle.apply is apply
    assert "whole observation" in capsys.readouterr().out
    assert decisions.main(["--out", str(out), "--n", "0"]) == BAD_INPUT
    capsys.readouterr()


@pytest.mark.usefixtures("throughput")
def test_telemetry_benchmark_compares_equal_steps(tmp_path, capsys):
    import telemetry

    out = tmp_path / "telemetry.json"
    arguments = ["--out", str(out), "--counts", "2", "--policies", "random", "--rounds", "6", "--steps", "1"]
    arguments += ["--warmup", "3"]
    assert telemetry.main(arguments) == OK
    (result,) = json.loads(out.read_text())["results"]
    rows = result["contenders"]
    assert list(rows) == ["no sink", "normal", "full"]
    assert 0 == rows["no sink"]["events_per_step"] < rows["normal"]["events_per_step"] < rows["full"]["events_per_step"]
    for row in rows.values():
        for clock in ("wall", "cpu"):
            ratios = np.array(row["rounds"][clock]) / np.array(rows["no sink"]["rounds"][clock])
            assert len(ratios) == 6
            assert row["overhead"][clock]["value"] == pytest.approx(np.sort(ratios)[1:5].mean() - 1.0)
            assert row["milliseconds_per_step"][clock] == pytest.approx(1e3 * np.median(row["rounds"][clock]))
    assert "own work" in capsys.readouterr().out
    assert 0 <= rows["no sink"]["own_work"] < rows["normal"]["own_work"] < 1
    for wrong in (["--counts", "0"], ["--rounds", "0"], ["--steps", "0"], ["--warmup", "-1"], ["--policies", "x"]):
        assert telemetry.main(["--out", str(tmp_path / "none.json"), *wrong]) == BAD_INPUT
    assert not (tmp_path / "none.json").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    "wrong", [["--counts", "0"], ["--rounds", "0"], ["--seconds", "inf"], ["--env-settings", "x=1"]]
)
def test_throughput_rejects_bad_settings(throughput, tmp_path, capsys, wrong):
    assert throughput.main(["--out", str(tmp_path / "t.json"), *wrong]) == BAD_INPUT
    assert not (tmp_path / "t.json").exists()
    capsys.readouterr()
