"""Threads in which environments compute."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from esper_env import threads
from esper_env.threads import callers_cores, side_by_side, undisturbed
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode


class Refusing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise AssertionError(func)


@contextmanager
def flushing():
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def refuse(*_):
    raise AssertionError


SETTINGS = {
    "gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "mode": Refusing,
    "hooks": lambda: saved_tensors_hooks(refuse, refuse),
    "denormals": flushing,
    "floats": lambda: np.errstate(all="raise"),
}


def settings():
    weight = torch.full((2,), 1e-39, requires_grad=True)
    (weight.square() @ torch.ones(2)).backward()
    with np.errstate():
        divided = np.float64(1.0) / np.float64(0.0) if np.geterr()["divide"] != "raise" else None
    return (
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        (str(weight.device), (weight.detach() * 0.5).tolist(), weight.grad is not None),
        divided,
    )


@pytest.fixture
def no_threads_yet(monkeypatch):
    """The test starts its threads, which end with it."""
    with ThreadPoolExecutor(9, "test", threads._prepare) as pool:
        monkeypatch.setattr(threads, "_pool", pool)
        yield pool


@pytest.mark.usefixtures("no_threads_yet")
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("names", [*([name] for name in SETTINGS), list(SETTINGS)], ids="-".join)
def test_settings_of_the_calling_thread_have_no_effect(names):
    plain = settings()
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(SETTINGS[name]())
        inside = [undisturbed(settings)() for _ in range(2)]
    assert inside == [plain, plain]


def test_results_and_errors_reach_the_caller():
    def fail():
        raise LookupError("lost")

    assert undisturbed(divmod)(7, 2) == (3, 1)
    with pytest.raises(LookupError, match="lost"):
        undisturbed(fail)()


def test_undisturbed_call_inside_another_runs_in_the_same_thread():
    inner = undisturbed(threading.get_ident)
    assert undisturbed(lambda: inner() == threading.get_ident())()
    assert inner() != threading.get_ident()


def test_interrupted_caller_waits_until_the_call_has_ended():
    ended, before = [], signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore interrupts

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        ended.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            undisturbed(work)()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended


def test_interrupt_before_the_call_begins_prevents_it(monkeypatch):
    def interrupted(*call):
        waiting.append(call)
        raise KeyboardInterrupt

    waiting, done = [], []
    monkeypatch.setattr(threads._pool, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        undisturbed(done.append)(1)
    for run, *arguments in waiting:
        run(*arguments)
    assert waiting
    assert not done


@pytest.mark.usefixtures("no_threads_yet")
def test_operations_run_on_one_core_and_other_threads_keep_their_number(use_threads):
    use_threads(3)
    assert undisturbed(lambda: (torch.get_num_threads(), callers_cores()))() == (1, 3)
    assert torch.get_num_threads() == callers_cores() == 3
    with ThreadPoolExecutor(1) as pool:  # a thread that the caller starts later
        assert pool.submit(torch.get_num_threads).result() == 3
    assert undisturbed(torch.get_num_threads)() == 1


@pytest.mark.usefixtures("no_threads_yet")
@pytest.mark.parametrize(("count", "lanes", "used"), [(6, 3, 3), (2, 5, 2), (4, 1, 1), (0, 2, 1)])
def test_side_by_side_uses_its_lanes_and_keeps_the_order(count, lanes, used):
    meeting, seen = threading.Barrier(used, timeout=60), set()

    def work(index):
        seen.add(threading.get_ident())
        if index < used:
            meeting.wait()  # each lane has a part
        return index * index, torch.get_num_threads(), callers_cores()

    results = undisturbed(side_by_side)(work, count, lanes)
    assert results == [(index * index, 1, torch.get_num_threads()) for index in range(count)]
    assert len(seen) == min(used, count)


@pytest.mark.usefixtures("no_threads_yet")
def test_side_by_side_raises_the_first_error_after_all_have_ended():
    ended = []

    def work(index):
        if index in (1, 2):
            raise LookupError(index)
        time.sleep(0.02)
        ended.append(index)

    with pytest.raises(LookupError, match="1"):
        undisturbed(side_by_side)(work, 6, 2)
    assert sorted(ended) == [0, 3, 4, 5]


def test_calls_from_many_threads_do_not_wait_for_each_other():
    meeting = threading.Barrier(5, timeout=60)
    with ThreadPoolExecutor(5) as callers:
        assert len({running.result() for running in [callers.submit(undisturbed(meeting.wait)) for _ in range(5)]}) == 5


@pytest.mark.parametrize("taken", [False, True], ids=["nobody", "another thread"])
def test_call_runs_once_if_no_thread_can_start(monkeypatch, taken):
    """The executor may have queued the call, so that a thread that ends another one takes it."""

    def refuse(run, *arguments):
        if taken:
            other = threading.Thread(target=run, args=arguments)
            other.start()
            other.join()
        raise RuntimeError("can't start new thread")

    done = []
    monkeypatch.setattr(threads._pool, "submit", refuse)
    undisturbed(lambda: done.append(threading.get_ident()))()
    assert len(done) == 1
    assert undisturbed(side_by_side)(lambda index: index, 3, 2) == [0, 1, 2]


def test_environment_is_saved_while_the_interpreter_ends(tmp_path):
    code = """
    import atexit, sys
    import numpy as np
    from esper_env.vector_env import EsperVectorEnv

    def leave():
        env.step(np.zeros((2, 8), dtype=np.int64))
        env.save_state(sys.argv[1])

    env = EsperVectorEnv("Esper-Digits-v0", 2, horizon=5, batches_per_step=2, batch_size=8, device="cpu", shard_size=1)
    env.reset(seed=0)
    atexit.register(leave)
    """
    path = tmp_path / "env.safetensors"
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert path.exists()
