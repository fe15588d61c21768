"""Checkpoints: a folder with a manifest and one file of arrays, complete at every moment.

| file | content |
|---|---|
| manifest.json | format, kind, versions, everything that is no array, name, size and checksum of the arrays file |
| arrays-<checksum>.safetensors | the arrays |

The arrays are written first, under a name of their own; replacing the manifest is what makes the new checkpoint take
the place of the old one. A checksum lets a torn or edited file be noticed; it is no protection against forgery, but
nothing in a checkpoint is ever run, and no name in it leads out of the folder.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from esper_env.persistence import atomic
from esper_env.persistence.tree import Tree, join_tree, split_tree

#: Version of the layout; another one cannot be read.
FORMAT = 1
MANIFEST = "manifest.json"
_PACKAGES = ("esper-env", "numpy", "torch")
_ARRAYS_FILE = re.compile(r"arrays-[0-9a-f]{16}\.safetensors")
_TEMPORARY = re.compile(r"\.(manifest\.\d+\.json|arrays-[0-9a-f]{16}\.\d+\.safetensors)")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message says what was found and what to do."""


class _Entry(NamedTuple):
    """What a manifest says about the arrays file."""

    file: str
    sha256: str
    size: int


def write_checkpoint(folder: str | Path, tree: Tree, *, kind: str) -> Path:
    """Write a checkpoint of some ``kind`` ("esper environment", ...) and return its folder, which is made if missing.

    A checkpoint of the same kind that is there is replaced: until the last moment, whatever happens, the folder holds
    the previous one. One writer at a time.

    Args:
        tree: nested dicts with string keys without "/"; leaves are arrays (bool, integers, floats; any shape), JSON
            scalars and lists of JSON values. Tuples, NumPy scalars and pickled things are refused.

    Raises:
        CheckpointError: the tree holds something else, or the folder holds something other than a checkpoint of this
            kind; nothing has been written then.
        OSError: the disk is full, say; the previous checkpoint is still there.
    """
    place = Path(folder)
    try:
        values, arrays = split_tree(tree)
    except ValueError as error:
        raise CheckpointError(f"a checkpoint of the kind {kind!r} cannot hold this: {error}") from error
    previous = _check_replaceable(place, kind)
    packed = safetensors.numpy.save(arrays)
    entry = _entry(packed)
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "arrays": entry._asdict(),
        "tree": values,
    }
    text = _sealed(manifest)
    if place.is_dir():
        _sweep(place, previous)  # what a killed writer left may be what fills the disk
    with atomic.replaced(place / entry.file) as temporary:
        temporary.write_bytes(packed)
    with atomic.replaced(place / MANIFEST) as temporary:
        temporary.write_bytes(text)
    _sweep(place, entry.file)
    return place


def read_checkpoint(folder: str | Path, *, kind: str) -> Tree:
    """The tree of a checkpoint of some ``kind``; its arrays are writable copies, the order of keys is not kept.

    Raises ``CheckpointError`` for a folder that is missing or holds no complete checkpoint of this kind and format.
    """
    place = Path(folder)
    while True:
        data = _manifest_bytes(place)
        try:
            return _read(place, data, kind)
        except CheckpointError:
            if _manifest_bytes(place) == data:
                raise  # otherwise it was replaced while it was being read


def _read(place: Path, data: bytes, kind: str) -> Tree:
    manifest = _opened(place, data, kind)
    entry = _entry_of(manifest, place)
    try:
        return join_tree(manifest["tree"], _arrays(place / entry.file, entry))
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{place} holds a tree that does not fit together ({error}); {_REMEDY}") from error


_REMEDY = "take another checkpoint, or write this one anew"


def _check_replaceable(place: Path, kind: str) -> str | None:
    """The arrays file of the checkpoint that is there, None without one; an error for anything else."""
    if not place.exists():
        return None
    if not place.is_dir():
        raise CheckpointError(f"{place} is a file; a checkpoint is a folder: give another path")
    names = sorted(entry.name for entry in place.iterdir())
    foreign = [name for name in names if not _is_own(name)]
    if foreign:
        raise CheckpointError(
            f"{place} holds {foreign[0]!r}, which is no part of a checkpoint; give a folder of its own"
        )
    if MANIFEST not in names:
        return None
    manifest = _opened(place, _manifest_bytes(place), kind)
    return _entry_of(manifest, place).file


def _is_own(name: str) -> bool:
    return name == MANIFEST or bool(_ARRAYS_FILE.fullmatch(name) or _TEMPORARY.fullmatch(name))


def _sweep(place: Path, keep: str | None) -> None:
    """Remove temporary files, and arrays that no manifest names."""
    for entry in place.iterdir():
        if _TEMPORARY.fullmatch(entry.name) or (_ARRAYS_FILE.fullmatch(entry.name) and entry.name != keep):
            entry.unlink(missing_ok=True)


def _entry(packed: bytes) -> _Entry:
    digest = sha256(packed).hexdigest()
    return _Entry(f"arrays-{digest[:16]}.safetensors", digest, len(packed))


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest: the same for equal ones, with a checksum of the rest at the end."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(body, sort_keys=True, allow_nan=False, separators=(",", ":"))
    digest = sha256(text.encode()).hexdigest()
    return f'{text[:-1]},\n"sha256":"{digest}"}}\n'.encode()


def _manifest_bytes(place: Path) -> bytes:
    if not place.exists():
        raise CheckpointError(f"{place} does not exist; give the folder of a checkpoint")
    try:
        return (place / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(f"{place} is not a checkpoint: it has no {MANIFEST}") from error


def _opened(place: Path, data: bytes, kind: str) -> dict[str, Any]:
    """The manifest in ``data`` once it has been checked: its format, its checksum, its kind."""
    path = place / MANIFEST
    manifest: dict[str, Any]
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is incomplete or no JSON; {_REMEDY}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if type(found) is not int or "kind" not in manifest:
        raise CheckpointError(f"{path} is not the manifest of a checkpoint")
    if found != FORMAT:
        which, writer = ("an older", "wrote it") if found < FORMAT else ("a newer", "wrote it, or a later one")
        raise CheckpointError(
            f"{place} has {which} format, {found}; this version of esper-env reads format {FORMAT}. "
            f"Read it with the version that {writer} ({manifest.get('versions')})"
        )
    try:
        intact = _sealed(manifest) == data
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path} was changed after it was written: its checksum does not fit; {_REMEDY}")
    if manifest["kind"] != kind:
        raise CheckpointError(f"{place} is a checkpoint of the kind {manifest['kind']!r}; expected {kind!r}")
    return manifest


def _entry_of(manifest: dict[str, Any], place: Path) -> _Entry:
    """What the manifest says about its arrays file, whose name follows from its checksum and is not chosen freely."""
    arrays = manifest.get("arrays")
    if not isinstance(arrays, dict) or set(arrays) != set(_Entry._fields):
        raise CheckpointError(f"{place / MANIFEST} does not describe its arrays; {_REMEDY}")
    entry = _Entry(**arrays)
    digest = entry.sha256 if isinstance(entry.sha256, str) else ""
    if not re.fullmatch("[0-9a-f]{64}", digest) or entry.file != f"arrays-{digest[:16]}.safetensors":
        raise CheckpointError(f"{place / MANIFEST} names the arrays file {entry.file!r}, which is no name of one")
    return entry


def _arrays(path: Path, entry: _Entry) -> dict[str, NDArray[Any]]:
    try:
        packed = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CheckpointError(f"{path} is missing, and with it the arrays of the checkpoint; {_REMEDY}") from error
    if len(packed) != entry.size or sha256(packed).hexdigest() != entry.sha256:
        raise CheckpointError(
            f"{path} has {len(packed)} bytes of the {entry.size} that were written, or other ones; {_REMEDY}"
        )
    try:
        return {name: np.array(array) for name, array in safetensors.numpy.load(packed).items()}
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is no safetensors file of arrays ({error}); {_REMEDY}") from error
