"""TinyStories: whole stories from the front of its files."""

from __future__ import annotations

from pathlib import Path

import pytest
from archives import story, tinystories_files, write
from esper_env.data.tinystories import load_tinystories

TRAIN, VALID = "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"
SEPARATOR = "<|endoftext|>"
BYTES = len(story(1).encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 stories in the training file, 10 in the validation file."""
    return write(tmp_path / "tinystories", tinystories_files())


def stories(text) -> list[str]:
    """The stories of a split, with only white space after the last."""
    *whole, rest = text.tobytes().decode().split(SEPARATOR)
    assert rest.strip() == ""
    return [one.strip() for one in whole]


def originals(numbers) -> list[str]:
    return [story(number).replace(SEPARATOR, "").strip() for number in numbers]


def test_splits_are_whole_stories_in_order(folder: Path) -> None:
    data = load_tinystories(folder)
    assert data.name == "tinystories"
    assert stories(data.train) + stories(data.val) == originals(range(60))
    assert stories(data.test) == originals(range(900, 910))


@pytest.mark.parametrize("val", [2**20, 150])
def test_validation_has_the_fewest_stories_of_the_requested_size(folder: Path, val: int) -> None:
    data = load_tinystories(folder, val=val)
    wanted = min(val, (len(data.train) + len(data.val)) // 10)
    first = data.val.tobytes().index(SEPARATOR.encode()) + len(SEPARATOR)
    assert len(data.val) - first < wanted <= len(data.val)


def test_only_the_front_of_the_files_is_read(folder: Path) -> None:
    size = len(story(10).encode())
    data = load_tinystories(folder, max_bytes=5 * size, test=5 * BYTES)
    read = stories(data.train) + stories(data.val)
    assert read == originals(range(len(read)))
    assert len(read) in (4, 5)
    assert stories(data.test) == originals(range(900, 904))


def test_truncated_character_is_dropped(folder: Path) -> None:
    content = (folder / TRAIN).read_bytes()
    inside = content.index("“".encode(), 3_000) + 1
    data = load_tinystories(folder, max_bytes=inside)
    assert stories(data.train) + stories(data.val) == originals(range(content[:inside].count(SEPARATOR.encode())))


@pytest.mark.parametrize("name", [TRAIN, VALID])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its first 0 bytes contain no story"),
        (b"<html>404</html>" * 50, r"its first 800 bytes contain no story that ends in <\|endoftext\|>"),
        (story(1).encode() * 20 + b"\0" + story(1).encode() * 20, f"a NUL byte at offset {BYTES * 20}"),
        (story(1).encode() * 20 + b"\xff" + story(1).encode() * 20, f"the byte at offset {BYTES * 20} is not UTF-8"),
    ],
)
def test_foreign_file_is_rejected_by_name(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_tinystories(folder)
    assert name in str(caught.value)


def test_single_story_is_rejected(folder: Path) -> None:
    (folder / TRAIN).write_text(story(1))
    with pytest.raises(ValueError, match="too few for a validation split"):
        load_tinystories(folder)
