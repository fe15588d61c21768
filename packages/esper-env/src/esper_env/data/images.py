"""A labelled image data set as arrays: what every loader returns and every environment shares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from esper_env.checks import is_finite, is_whole

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class ImageData:
    """Three splits of labelled images and how to feed them to a network. All arrays are read-only.

    A network sees ``(pixel / 255 - mean) / std``. Validation images are carved out of the training data and are
    the same for every environment; the test split is for reports only.

    Raises ``TypeError`` for a wrong dtype and ``ValueError`` for wrong shapes, empty splits, labels outside
    0..classes-1 or statistics that do not fit the channels.
    """

    name: str  # recorded in infos, checkpoints and reports: "cifar10", "digits", "procedural-cifar"
    classes: int
    train_images: Images  # (N, C, H, W), 0..255
    train_labels: Labels  # (N,)
    val_images: Images  # (N_val, C, H, W)
    val_labels: Labels  # (N_val,)
    test_images: Images  # (N_test, C, H, W)
    test_labels: Labels  # (N_test,)
    mean: tuple[float, ...]  # per channel, on the 0..1 scale
    std: tuple[float, ...]  # per channel, on the 0..1 scale
    crop_padding: int  # training images are padded by this many pixels and cropped at random; 0 = not cropped
    flip: bool  # training images are mirrored left-right with probability 1/2

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"the data set's name is {self.name!r}; expected a text that is not empty")
        if not is_whole(self.classes, least=2):
            raise ValueError(f"{self.name}: classes is {self.classes!r}; a classification task needs 2 or more")
        if not isinstance(self.flip, bool):
            raise TypeError(f"{self.name}: flip is {self.flip!r}; expected True or False")
        shape = np.shape(self.train_images)[1:]
        for split in SPLITS:
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            where = f"{self.name}, {split} split"
            _check_images(where, images, shape)
            _check_labels(where, labels, len(images), self.classes)
            object.__setattr__(self, f"{split}_images", read_only(images))
            object.__setattr__(self, f"{split}_labels", read_only(labels))
        _check_statistics(self.name, self.mean, self.std, self.train_images.shape)
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if not is_whole(self.crop_padding) or self.crop_padding >= min(shape[1:]):
            raise ValueError(
                f"{self.name}: crop_padding is {self.crop_padding!r}; expected 0..{min(shape[1:]) - 1} "
                f"for images of {shape[1]}x{shape[2]}"
            )

    def __reduce__(self) -> Rebuilt:
        return rebuilt(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width), the same in all splits."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """Equal for equal images, labels and ways to feed them, whatever the name."""
        return digest(*(getattr(self, item.name) for item in fields(self) if item.name != "name"))


def digest(*parts: NDArray[Any] | Sequence[float] | float) -> str:
    """128 bits, as 32 hex digits, that tell data apart: of arrays by dtype, shape and content, of numbers by value."""
    state = hashlib.sha256()
    for part in parts:
        array = part if isinstance(part, np.ndarray) else np.array(part, dtype=np.float64) + 0.0  # -0.0 is 0.0
        state.update(f"{array.dtype.str} {array.shape}\n".encode())  # says how many bytes follow
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()[:32]


#: What a copy is made by: the class, and what to call it with.
Rebuilt = tuple[type, tuple[Any, ...]]


def rebuilt(data: Any) -> Rebuilt:
    """How a copy of a dataclass is made (``__reduce__``): anew, so that arrays are checked and read-only in it as well,
    and nothing that was computed from them comes along."""
    return type(data), tuple(getattr(data, item.name) for item in fields(data))


def is_plain(array: object, dtype: type[np.generic]) -> TypeGuard[NDArray[Any]]:
    """Whether it is an array of this dtype in which every value counts: one with a mask hides some."""
    return isinstance(array, np.ndarray) and array.dtype == dtype and not isinstance(array, np.ma.MaskedArray)


def kind_of(array: object) -> str:
    """What was given in place of an array that :func:`is_plain`, in words."""
    if isinstance(array, np.ma.MaskedArray):
        return "a masked array (array.filled(0) has a value everywhere)"
    return str(array.dtype) if isinstance(array, np.ndarray) else type(array).__name__


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The array if nobody can write to it, else a read-only copy; C-contiguous and of no subclass either way."""
    array = np.asarray(array)
    if array.flags.writeable or not array.flags.c_contiguous or not array.flags.owndata:
        array = array.copy(order="C")
        array.flags.writeable = False
    return array


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (N, C, H, W) images, on the 0..1 scale, exact in float64."""
    values = np.arange(256) / 255
    counts = np.stack(
        [np.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])]
    )  # (C, 256)
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    std = np.sqrt(np.maximum(weights @ values**2 - mean**2, 0))
    return tuple(mean.tolist()), tuple(std.tolist())


def _check_images(where: str, images: object, shape: tuple[int, ...]) -> None:
    if not is_plain(images, np.uint8):
        raise TypeError(
            f"{where}: images are {kind_of(images)}; expected a NumPy array of uint8 in 0..255 "
            "(for floats in 0..1: np.round(images * 255).astype(np.uint8))"
        )
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{where}: images have shape {images.shape}; expected (N, channels, height, width)")
    if len(images) == 0:
        raise ValueError(f"{where}: no images; every split needs at least one")
    if images.shape[1:] != shape:
        raise ValueError(f"{where}: images are {images.shape[1:]}, the training images {shape}; all must be one shape")


def _check_labels(where: str, labels: object, images: int, classes: int) -> None:
    if not is_plain(labels, np.int64):
        raise TypeError(
            f"{where}: labels are {kind_of(labels)}; expected a NumPy array of int64 "
            "(np.asarray(labels, dtype=np.int64))"
        )
    if labels.shape != (images,):
        raise ValueError(f"{where}: labels have shape {labels.shape} for {images} images; expected ({images},)")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{where}: labels span {labels.min()}..{labels.max()}; expected 0..{classes - 1}")


def _check_statistics(name: str, mean: Sequence[float], std: Sequence[float], shape: tuple[int, ...]) -> None:
    if not all(isinstance(values, Sequence) and all(map(is_finite, values)) for values in (mean, std)):
        raise ValueError(
            f"{name}: mean {mean!r} and std {std!r}; expected a finite number per channel, such as (0.5,) for one"
        )
    channels = shape[1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"{name}: {len(mean)} means and {len(std)} stds for images of shape {shape}; expected one per channel, "
            f"{channels}, as channels come first: (N, channels, height, width)"
        )
    if not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        raise ValueError(f"{name}: mean {mean} and std {std}; expected the 0..1 scale and std above 0")
