"""Custom texts: the files, their order, and invalid ones."""

from __future__ import annotations

import codecs
import os
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from archives import write
from esper_env.data import DataFamily, TextData, load_data, own_text
from esper_env.data.own_text import check_context, find_text, load_text
from esper_env.tasks import TASKS
from hypothesis import given
from hypothesis import strategies as st

LINES = "".join(f"line {number} of a text — with a dash\n" for number in range(40))


def load(path: Path) -> TextData:
    return load_text(path, find_text(path))


def whole(data: TextData) -> bytes:
    return np.concatenate([data.train, data.val, data.test]).tobytes()


def test_file_is_split_at_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(LINES)
    data = load(path)
    assert data.name == "text:book.txt"
    assert whole(data) == LINES.encode()
    assert data.train.tobytes().endswith(b"\n")
    assert data.val.tobytes().endswith(b"\n")
    tenth = len(LINES.encode()) / 10
    assert tenth / 2 <= len(data.val) <= 1.5 * tenth
    assert tenth / 2 <= len(data.test) <= tenth


def test_folder_yields_its_texts_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    for name in ("b.md", "a.txt", "c/a.TXT", "c/z.md", "B.txt", "d.csv", "e.txt.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n" * 20)
    (folder / "empty.txt").touch()
    data = load(folder)
    assert data.name == "text:books"
    seen = list(dict.fromkeys(whole(data).decode().splitlines()))
    assert seen == ["B.txt", "a.txt", "b.md", "c/a.TXT", "c/z.md"]


def test_every_text_of_a_folder_begins_on_a_new_line(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x" * 300)
    assert whole(load(tmp_path)) == b"x" * 300 + b"\n" + b"x" * 300 + b"\n"


def test_links_are_followed(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "inside").mkdir(parents=True)
    (real / "inside" / "a.txt").write_text(LINES)
    link = tmp_path / "link"
    link.mkdir()
    (link / "folder").symlink_to(real)
    (link / "file.md").symlink_to(real / "inside" / "a.txt")
    assert whole(load(link)) == LINES.encode()


def test_file_with_several_names_is_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    for name in ("b.txt", "m/c.txt", "m/d.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n" * 40)
    (folder / "a.txt").symlink_to("b.txt")
    (folder / "e.md").hardlink_to(folder / "b.txt")
    (folder / "l").symlink_to("m")
    (folder / "z").symlink_to("m")
    (folder / "m" / "again.txt").symlink_to("../b.txt")
    found = [file.path.relative_to(folder).as_posix() for file in find_text(folder)]
    assert found == ["a.txt", "l/c.txt", "l/d.txt"]
    check_context(folder, 8)
    assert whole(load(folder)).decode() == "b.txt\n" * 40 + "m/c.txt\n" * 40 + "m/d.txt\n" * 40


def test_folder_with_several_names_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that link twice to the next one would double the work at each."""
    for level in range(6):
        (tmp_path / f"{level}").mkdir()
        for name in ("x", "y"):
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}")
    write(tmp_path / "6", {"a.txt": LINES.encode()})
    listed, listing = [], own_text._entries
    monkeypatch.setattr(own_text, "_entries", lambda folder: listed.append(folder.resolve()) or listing(folder))
    assert len(find_text(tmp_path / "0")) == 1
    assert sorted(listed) == [tmp_path / f"{level}" for level in range(7)]


def test_hidden_files_are_skipped_unless_they_are_named(tmp_path: Path) -> None:
    for name in ("a.txt", ".notes.txt", ".git/b.txt", ".venv/lib/c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(LINES)
    (tmp_path / ".broken.txt").symlink_to("nowhere")
    assert [file.path.name for file in find_text(tmp_path)] == ["a.txt"]
    assert whole(load(tmp_path / ".notes.txt")) == LINES.encode()
    assert whole(load(tmp_path / ".git")) == LINES.encode()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match="files, not hidden, in it"):
        find_text(tmp_path)


def test_recursive_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LINES)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"deep/up is a link to a folder that contains it"):
        find_text(tmp_path)


@pytest.mark.parametrize(("target", "problem"), [("a.txt", ".*symbolic links"), ("nowhere", "No such file")])
def test_broken_link_is_rejected(tmp_path: Path, target: str, problem: str) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / target)
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(OSError, match=rf"a\.txt cannot be read: {problem}"):
            find_text(path)


def test_unreadable_file_is_rejected_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text(LINES)
    files = find_text(path)

    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(PermissionError, match=r"a\.txt cannot be read: Permission denied"):
            load_text(path, files)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(PermissionError, match=r"a\.txt cannot be read: Permission denied"):
            check_context(path, 8)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PermissionError, match="cannot be read: Permission denied"):
        find_text(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "a.csv").write_text(LINES), r"contains no text; expected \*.txt or \*.md files"),
        (lambda folder: os.mkfifo(folder / "pipe.txt"), r"pipe\.txt is neither a file nor a folder"),
    ],
    ids=["other-suffix", "pipe"],
)
def test_folder_without_texts_is_rejected(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        find_text(tmp_path)


def test_text_needs_320_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in ("", "x" * 319):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"has {len(content)} bytes of text; expected at least 320"):
            find_text(path)
    for content in ("x" * 320, "\n" * 320, ("x" * 15 + "\n") * 20):
        path.write_text(content)
        assert whole(load(path)) in (content.encode(), content.encode() + b"\n")


@given(st.lists(st.sampled_from("ab\n"), min_size=320, max_size=700))
def test_any_text_of_the_minimum_size_can_be_split(letters: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_text("".join(letters))
        data = load(path)
    assert whole(data).rstrip(b"\n") == "".join(letters).encode().rstrip(b"\n")


def test_text_beyond_the_maximum_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.touch()
    os.truncate(path, 2**30 + 1)  # a sparse file takes no space
    with pytest.raises(ValueError, match="1,073,741,825 bytes of text, all held in memory; expected at most"):
        find_text(path)


def test_binary_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content, offset in ((LINES.encode()[:77] + b"\0" + LINES.encode(), 77), (LINES.encode("utf-16"), 3)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.txt has a NUL byte at offset {offset}; expected a UTF-8 text"):
            load(path)


@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=200, max_size=400),
    wrong=st.sampled_from([b"\xff", b"\xc0\xaf", b"\xe2\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80"]),
    place=st.floats(0, 1),
    chunk=st.integers(4, 40),
)
def test_first_invalid_utf8_byte_is_reported(text: str, wrong: bytes, place: float, chunk: int) -> None:
    content = text.encode() + b" " * 320
    at = round(len(content) * place)
    content = content[:at] + wrong + content[at:]
    try:
        content.decode()
    except UnicodeDecodeError as error:
        expected = error.start
    else:
        return  # the wrong bytes became part of a character
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_text, "_CHUNK", chunk)
        path = Path(folder) / "a.txt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.txt is not UTF-8: the byte at offset {expected} is "):
            load(path)


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
    ("encoding", "text", "name"),
    [
        ("latin-1", LINES.replace("—", "é"), "Latin-1"),
        ("utf-16", LINES, "UTF-16"),
        ("utf-16-be", "\ufeff" + LINES, "UTF-16"),
        ("utf-16", "字" * 400, "UTF-16"),
        ("utf-32-le", "\ufeff" + LINES, "UTF-32"),
        ("utf-32-be", "\ufeff" + LINES, "UTF-32"),
        ("utf-32-le", 4 * LINES, "UTF-32LE"),
        ("utf-32-be", 4 * LINES, "UTF-32BE"),
    ],
)
def test_remedy_for_a_different_encoding_works(tmp_path: Path, encoding: str, text: str, name: str) -> None:
    path = tmp_path / "my book.txt"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=rf"if it is {name}, convert it with `iconv -f ") as caught:
        load(path)
    command = shlex.split(str(caught.value).split("`")[1])
    converted = tmp_path / "my book-utf8.txt"
    assert command == ["iconv", "-f", command[2], "-t", "UTF-8", str(path), ">", str(converted)]
    converted.write_bytes(path.read_bytes().decode(command[2]).encode("UTF-8"))  # as iconv does, which may be absent
    assert whole(load(converted)).decode().rstrip("\n") == text.removeprefix("\ufeff").rstrip("\n")


def test_byte_order_marks_are_removed(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(LINES, encoding="utf-8-sig")
    assert whole(load(tmp_path)) == 2 * LINES.encode()
    marks = write(tmp_path / "marks", {f"{name}.txt": codecs.BOM_UTF8 for name in range(120)})
    with pytest.raises(ValueError, match="has 0 bytes of text; expected at least 320"):
        load(marks)


def test_check_context_ignores_byte_order_marks(tmp_path: Path) -> None:
    """A context of 64 bytes needs 1,300 bytes of text."""
    for name in range(10):
        (tmp_path / f"{name}.txt").write_bytes(codecs.BOM_UTF8 + b"x" * 128 + b"\n")
    with pytest.raises(ValueError, match=rf"{tmp_path.name} has 1,290 bytes of text, too few .* at least 1,300"):
        check_context(tmp_path, 64)
    (tmp_path / "9.txt").write_bytes(codecs.BOM_UTF8 + b"x" * 138 + b"\n")
    check_context(tmp_path, 64)
    data = load(tmp_path)
    assert min(len(data.val), len(data.test)) > 64


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
    with pytest.raises(ValueError, match=rf"has {least - 1:,} bytes .* reads {context} bytes .* at least {least:,}"):
        check_context(path, context)


@pytest.mark.parametrize("size", [0, 6, 640])
@pytest.mark.parametrize(("env_id", "least"), [("Esper-Text-v0", "1,300"), ("Esper-TinyStories-v0", "2,580")])
def test_make_rejects_too_short_texts(tmp_path: Path, env_id: str, least: str, size: int) -> None:
    path = tmp_path / "short.txt"
    path.write_text("x" * size)
    with pytest.raises(ValueError, match=rf"short\.txt has {size} bytes of text, too few .* at least {least}"):
        gymnasium.make(env_id, dataset=str(path))
