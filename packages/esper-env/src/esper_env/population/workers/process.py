"""Parent's side of a worker process: starts it, sends requests, and detects that it has ended or hangs.

Each worker is a new interpreter, started with ``subprocess``. ``multiprocessing`` would import the caller's main module
in it: scripts without a ``__main__`` guard would fail, and the workers of ``esper train`` would load the libraries of
the agents. The messages of a step are a few kilobytes of arrays, so a pipe of ``multiprocessing`` carries them, and
no results are in shared memory. The datasets are shared; see ``shared.py``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any, NoReturn

from esper_env.workers import WorkerError

if TYPE_CHECKING:
    from esper_env.population.workers.serve import Reply

#: Program of a worker, which imports from the caller's path only. Only the parent ends it: Ctrl-C and SIGTERM often
#: reach every process of a job, and the parent may have to finish its step and save.
BOOTSTRAP = (
    "import sys; connection, parent, *sys.path[:] = sys.argv[1:]; "
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "from esper_env.population.workers.serve import main; main(int(connection), int(parent))"
)
#: Seconds that a worker has to end by itself after its connection is closed.
GRACE = 5.0


class RemoteError(Exception):
    """Cause of an error that a worker raised: the worker's traceback, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class Worker:
    """A worker process, which answers one request at a time.

    Args:
        number: number of the worker, for errors.
        networks: the environments whose networks it holds.
        descriptor: open file that the worker inherits.
        timeout: seconds that a request may take; None for no limit.
    """

    def __init__(self, number: int, networks: slice, descriptor: int, timeout: float | None) -> None:
        self._number, self.networks, self._timeout = number, networks, timeout
        self._queue: list[tuple[str, Sequence[Any]]] = []
        self._connection, theirs = Pipe()
        command = [sys.executable, "-c", BOOTSTRAP, str(theirs.fileno()), str(os.getpid()), *map(str, sys.path)]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), descriptor),
                process_group=0,  # a terminal's Ctrl-C does not reach it even while it starts
            )
        self._owner = os.getpid()

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def __str__(self) -> str:
        first, last = self.networks.start, self.networks.stop - 1
        which = f"environment {first}" if first == last else f"environments {first} to {last}"
        return f"worker {self._number} (process {self.pid}, {which})"

    def queue(self, name: str, *arguments: Any) -> None:
        """Add a call whose result is not needed; it is sent with the next request."""
        self._queue.append((name, arguments))

    def send(self, name: str, *arguments: Any) -> None:
        """Send the queued calls and a request, which :meth:`receive` answers. Raises ``WorkerError``."""
        if self._connection.closed or os.getpid() != self._owner:
            raise WorkerError(
                f"{self} has ended, or belongs to the process that forked this one; make a new environment"
            )
        calls, self._queue = [*self._queue, (name, arguments)], []
        try:
            self._connection.send(calls)
        except OSError:
            self._raise_ended(name)

    def receive(self, name: str) -> Reply:
        """Wait for the answer to the request ``name``. Raises ``WorkerError``."""
        waited = 0.0  # not by the clock, which runs on while all processes are suspended
        while not self._connection.poll(pause := 1.0 if self._timeout is None else min(1.0, self._timeout - waited)):
            waited += pause
            if self._process.poll() is not None and not self._connection.poll():
                self._raise_ended(name)
            if self._timeout is not None and waited >= self._timeout:
                raise WorkerError(
                    f"{self} has not finished {name!r} within {self._timeout:g} seconds and was killed; if its step "
                    "takes that long, make the environment with a larger worker_timeout"
                )
        try:
            reply: Reply = self._connection.recv()
        except (EOFError, OSError):
            self._raise_ended(name)
        return reply

    def hang_up(self) -> None:
        """Close the connection, so that the worker ends; a call in a forked process does not affect the worker."""
        self._connection.close()

    def wait(self, seconds: float) -> None:
        """Wait for the process to end, and kill it if it takes longer than ``seconds``."""
        if os.getpid() != self._owner:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _raise_ended(self, name: str) -> NoReturn:
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            raise WorkerError(f"{self} has closed its connection before it finished {name!r}") from None
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        hint = "; if memory ran out, use fewer environments or workers" if code == -signal.SIGKILL else ""
        raise WorkerError(f"{self} {how} before it finished {name!r}; make a new environment{hint}") from None


def ask(requests: Sequence[tuple[Worker, str, Sequence[Any]]], give_up: Callable[[], object]) -> list[Any]:
    """Send a request to each of several workers and return their results.

    ``give_up`` is called unless all workers have answered: a late answer could be mistaken for that of a later request.

    Raises:
        WorkerError: a worker has ended or does not answer.
        Exception: the first error that a worker raised, with the worker as a note and its traceback as the cause. All
            workers have answered then.
    """
    try:
        for worker, name, arguments in requests:
            worker.send(name, *arguments)
        replies = [(worker, worker.receive(name)) for worker, name, _ in requests]
    except BaseException:
        give_up()
        raise
    for _, reply in replies:
        for text, category, file, line in reply.warned:
            warnings.warn_explicit(text, category, file, line)
    for worker, reply in replies:
        if reply.error is not None:
            reply.error.add_note(f"raised in {worker}")
            raise reply.error from RemoteError(reply.traceback)
    return [reply.result for _, reply in replies]


def end(workers: Sequence[Worker]) -> None:
    """Close the connections, so that the workers end, and kill those that do not."""
    for worker in workers:
        worker.hang_up()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.wait(max(deadline - time.monotonic(), 0.0))
