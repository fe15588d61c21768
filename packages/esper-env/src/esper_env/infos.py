"""Infos of a vector environment in Gymnasium's format: arrays over environments, each with a ``_key`` mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Infos = dict[str, Any]


def vector_infos(values: Mapping[str, Any], rows: Mask) -> Infos:
    """Return batched values, (N, ...) arrays or mappings of them, as infos of ``rows`` (N,); 0 or None elsewhere."""
    infos: Infos = {}
    for key, value in values.items() if rows.any() else ():
        if isinstance(value, Mapping):
            infos[key] = vector_infos(value, rows)
        else:
            infos[key] = np.full_like(value, None if value.dtype == object else 0)
            infos[key][rows] = value[rows]
        infos[f"_{key}"] = rows.copy()
    return infos


def merge_infos(first: Infos, second: Infos) -> Infos:
    """Merge the infos of two disjoint sets of environments."""
    merged = dict(first)
    for key, value in second.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, dict):
            merged[key] = merge_infos(merged[key], value)
        elif key.startswith("_"):
            merged[key] = merged[key] | value
        else:
            rows = second[f"_{key}"]
            merged[key] = merged[key].copy()
            merged[key][rows] = value[rows]
    return merged


def single_info(infos: Mapping[str, Any], row: int) -> Infos:
    """Return the info of one environment: Python scalars, copied arrays, nested dicts."""
    info: Infos = {}
    for key, value in infos.items():
        if key.startswith("_") or not infos[f"_{key}"][row]:
            continue
        if isinstance(value, Mapping):
            info[key] = single_info(value, row)
        else:
            info[key] = value[row].copy() if value.ndim > 1 else value.tolist()[row]
    return info
