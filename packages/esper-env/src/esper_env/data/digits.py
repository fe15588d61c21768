"""scikit-learn's 8x8 handwritten digits: 1,797 real images that come with the package."""

from __future__ import annotations

import numpy as np

from esper_env.data.images import ImageData
from esper_env.data.splits import stratified_split

#: There are few images for everybody. Fewer to train on hardly changed what the tiny hosts of this task reach on
#: held-out images (600 to 1,100 were within their seeds' noise), whereas a contribution, a paired difference on the
#: validation images, has standard error sqrt(d / VAL): 0.8 points where 5% of the images change sides. Hence the
#: unusually large validation split.
TRAIN, VAL, TEST = 697, 800, 300

#: Of the training split; on the 0..1 scale.
MEAN, STD = (0.3049,), (0.3759,)


def load_digits() -> ImageData:
    """The digits as (N, 1, 8, 8), their 0..16 grey levels spread over 0..255; a fixed stratified split.

    Raises ``ImportError`` when scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed; pip install 'esper-env[digits]'"
        ) from error
    levels, labels = datasets.load_digits(return_X_y=True)
    images = np.round(levels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    train, val, test = stratified_split(labels, (TRAIN, VAL, TEST), "data/digits")
    return ImageData(
        name="digits",
        classes=10,
        train_images=images[train],
        train_labels=labels[train],
        val_images=images[val],
        val_labels=labels[val],
        test_images=images[test],
        test_labels=labels[test],
        mean=MEAN,
        std=STD,
        crop_padding=0,  # digits are centred and a mirrored digit is another sign
        flip=False,
    )
