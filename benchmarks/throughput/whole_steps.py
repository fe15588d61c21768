"""Whole training minibatches of n hosts: sampling, forward and backward pass, clipped SGD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from contenders import PlainLoop, train_minibatch
from esper_env.population import Structure, build_population
from esper_env.population.training.minibatches import draw_epoch
from esper_env.rules import SlotTable
from esper_env.tasks import TaskConfig
from runners import Runner


class Engine:
    """The population without an environment; a step is one epoch of every host."""

    def __init__(self, task: TaskConfig, n: int) -> None:
        self.n = n
        self.population = build_population(task, n)
        self._structure = Structure.of(SlotTable.empty(n, self.population.slots))
        self.population.reset(np.ones(n, dtype=np.bool_), np.arange(n))

    def step(self) -> None:
        self.population.train(self._structure)

    def close(self) -> None:
        """Nothing to release."""


class RunnerLoop:
    """The networks of a plain loop, trained by a runner on minibatches that are drawn together.

    ``make_runner`` receives one function per network, which trains it on its minibatch. A step is one epoch of every
    host.
    """

    def __init__(
        self, loop: PlainLoop, batch_size: int, make_runner: Callable[[Sequence[Callable[[], None]]], Runner]
    ) -> None:
        self.n, self._loop, data = loop.n, loop, loop.images
        pixels = data.crops.shape[3:]  # (H, W, C)
        device = data.labels.device
        # A captured graph reads fixed addresses; the memory order is that of the minibatches.
        images = torch.zeros(loop.n, batch_size, *pixels, device=device).permute(0, 1, 4, 2, 3)
        labels = torch.zeros(loop.n, batch_size, dtype=torch.int64, device=device)
        each = zip(loop.networks, loop.optimizers, images, labels, strict=True)
        works = [partial(train_minibatch, network.train(), optimizer, x, y) for network, optimizer, x, y in each]
        self._images, self._labels = images, labels
        self._run = make_runner(works)

    def step(self) -> None:
        for images, labels in map(self._loop.images.assemble, draw_epoch(self._loop.streams)):
            self._images.copy_(images)
            self._labels.copy_(labels)
            self._run()

    def close(self) -> None:
        self._loop.close()
