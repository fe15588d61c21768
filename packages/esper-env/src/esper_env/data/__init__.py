"""Datasets as read-only NumPy arrays. Importing this package needs neither torch nor scikit-learn."""

from esper_env.data.catalog import (
    DATA_DIR_VARIABLE,
    DATASETS,
    DataFamily,
    SyntheticDataWarning,
    data_folder,
    load_data,
)
from esper_env.data.images import ImageData
from esper_env.data.sources import MissingDataError
from esper_env.data.text import TextData

__all__ = [
    "DATASETS",
    "DATA_DIR_VARIABLE",
    "DataFamily",
    "ImageData",
    "MissingDataError",
    "SyntheticDataWarning",
    "TextData",
    "data_folder",
    "load_data",
]
