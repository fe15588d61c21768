"""Pickles whose arrays lie in one file in memory, which processes map instead of copying.

The arrays are the out-of-band buffers of pickle's protocol 5. cloudpickle also pickles functions and classes of the
caller's ``__main__``.

Pickles only pass between a process and the workers that it has started, through private pipes and files in memory.
Nothing that comes from a file of the user or from elsewhere is unpickled.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from io import BytesIO
from typing import IO, Any, NamedTuple

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Alignment of arrays in bytes, as of PyTorch's own memory: equal alignment, equal kernels, equal bits.
ALIGNMENT = 64


class Packed(NamedTuple):
    """A pickle, and the places of its arrays in a file: offset and size in bytes."""

    content: bytes
    places: list[tuple[int, int]]


def shared_file() -> IO[bytes]:
    """Return a new file in memory, or on disk if the system has no such files; it disappears with its last user."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("esper"), "w+b")
    return tempfile.TemporaryFile()


def pack(value: Any, file: IO[bytes]) -> Packed:
    """Pickle a value; its arrays and CPU tensors are written to ``file``.

    Raises whatever the value's own methods raise, usually ``TypeError`` or ``pickle.PicklingError``.
    """
    content, places = BytesIO(), []

    def write(buffer: pickle.PickleBuffer) -> None:
        raw = buffer.raw()
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        places.append((file.tell(), raw.nbytes))
        file.write(raw)

    _Pickler(content, protocol=5, buffer_callback=write).dump(value)
    file.write(b"\0")  # an empty file cannot be mapped
    file.flush()
    return Packed(content.getvalue(), places)


def unpack(packed: Packed, descriptor: int) -> Any:
    """Return the value; its arrays are views of the file with this descriptor.

    Pages are shared until a process writes to them, which changes its own copy.
    """
    memory = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
    buffers = [memory[offset : offset + size] for offset, size in packed.places]
    return pickle.loads(packed.content, buffers=buffers)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles a CPU tensor as a view of the bytes of its storage, which all views share."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._storages: dict[int, NDArray[np.uint8]] = {}

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.device.type != "cpu" or obj.layout is not torch.strided:
            return super().reducer_override(obj)
        if not obj.numel() or obj.requires_grad or obj.is_conj() or obj.is_neg():
            return super().reducer_override(obj)
        storage = obj.untyped_storage()
        stored = self._storages.get(storage.data_ptr())
        if stored is None:
            stored = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            self._storages[storage.data_ptr()] = stored
        return _view, (stored, obj.dtype, tuple(obj.size()), obj.stride(), obj.storage_offset())


def _view(
    stored: NDArray[np.uint8], dtype: torch.dtype, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> Tensor:
    return torch.from_numpy(stored).view(dtype).as_strided(size, stride, offset)
