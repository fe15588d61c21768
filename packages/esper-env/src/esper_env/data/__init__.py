"""Data sets as read-only NumPy arrays. Importing this needs neither torch nor scikit-learn."""

from esper_env.data.catalog import (
    DATA_DIR_VARIABLE,
    DATASETS,
    ImageFamily,
    SyntheticDataWarning,
    data_folder,
    load_image_data,
)
from esper_env.data.cifar import MissingDataError
from esper_env.data.images import ImageData

__all__ = [
    "DATASETS",
    "DATA_DIR_VARIABLE",
    "ImageData",
    "ImageFamily",
    "MissingDataError",
    "SyntheticDataWarning",
    "data_folder",
    "load_image_data",
]
