"""Checkpoints: one safetensors file that holds a tree, its kind, and a checksum.

The arrays are the file's tensors. One metadata entry holds everything else as JSON, with Python's NaN and Infinity. The
checksum detects damage. It does not protect against forgery, but nothing in a checkpoint is ever executed.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from esper_env.paths import user_path
from esper_env.persistence import atomic
from esper_env.persistence.tree import Tree, join_tree, split_tree

#: Version of the file. Other versions cannot be read. The tree in it may have a version of its own, its ``layout``.
FORMAT = 3
_ENTRY = "esper"
_PACKAGES = ("esper-env", "numpy", "torch")
_REMEDY = "use another checkpoint, or save this one again"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names the cause and the remedy."""


def write_checkpoint(path: str | Path, tree: Tree, *, kind: str) -> Path:
    """Write a checkpoint and return its path. Missing folders are made.

    A checkpoint of the same kind at ``path`` is replaced. At any time, the file is the complete previous or new
    checkpoint. Only one process at a time may write to ``path``.

    Args:
        path: the file, by convention with the suffix ".safetensors".
        tree: nested dicts with string keys without "/". Leaves are arrays (bool, integers, floats; any shape), JSON
            scalars and lists of JSON values; tuples, NumPy scalars and other objects are rejected.
        kind: of the content, such as "esper environment".

    Raises:
        CheckpointError: the tree holds something else, or ``path`` is not a checkpoint of this kind. Nothing has been
            written.
        OSError: the file cannot be written, for example because the disk is full. The previous checkpoint is intact.
    """
    place = user_path(path)
    try:
        values, arrays = split_tree(tree)
    except ValueError as error:
        raise CheckpointError(f"a checkpoint of the kind {kind!r} cannot hold this: {error}") from error
    if place.exists():
        _read(place, kind, header_only=True)
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "tree": values,
    }
    manifest["sha256"] = _checksum(manifest, arrays)
    packed = safetensors.numpy.save(arrays, {_ENTRY: _json(manifest)})
    with atomic.replaced(place) as temporary:
        temporary.write_bytes(packed)
    return place


def read_checkpoint(path: str | Path, *, kind: str) -> Tree:
    """Return the tree of a checkpoint. Its arrays are writable copies; the order of keys is not kept.

    Raises:
        CheckpointError: ``path`` is missing, damaged, or not a checkpoint of this kind and format.
    """
    manifest, arrays = _read(user_path(path), kind)
    return join_tree(manifest["tree"], arrays)


def _read(place: Path, kind: str, header_only: bool = False) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the checked manifest and the arrays (no arrays with ``header_only``)."""
    if not place.is_file():
        problem = "is a folder" if place.is_dir() else "does not exist"
        raise CheckpointError(f"{place} {problem}; expected the file of a checkpoint")
    try:
        # One open file: its content stays the same even if another process replaces the path now.
        with safetensors.safe_open(place, framework="numpy") as file:
            manifest = _parsed(place, (file.metadata() or {}).get(_ENTRY), kind)
            if header_only:
                return manifest, {}
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place} is incomplete or not a safetensors file of arrays; {_REMEDY}") from error
    if manifest.get("sha256") != _checksum(manifest, arrays):
        raise CheckpointError(f"{place} was changed after it was saved: its checksum does not match; {_REMEDY}")
    return manifest, arrays


def _parsed(place: Path, text: str | None, kind: str) -> dict[str, Any]:
    """Return the manifest in a metadata entry, its format and kind checked."""
    try:
        manifest: dict[str, Any] = json.loads(text or "")
        found, found_kind = manifest["format"], manifest["kind"]
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f"{place} is not an Esper checkpoint; expected a file written by esper-env") from None
    if found != FORMAT:
        raise CheckpointError(
            f"{place} has format {found}; this version of esper-env reads format {FORMAT}. "
            f"Read it with the version that wrote it ({manifest.get('versions')})"
        )
    if found_kind != kind:
        raise CheckpointError(f"{place} is a checkpoint of the kind {found_kind!r}; expected {kind!r}")
    return manifest


def _checksum(manifest: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of everything in a checkpoint but the checksum itself."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = sha256(_json(rest).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _json(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"))
