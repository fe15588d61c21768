"""Infos of a vector environment in Gymnasium's format: arrays over environments, each with a ``_key`` mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Infos = dict[str, Any]
#: Arrays (N, ...) by info key. The keys, shapes and dtypes are the same at every reset and step.
Values = dict[str, NDArray[Any]]


def vector_infos(values: Mapping[str, NDArray[Any]], rows: Mask) -> Infos:
    """Return (N, ...) arrays as infos of ``rows`` (N,); 0 elsewhere."""
    infos: Infos = {}
    for key, value in values.items():
        infos[key] = np.zeros_like(value)
        infos[key][rows] = value[rows]
        infos[f"_{key}"] = rows.copy()
    return infos


def replace_rows(values: Values, others: Mapping[str, NDArray[Any]], rows: Mask) -> Values:
    """Return ``values`` with the entries of ``rows`` (N,) from ``others``, which has the same keys."""
    return {
        key: np.where(rows.reshape(-1, *[1] * (value.ndim - 1)), others[key], value) for key, value in values.items()
    }


def single_info(infos: Mapping[str, NDArray[Any]], row: int) -> Infos:
    """Return the info of one environment: NumPy numbers, and copies of arrays; a bool is an array of shape ().

    Every value has a dtype. Bools are arrays, because Gymnasium's vectors put NumPy's bools into object arrays.
    """
    return {
        key: value[row] if value.ndim == 1 and value.dtype != np.bool_ else np.array(value[row])
        for key, value in infos.items()
        if f"_{key}" in infos and infos[f"_{key}"][row]
    }
