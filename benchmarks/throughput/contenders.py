"""Ways to train n networks; ``step`` trains each network for one epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import esper_env  # noqa: F401  registers the ids
import gymnasium
import numpy as np
import torch
from esper_env.data import DataFamily, load_data
from esper_env.devices import resolve_device
from esper_env.extension_checks.construction import seeded_construction
from esper_env.population import build_population, host_builder
from esper_env.population.training.minibatches import MinibatchStream, TrainingImages, draw_epoch
from esper_env.seeding import derive_seed
from esper_env.tasks import make_task
from gymnasium.vector import AutoresetMode
from timing import intra_op_threads, waiter
from torch import Tensor, nn
from workloads import Workload

#: Horizon beyond the steps of any benchmark.
ENDLESS = 1_000_000

#: Blueprint in every slot of a planted workload.
PLANTED_BLUEPRINT = "conv_light"


class Contender(Protocol):
    """Interface of a contender."""

    n: int

    def step(self) -> None:
        """Train each of the n networks for one epoch."""
        ...

    def close(self) -> None:
        """Release resources."""
        ...


@dataclass
class Shares:
    """Seconds by part of a step, summed over ``steps`` steps."""

    wait: Callable[[], object]  # returns when the device is idle
    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of the block to ``part``."""
        start = time.perf_counter()
        yield
        self.wait()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added to ``part``."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.timed(part):
                return function(*args, **kwargs)

        return wrapped


class Environments:
    """A vector environment and a policy: the native vector (``mode`` None), or one of Gymnasium's.

    The native vector is in this process or in ``workers`` processes.
    """

    def __init__(
        self, env_id: str, n: int, workload: Workload, mode: str | None, workers: int = 1, **env_kwargs: Any
    ) -> None:
        task = make_task(env_id, **env_kwargs)
        self.n, self.shares = n, Shares(waiter(resolve_device(task.device)))
        # Same-step resets: under Gymnasium's default, the step after the end of an episode trains nothing.
        same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
        native = {**same_step, "workers": workers}
        how = native if mode is None else {"vectorization_mode": mode, "vector_kwargs": same_step}
        if workload.planted:  # planted seeds live until their episode ends
            env_kwargs["horizon"] = ENDLESS
        self._envs = gymnasium.make_vec(env_id, num_envs=n, **how, **env_kwargs)
        self._policy, self._state = workload.policy(self._envs), None
        self._seeds = 0.0  # per network, summed over steps
        self._starts = np.ones(n, dtype=bool)
        slots = [spec.slot_id for spec in host_builder(task)().slots] if workload.planted else []
        options = {"topology": dict.fromkeys(slots, PLANTED_BLUEPRINT)}
        self._observation, _ = self._envs.reset(seed=0, options=options)
        self._population = self._time_parts(self._envs.unwrapped._growth) if mode is None else None

    def _time_parts(self, growth: Any) -> Any:
        population = growth._population
        for owner, name, part in (
            (population, "train", "train"),
            (population, "measure", "evaluate"),
            (population, "appraise", "evaluate"),
            (growth, "observe", "observe"),
        ):
            setattr(owner, name, self.shares.wrap(part, getattr(owner, name)))
        return population

    @property
    def captures(self) -> int:
        """Number of training steps that the native vector captured."""
        return self._population.captures

    @property
    def engine(self) -> str:
        """Engine that runs the native vector's networks, in this process."""
        return "torch" if self._population.shards[0].fused is None else "fused"

    @property
    def parts(self) -> int:
        """Number of parts that the threads of this process share."""
        return self.n if self.engine == "fused" else len(self._population.shards)

    @property
    def seeds(self) -> float:
        """Mean number of seeds in a network of the native vector."""
        return self._seeds / self.shares.steps

    def step(self) -> None:
        with self.shares.timed("step"):
            with self.shares.timed("decide"):
                actions, self._state = self._policy.predict(self._observation, self._state, self._starts)
            self._observation, _, terminated, truncated, _ = self._envs.step(actions)
            self._starts = terminated | truncated
        self.shares.steps += 1
        if self._population is not None:
            self._seeds += self._envs.unwrapped._growth.table.has_seed.sum() / self.n

    def close(self) -> None:
        self._envs.close()


def train_minibatch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    autocast: AbstractContextManager[Any] | None = None,
) -> None:
    """One step of clipped SGD on images (B, C, H, W) and labels (B,); the forward pass runs under ``autocast``."""
    with autocast or nullcontext():
        logits = network(images)
    loss = nn.functional.cross_entropy(logits.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


class BareLoop:
    """Training alone in the layout of the engine "torch": its minibatches, a stock optimizer, one thread.

    It has no environment, clipping, statistics or evaluation, so the difference shows the cost of those.
    """

    def __init__(self, env_id: str, n: int, **env_kwargs: Any) -> None:
        task = make_task(env_id, **env_kwargs)
        self.n = n
        self._population = build_population(task, n)
        self._population.reset(np.ones(n, dtype=np.bool_), np.arange(n))
        leaves = [list(shard.host.parameters.values()) for shard in self._population.shards]
        self._optimizers = [
            torch.optim.SGD([leaf.requires_grad_() for leaf in own], lr=task.host_lr, momentum=0.9) for own in leaves
        ]

    @property
    def shards(self) -> list[Any]:
        """Shards with the stacked hosts."""
        return self._population.shards

    def step(self) -> None:
        population = self._population
        with intra_op_threads(1):
            for shard, rows, optimizer in zip(population.shards, population._slices, self._optimizers, strict=True):
                for draw in draw_epoch(population._streams[rows]):
                    self._minibatch(shard, optimizer, *population._splits.train.assemble(draw))

    def _minibatch(self, shard: Any, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
        host = {**shard.host.parameters, **shard.host.buffers}
        with shard.autocast():
            x = shard.layout.from_samples(images)
            for segment in range(len(shard.segments)):
                x = shard.train_segment(segment, host, x)
        optimizer.zero_grad(set_to_none=True)
        shard.layout.losses(x.float(), labels).mean(1).sum().backward()
        optimizer.step()

    def close(self) -> None:
        """Nothing to release."""


class PlainLoop:
    """The loop one would write without this project: networks one by one, each with its own optimizer.

    It trains the same hosts on the same minibatches with the same clipping. It has no evaluation,
    observations or seeds.
    """

    def __init__(self, env_id: str, n: int, threads: int, **env_kwargs: Any) -> None:
        task = make_task(env_id, **env_kwargs)
        device = resolve_device(task.device)
        data = load_data(task.dataset, task.data_dir, family=DataFamily(task.family))
        images = TrainingImages(data, device, torch.float32)
        # The faster layout of a single network: channels_last for CIFAR images, not for the tiny Digits host.
        memory_format = torch.channels_last if task.auto_shard_size == 1 else torch.contiguous_format
        self.n, self._threads = n, threads
        mixed = task.precision == "bfloat16"
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=mixed, cache_enabled=False)
        self.networks, self.optimizers, self.streams = [], [], []
        for index in range(n):
            with seeded_construction(derive_seed(index, "host weights")):  # as network `index` of a population
                network = host_builder(task)()
            network.to(device, memory_format=memory_format)
            stream = MinibatchStream(images, task.batch_size, task.batches_per_step)
            stream.seed(derive_seed(index, "minibatches"))
            self.networks.append(network)
            self.optimizers.append(torch.optim.SGD(network.parameters(), lr=task.host_lr, momentum=0.9))
            self.streams.append(stream)
        self.images = images

    def step(self) -> None:
        with intra_op_threads(self._threads):
            for network, optimizer, stream in zip(self.networks, self.optimizers, self.streams, strict=True):
                network.train()
                for images, labels in map(self.images.assemble, draw_epoch([stream])):
                    train_minibatch(network, optimizer, images[0], labels[0], self._autocast)

    def close(self) -> None:
        """Nothing to release."""
