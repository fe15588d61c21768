"""How fast training could be if nothing but memory limited it: measured copy bandwidth over the bytes of a minibatch.

This is meant for accelerators. A CPU keeps the features of a small network in its caches, where they move faster than
the copy that is measured here, so that a share of the limit can be above 1 there and says little.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from esper_env.hosts.cnn import GlobalAveragePool
from torch import Tensor, nn

COPY_BYTES = 1 << 30  # of each of the two buffers: far more than caches hold
COPY_REPEATS = 7


class Traffic(NamedTuple):
    """How often a layer moves each tensor, besides writing its output and, where needed, its input's gradient."""

    input_reads: int  # forward
    saved_input_reads: int  # backward
    saved_output_reads: int  # backward
    gradient_reads: int  # backward, of the output's gradient


#: BatchNorm sums over the whole minibatch before it can write anything, forward and backward: it reads all twice. ReLU
#: knows from its output what to let through; max-pooling from one position for each output, as wide as a value.
TRAFFIC: dict[type[nn.Module], Traffic] = {
    nn.Conv2d: Traffic(1, 1, 0, 1),
    nn.Linear: Traffic(1, 1, 0, 1),
    nn.BatchNorm2d: Traffic(2, 2, 0, 2),
    nn.ReLU: Traffic(1, 0, 1, 1),
    nn.MaxPool2d: Traffic(1, 0, 1, 1),
    GlobalAveragePool: Traffic(1, 0, 0, 1),
}

#: Of each parameter: read forward and backward; its gradient written, read for its norm and read for the update; the
#: momentum and the parameter itself read and written.
PARAMETER_MOVES = 9

#: Of the logits, by the loss: read, and their gradient written.
LOGIT_MOVES = 2


class BandwidthLimit(NamedTuple):
    """Training at the speed of memory."""

    samples_per_second: float  # of all networks together
    share: float  # of it that was measured


def copy_bandwidth(device: torch.device, size: int = COPY_BYTES, repeats: int = COPY_REPEATS) -> float:
    """Bytes per second, read and written ones counted, of copying ``size`` bytes on a device; the median of repeats.

    On the CPU it is that of the intra-op threads that PyTorch has.

    Raises:
        ValueError: no byte or no repeat.
    """
    if size < 1 or repeats < 1:
        raise ValueError(f"size is {size} and repeats {repeats}; expected at least 1 of both")
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    timed = _seconds_on_cuda if device.type == "cuda" else _seconds
    timed(target, source)  # warm: the first touch of memory costs more
    return 2 * size / float(np.median([timed(target, source) for _ in range(repeats)]))


def _seconds(target: Tensor, source: Tensor) -> float:
    start = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - start


def _seconds_on_cuda(target: Tensor, source: Tensor) -> float:
    with torch.cuda.device(target.device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3  # from milliseconds


def bytes_per_minibatch(host: nn.Module, batch_size: int, image_shape: Sequence[int], element_size: int) -> int:
    """Bytes that one training minibatch of one network moves between memory and processor, if all goes well.

    The accounting takes each layer as one perfect kernel forward and one backward, with nothing kept in caches from
    one kernel to the next. It counts, in values of ``element_size`` bytes:

    * forward, each layer: its input read (by BatchNorm twice), its output written;
    * backward, each layer: its output's gradient read, what it saved read (the input of convolutions, linear layers
      and BatchNorm, which reads both twice; the output of ReLU, a position for each output of max-pooling), and its
      input's gradient written, except that of the images;
    * the loss: the logits read, their gradient written;
    * each parameter: ``PARAMETER_MOVES``, for both passes, clipping and SGD with momentum.

    Left out are drawing the minibatch, labels, running statistics and sums over channels. Fused layers and caches can
    move less; workspaces, transpositions and further kernels move more.

    Args:
        host: maps (B, C, H, W) to logits; it is copied and stays as it is.
        image_shape: (C, H, W).

    Raises:
        ValueError: the host has a layer that is not in ``TRAFFIC``.
    """
    twin = copy.deepcopy(host).to("meta").train()  # shapes without numbers
    leaves = [layer for layer in twin.modules() if next(layer.children(), None) is None]
    unknown = sorted({type(layer).__name__ for layer in leaves} - {kind.__name__ for kind in TRAFFIC})
    if unknown:
        raise ValueError(f"the traffic of {', '.join(unknown)} is not known; add it to TRAFFIC")
    values = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal values
        x, traffic = inputs[0], TRAFFIC[type(layer)]
        forward = traffic.input_reads * x.numel() + output.numel()
        saved = traffic.saved_input_reads * x.numel() + traffic.saved_output_reads * output.numel()
        backward = traffic.gradient_reads * output.numel() + saved + (x.numel() if x.requires_grad else 0)
        values += forward + backward

    for layer in leaves:
        layer.register_forward_hook(count)
    with torch.enable_grad():
        logits = twin(torch.empty(batch_size, *image_shape, device="meta"))
    values += LOGIT_MOVES * logits.numel()
    values += PARAMETER_MOVES * sum(parameter.numel() for parameter in twin.parameters())
    return values * element_size


def bandwidth_limit(
    bandwidth: float, minibatch_bytes: int, batch_size: int, measured_samples_per_second: float
) -> BandwidthLimit:
    """The training samples per second that ``bandwidth`` in bytes per second allows, and the share of them measured.

    The networks of a population share the memory: n of them move n times the bytes for n times the samples, so the
    limit on all their samples together does not depend on n.

    Args:
        minibatch_bytes: of one network, from :func:`bytes_per_minibatch`.
        batch_size: samples in that minibatch.
        measured_samples_per_second: of all networks together.

    Raises:
        ValueError: a bandwidth, byte count or batch size that is not positive.
    """
    if not (bandwidth > 0 and minibatch_bytes > 0 and batch_size > 0):
        raise ValueError(
            f"bandwidth is {bandwidth}, minibatch_bytes {minibatch_bytes} and batch_size {batch_size}; "
            "expected positive numbers"
        )
    limit = bandwidth * batch_size / minibatch_bytes
    return BandwidthLimit(limit, measured_samples_per_second / limit)
