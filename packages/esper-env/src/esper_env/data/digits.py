"""The 1,797 handwritten 8x8 digits that come with scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from esper_env.data.images import ImageData
from esper_env.data.splits import split_fields, stratified_split

#: The validation split is unusually large. The number of training images hardly matters for the tiny hosts: accuracies
#: with 600 to 1,100 of them differ less than those of different seeds. A contribution is a paired difference on the
#: validation images. If the predictions of a share d change, its standard error is sqrt(d / VAL): 0.8 points at d = 5%.
TRAIN, VAL, TEST = 697, 800, 300

#: The digits in scikit-learn's folder: a line of 64 grey levels and the label for each.
FILE = "datasets/data/digits.csv.gz"

#: Statistics of the training split, on the 0..1 scale.
MEAN, STD = (0.3049,), (0.3759,)


def load_digits() -> ImageData:
    """Load the digits as (N, 1, 8, 8), with grey levels scaled from 0..16 to 0..255, in a fixed stratified split.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ImportError("the digits need scikit-learn, which is not installed; pip install 'esper-env[digits]'")
    # Importing scikit-learn and SciPy takes about as long as importing PyTorch, so its file is read directly.
    file = Path(spec.origin).parent / FILE
    if file.exists():
        rows = np.loadtxt(file, delimiter=",")
    else:  # in a release that keeps the digits elsewhere
        from sklearn import datasets

        rows = np.column_stack(datasets.load_digits(return_X_y=True))
    images = np.round(rows[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = rows[:, -1].astype(np.int64)
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
