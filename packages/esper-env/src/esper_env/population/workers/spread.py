"""N networks spread over worker processes, with the interface of a population in one process."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from esper_env.data import ImageData, TextData
from esper_env.persistence.tree import Tree
from esper_env.population.config import PopulationConfig
from esper_env.population.evaluation.measurement import Commitment, Measurement
from esper_env.population.population import Population, joined
from esper_env.population.seed_sizes import SeedSizes
from esper_env.population.state import divide_networks, join_networks
from esper_env.population.structure import BoolArray, IntArray, Structure
from esper_env.population.training.trainer import TrainStats
from esper_env.population.workers.process import Worker, ask, end
from esper_env.population.workers.shared import pack, shared_file
from esper_env.rules.heads import NO_BLUEPRINT
from esper_env.seeds.registry import custom_registry
from esper_env.tasks import TaskConfig
from esper_env.threads import callers_cores, undisturbed


class WorkerPopulation:
    """N growing networks, each in one of several processes that hold a :class:`Population` of their networks.

    The methods are those of :class:`Population`. Everything outside a population stays in the caller's process: rules,
    rewards, observations, telemetry, and generators of seeds.

    Args:
        task: the task, whose host may be custom.
        build_host: builds one of its hosts.
        data: dataset that all networks share.
        config: settings of training and of the layout.
        parts: networks of each process.
        timeout: seconds that a worker may take for a request; None for no limit.

    Raises:
        TypeError, ValueError: as :class:`Population` raises, before a process is started; or the task cannot be sent.
        WorkerError: raised by every method after a worker has ended or does not answer. All workers have ended then.
    """

    @undisturbed
    def __init__(
        self,
        task: TaskConfig,
        build_host: Callable[[], nn.Module],
        data: ImageData | TextData,
        config: PopulationConfig,
        parts: Sequence[slice],
        timeout: float | None,
    ) -> None:
        template = Population(build_host, 1, data, config)
        self.dataset_name, self.data_digest, self.classes = template.dataset_name, template.data_digest, data.classes
        self.reads_text = template.reads_text
        #: One shard with a single network, which is a template and never trains.
        self.shards = template.shards
        self._sizes = SeedSizes(template.slots)
        splits = template.splits if config.device.type == "cpu" else None  # other devices need them in their own memory
        self._workers: list[Worker] = []
        self._end = weakref.finalize(self, end, self._workers)
        cores = max(1, callers_cores() // len(parts))
        with shared_file() as file:
            try:
                packed = pack((replace(task, data=None), data, splits, config, custom_registry()), file)
            except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
                raise ValueError(
                    f"{task.env_id} cannot be sent to worker processes: {error}. Its host, data and blueprints must be "
                    "functions or classes without open files, locks or generators; or omit `workers`"
                ) from error
            for number, own in enumerate(parts):
                self._workers.append(Worker(number, own, file.fileno(), timeout))
            self._start(task, [(packed, file.fileno(), own.stop - own.start, cores) for own in parts])

    @property
    def processes(self) -> tuple[int, ...]:
        """Ids of the worker processes."""
        return tuple(worker.pid for worker in self._workers)

    def close(self) -> None:
        """End the workers."""
        self._end()

    def _start(self, task: TaskConfig, arguments: Sequence[Sequence[Any]]) -> None:
        try:
            self._ask("start", arguments)
        except (ImportError, AttributeError) as error:
            self.close()
            raise ValueError(
                f"{task.env_id} cannot be loaded by worker processes: {error}. Install the module of its host and "
                "blueprints, put it in a folder of sys.path, or call cloudpickle.register_pickle_by_value(module)"
            ) from error
        except BaseException:
            self.close()
            raise

    def reset(self, rows: BoolArray, seeds: IntArray) -> None:
        """As :meth:`Population.reset`."""
        for worker, own in self._with(rows):
            worker.queue("reset", rows[own], seeds[own])

    @undisturbed
    def attach(self, mask: BoolArray, blueprint: IntArray) -> None:
        """As :meth:`Population.attach`."""
        self._note_sizes(mask, blueprint)
        for worker, own in self._with(mask):
            worker.queue("attach", mask[own], blueprint[own])

    def withdraw(self, mask: BoolArray) -> None:
        """As :meth:`Population.withdraw`."""
        for worker, own in self._with(mask):
            worker.queue("withdraw", mask[own])

    def clear_momentum(self, mask: BoolArray, blueprint: IntArray) -> None:
        """As :meth:`Population.clear_momentum`."""
        for worker, own in self._with(mask):
            worker.queue("clear_momentum", mask[own], blueprint[own])

    def train(self, structure: Structure, check_isolation: bool = False) -> TrainStats:
        """As :meth:`Population.train`."""
        rows = self._ask("train", [(structure.rows(worker.networks), check_isolation) for worker in self._workers])
        return TrainStats([lambda: np.concatenate(rows)])

    def take_snapshots(self, structure: Structure, rows: BoolArray) -> None:
        """As :meth:`Population.take_snapshots`."""
        for worker, own in self._with(rows):
            worker.queue("take_snapshots", structure.rows(own), rows[own])

    def restore_snapshot(self, structure: Structure, row: int) -> None:
        """As :meth:`Population.restore_snapshot`."""
        for worker, own in self._with(np.arange(self._workers[-1].networks.stop) == row):
            worker.queue("restore_snapshot", structure.rows(own), row - own.start)

    @property
    def captures(self) -> int:
        """As :attr:`Population.captures`."""
        return sum(self._ask("captures", [()] * len(self._workers)))

    def measure(self, structure: Structure, rows: BoolArray) -> Measurement:
        """As :meth:`Population.measure`."""
        parts = [worker.networks for worker in self._workers]
        results: list[Measurement] = self._ask("measure", [(structure.rows(own), rows[own]) for own in parts])
        return joined(Measurement, results)

    def appraise(self, structure: Structure, rows: IntArray) -> Commitment:
        """As :meth:`Population.appraise`."""
        asked = np.isin(np.arange(self._workers[-1].networks.stop), rows)
        chosen = list(self._with(asked))
        arguments = [(structure.rows(own), np.flatnonzero(asked[own])) for _, own in chosen]
        results: list[Commitment] = self._ask("appraise", arguments, [worker for worker, _ in chosen])
        return joined(Commitment, results)

    def get_state(self, blueprint: IntArray, saved: BoolArray) -> Tree:
        """As :meth:`Population.get_state`."""
        return join_networks(self._states(blueprint, saved))

    @undisturbed
    def set_state(self, state: Tree, blueprint: IntArray, saved: BoolArray) -> None:
        """As :meth:`Population.set_state`."""
        states = divide_networks(state, self._states(blueprint, saved))
        parts = [worker.networks for worker in self._workers]
        arguments = [(part, blueprint[own], saved[own]) for part, own in zip(states, parts, strict=True)]
        self._ask("set_state", arguments)
        self._note_sizes(blueprint != NO_BLUEPRINT, blueprint)

    def parameters_added(self, structure: Structure, counted: BoolArray) -> IntArray:
        """As :meth:`Population.parameters_added`."""
        return self._sizes.added(structure, counted)

    def _note_sizes(self, mask: BoolArray, blueprint: IntArray) -> None:
        for slot, value in {(slot, int(blueprint[row, slot])) for row, slot in np.argwhere(mask).tolist()}:
            self._sizes.note(self.shards[0], slot, value)

    def _states(self, blueprint: IntArray, saved: BoolArray) -> list[Tree]:
        parts = [worker.networks for worker in self._workers]
        return self._ask("get_state", [(blueprint[own], saved[own]) for own in parts])

    def _with(self, rows: BoolArray) -> Iterator[tuple[Worker, slice]]:
        """Yield each worker that holds a network with a True in ``rows`` (N, ...), and the networks of that worker."""
        return ((worker, worker.networks) for worker in self._workers if rows[worker.networks].any())

    def _ask(self, name: str, arguments: Sequence[Sequence[Any]], workers: Sequence[Worker] | None = None) -> list[Any]:
        """Return the results of a method of some workers, by default all, each with its own arguments.

        If a worker has ended, or the caller is interrupted before all have answered, all workers end.
        """
        chosen = self._workers if workers is None else workers
        requests = [(worker, name, own) for worker, own in zip(chosen, arguments, strict=True)]
        return ask(requests, self.close)
