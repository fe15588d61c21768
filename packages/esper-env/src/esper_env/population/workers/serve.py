"""A worker process: holds the population of some networks and calls its methods for the parent process.

The parent starts it with ``process.BOOTSTRAP``. It ends when its connection is closed or its parent has ended.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from esper_env.population.build import host_builder
from esper_env.population.population import Population
from esper_env.population.training.trainer import TrainStats
from esper_env.population.workers.shared import Packed, unpack
from esper_env.seeds.registry import restore_registry

#: Seconds between two looks at the parent. A worker also ends as soon as it reads or writes, so this is for long steps.
PATROL = 1.0

#: Name and arguments of a method of the population, or name of an attribute.
Call = tuple[str, Sequence[Any]]
#: A warning: text, category, file, line.
Warned = tuple[str, type[Warning], str, int]


class Reply(NamedTuple):
    """Answer to a request: its result or its error with the traceback, and the warnings issued."""

    result: Any
    error: BaseException | None
    traceback: str
    warned: list[Warned]


def main(descriptor: int, parent: int) -> None:
    """Serve the process ``parent`` over this file descriptor until the parent ends or closes the connection."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    held = _Held()
    with Connection(descriptor) as connection, warnings.catch_warnings(record=True) as caught:
        assert caught is not None
        while True:
            try:
                calls = connection.recv()
                connection.send(_answer(held, calls, caught))
            except (EOFError, OSError):
                return


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, even if a custom module never returns."""
    while os.getppid() == parent:
        time.sleep(PATROL)
    os._exit(1)


class _Held:
    """The worker's population, on which requests call methods."""

    _population: Population

    def carry_out(self, call: Call) -> Any:
        """Return the result of a call as an object that can be pickled."""
        name, arguments = call
        found = self._start if name == "start" else getattr(self._population, name)
        result = found(*arguments) if callable(found) else found
        return result.rows if isinstance(result, TrainStats) else result

    def _start(self, packed: Packed, descriptor: int, count: int, cores: int) -> None:
        """Build the population of ``count`` networks, which trains and measures on ``cores`` cores."""
        torch.set_num_threads(cores)
        task, data, splits, config, registry = unpack(packed, descriptor)
        os.close(descriptor)
        restore_registry(registry)
        self._population = Population(host_builder(task, data), count, data, config, splits)


def _answer(held: _Held, calls: Sequence[Call], caught: list[warnings.WarningMessage]) -> Reply:
    """Carry out calls in order; reply with the result of the last call, or the first error."""
    result: Any = None
    error, text = None, ""
    try:
        for call in calls:
            result = held.carry_out(call)
    except BaseException as raised:
        text = "".join(traceback.format_exception(raised))
        error, result = _sendable(raised), None
    warned = [(str(each.message), _category(each), each.filename, each.lineno) for each in caught]
    caught.clear()
    return Reply(result, error, text, warned)


def _sendable(error: BaseException) -> BaseException:
    """Return the error, or a ``RuntimeError`` with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__qualname__}: {error}")
    return error.with_traceback(None)


def _category(caught: warnings.WarningMessage) -> type[Warning]:
    try:
        pickle.dumps(caught.category)
    except Exception:
        return UserWarning
    return caught.category
