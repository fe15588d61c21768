"""Custom texts: the files, their order, and invalid ones."""

from __future__ import annotations

import codecs
import inspect
import os
import shlex
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from archives import write
from esper_env.data import DataFamily, TextData, load_data
from esper_env.data.own_text import check_context, find_text, load_text
from esper_env.tasks import TASKS

LINES = "".join(f"line {number} of a text — with a dash\n" for number in range(40))


def load(path: Path) -> TextData:
    return load_text(path, find_text(path))


def whole(data: TextData) -> bytes:
    return np.concatenate([data.train, data.val, data.test]).tobytes()


def write_texts(folder: Path, *names: str) -> None:
    """Write files whose lines are their names."""
    for name in names:
        write((folder / name).parent, {Path(name).name: f"{name}\n".encode() * 60})


def names_in(folder: Path) -> list[str]:
    """The different lines of the text below a folder."""
    return list(dict.fromkeys(whole(load(folder)).decode().splitlines()))


def test_file_is_split_at_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(LINES)
    data = load(path)
    assert data.name == "text:book.txt"
    assert whole(data) == LINES.encode()
    assert data.train.tobytes().endswith(b"\n")
    assert data.val.tobytes().endswith(b"\n")


def test_folder_yields_its_texts_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_texts(tmp_path / "books", "b.md", "a.txt", "c/a.TXT", "c/z.md", "B.txt", "d.txt", "d.csv", "e.txt.gz")
    (tmp_path / "books" / "empty.txt").touch()
    assert load(tmp_path / "books").name == "text:books"
    assert names_in(tmp_path / "books") == ["B.txt", "a.txt", "b.md", "c/a.TXT", "c/z.md", "d.txt"]


def test_folder_may_be_deeper_than_the_limit_of_recursion(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a"] * 150)
    folder.mkdir(parents=True)
    (folder / "deep.txt").write_text(LINES)
    (tmp_path / "b.txt").write_text(LINES)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        found = find_text(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert [file.path.name for file in found] == ["deep.txt", "b.txt"]


def test_every_text_of_a_folder_begins_on_a_new_line(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["a.txt", "b.txt"], codecs.BOM_UTF8 + b"x" * 300))
    assert whole(load(tmp_path)) == b"x" * 300 + b"\n" + b"x" * 300 + b"\n"


def test_links_are_followed_and_every_file_is_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    write_texts(folder, "b.txt", "m/c.txt", "m/d.txt")
    write_texts(tmp_path / "other", "e.txt")
    (folder / "a.txt").symlink_to("b.txt")
    (folder / "f.md").hardlink_to(folder / "b.txt")
    (folder / "l").symlink_to("m")
    (folder / "z").symlink_to(tmp_path / "other")
    (folder / "m" / "again.txt").symlink_to("../b.txt")
    (folder / "m" / "up").symlink_to("..")
    found = [file.path.relative_to(folder).as_posix() for file in find_text(folder)]
    assert found == ["a.txt", "l/c.txt", "l/d.txt", "z/e.txt"]
    check_context(folder, 8)
    assert names_in(folder) == ["b.txt", "m/c.txt", "m/d.txt", "e.txt"]


def test_folder_with_several_names_is_listed_once(tmp_path: Path) -> None:
    """Folders that link twice to the next one would double the work at each, to 2**30 folders."""
    for level in range(30):
        (tmp_path / f"{level}").mkdir()
        for name in ("x", "y"):
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}")
    write_texts(tmp_path, "30/a.txt")
    assert len(find_text(tmp_path / "0")) == 1


def test_hidden_files_are_skipped_unless_they_are_named(tmp_path: Path) -> None:
    write_texts(tmp_path, "a.txt", ".notes.txt", ".git/b.txt", ".venv/lib/c.md")
    (tmp_path / ".broken.txt").symlink_to("nowhere")
    assert names_in(tmp_path) == ["a.txt"]
    assert names_in(tmp_path / ".notes.txt") == [".notes.txt"]
    assert names_in(tmp_path / ".git") == [".git/b.txt"]
    (tmp_path / "a.txt").rename(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"contains no text; expected \*.txt or \*.md files, not hidden, in it"):
        find_text(tmp_path)


@pytest.mark.parametrize(("target", "problem"), [("a.txt", "symbolic links"), ("nowhere", "No such file")])
def test_broken_link_is_rejected(tmp_path: Path, target: str, problem: str) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / target)
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(OSError, match=rf"{problem}.*a\.txt"):
            find_text(path)


def test_pipe_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path, tmp_path / "pipe.txt"):
        with pytest.raises(ValueError, match=r"pipe\.txt is neither a file nor a folder"):
            find_text(path)


def test_text_needs_320_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in (b"", codecs.BOM_UTF8 + b"x" * 318):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"has (0|319) bytes of text; expected at least 320"):
            load(path)
    for content in ("x" * 320, "\n" * 320, ("x" * 15 + "\n") * 20):
        path.write_text(content)
        assert whole(load(path)).rstrip(b"\n") == content.rstrip("\n").encode()


def test_text_beyond_the_maximum_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.touch()
    os.truncate(path, 2**30 + 1)  # a sparse file takes no space
    with pytest.raises(ValueError, match="1,073,741,825 bytes of text, all held in memory; expected at most"):
        find_text(path)


@pytest.mark.parametrize("family", [DataFamily.TEXT, DataFamily.TINYSTORIES])
def test_path_is_a_dataset_of_both_families_of_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: DataFamily
) -> None:
    (tmp_path / "book.txt").write_text(LINES)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    first = load_data(str(tmp_path / "book.txt"), family=family)
    assert first.name == "text:book.txt"
    assert load_data("book.txt", family=family) is first
    assert load_data("~/book.txt", family=family) is first
    assert load_data(".", family=family).name == f"text:{tmp_path.name}"


def test_changed_text_is_loaded_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LINES)
    first = load_data(str(tmp_path), family=DataFamily.TEXT)
    (tmp_path / "b.txt").write_text(LINES)
    second = load_data(str(tmp_path), family=DataFamily.TEXT)
    assert len(whole(second)) == 2 * len(whole(first))
    os.utime(tmp_path / "b.txt", ns=(0, 0))
    (tmp_path / "b.txt").write_text(LINES.upper())
    assert whole(load_data(str(tmp_path), family=DataFamily.TEXT)) != whole(second)


@pytest.mark.parametrize(
    ("content", "problem", "encoding"),
    [
        (LINES.encode()[:77] + b"\0" + LINES.encode(), "a NUL byte at offset 77", "UTF-16"),
        (LINES.encode("utf-16"), "a NUL byte at offset 3", "UTF-16"),
        (("字" * 400).encode("utf-16"), "the byte at offset 0 is not UTF-8 (invalid start byte)", "UTF-16"),
        (LINES.encode("utf-32"), "a NUL byte at offset 2", "UTF-32"),
        (LINES.replace("—", "é").encode("latin-1"), "the byte at offset 17 is not UTF-8", "ISO-8859-1"),
        (LINES.encode() + b"\xe2\x80", f"the byte at offset {len(LINES.encode())} is not UTF-8", "ISO-8859-1"),
    ],
    ids=["binary", "UTF-16", "UTF-16-without-NUL", "UTF-32", "Latin-1", "cut"],
)
def test_file_that_is_not_utf8_is_rejected_with_a_command_to_convert_it(
    tmp_path: Path, content: bytes, problem: str, encoding: str
) -> None:
    path = tmp_path / "my book.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"my book\.txt is not a UTF-8 text: .*; if it is {encoding}, ") as caught:
        load(path)
    assert problem in str(caught.value)
    command = shlex.split(str(caught.value).split("`")[1])
    converted = tmp_path / "my book-utf8.txt"
    assert command == ["iconv", "-f", encoding, "-t", "UTF-8", str(path), ">", str(converted)]


@pytest.mark.parametrize(("env_id", "context", "least"), [("Text", 64, 1_300), ("TinyStories", 128, 2_580)])
def test_check_context_accepts_only_texts_whose_splits_suffice(
    tmp_path: Path, env_id: str, context: int, least: int
) -> None:
    assert TASKS[f"Esper-{env_id}-v0"].host.context == context
    path = tmp_path / "a.txt"
    for length in (1, context // 2, context, 2 * context, least):
        path.write_text(("x" * (length - 1) + "\n") * (least // length) + "y" * (least % length))
        check_context(path, context)
        data = load(path)
        assert min(len(data.val), len(data.test)) > context
        assert len(data.train) > 2 * context
    path.write_text("x" * (least - 1))
    message = rf"a\.txt has {least - 1:,} bytes .* reads {context} bytes .* at least {least:,}"
    with pytest.raises(ValueError, match=message):
        check_context(path, context)
    with pytest.raises(ValueError, match=message):
        gymnasium.make(f"Esper-{env_id}-v0", dataset=str(path))
