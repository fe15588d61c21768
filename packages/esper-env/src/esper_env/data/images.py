"""A dataset of labelled images, with its three splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper_env.checks import is_finite, is_whole, plain

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class ImageData:
    """Three splits of labelled images in read-only arrays, with their normalisation and augmentation.

    A network sees ``(pixel / 255 - mean) / std``. The validation images are the same for every environment; the test
    split is for reports only.

    Args:
        name: Name to record in infos, checkpoints and reports, such as "cifar10".
        classes: Number of classes.
        train_images: Training images, (N, C, H, W), ``uint8`` in 0..255.
        train_labels: Their classes, (N,), ``int64`` in 0..classes-1.
        val_images: Validation images, (N_val, C, H, W).
        val_labels: Their classes, (N_val,).
        test_images: Test images, (N_test, C, H, W).
        test_labels: Their classes, (N_test,).
        mean: Mean of each channel, on the 0..1 scale.
        std: Standard deviation of each channel, on the 0..1 scale.
        crop_padding: Pixels by which training images are padded before a random crop; 0 for no crop.
        flip: True to mirror training images left-right with probability 1/2.

    Raises:
        TypeError: for a wrong dtype, name or flip.
        ValueError: for wrong shapes, empty splits, labels outside 0..classes-1, or statistics that do not match the
            channels.
    """

    name: str
    classes: int
    train_images: Images
    train_labels: Labels
    val_images: Images
    val_labels: Labels
    test_images: Images
    test_labels: Labels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"the dataset's name is {self.name!r}; expected a non-empty string")
        if not is_whole(self.classes, least=2):
            raise ValueError(f"{self.name}: classes is {self.classes!r}; expected 2 or more")
        if not isinstance(self.flip, bool | np.bool_):
            raise TypeError(f"{self.name}: flip is {self.flip!r}; expected True or False")
        shape = np.shape(self.train_images)[1:]
        for split in SPLITS:
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            where = f"{self.name}, {split} split"
            remedy = "for floats in 0..1: np.round(images * 255).astype(np.uint8)"
            check_array(f"{where}: images are", images, np.uint8, remedy)
            check_array(f"{where}: labels are", labels, np.int64, "np.asarray(labels, dtype=np.int64)")
            _check_shapes(where, images, labels, shape)
            if labels.min() < 0 or labels.max() >= self.classes:
                span = f"{labels.min()}..{labels.max()}"
                raise ValueError(f"{where}: labels span {span}; expected 0..{self.classes - 1}")
            object.__setattr__(self, f"{split}_images", read_only(images))
            object.__setattr__(self, f"{split}_labels", read_only(labels))
        _check_statistics(self.name, self.mean, self.std, shape[0])
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if not is_whole(self.crop_padding) or self.crop_padding >= min(shape[1:]):
            raise ValueError(
                f"{self.name}: crop_padding is {self.crop_padding!r}; expected 0..{min(shape[1:]) - 1} "
                f"for images of {shape[1]}x{shape[2]}"
            )
        for name in ("classes", "crop_padding", "flip"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), tuple(vars(self)[item.name] for item in fields(self))  # so that copies are read-only too

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """Digest of everything except the name."""
        return digest(*(getattr(self, item.name) for item in fields(self) if item.name != "name"))


def digest(*parts: NDArray[Any] | Sequence[float] | float) -> str:
    """Return a digest of arrays, by dtype, shape and content, and of numbers, by value: 128 bits as 32 hex digits."""
    state = hashlib.sha256()
    for part in parts:
        array = part if isinstance(part, np.ndarray) else np.array(part, dtype=np.float64) + 0.0  # -0.0 is 0.0
        state.update(f"{array.dtype.str} {array.shape}\n".encode())  # fixes the number of bytes that follow
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()[:32]


def check_array(what: str, array: object, dtype: type[np.generic], remedy: str) -> None:
    """Raise ``TypeError`` unless ``array`` is an array of this dtype without a mask."""
    if isinstance(array, np.ndarray) and array.dtype == dtype and not isinstance(array, np.ma.MaskedArray):
        return
    kind = f" of {array.dtype}" if isinstance(array, np.ndarray) else ""
    raise TypeError(
        f"{what} a {type(array).__name__}{kind}; expected a plain NumPy array of {dtype.__name__} ({remedy})"
    )


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array if nobody else can write to its memory, else a read-only copy; C-contiguous, of no subclass."""
    array = np.asarray(array)
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    own = array.flags.owndata or (isinstance(owner, memoryview) and owner.readonly)
    if array.flags.writeable or not array.flags.c_contiguous or not own:
        array = array.copy(order="C")
        array.flags.writeable = False
    return array


def _check_shapes(where: str, images: Images, labels: Labels, shape: tuple[int, ...]) -> None:
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{where}: images have shape {images.shape}; expected (N, channels, height, width), all at least 1"
        )
    if images.shape[1:] != shape:
        raise ValueError(f"{where}: images are {images.shape[1:]}, the training images {shape}; expected equal shapes")
    if labels.shape != (len(images),):
        raise ValueError(
            f"{where}: labels have shape {labels.shape} for {len(images)} images; expected ({len(images)},)"
        )


def _check_statistics(name: str, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    are_numbers = all(
        isinstance(values, Sequence) and len(values) == channels and all(map(is_finite, values))
        for values in (mean, std)
    )
    if not are_numbers or not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        raise ValueError(
            f"{name}: mean {mean!r} and std {std!r}; expected a finite number on the 0..1 scale for each of the "
            f"{channels} channels of (N, channels, height, width), and std above 0"
        )
