"""Construction of the population of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from esper_env.data import DataFamily, ImageData, TextData, load_data
from esper_env.data.text import VOCABULARY
from esper_env.devices import resolve_device
from esper_env.hosts import CNNHost, TransformerHost
from esper_env.population.config import PopulationConfig
from esper_env.population.population import Population
from esper_env.population.workers.spread import WorkerPopulation
from esper_env.suggestions import shown
from esper_env.tasks import CNNSpec, TaskConfig, TransformerSpec
from esper_env.workers import divide, resolve_workers


def host_builder(task: TaskConfig, data: ImageData | TextData | None = None) -> Callable[[], nn.Module]:
    """Return a function that builds one freshly initialised host of the task for its data.

    Without ``data``, a spec's own sizes are used, and a custom host gets the task's data. Building a custom host raises
    ``ValueError`` if its function fails, and ``TypeError`` if that returns no ``torch.nn.Module``.
    """
    spec = task.host
    if isinstance(spec, CNNSpec):
        return partial(_cnn, spec, data, task.slots)
    if isinstance(spec, TransformerSpec):
        return partial(TransformerHost, VOCABULARY, **vars(spec), slots=task.slots)
    return partial(_custom_host, task, data if data is not None else load_task_data(task))


def _custom_host(task: TaskConfig, data: ImageData | TextData) -> nn.Module:
    assert not isinstance(task.host, CNNSpec | TransformerSpec)
    what = f"the host of {task.env_id}"
    expected = "a function from the data to a torch.nn.Module, such as a class"
    host = _call(partial(task.host, data), f"{what} cannot be built from the data {data.name}", expected)
    if not isinstance(host, nn.Module):
        raise TypeError(f"{what} for the data {data.name} is {shown(host)}; expected a torch.nn.Module")
    return host


def _cnn(spec: CNNSpec, data: ImageData | TextData | None, slots: Sequence[str] | None) -> CNNHost:
    sizes = vars(spec)
    if isinstance(data, ImageData):
        channels, *size = data.image_shape
        sizes = sizes | {"classes": data.classes, "in_channels": channels, "image_size": tuple(size)}
    return CNNHost(**sizes, slots=slots)


def load_task_data(task: TaskConfig) -> ImageData | TextData:
    """Return the data of a task: its custom data, or the dataset of its name.

    Raises:
        ValueError: the data function fails, or :func:`~esper_env.data.load_data` raises it.
        TypeError: the custom data are neither an ``ImageData`` nor a ``TextData``.
    """
    if task.data is None:
        return load_data(task.dataset, task.data_dir, family=DataFamily(task.family))
    data: object = task.data
    if callable(task.data):
        expected = "a function without arguments that returns an ImageData or a TextData"
        data = _call(task.data, f"the data function of {task.env_id} fails", expected)
    if not isinstance(data, ImageData | TextData):
        raise TypeError(f"the data of {task.env_id} is {shown(data)}; expected an ImageData or a TextData")
    return data


def _call(function: Callable[[], object], complaint: str, expected: str) -> object:
    """Call a user's function, and convert its errors to a ``ValueError``."""
    try:
        return function()
    except Exception as error:
        raise ValueError(f"{complaint} ({type(error).__name__}: {error}); expected {expected}") from error


def build_population(
    task: TaskConfig,
    count: int,
    workers: int | str = 1,
    worker_timeout: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Population | WorkerPopulation:
    """Build the population of ``count`` networks of a task, spread over up to ``workers`` processes."""
    device = resolve_device(task.device)
    shard_size: int | str = task.shard_size
    if shard_size == "auto":
        shard_size = task.auto_shard_size if device.type == "cpu" else count
    shard_size = min(int(shard_size), count)
    batched = shard_size > 1 or task.auto_shard_size > 1
    shard_size, parts = divide(count, shard_size, resolve_workers(workers, count, device.type))
    data = load_task_data(task)
    config = PopulationConfig(
        batch_size=task.batch_size,
        batches_per_step=task.batches_per_step,
        host_lr=task.host_lr,
        seed_lr=task.seed_lr,
        isolation=task.isolation,
        shard_size=shard_size,
        batched=batched,
        device=device,
        dtype=dtype,
        precision=task.precision,
        engine=task.engine,
        capture=task.capture,
        try_host=not isinstance(task.host, CNNSpec | TransformerSpec),
    )
    if len(parts) > 1:
        return WorkerPopulation(task, host_builder(task, data), data, config, parts, worker_timeout)
    return Population(host_builder(task, data), count, data, config)
