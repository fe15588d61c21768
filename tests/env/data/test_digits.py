"""The digits of scikit-learn, in a fixed split."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
from esper_env.data.digits import load_digits

datasets = pytest.importorskip("sklearn.datasets")


def as_levels(images: np.ndarray) -> np.ndarray:
    """The grey levels of the source, 0..16, one row per image."""
    return np.rint(images.reshape(len(images), -1) / 255 * 16).astype(int)


def test_every_source_image_is_in_exactly_one_split() -> None:
    data = load_digits()
    source, source_labels = datasets.load_digits(return_X_y=True)
    splits = [(getattr(data, f"{s}_images"), getattr(data, f"{s}_labels")) for s in ("train", "val", "test")]
    ours = np.concatenate([np.column_stack([as_levels(images), labels]) for images, labels in splits])
    theirs = np.column_stack([source, source_labels]).astype(int)
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))


def test_digits_have_the_documented_form_and_split() -> None:
    data = load_digits()
    assert data.image_shape == (1, 8, 8)
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)
    assert (data.crop_padding, data.flip) == (0, False)
    for labels, size in ((data.train_labels, 697), (data.val_labels, 800), (data.test_labels, 300)):
        assert len(labels) == size
        np.testing.assert_allclose(np.bincount(labels, minlength=10) / size, 0.1, atol=0.005)
    np.testing.assert_allclose(data.mean, data.train_images.mean() / 255, atol=5e-5)
    np.testing.assert_allclose(data.std, data.train_images.std() / 255, atol=5e-5)
    digest = hashlib.sha256(data.val_images.tobytes() + data.test_images.tobytes()).hexdigest()
    # A different digest makes results incomparable with earlier ones.
    assert digest == "e51dd16ec193a811365b6014a997ce018bee89f24c38ad295f1e39db3293d5fa"


def test_load_digits_names_the_extra_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'esper-env\[digits\]'"):
        load_digits()


def test_load_digits_does_not_import_scikit_learn() -> None:
    code = (
        "import sys\n"
        "from esper_env.data.digits import load_digits\n"
        "print(load_digits().name, {'sklearn', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "digits set()\n"


def test_load_digits_calls_scikit_learn_if_the_file_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_digits().digest
    function = Mock(wraps=datasets.load_digits)
    monkeypatch.setattr(datasets, "load_digits", function)
    assert load_digits().digest == expected
    assert not function.called
    monkeypatch.setattr("esper_env.data.digits.FILE", "moved.csv.gz")
    assert load_digits().digest == expected
    assert function.called
