"""From a task to the population that runs it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from esper_env.data import DataFamily, ImageData, load_data
from esper_env.networks.hosts.cnn import CNNHost
from esper_env.networks.population import Optimisation, Population, PopulationConfig
from esper_env.tasks import TaskConfig


def resolve_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: a device that PyTorch does not know or this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:100]
        raise ValueError(
            f"device is {name!r}, which is not usable here; expected 'auto', 'cpu', 'cuda' or 'cuda:N' on a machine "
            f"that has it ({reason})"
        ) from error
    return device


def host_builder(task: TaskConfig) -> Callable[[], nn.Module]:
    """A function that builds one freshly initialised host of the task."""
    spec = task.host

    def build() -> nn.Module:
        return CNNHost(
            spec.classes,
            spec.n_blocks,
            spec.base_channels,
            spec.pool_layers,
            spec.kernel,
            in_channels=spec.in_channels,
            image_size=spec.image_size,
            surfaces=spec.surfaces,
            norm_momentum=spec.norm_momentum,
            slots=task.slots,
        )

    return build


def build_population(task: TaskConfig, count: int, dtype: torch.dtype = torch.float32) -> tuple[Population, str, int]:
    """The population of a task's networks, the name of its data set, and the number of validation samples."""
    device = resolve_device(task.device)
    shard_size = _shard_size(task, count, device)
    data = load_data(task.dataset, task.data_dir, family=DataFamily(task.family))
    if not isinstance(data, ImageData):
        raise ValueError(f"dataset is {task.dataset!r}, a text; {task.env_id} has a host for images")
    config = PopulationConfig(
        batch_size=task.batch_size,
        batches_per_step=task.batches_per_step,
        optimisation=Optimisation(task.host_lr, task.seed_lr, isolation=task.isolation),
        shard_size=shard_size,
        together=shard_size > 1 or task.auto_shard_size > 1,
        device=device,
        dtype=dtype,
        precision=task.precision,
        capture=task.capture,
    )
    return Population(host_builder(task), count, data, config), data.name, len(data.val_labels)


def _shard_size(task: TaskConfig, count: int, device: torch.device) -> int:
    """Networks run together: all on an accelerator, a task's own number on CPU, whatever the number of cores."""
    if task.shard_size != "auto":
        return min(int(task.shard_size), count)
    return count if device.type != "cpu" else min(task.auto_shard_size, count)
