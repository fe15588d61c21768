"""The throughput benchmark times what it says it times."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from esper_agent.cli import BAD_INPUT, OK
from esper_env.networks.build import build_population
from esper_env.networks.population import Structure
from esper_env.rules.slot_table import SlotTable
from esper_env.tasks import make_task

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "throughput"
TINY = {"batches_per_step": 2, "horizon": 4}


@pytest.fixture
def throughput(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("throughput", "contenders", "timing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import throughput

    return throughput


@pytest.mark.parametrize("env_id", ["Esper-Digits-v0", "Esper-CIFAR-v0"])
def test_the_plain_loop_trains_the_same_networks_on_the_same_minibatches(throughput, env_id):
    settings = TINY | ({"dataset": "procedural"} if "CIFAR" in env_id else {})
    loop = throughput.PlainLoop(env_id, 2, threads=1, **settings)
    population, _, _ = build_population(make_task(env_id, **settings), 2)
    structure = Structure.of(SlotTable.empty(2, population.slots))
    for row in range(2):
        population.reset_row(row, row)
    loop.step()
    population.train(structure)
    size = population.shards[0].rows
    for row, network in enumerate(loop.networks):
        stack = population.shards[row // size].host.parameters
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter, stack[name][row % size], atol=1e-5, rtol=1e-4)
    population.close()


def test_contenders_take_turns_and_the_file_says_what_came_of_it(throughput, tmp_path, capsys):
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
        assert list(rows) == ["native", "plain loop", "SyncVectorEnv", "AsyncVectorEnv"]
        own = np.array(rows["native"]["rounds"])
        for row in rows.values():
            assert len(row["rounds"]) == 3
            seconds = np.median(row["rounds"])
            assert row["env_steps_per_second"] == pytest.approx(result["n"] / seconds)
            assert row["training_samples_per_second"] == pytest.approx(64 * result["n"] / seconds)
            assert row["native_is_faster_by"] == pytest.approx(np.median(np.array(row["rounds"]) / own))


def test_growing_networks_are_compared_with_environments_only(throughput, tmp_path, capsys):
    out = tmp_path / "t.json"
    arguments = ["--out", str(out), "--counts", "2", "--rounds", "1", "--seconds", "0.01", "--workload", "growing"]
    assert throughput.main([*arguments, "--env-settings", "batches_per_step=1", "horizon=4"]) == OK
    assert "plain loop" not in json.loads(out.read_text())["results"][0]["contenders"]
    capsys.readouterr()


@pytest.mark.parametrize("wrong", [["--counts", "0"], ["--rounds", "0"], ["--seconds", "0"], ["--env", "Esper-X-v0"]])
def test_bad_settings_are_refused(throughput, tmp_path, capsys, wrong):
    assert throughput.main(["--out", str(tmp_path / "t.json"), *wrong]) == BAD_INPUT
    assert not (tmp_path / "t.json").exists()
    capsys.readouterr()
