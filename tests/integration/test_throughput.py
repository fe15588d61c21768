"""The benchmarks of throughput, the decision side and telemetry."""

import importlib
import json

import bandwidth
import decisions
import numpy as np
import pytest
import telemetry
import throughput
import timing
import torch
from comparison import Shares, shares_of_a_step
from contenders import BareLoop, Environments, PlainLoop
from esper_agent import PPOSettings, TrainSettings, train
from esper_agent.cli.main import BAD_INPUT, OK
from esper_env.hosts import GlobalAveragePool
from esper_env.telemetry import writer
from torch import nn
from workloads import FIXED, POLICY, make_workload

pytestmark = pytest.mark.numeric

TINY = {"batches_per_step": 2, "horizon": 4}


def measured(tmp_path, *arguments):
    """Results of a run with two networks and the given flags."""

    out = tmp_path / "t.json"
    short = ["--out", str(out), "--counts", "2", "--rounds", "3", "--seconds", "0.01", "--threads", "1"]
    assert throughput.main([*short, "--env-settings", "batches_per_step=1", "horizon=4", *arguments]) == OK
    return json.loads(out.read_text())["results"]


def test_throughput_records_every_contender(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(throughput, "copy_bandwidth", lambda _: 1e9)
    (result,) = measured(tmp_path, "--bandwidth")
    shown = " ".join(capsys.readouterr().out.split())
    assert "native faster by" in shown
    shares = result["native_time_shares"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) > 0
    rows = result["contenders"]
    assert list(rows) == ["native", "plain loop", "bare loop", "SyncVectorEnv", "AsyncVectorEnv"]
    limit = result["bandwidth"]
    assert result["evaluation_over_training"] == pytest.approx(shares["evaluate"] / shares["train"])
    assert limit["limit_samples_per_second"] == pytest.approx(1e9 * 64 / limit["bytes_per_minibatch"])
    trained = result["training_samples_per_second_while_training"]
    assert limit["share"] == pytest.approx(trained / limit["limit_samples_per_second"])
    assert f"{limit['share']:.1%} of the limit" in shown
    own = np.array(rows["native"]["rounds"])
    for row in rows.values():
        assert len(row["rounds"]) == 3
        seconds = np.median(row["rounds"])
        assert row["env_steps_per_second"] == pytest.approx(2 / seconds)
        assert row["training_samples_per_second"] == pytest.approx(64 * 2 / seconds)
        assert row["native_is_faster_by"] == pytest.approx(np.median(np.array(row["rounds"]) / own))


@pytest.mark.parametrize("workload", ["growing", "planted"])
def test_workloads_with_seeds_exclude_the_loops(tmp_path, capsys, workload):
    (result,) = measured(tmp_path, "--workload", workload)
    assert list(result["contenders"]) == ["native", "SyncVectorEnv", "AsyncVectorEnv"]
    capsys.readouterr()


def test_workers_are_contenders_where_there_are_enough_networks(tmp_path, capsys):
    (result,) = measured(tmp_path, "--workload", "growing", "--rivals", "--workers", "2", "4")
    assert list(result["contenders"]) == ["native", "2 workers"]
    assert "2 workers" in capsys.readouterr().out


def test_engines_are_contenders_with_and_without_workers(tmp_path, capsys):
    (result,) = measured(tmp_path, "--rivals", "--engines", "torch", "--workers", "2")
    assert list(result["contenders"]) == ["native", "2 workers", "engine torch", "engine torch, 2 workers"]
    assert (result["native_engine"], result["native_parts"]) == ("fused", 2)
    assert "native (engine fused)" in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_vector_of_an_engine_runs_its_networks_in_it(engine):
    contender = Environments("Esper-Digits-v0", 3, FIXED["host"], None, engine=engine, shard_size=2, **TINY)
    assert (contender.engine, contender.parts) == (engine, {"torch": 2, "fused": 3}[engine])
    contender.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a short run."""
    settings = {"env_settings": {"batches_per_step": 1, "horizon": 4}, "num_envs": 2, "total_timesteps": 8}
    ppo = PPOSettings(n_steps=4, batch_size=8, n_epochs=1)
    return train(TrainSettings(tmp_path_factory.mktemp("run") / "r", progress=False, ppo=ppo, **settings)).folder


@pytest.mark.parametrize("trained", [False, True])
def test_policy_workload_grows_seeds_in_turns_of_whole_episodes(trained, run, tmp_path, capsys):
    flags = ["--policy", str(run)] if trained else []
    (result,) = measured(tmp_path, "--workload", "policy", "--rivals", "--workers", "2", *flags)
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["policy"] == (f"{run}, trained for 8 steps" if trained else "untrained")
    assert content["whole_episodes"]
    assert (result["native_steps"] - 2) % 4 == 0  # after the warm-up
    assert 0 < result["native_seeds"] < 3
    assert content["policy"] in " ".join(capsys.readouterr().out.split())


def test_policies_of_contenders_draw_the_same_numbers_and_leave_the_generator():
    workload = make_workload(POLICY, "Esper-Digits-v0")
    contenders = [Environments("Esper-Digits-v0", 2, workload, None, **TINY) for _ in range(2)]
    before = torch.get_rng_state()
    for contender in contenders:
        for _ in range(3):
            contender.step()
    first, second = (contender._observation["features"] for contender in contenders)
    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    for contender in contenders:
        contender.close()


def test_turns_have_multiples_of_the_unit(monkeypatch):
    turns = []

    def turn(_step, steps, _wait):
        turns.append(steps)
        return 1.0

    monkeypatch.setattr(timing, "turn", turn)
    assert timing.race({"a": lambda: None}, 2, 9.0, lambda: None, unit=4) == {"a": [1.0, 1.0]}
    timing.race({"a": lambda: None}, 1, 0.1, lambda: None, unit=4)
    assert turns == [1, 8, 8, 1, 4]


def test_planted_workload_keeps_a_seed_in_every_slot():
    contender = Environments("Esper-Digits-v0", 2, FIXED["planted"], None, batches_per_step=1, horizon=2)
    for _ in range(5):
        contender.step()
    assert contender._envs.unwrapped._growth.table.has_seed.all()
    contender.close()


@pytest.mark.parametrize("size", [1, 2])
def test_bare_loop_equals_plain_loop_without_clipping(size, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    plain = PlainLoop("Esper-Digits-v0", 2, threads=1, **TINY)
    bare = BareLoop("Esper-Digits-v0", 2, shard_size=size, **TINY)
    plain.step()
    bare.step()
    for row, network in enumerate(plain.networks):
        stack = bare.shards[row // size].host.parameters
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter, stack[name][row % size], atol=1e-5, rtol=1e-4)
    bare.close()


def test_shares_of_a_step_account_for_training_and_evaluation():
    rows = {name: {} for name in ("native", "bare loop", "plain loop")}
    shares = Shares(lambda: None, {"step": 10.0, "train": 5.0, "evaluate": 4.0}, steps=10)
    rows["plain loop"]["native_is_faster_by"] = 3.0
    times = {"native": [1.0, 2.0, 4.0], "bare loop": [0.5, 0.5, 0.5], "plain loop": [3.0, 6.0, 12.0]}
    result = shares_of_a_step(rows, times, shares, samples=100)
    assert rows["bare loop"]["native_step_without_evaluation_over_it"] == pytest.approx(0.6 * 2.0 / 0.5)
    assert rows["plain loop"]["native_trains_faster_by"] == pytest.approx(6.0)
    assert result["evaluation_over_training"] == pytest.approx(0.8)
    assert result["training_samples_per_second_while_training"] == pytest.approx(100 * 10 / 5.0)


def test_bytes_per_minibatch_equal_a_manual_count_and_leave_the_host_unchanged():
    convolution, pool = nn.Conv2d(3, 2, 3, padding=1, bias=False), [nn.MaxPool2d(2), nn.ReLU(), GlobalAveragePool()]
    host = nn.Sequential(convolution, nn.BatchNorm2d(2), *pool, nn.Linear(2, 5)).eval()
    before = {name: value.clone() for name, value in host.state_dict().items()}
    # For each of 7 samples: image 3*4*4 = 48, full map 2*4*4 = 32, pooled map 2*2*2 = 8, means 2, logits 5 values.
    image, full, pooled, means, logits = (7 * size for size in (48, 32, 8, 2, 5))
    convolution = image + full + (full + image)  # forward; gradient and saved input, and none for the images
    norm = (2 * full + full) + (2 * full + 2 * full + full)
    pool = (full + pooled) + (pooled + pooled + full)
    relu = (pooled + pooled) + (pooled + pooled + pooled)
    average = (pooled + means) + (means + pooled)
    linear = (means + logits) + (logits + means + means)
    loss = logits + logits
    parameters = 9 * (2 * 3 * 9 + (2 + 2) + (2 * 5 + 5))
    values = convolution + norm + pool + relu + average + linear + loss + parameters
    assert bandwidth.bytes_per_minibatch(host, 7, (3, 4, 4), 4) == 4 * values
    assert bandwidth.bytes_per_minibatch(host, 7, (3, 4, 4), 2) == 2 * values
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    with pytest.raises(ValueError, match="Softplus is not in TRAFFIC"):
        bandwidth.bytes_per_minibatch(nn.Sequential(nn.Flatten(), nn.Softplus()), 2, (1, 2, 2), 4)


def test_copy_bandwidth_counts_reads_and_writes_in_the_median_time(monkeypatch):
    cpu, seconds = torch.device("cpu"), iter([100.0, 4.0, 1.0, 2.0])  # the first is the warm-up
    assert bandwidth.copy_bandwidth(cpu, size=1 << 16, repeats=2) > 0
    monkeypatch.setattr(bandwidth, "_seconds", lambda target, source: next(seconds) * (len(target) == len(source)))
    assert bandwidth.copy_bandwidth(cpu, size=1000, repeats=3) == 1000.0  # 2 * 1000 bytes in 2 s


def test_decisions_times_every_part_and_restores_it(tmp_path, capsys):
    apply, out = decisions.lifecycle.apply, tmp_path / "d.json"
    assert decisions.main(["--out", str(out), "--n", "3", "--steps", "4"]) == OK
    parts = json.loads(out.read_text())["parts"]
    calls = {name: row["calls_per_step"] for name, row in parts.items()}
    assert min(row["milliseconds"] for row in parts.values()) > 0
    assert calls["transitions"] == calls["reward"] == calls["features"] == calls["decoding"] == 1
    assert decisions.lifecycle.apply is apply
    assert "whole observation" in capsys.readouterr().out


def test_telemetry_benchmark_compares_equal_steps(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(writer, "LINGER", 0.0)
    out = tmp_path / "telemetry.json"
    arguments = ["--out", str(out), "--counts", "2", "--policies", "random", "--rounds", "6", "--steps", "1"]
    assert telemetry.main([*arguments, "--warmup", "3"]) == OK
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


@pytest.mark.parametrize(
    ("script", "wrong", "message"),
    [
        ("throughput", ["--counts", "0"], "`counts` is [0]; expected one or more positive integers"),
        ("throughput", ["--env-settings", "x=1"], "unexpected keyword argument 'x'"),
        ("throughput", ["--workload", "planted", "--rivals", "loop"], "`rivals` is ['loop'], which only train hosts"),
        ("throughput", ["--policy", "runs/x"], "the workload 'host' has another policy; add --workload policy"),
        ("throughput", ["--workload", "policy", "--policy", "runs/x"], "there is no run folder runs/x"),
        (
            "throughput",
            ["--engines", "fused", "--env-settings", "precision=bfloat16"],
            "does not support precision 'bfloat16'",
        ),
        ("throughput", ["--workers", "1"], "`workers` is [1]; expected integers of at least 2"),
        ("throughput", ["--workload", "planted", "--bandwidth"], "leave out --bandwidth, or --workload"),
        ("calibration", ["--judge-only"], "headroom-cifar-v0.json does not exist; measure again"),
        ("calibration", ["--episodes", "1"], "--episodes is '1'; expected an integer of at least 2"),
        ("soak", ["--minutes", "0"], "--minutes is '0'; expected a positive number"),
        ("soak", ["--steps", "0"], "--steps is '0'; expected a positive integer"),
        ("soak", ["--num-envs", "1"], "--num-envs is '1'; expected an integer of at least 2"),
        ("soak", ["--fault-share", "1.5"], "--fault-share is '1.5'; expected a number in [0, 1]"),
        ("decisions", ["--n", "0"], "--n is '0'; expected a positive integer"),
        ("telemetry", ["--warmup", "-1"], "--warmup is '-1'; expected a non-negative integer"),
        ("telemetry", ["--policies", "x"], "`policies` is ['x']; expected one or more of heuristic"),
        ("formulations", ["--n", "1"], "--n is '1'; expected an integer of at least 2"),
        ("formulations", ["--streams", "33"], "--streams is '33'; expected an integer in [1, 32]"),
        ("formulations", ["--device", "cpu", "--precision", "tf32"], "`precision` is 'tf32', which needs a CUDA dev"),
        ("formulations", ["--env-settings", "shard_size=2"], "shard_size"),
        ("formulations", ["--env-settings", "dataset=cifar10"], "cifar10"),
    ],
)
def test_benchmarks_reject_invalid_settings_before_any_timing(script, wrong, message, tmp_path, capsys, monkeypatch):
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "race", lambda *_: pytest.fail("something was timed"), raising=False)
    assert module.main(["--out", str(tmp_path / "t.json"), *wrong]) == BAD_INPUT
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
