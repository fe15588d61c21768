"""Infos of a vector environment in Gymnasium's format: arrays over environments, each with a ``_key`` mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Infos = dict[str, Any]


def vector_infos(values: Mapping[str, Any], rows: Mask) -> Infos:
    """Return batched values, (N, ...) arrays or mappings of them, as infos of ``rows`` (N,); 0 elsewhere."""
    infos: Infos = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            infos[key] = vector_infos(value, rows)
        else:
            infos[key] = _blank_elsewhere(np.asarray(value), rows)
        infos[f"_{key}"] = rows.copy()
    return infos


def restrict_infos(infos: Infos, rows: Mask) -> Infos:
    """Return copies of infos, limited to ``rows`` (N,), without keys that are then empty."""
    kept: Infos = {}
    for key, value in infos.items():
        if key.startswith("_"):
            continue
        mask = infos[f"_{key}"] & rows
        if mask.any():
            kept[key] = restrict_infos(value, rows) if isinstance(value, dict) else _blank_elsewhere(value, mask)
            kept[f"_{key}"] = mask
    return kept


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
            item = value[row]
            info[key] = item.copy() if isinstance(item, np.ndarray) else item
            if isinstance(item, np.generic):
                info[key] = item.item()
    return info


def _blank_elsewhere(value: NDArray[Any], rows: Mask) -> NDArray[Any]:
    blank = np.full(value.shape, None, dtype=object) if value.dtype == object else np.zeros_like(value)
    blank[rows] = value[rows]
    return blank
