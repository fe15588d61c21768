"""Formulations of the layers of many networks: equal results, and the benchmark that times them."""

import json
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import formulations
import pytest
import runners
import timing
import torch
from contenders import PlainLoop
from convolutions import FORMULATIONS, Problem
from esper_agent.cli.main import OK
from esper_env.population.engine import images as batched
from esper_env.tasks import make_task
from layers import Case, cases
from runners import OneAfterTheOther
from torch.nn import functional as F
from whole_steps import Engine, RunnerLoop

CPU = torch.device("cpu")

pytestmark = pytest.mark.numeric


def case_of(kernel, input_gradient=True):
    return Case("host", 3, 5, kernel, 4, 6, input_gradient)  # all sizes differ


def separately(problem):
    """Output and gradients of each network from its own convolution."""
    weight, x = (value.double().requires_grad_() for value in (problem.weight, problem.features))
    own = [F.conv2d(x[i], weight[i], padding=problem.case.kernel // 2) for i in range(len(weight))]
    (torch.stack(own) * problem.output_gradient.double()).sum().backward()
    return torch.stack(own).detach(), weight.grad, x.grad


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    ("input_gradient", "dtype"), [(True, torch.float32), (False, torch.float32), (True, torch.bfloat16)]
)
def test_every_formulation_equals_single_networks(kernel, input_gradient, dtype):
    problem = Problem.random(case_of(kernel, input_gradient), 2, 7, CPU, dtype)
    expected, ran = separately(problem), set()
    for name, formulation in FORMULATIONS.items():
        if not formulation.suits(problem.case):
            continue
        prepared = formulation.prepare(problem)
        run = OneAfterTheOther(prepared.works)
        run()
        got = prepared.standard(run())  # the second run must not depend on the first
        assert (got.input_gradient is not None) == input_gradient, name
        for value, reference, kind in zip(got, expected, (dtype, torch.float32, dtype), strict=True):
            if value is not None:
                assert value.dtype == kind, name
                tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
                assert (value.double() - reference).norm() < tolerance * reference.norm(), name
        ran.add(name)
    wide = {"unfold + batched matmul", "unrolled matrix + batched matmul"}
    assert ran == set(FORMULATIONS) - (wide if kernel == 1 else {"batched matmul"})


def test_formulations_call_the_engine(monkeypatch):
    called = []
    for name in ("_conv_grouped", "_conv_by_matrix", "run"):
        original = getattr(batched, name)
        monkeypatch.setattr(
            batched, name, lambda *a, name=name, original=original, **k: called.append(name) or original(*a, **k)
        )
    for kernel, name in (
        (3, "grouped convolution, samples last"),
        (3, "unrolled matrix + batched matmul"),
        (1, "batched matmul"),
    ):
        problem = Problem.random(case_of(kernel), 2, 7, CPU, torch.float32)
        OneAfterTheOther(FORMULATIONS[name].prepare(problem).works)()
    assert called == ["_conv_grouped", "_conv_by_matrix", "run"]


def test_cases_are_the_convolutions_of_host_and_seeds():
    found = cases(make_task("Esper-Digits-v0"))
    assert [case.name for case in found] == [
        "host 1->4, 1x1 at 8x8",
        "host 4->8, 1x1 at 4x4",
        "host 8->16, 1x1 at 2x2",
        "conv_light at r0c0 4->4, 3x3 at 4x4",
        "conv_light at r0c1 8->8, 3x3 at 2x2",
        "conv_light at r0c2 16->16, 3x3 at 2x2",
    ]
    assert [case.input_gradient for case in found] == [False, True, True, True, True, True]


def test_obstacle_names_the_reason():
    large = Case("host", 3, 8, 3, 32, 32, False)
    cuda = torch.device("cuda")
    reasons = {name: one.obstacle(large, CPU) for name, one in FORMULATIONS.items() if one.suits(large)}
    assert {name: reason for name, reason in reasons.items() if reason} == {
        "unrolled matrix + batched matmul": "too large a map",
        "streams": "needs a CUDA device",
    }
    assert FORMULATIONS["streams"].obstacle(large, cuda) is None
    assert FORMULATIONS["unrolled matrix + batched matmul"].obstacle(case_of(3), cuda) is None


@pytest.mark.parametrize("env_id", ["Esper-Digits-v0", "Esper-CIFAR-v0"])
def test_formulations_train_equal_networks(env_id):
    settings = {"batches_per_step": 2, "batch_size": 8, "dataset": "procedural" if "CIFAR" in env_id else "digits"}
    loop = PlainLoop(env_id, 2, threads=1, **settings)
    again = PlainLoop(env_id, 2, threads=1, **settings)
    on_runner = RunnerLoop(again, 8, OneAfterTheOther)
    engines = [Engine(make_task(env_id, shard_size=size, **settings), 2) for size in (2, 1)]
    assert [len(engine.population.shards) for engine in engines] == [1, 2]
    for contender in (loop, on_runner, *engines):
        contender.step()
        contender.close()
    for row, network in enumerate(loop.networks):
        twin = dict(again.networks[row].named_parameters())
        for name, parameter in network.named_parameters():
            close = {"atol": 1e-5, "rtol": 1e-4}
            torch.testing.assert_close(twin[name], parameter, **close)
            for engine in engines:
                shards = engine.population.shards
                stack = shards[row // shards[0].rows].host.parameters[name]
                torch.testing.assert_close(stack[row % shards[0].rows], parameter.detach(), **close)


class FakeCuda:
    """Stand-in for ``torch.cuda`` that records events."""

    def __init__(self):
        self.events, self.now, self.names = [], "default", iter(("s0", "s1"))

    def named(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.events.append((name, "waits", other.name)))

    def Stream(self, _device):  # noqa: N802
        return self.named(next(self.names))

    def current_stream(self, _device):
        return self.named(self.now)

    @contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream.name
        yield
        self.now = before

    def CUDAGraph(self):  # noqa: N802
        return SimpleNamespace(replay=lambda: self.events.append((self.now, "replays", None)))

    @contextmanager
    def graph(self, _graph, stream):
        with self.stream(stream):
            self.events.append((self.now, "captures", None))
            yield


def test_graphs_are_captured_and_replayed_on_their_streams(monkeypatch):
    fake = FakeCuda()
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))

    def work(index):
        fake.events.append((fake.now, "runs", index))
        return index

    works = [partial(work, index) for index in range(5)]
    run = runners.GraphsOnStreams(works, 2, torch.device("cuda"))
    expected = []
    for stream, share in (("s0", [0, 2, 4]), ("s1", [1, 3])):
        runs = [(stream, "runs", index) for index in share]
        expected += [(stream, "waits", "default"), *runs * runners.WARMUPS, ("default", "waits", stream)]
        expected += [(stream, "captures", None), *runs]
    assert fake.events == expected
    fake.events.clear()
    assert run() == [0, 1, 2, 3, 4]
    replayed = [[(stream, "waits", "default"), (stream, "replays", None)] for stream in ("s0", "s1")]
    assert fake.events == [*replayed[0], *replayed[1], ("default", "waits", "s0"), ("default", "waits", "s1")]


def test_turn_waits_for_the_device_before_and_after_its_steps(monkeypatch):
    events = []
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: events.append("clock") or next(clock))
    assert timing.turn(lambda: events.append("step"), 3, lambda: events.append("wait")) == 2.0
    assert events == ["wait", "clock", "step", "step", "step", "wait", "clock"]


def test_formulations_record_every_case(tmp_path, capsys):
    switches = (torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)
    out = tmp_path / "f.json"
    arguments = ["--out", str(out), "--n", "2", "--batch-size", "4", "--rounds", "3", "--seconds", "0.0001"]
    arguments += ["--threads", "1", "--device", "cpu", "--env-settings", "batches_per_step=2"]
    assert formulations.main(arguments) == OK
    assert "not measured: needs a CUDA device" in " ".join(capsys.readouterr().out.split())
    content = json.loads(out.read_text())
    assert (content["n"], content["batch_size"], content["precision"]) == (2, 4, "float32")
    rows = content["rows"]
    names = list(dict.fromkeys(row["case"] for row in rows))
    assert names == [*(case.name for case in cases(make_task("Esper-Digits-v0"))), "whole minibatch"]
    assert [row["case"] for row in rows if row["fastest"]] == names
    for row in rows:
        missing = row["formulation"] == "streams"
        assert row["status"] == ("not measured: needs a CUDA device" if missing else "measured")
        assert len(row["rounds"]) == (0 if missing else 3)
    whole = [row["formulation"] for row in rows if row["case"] == "whole minibatch"]
    assert whole == ["engine, one shard", "engine, a shard for each network", "loop", "streams"]
    assert switches == (torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)


def test_compare_divides_by_parts_and_leaves_obstacles_untimed(monkeypatch):
    times = {"a": [4.0, 2.0, 6.0], "b": [2.0, 4.0, 2.0]}
    monkeypatch.setattr(formulations, "race", lambda *_: times)
    settings = formulations.FormulationSettings(Path("f.json"))
    entrants = {"a": print, "b": print, "c": "no reason"}
    a, b, c = formulations.compare("case", entrants, settings, lambda: None, 2)
    assert (a["milliseconds"], a["ratio_to_fastest"], a["fastest"]) == (2000.0, 2.0, False)
    assert (b["milliseconds"], b["ratio_to_fastest"], b["fastest"]) == (1000.0, 1.0, True)
    assert (c["milliseconds"], c["ratio_to_fastest"], c["fastest"]) == (None, None, False)
    assert (a["status"], c["status"]) == ("measured", "not measured: no reason")


def test_backends_set_one_precision_for_convolutions_and_matmuls():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, torch.get_num_threads()
    for precision, tf32 in (("float32", False), ("tf32", True), ("bfloat16", False)):
        settings = formulations.FormulationSettings(Path("f.json"), precision=precision, threads=2)
        with formulations.backends(settings, CPU):
            assert (cudnn.allow_tf32, matmul.allow_tf32, torch.get_num_threads()) == (tf32, tf32, 2)
        assert (cudnn.allow_tf32, matmul.allow_tf32, torch.get_num_threads()) == before
    statuses = formulations.step_contenders(formulations.FormulationSettings(Path("f.json"), precision="bfloat16"), CPU)
    assert {name for name, made in statuses.items() if made == "the loop trains in float32"} == {"loop", "streams"}
