"""Upper limit of the training speed from memory bandwidth: measured copy bandwidth over the bytes of a minibatch.

It is meant for accelerators. A CPU keeps the features of a small network in its caches, so the share of the limit can
exceed 1 there.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from esper_env.hosts import GlobalAveragePool
from torch import Tensor, nn

COPY_BYTES = 1 << 30  # per buffer; much more than caches hold
COPY_REPEATS = 7


class Traffic(NamedTuple):
    """Memory moves of a layer per tensor, besides writing its output and its input's gradient."""

    input_reads: int  # forward
    saved_input_reads: int  # backward
    saved_output_reads: int  # backward
    gradient_reads: int  # backward, of the output's gradient


#: BatchNorm sums over the minibatch before it writes, forward and backward, so it reads everything twice. The backward
#: pass of ReLU reads its output. That of max-pooling reads one position per output, as wide as a value.
TRAFFIC: dict[type[nn.Module], Traffic] = {
    nn.Conv2d: Traffic(1, 1, 0, 1),
    nn.Linear: Traffic(1, 1, 0, 1),
    nn.BatchNorm2d: Traffic(2, 2, 0, 2),
    nn.ReLU: Traffic(1, 0, 1, 1),
    nn.MaxPool2d: Traffic(1, 0, 1, 1),
    GlobalAveragePool: Traffic(1, 0, 0, 1),
}

#: Moves of each parameter: read forward and backward; gradient written, read for the norm and read for the update;
#: momentum and parameter read and written.
PARAMETER_MOVES = 9

#: Moves of the logits by the loss: read, and gradient written.
LOGIT_MOVES = 2


def copy_bandwidth(device: torch.device, size: int = COPY_BYTES, repeats: int = COPY_REPEATS) -> float:
    """Measure the copy bandwidth of a device: bytes read and written per second, the median of the repeats.

    On the CPU, the copy uses PyTorch's intra-op threads.
    """
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    timed = _seconds_on_cuda if device.type == "cuda" else _seconds
    timed(target, source)  # warm-up: the first touch of memory costs more
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
    """Return the bytes that a training minibatch of one network moves between memory and processor.

    Each layer counts as one ideal kernel forward and one backward, and caches keep nothing between kernels. The sum
    has, in values of ``element_size`` bytes:

    * forward, each layer: input read (twice by BatchNorm), output written;
    * backward, each layer: output gradient read, saved tensor read, and input gradient written, except that of the
      images. Convolutions, linear layers and BatchNorm save their input; BatchNorm reads both twice. ReLU saves its
      output, and max-pooling a position per output;
    * the loss: logits read, their gradient written;
    * each parameter: ``PARAMETER_MOVES``, for both passes, clipping and SGD with momentum.

    The sum leaves out sampling, labels, running statistics and sums over channels. Fused layers and caches can move
    less; workspaces, transpositions and further kernels move more.

    Args:
        host: maps (B, C, H, W) to logits; the function works on a copy.
        batch_size: samples of the minibatch.
        image_shape: (C, H, W).
        element_size: bytes of a value.

    Raises:
        ValueError: the host has a layer that is not in ``TRAFFIC``.
    """
    twin = copy.deepcopy(host).to("meta").train()  # shapes without values
    leaves = [layer for layer in twin.modules() if next(layer.children(), None) is None]
    unknown = sorted({type(layer).__name__ for layer in leaves} - {kind.__name__ for kind in TRAFFIC})
    if unknown:
        raise ValueError(f"layer {', '.join(unknown)} is not in TRAFFIC; add its memory traffic there")
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
