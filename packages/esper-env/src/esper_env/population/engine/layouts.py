"""Layouts of features: of images or of sequences, batched over many networks or of a single network.

Every layout keeps a leading network dimension, so everything between layers (blending, masks, losses) is written once.
Batched images are (n, C, H, W, B) and run by the batching rules. Images of a single network are (1, B, H, W, C), the
memory order of channels_last, and run by calling the module, because PyTorch's own convolutions are the fastest on
large feature maps. Sequences are (n, B, T, C) in either case.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from typing_extensions import override

from esper_env.population.engine import images, sequences
from esper_env.population.engine.vmapped import Tensors

_KNOWN = ("torch.nn.modules.", "esper_env.")


class Layout(ABC):
    """A way to store features and to run modules on them."""

    @abstractmethod
    def from_samples(self, samples: Tensor) -> Tensor:
        """Return (n, B, C, H, W) normalised images, or (n, B, T) tokens, as the first segment takes them."""

    @abstractmethod
    def call(self, module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool) -> Tensor:
        """Run the module on each row with the row's own tensors."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(n, B) cross-entropy in nats of labels (n, B), or its mean over the positions of labels (n, B, T)."""

    @abstractmethod
    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(n, B) True if the highest logit is the label's; for labels (n, B, T) the number of such positions."""

    def gather(self, tensors: Tensors, rows: Tensor) -> Tensors:
        """Return the tensors of some rows, which may repeat."""
        return {name: value.index_select(0, rows) for name, value in tensors.items()}


class BatchedImages(Layout):
    """Images of n networks, samples last."""

    @override
    def from_samples(self, samples: Tensor) -> Tensor:
        return samples.permute(0, 2, 3, 4, 1).contiguous()

    @override
    def call(self, module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool) -> Tensor:
        return images.run(module, tensors, x, training=training)

    @override
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    @override
    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.max(1).indices == labels  # several times faster than argmax here


class SingleImages(Layout):
    """Images of one network in channels_last. All rows are this network with other seeds and share its tensors."""

    @override
    def from_samples(self, samples: Tensor) -> Tensor:
        return samples.permute(0, 1, 3, 4, 2).contiguous()

    @override
    def call(self, module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool) -> Tensor:
        state = {name: value[0] for name, value in tensors.items()}
        module.train(training)
        folded = x.flatten(0, 1).permute(0, 3, 1, 2)
        if torch.is_grad_enabled() and not folded.requires_grad and _may_have_group_norm(module):
            # On the CPU, the backward pass of PyTorch 2.13's GroupNorm in channels_last writes through a null pointer
            # if its input needs no gradient.
            folded = folded.detach().requires_grad_()
        out: Tensor = functional_call(module, state, (folded,))
        if out.dim() == 4:
            out = out.permute(0, 2, 3, 1)
        return out.view(*x.shape[:2], *out.shape[1:])

    @override
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)

    @override
    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.max(2).indices == labels

    @override
    def gather(self, tensors: Tensors, rows: Tensor) -> Tensors:
        return tensors


class BatchedSequences(Layout):
    """Sequences of n networks."""

    @override
    def from_samples(self, samples: Tensor) -> Tensor:
        return samples

    @override
    def call(self, module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool) -> Tensor:
        module.train(training)
        return sequences.run(module, tensors, x)

    @override
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none")
        return each.view(labels.shape).mean(2)

    @override
    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.max(3).indices == labels).sum(2)


class SingleSequences(BatchedSequences):
    """Sequences of one network. All rows are this network with other seeds and share its tensors."""

    @override
    def call(self, module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool) -> Tensor:
        state = {name: value[0] for name, value in tensors.items()}
        module.train(training)
        out: Tensor = functional_call(module, state, (x.flatten(0, 1),))
        return out.reshape(*x.shape[:2], *out.shape[1:])

    @override
    def gather(self, tensors: Tensors, rows: Tensor) -> Tensors:
        return tensors


#: By the number of dimensions of a sample's features, and True for many networks.
LAYOUTS: dict[tuple[int, bool], type[Layout]] = {
    (3, True): BatchedImages,
    (3, False): SingleImages,
    (2, True): BatchedSequences,
    (2, False): SingleSequences,
}


def is_known(layer: nn.Module) -> bool:
    """True if the module itself, whatever its children are, comes from PyTorch or from this package."""
    return type(layer).__module__.startswith(_KNOWN)


def _may_have_group_norm(module: nn.Module) -> bool:
    """True for a GroupNorm layer, and for a custom module, which may call GroupNorm as a function."""
    return any(isinstance(layer, nn.GroupNorm) or not is_known(layer) for layer in module.modules())


def normaliser(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return (scale, shift), each (C, 1, 1); ``pixels * scale + shift`` normalises uint8 pixels."""
    m = torch.tensor(mean, dtype=torch.float64)
    s = torch.tensor(std, dtype=torch.float64)
    scale, shift = 1.0 / (255.0 * s), -m / s
    return scale.view(-1, 1, 1).to(device, dtype), shift.view(-1, 1, 1).to(device, dtype)
