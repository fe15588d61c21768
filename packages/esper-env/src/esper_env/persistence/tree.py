"""Trees of arrays and JSON values: what a state is made of, and its two halves in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A nested dict: keys are strings without "/", leaves are NumPy arrays, JSON scalars (None, bool, int, float, str) or
#: lists of JSON values. There is no recursive type for it that callers could build without casts.
Tree = dict[str, Any]
Arrays = dict[str, NDArray[Any]]

DTYPES = frozenset(
    np.dtype(kind)
    for kind in (
        *(np.bool_, np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.int8, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64),
    )
)
_RESERVED = "__metadata__"  # of safetensors


def split_tree(tree: Mapping[str, Any]) -> tuple[Tree, Arrays]:
    """Return the JSON half of a tree, and its C-contiguous arrays by path ("a/b/c").

    Raises ``ValueError``, naming the place, for a key that is not a string, is empty or holds a "/", and for a leaf
    that is neither a plain array nor a JSON value: tuples, NumPy scalars and enumerations are rejected, not converted.
    """
    arrays: Arrays = {}
    return _split(tree, "", arrays), arrays


def join_tree(values: Tree, arrays: Mapping[str, NDArray[Any]]) -> Tree:
    """Add the arrays to the JSON half of a tree, and return it."""
    for path, array in arrays.items():
        *parents, name = path.split("/")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    return values


def _split(node: Mapping[str, Any], place: str, arrays: Arrays) -> Tree:
    values: Tree = {}
    for key, value in node.items():
        path = f"{place}/{key}" if place else key
        if type(key) is not str or not key or "/" in key or path == _RESERVED:
            raise ValueError(f"the key {key!r} in {place!r} is not allowed; expected a non-empty string without '/'")
        if isinstance(value, np.ndarray):
            arrays[path] = _checked_array(value, path)
        elif type(value) is dict:
            values[key] = _split(value, path, arrays)
        else:
            _check_value(value, path)
            values[key] = value
    return values


def _checked_array(array: NDArray[Any], path: str) -> NDArray[Any]:
    if type(array) is not np.ndarray or array.dtype not in DTYPES:
        raise ValueError(
            f"{path!r} is a {type(array).__name__} of {array.dtype}; "
            f"expected a plain array of {', '.join(sorted(map(str, DTYPES)))} in this machine's byte order"
        )
    return np.asarray(array, order="C")


def _check_value(value: Any, path: str) -> None:
    """Raise ``ValueError`` for a value that JSON would reject or convert."""
    kind = type(value)
    inner: Iterable[tuple[Any, Any]] = ()
    if kind is list:
        inner = enumerate(value)
    elif kind is dict and all(type(key) is str for key in value):
        inner = value.items()
    elif value is not None and kind not in (bool, int, float, str):
        raise ValueError(f"{path!r} is {value!r} ({kind.__name__}); expected an array, a JSON value or a list of those")
    for key, item in inner:
        _check_value(item, f"{path}[{key!r}]")
