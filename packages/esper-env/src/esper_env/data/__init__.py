"""Datasets as read-only NumPy arrays.

Importing this package needs neither torch nor scikit-learn, and no network library: the functions that download or
verify files are loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

from esper_env.data.catalog import (
    BUILT_IN,
    DATA_DIR_VARIABLE,
    DATASETS,
    TEXT_FAMILIES,
    DataFamily,
    SyntheticDataWarning,
    absolute_dataset,
    absolute_path,
    data_folder,
    load_data,
)
from esper_env.data.images import ImageData
from esper_env.data.originals import ORIGINALS
from esper_env.data.progress import FetchProgress, FetchStage, Watcher
from esper_env.data.sources import MissingDataError
from esper_env.data.text import TextData

if TYPE_CHECKING:
    from esper_env.data.fetch import fetch_dataset
    from esper_env.data.verify import DatasetState, find_source, verify_dataset

__all__ = [
    "BUILT_IN",
    "DATASETS",
    "DATA_DIR_VARIABLE",
    "ORIGINALS",
    "TEXT_FAMILIES",
    "DataFamily",
    "DatasetState",
    "FetchProgress",
    "FetchStage",
    "ImageData",
    "MissingDataError",
    "SyntheticDataWarning",
    "TextData",
    "Watcher",
    "absolute_dataset",
    "absolute_path",
    "data_folder",
    "fetch_dataset",
    "find_source",
    "load_data",
    "verify_dataset",
]

_LAZY = {"fetch_dataset": "fetch", "DatasetState": "verify", "find_source": "verify", "verify_dataset": "verify"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
