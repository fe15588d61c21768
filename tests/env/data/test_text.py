"""TextData holds consistent, read-only splits and rejects anything else."""

import copy
import pickle

import numpy as np
import pytest
from esper_env.data import TextData

TEXT = np.frombuffer(b"to be or not to be, that is the question", dtype=np.uint8)


def fields(**changes):
    return {"name": "play", "train": TEXT, "val": TEXT[:20], "test": TEXT[20:]} | changes


def test_splits_are_read_only_copies():
    own = TEXT.copy()
    data = TextData(**fields(train=own))
    own[:] = 0
    assert bytes(data.train) == bytes(TEXT)
    assert bytes(data.val) + bytes(data.test) == bytes(TEXT)
    assert data.classes == 256
    for split in (data.train, data.val, data.test):
        with pytest.raises(ValueError, match="read-only"):
            split[0] = 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": ""}, TypeError, "the dataset's name is ''; expected a non-empty string"),
        ({"val": np.ma.masked_array(TEXT)}, TypeError, "val split: the text is a MaskedArray of uint8"),
        ({"train": "to be"}, TypeError, "play, train split: the text is a str; expected a plain NumPy array of uint8"),
        ({"test": TEXT[:15]}, ValueError, r"play, test split: the text has shape \(15,\); expected .* at least 16"),
        ({"train": TEXT[:40].reshape(2, 20)}, ValueError, r"train split: the text has shape \(2, 20\)"),
    ],
)
def test_text_data_rejects_invalid_fields(changes, error, message):
    with pytest.raises(error, match=message):
        TextData(**fields(**changes))


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))], ids=["copy", "deep", "pickle"]
)
def test_copies_are_read_only_and_have_the_same_digest(copied):
    data = TextData(**fields())
    known = data.digest
    other = copied(data)
    assert (other.name, other.digest) == (data.name, known)
    for split in ("train", "val", "test"):
        assert not getattr(other, split).flags.writeable
        assert bytes(getattr(other, split)) == bytes(getattr(data, split))


def test_digest_depends_on_everything_except_the_name() -> None:
    parts = [np.frombuffer(bytes(range(start, start + 40)), dtype=np.uint8) for start in (0, 50, 100)]
    digest = TextData("a", *parts).digest
    assert TextData("b", *parts).digest == digest
    assert TextData("a", parts[1], parts[0], parts[2]).digest != digest
    for index in range(3):
        other = [part.copy() for part in parts]
        other[index][-1] += 1
        assert TextData("a", *other).digest != digest
    whole = np.concatenate(parts)
    assert TextData("a", *np.split(whole, [41, 80])).digest != digest  # the same bytes, split elsewhere
