"""Worker processes that fail, hang or are killed, and parents that are."""

import gc
import os
import signal
import subprocess
import sys
import threading
import warnings

import gymnasium
import numpy as np
import pytest
from esper_env import unregister_task
from esper_env.vector_env import EsperVectorEnv
from esper_env.workers import WorkerError
from faulty_hosts import is_running, register_faulty, wait_until
from stepping import growth_of

COUNT = 3
WAIT = np.zeros((COUNT, 8), dtype=np.int64)


class Faulty:
    """A vector with two workers, in which a fault can be caused."""

    def __init__(self, folder):
        register_faulty(folder)
        self.folder = folder
        self.env = EsperVectorEnv("Faulty-v0", COUNT, workers=2, autoreset_mode="SameStep")
        unregister_task("Faulty-v0")
        self.env.reset(seed=0)

    def cause(self, fault):
        """Let the next worker that runs a layer fail."""
        (self.folder / fault).touch()

    def described(self, pid):
        """The worker in the words of errors; ``pid`` is one of its processes."""
        number = pids(self.env).index(pid)
        return f"worker {number} (process {pid}, {('environment 0', 'environments 1 to 2')[number]})"


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """A vector for faults that its workers survive."""
    faulty = Faulty(tmp_path_factory.mktemp("faults"))
    yield faulty
    faulty.env.close()


@pytest.fixture
def doomed(tmp_path):
    """A vector for faults that end its workers."""
    faulty = Faulty(tmp_path)
    yield faulty
    faulty.env.close()


def pids(env):
    return growth_of(env)._population.processes


def step_in_thread(env):
    """Start a step; return its thread and the list that will hold its error."""
    errors = []

    def step():
        try:
            env.step(WAIT)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    return thread, errors


def expect_ended(env):
    """All workers have ended, and every further call says so."""
    wait_until(lambda: not any(map(is_running, pids(env))))
    for call in (lambda: env.step(WAIT), env.reset, env.get_state):
        with pytest.raises(WorkerError, match="has ended"):
            call()


def test_error_in_a_host_names_the_worker_and_shows_its_traceback(lasting, assert_same):
    first = lasting.env.reset(seed=0)
    lasting.cause("fail")
    with pytest.raises(LookupError, match="the layer is broken") as caught:
        lasting.env.step(WAIT)
    (note,) = caught.value.__notes__
    assert note in [f"raised in {lasting.described(pid)}" for pid in pids(lasting.env)]
    assert 'raise LookupError("the layer is broken")' in str(caught.value.__cause__)
    assert_same(lasting.env.reset(seed=0), first)  # the workers go on, as a host in the caller's process would
    lasting.env.step(WAIT)


def test_error_that_cannot_be_pickled_keeps_its_text_and_traceback(lasting):
    lasting.cause("fail_without_pickle")
    with pytest.raises(RuntimeError, match="UnpicklableError: an error of two parts") as caught:
        lasting.env.step(WAIT)
    assert "in forward" in str(caught.value.__cause__)


def test_warning_of_a_host_is_issued_in_the_callers_process(lasting):
    lasting.cause("warn")
    with pytest.warns(UserWarning, match="the layer creaks") as caught:
        lasting.env.step(WAIT)
    assert caught[0].filename.endswith("faulty_hosts.py")


def test_signals_do_not_end_workers(lasting):
    for pid in pids(lasting.env):
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    lasting.env.step(WAIT)
    assert all(map(is_running, pids(lasting.env)))


def test_forked_process_cannot_use_or_end_the_workers(lasting):
    env = lasting.env
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: this process has threads
        child = os.fork()
    if child == 0:
        try:
            env.step(WAIT)
        except WorkerError as error:
            os.write(writing, str(error).encode())
        env.close()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert "belongs to the process that forked this one" in pipe.read()
    os.waitpid(child, 0)
    env.step(WAIT)


def test_worker_killed_in_a_step_ends_the_step_and_the_other_workers(doomed):
    doomed.cause("hang")
    thread, errors = step_in_thread(doomed.env)
    hung = doomed.folder / "hung"
    wait_until(lambda: hung.exists() and hung.read_text())
    pid = int(hung.read_text())
    os.kill(pid, signal.SIGKILL)
    thread.join()
    (error,) = errors
    assert isinstance(error, WorkerError)
    assert str(error).startswith(f"{doomed.described(pid)} was killed by SIGKILL before it finished 'train'")
    assert "if memory ran out" in str(error)
    expect_ended(doomed.env)


def test_hanging_worker_ends_the_step_after_the_timeout(doomed):
    for worker in growth_of(doomed.env)._population._workers:
        worker._timeout = 0.5  # not while they start
    doomed.cause("hang")
    with pytest.raises(WorkerError, match=r"has not finished 'train' within 0\.5 seconds .* a larger worker_timeout"):
        doomed.env.step(WAIT)
    expect_ended(doomed.env)


def test_close_ends_the_workers_and_so_does_garbage_collection(doomed):
    own = pids(doomed.env)
    doomed.env.close()
    assert not any(map(is_running, own))
    doomed.env.close()
    other = Faulty(doomed.folder)
    own = pids(other.env)
    del other
    gc.collect()
    assert not any(map(is_running, own))


def test_task_that_cannot_be_sent_is_rejected(tmp_path, own_tables):  # noqa: ARG001
    with (tmp_path / "file").open("w") as opened:
        task = register_faulty(tmp_path)
        locked = threading.Lock()
        host = task.host
        gymnasium.registry.pop("Faulty-v0")
        object.__setattr__(task, "host", lambda data: (opened, locked, host(data))[2])
        with pytest.raises(ValueError, match=r"Faulty-v0 cannot be sent to worker processes: .*; or omit `workers`"):
            EsperVectorEnv("Faulty-v0", COUNT, workers=2)


def test_host_of_a_module_that_workers_cannot_import_is_rejected_with_a_remedy(tmp_path, monkeypatch, own_tables):  # noqa: ARG001
    (tmp_path / "hidden_hosts.py").write_text("from custom_hosts import Images\nclass Hidden(Images):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import hidden_hosts

    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "hidden_hosts", hidden_hosts)
    task = register_faulty(tmp_path)
    object.__setattr__(task, "host", hidden_hosts.Hidden)
    expected = "cannot be loaded by worker processes: No module named 'hidden_hosts'. .* put it in a folder of sys.path"
    with pytest.raises(ValueError, match=expected):
        EsperVectorEnv("Faulty-v0", COUNT, workers=2)


PARENT = """
import os, signal, sys
from pathlib import Path
import numpy as np
from esper_env.vector_env import EsperVectorEnv
from faulty_hosts import register_faulty

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
folder = Path(sys.argv[1])
register_faulty(folder)
env = EsperVectorEnv("Faulty-v0", 3, workers=2, autoreset_mode="SameStep")
env.reset(seed=0)
(folder / sys.argv[2]).touch()  # the first step deletes it
print(*env._growth._population.processes, flush=True)
try:
    while True:
        env.step(np.zeros((3, 8), dtype=np.int64))
except KeyboardInterrupt:
    env.step(np.zeros((3, 8), dtype=np.int64))  # the interrupted step has ended on all workers
    env.close()
    print("closed", flush=True)
"""


@pytest.fixture
def parent(tmp_path):
    """``parent(fault)`` starts a process that steps a vector forever; returns it with the ids of its workers."""
    started = []

    def start(fault):
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, tmp_path, fault],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        started.append(process)
        workers = [int(pid) for pid in process.stdout.readline().split()]
        wait_until(lambda: not (tmp_path / fault).exists())
        return process, workers

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_workers_end_with_a_killed_parent_even_if_one_hangs(parent):
    process, workers = parent("hang")
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_running, workers)))


@pytest.mark.slow
def test_interrupt_of_the_process_group_reaches_the_parent_only(parent):
    process, workers = parent("warn")
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate()
    assert (output.strip(), process.returncode) == ("closed", 0)
    assert "KeyboardInterrupt" not in errors
    assert not any(map(is_running, workers))
