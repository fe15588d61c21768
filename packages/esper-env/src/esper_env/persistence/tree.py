"""Trees of arrays and JSON values: what a state is made of, and its two halves in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
_EXACT_INT = 2**53  # exact in every JSON reader


def split_tree(tree: Mapping[str, Any]) -> tuple[Tree, Arrays]:
    """Return the strict-JSON half of a tree, and its C-contiguous arrays by path ("a/b/c").

    Raises ``ValueError``, naming the place, for a key that is not a string, is empty or holds a "/", and for a leaf
    that is neither a plain array nor a JSON value: tuples, NumPy scalars and enumerations are rejected, not converted.
    """
    arrays: Arrays = {}
    return _split(tree, "", arrays), arrays


def join_tree(values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Tree:
    """The tree whose halves are given; keys come in the order of the halves.

    Raises ``ValueError`` where the halves do not fit together.
    """
    tree: Tree = _decoded(dict(values))
    for path, array in arrays.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} is an array, but {parent!r} is a value")
        if name in node:
            raise ValueError(f"{path!r} is both an array and a value")
        node[name] = array
    return tree


def _split(node: Mapping[str, Any], place: str, arrays: Arrays) -> Tree:
    values: Tree = {}
    for key, value in node.items():
        _check_key(key, place)
        path = f"{place}/{key}" if place else key
        if isinstance(value, np.ndarray):
            arrays[path] = _checked_array(value, path)
        elif type(value) is dict:
            values[_marked(key)] = _split(value, path, arrays)
        else:
            values[_marked(key)] = _encoded(value, path)
    return values


def _check_key(key: object, place: str) -> None:
    where = f"in {place!r}" if place else "at the top"
    if type(key) is not str or not key or "/" in key or (key == _RESERVED and not place):
        raise ValueError(f"the key {key!r} {where} is not possible; expected a name without '/'")
    _check_text(key, where)


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text {text!r} {where} holds half of a surrogate pair; expected Unicode text") from error


def _checked_array(array: NDArray[Any], path: str) -> NDArray[Any]:
    if type(array) is not np.ndarray or array.dtype not in DTYPES:
        raise ValueError(
            f"{path!r} is a {type(array).__name__} of {array.dtype}; "
            f"expected a plain array of {', '.join(sorted(map(str, DTYPES)))} in this machine's byte order"
        )
    return np.asarray(array, order="C")


# Strict JSON has neither NaN nor integers that every reader keeps exact: these become {"$float": "nan"} and
# {"$int": "0x..."}, and a key of the tree's own that begins with "$" gets another one.


def _marked(key: str) -> str:
    return f"${key}" if key.startswith("$") else key


def _encoded(value: Any, path: str) -> Any:
    kind = type(value)
    if kind is int and abs(value) > _EXACT_INT:
        return {"$int": hex(value)}
    if kind is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if kind is str:
        _check_text(value, f"in {path!r}")
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [_encoded(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if kind is dict and all(type(key) is str for key in value):
        for key in value:
            _check_text(key, f"in {path!r}")
        return {_marked(key): _encoded(item, f"{path}[{key!r}]") for key, item in value.items()}
    raise ValueError(f"{path!r} is {value!r} ({kind.__name__}); expected an array, a JSON value or a list of those")


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if list(value) == ["$int"]:
        return int(value["$int"], 16)
    if list(value) == ["$float"]:
        return float(value["$float"])
    return {key.removeprefix("$"): _decoded(item) for key, item in value.items()}
