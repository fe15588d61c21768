"""Ways to lay features out: of images or of sequences, of many networks batched together or of one on its own.

All keep a leading network dimension, so that everything between layers (blending, masks, losses) is written once.
Images together are (n, C, H, W, B) and run the batching rules; alone they are (n, B, H, W, C), the memory order of
channels_last, and the module itself is called: large feature maps are quickest through the library's own convolutions.
Sequences are (n, B, T, C) either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from esper_env.population.engine import images, sequences

Tensors = Mapping[str, Tensor]

_KNOWN = ("torch.nn.modules.", "esper_env.")


class Layout(Protocol):
    """How features are stored and how modules run on them."""

    def from_samples(self, samples: Tensor) -> Tensor:
        """(n, B, C, H, W) normalised images, or (n, B, T) tokens, as the first segment takes them."""
        ...

    def call(self, module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool) -> Tensor:
        """Run the module with each row's own tensors."""
        ...

    def gather(self, tensors: Tensors, rows: Tensor) -> Tensors:
        """The tensors of some rows, a row as often as it is named."""
        ...

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(n, B) cross-entropy in nats of labels (n, B), or its mean over the positions of labels (n, B, T)."""
        ...

    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(n, B) whether the highest logit is the label's, or at how many positions it is."""
        ...

    def head(self, x: Tensor, samples: int) -> Tensor:
        """The first samples of each row's features."""
        ...


class _OwnTensors:
    """Each row has tensors of its own."""

    def gather(self, tensors: Tensors, rows: Tensor) -> Tensors:
        return {name: value.index_select(0, rows) for name, value in tensors.items()}


class _SharedTensors:
    """One network; further rows are the same network under other seeds and share its tensors."""

    def gather(self, tensors: Tensors, rows: Tensor) -> Tensors:  # noqa: ARG002
        return tensors


class ImagesTogether(_OwnTensors):
    """n networks at once, samples last."""

    def from_samples(self, samples: Tensor) -> Tensor:
        return images.to_batched(samples).contiguous()

    def call(self, module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool) -> Tensor:
        return images.run(module, tensors, x, training=training)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.max(1).indices == labels  # several times faster than argmax here

    def head(self, x: Tensor, samples: int) -> Tensor:
        return x[..., :samples]


class ImagesAlone(_SharedTensors):
    """One network, in channels_last."""

    def from_samples(self, samples: Tensor) -> Tensor:
        return samples.permute(0, 1, 3, 4, 2).contiguous()

    def call(self, module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool) -> Tensor:
        state = {name: value[0] for name, value in tensors.items()}
        module.train(training)
        folded = x.flatten(0, 1).permute(0, 3, 1, 2)
        if torch.is_grad_enabled() and not folded.requires_grad and _may_have_group_norm(module):
            # The backward pass of PyTorch 2.13's GroupNorm in channels_last writes through a null pointer on the CPU
            # when its input needs no gradient: let it have one.
            folded = folded.detach().requires_grad_()
        out: Tensor = functional_call(module, state, (folded,))
        if out.dim() == 4:
            out = out.permute(0, 2, 3, 1)
        return out.view(*x.shape[:2], *out.shape[1:])

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)

    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.max(2).indices == labels

    def head(self, x: Tensor, samples: int) -> Tensor:
        return x[:, :samples]


class _Sequences:
    """What both layouts of sequences have in common."""

    def from_samples(self, samples: Tensor) -> Tensor:
        return samples

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none")
        return each.view(labels.shape).mean(2)

    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.max(3).indices == labels).sum(2)

    def head(self, x: Tensor, samples: int) -> Tensor:
        return x[:, :samples]


class SequencesTogether(_OwnTensors, _Sequences):
    """n networks at once."""

    def call(self, module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool) -> Tensor:
        module.train(training)
        return sequences.run(module, tensors, x)


class SequencesAlone(_SharedTensors, _Sequences):
    """One network."""

    def call(self, module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool) -> Tensor:
        state = {name: value[0] for name, value in tensors.items()}
        module.train(training)
        out: Tensor = functional_call(module, state, (x.flatten(0, 1),))
        return out.reshape(*x.shape[:2], *out.shape[1:])


#: By the number of dimensions of a sample's features, and whether many networks are run together.
LAYOUTS: dict[tuple[int, bool], type[Layout]] = {
    (3, True): ImagesTogether,
    (3, False): ImagesAlone,
    (2, True): SequencesTogether,
    (2, False): SequencesAlone,
}


def is_known(layer: nn.Module) -> bool:
    """Whether a module itself, whatever is in it, is of PyTorch's layers or of this package."""
    return type(layer).__module__.startswith(_KNOWN)


def all_known(module: nn.Module) -> bool:
    """Whether a module is made of such alone, so that what it does is known."""
    return all(map(is_known, module.modules()))


def _may_have_group_norm(module: nn.Module) -> bool:
    """A layer of its type; or a module of the user's own, which may call it as a function."""
    return any(isinstance(layer, nn.GroupNorm) or not is_known(layer) for layer in module.modules())


def normaliser(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (C, 1, 1): ``pixels * scale + shift`` normalises uint8 pixels."""
    m = torch.tensor(mean, dtype=torch.float64)
    s = torch.tensor(std, dtype=torch.float64)
    scale, shift = 1.0 / (255.0 * s), -m / s
    return scale.view(-1, 1, 1).to(device, dtype), shift.view(-1, 1, 1).to(device, dtype)
