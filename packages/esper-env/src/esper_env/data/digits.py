"""The 1,797 handwritten 8x8 digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from esper_env.data.images import ImageData
from esper_env.data.splits import split_fields, stratified_split

#: The validation split is unusually large. The number of training images hardly matters for the tiny hosts: accuracies
#: with 600 to 1,100 of them differ less than those of different seeds. A contribution is a paired difference on the
#: validation images. If the predictions of a share d change, its standard error is sqrt(d / VAL): 0.8 points at d = 5%.
TRAIN, VAL, TEST = 697, 800, 300

#: Statistics of the training split, on the 0..1 scale.
MEAN, STD = (0.3049,), (0.3759,)


def load_digits() -> ImageData:
    """Load the digits as (N, 1, 8, 8), with grey levels scaled from 0..16 to 0..255, in a fixed stratified split.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "the digits need scikit-learn, which is not installed; pip install 'esper-env[digits]'"
        ) from error
    levels, labels = datasets.load_digits(return_X_y=True)
    images = np.round(levels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    train, val, test = stratified_split(labels, (TRAIN, VAL, TEST), "data/digits")
    return ImageData(
        name="digits",
        classes=10,
        **split_fields(images, labels, train=train, val=val, test=test),
        mean=MEAN,
        std=STD,
        crop_padding=0,  # digits are centred, and a mirrored digit is a different sign
        flip=False,
    )
