"""Exit of the interpreter, and forks."""

import os
import subprocess
import sys
import textwrap
import warnings

import pytest
from esper_env.telemetry import read_events

SET_UP = """
import os, sys, threading
from esper_env.telemetry import *
from esper_env.telemetry import writer

telemetry = Telemetry()
folder = sys.argv[1]

def emit(count):
    for _ in range(count):
        telemetry.emit(HostStabilized(val_loss=1.0, val_accuracy=50.0))
"""


def run(code, folder):
    """Return the standard error of a process that exits with 0."""
    command = [sys.executable, "-c", SET_UP + textwrap.dedent(code), str(folder)]
    # Python 3.12 warns of each fork of a process with threads.
    environment = os.environ | {"PYTHONWARNINGS": "error,ignore::DeprecationWarning"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def ids(folder):
    return [event.id for event in read_events(folder)]


@pytest.mark.parametrize("leaving", ["", "del telemetry"])
def test_exit_writes_all_events(tmp_path, leaving):
    assert run(f"telemetry.add_sink(JsonlSink(folder)); emit(3); {leaving}", tmp_path) == ""
    assert ids(tmp_path) == [0, 1, 2]


def test_exit_warns_of_a_failure_unless_it_was_reported(tmp_path):
    errors = run(
        """
        import warnings

        class Raising(MemorySink):
            def write(self, _events):
                gate.wait()
                raise OSError("broken")

        gate = threading.Event()
        hubs = [Telemetry(), Telemetry()]
        for telemetry in hubs:
            telemetry.add_sink(Raising())
            emit(1)
        gate.set()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            telemetry.flush()
        assert len(caught) == 1
        """,
        tmp_path,
    )
    assert errors.count("Raising is switched off: OSError: broken") == 1


@pytest.mark.parametrize("where", ["write", "close"])
def test_hanging_sinks_of_all_hubs_hold_up_the_exit_once_and_lose_no_events(tmp_path, where):
    errors = run(
        f"""
        import atexit, time

        class Hanging(MemorySink):
            def {where}(self, *_):
                threading.Event().wait()

        atexit.unregister(writer._finish)
        writer.EXIT_TIMEOUT = 0.5
        hubs = [Telemetry() for _ in range(6)]
        for number, telemetry in enumerate(hubs):
            telemetry.add_sink(Hanging())
            telemetry.add_sink(JsonlSink(f"{{folder}}/{{number}}"))
            emit(3)
        started = time.monotonic()
        try:
            writer._finish()
        except RuntimeWarning as warning:
            print(warning, "seconds:", time.monotonic() - started, file=sys.stderr)
        """,
        tmp_path,
    )
    message, _, seconds = errors.partition(" seconds: ")
    assert message.startswith("the telemetry sink Hanging is switched off: it did not finish")
    assert float(seconds) < 2
    assert [ids(tmp_path / str(number)) for number in range(6)] == [[0, 1, 2]] * 6


def test_killed_process_leaves_all_flushed_events_and_whole_lines(tmp_path):
    code = """
writer.LINGER = 0.0
telemetry.add_sink(JsonlSink(folder, max_bytes=4096))
emit(100)
telemetry.flush()
print("flushed", flush=True)
while True:
    emit(1)
"""
    with subprocess.Popen(
        [sys.executable, "-c", SET_UP + code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "flushed\n"
        process.kill()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ids(tmp_path)
    assert found == list(range(len(found)))
    assert len(found) >= 100
    assert len(caught) <= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forks_while_other_threads_emit_hold_no_lock_and_write_nothing_twice(tmp_path):
    """Events wait in the parent at every fork; each child writes only its own event, into a separate file."""
    errors = run(
        """
        sys.setswitchinterval(1e-6)
        telemetry.add_sink(JsonlSink(folder))
        emit(1)
        over = threading.Event()

        def keep_emitting(pause):
            while not over.is_set():
                emit(1)
                pause()

        pauses = telemetry.flush, lambda: over.wait(0.001)
        threads = [threading.Thread(target=keep_emitting, args=(pause,), daemon=True) for pause in pauses]
        for thread in threads:
            thread.start()
        for number in range(12):
            if os.fork() == 0:
                emit(1)
                if number % 2:
                    sys.exit(0)  # writes all events
                telemetry.close()
                os._exit(0)
            assert os.wait()[1] == 0
        over.set()
        for thread in threads:
            thread.join()
        telemetry.close()
        """,
        tmp_path,
    )
    assert errors == ""
    parent, *children = sorted((ids(file) for file in tmp_path.iterdir()), key=len, reverse=True)
    assert parent == list(range(len(parent)))
    assert [len(child) for child in children] == [1] * 12
    assert {number for child in children for number in child} <= set(parent)
