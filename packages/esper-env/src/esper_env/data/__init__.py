"""Datasets as read-only NumPy arrays. Importing this package needs neither torch nor scikit-learn."""

from esper_env.data.catalog import (
    BUILT_IN,
    DATASETS,
    TEXT_FAMILIES,
    DataFamily,
    SyntheticDataWarning,
    absolute_dataset,
    absolute_path,
    data_folder,
    load_data,
)
from esper_env.data.fetch import fetch_dataset
from esper_env.data.images import ImageData
from esper_env.data.originals import DATA_DIR_VARIABLE, ORIGINALS, MissingDataError, data_dir_option
from esper_env.data.progress import FetchProgress, FetchStage, Watcher
from esper_env.data.text import TextData
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
    "data_dir_option",
    "data_folder",
    "fetch_dataset",
    "find_source",
    "load_data",
    "verify_dataset",
]
