"""A custom text: one UTF-8 file, or all *.txt and *.md files below a folder."""

from __future__ import annotations

import codecs
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esper_env.data.splits import split_at_lines
from esper_env.data.text import MIN_SPLIT_BYTES, TextData, find_invalid_byte

SUFFIXES = (".txt", ".md")

#: Maximum bytes, as the text is held in memory and on the device.
MAX_BYTES = 2**30


class TextFile(NamedTuple):
    """A file of the text, and its status when it was found."""

    path: Path
    size: int  # bytes
    changed: int  # nanoseconds


def find_text(path: Path) -> tuple[TextFile, ...]:
    """Return the file ``path``, or the *.txt and *.md files below that folder, folder by folder in the order of names.

    Links are followed. A file or folder with several names is used once, under its first name. Hidden files and folders
    in a folder are skipped. A text that is too short is not rejected here.

    Raises:
        ValueError: for a folder without texts, for a path that is neither a file nor a folder, and for too many bytes.
        OSError: if a file or folder cannot be read.
    """
    files = tuple(_below(path, {_identity(path)}) if path.is_dir() else [_file(path)])
    if not files:
        raise ValueError(f"{path} contains no text; expected *.txt or *.md files, not hidden, in it or in its folders")
    total = sum(file.size for file in files)
    if total > MAX_BYTES:
        raise ValueError(f"{path} has {total:,} bytes of text, all held in memory; expected at most {MAX_BYTES:,}")
    return files


def check_context(path: Path, context: int) -> None:
    """Raise ``ValueError`` if a split of the text may be shorter than ``context`` bytes and the next byte."""
    total, least = sum(file.size for file in find_text(path)), _min_size(context + 1)
    if total < least:
        raise ValueError(
            f"{path} has {total:,} bytes of text, too few for a host that reads {context} bytes at a time; expected "
            f"at least {least:,}, of which a tenth is for validation and a tenth for the tests: use a longer text"
        )


def load_text(path: Path, files: tuple[TextFile, ...]) -> TextData:
    """Concatenate files, each from the beginning of a line and without byte order mark, and split them at line ends.

    The name of the dataset is "text:" and the last part of ``path``.

    Raises:
        ValueError: for a text that is too short, and for a file that is not UTF-8 or contains a NUL byte.
        OSError: if a file cannot be read.
    """
    texts = []
    for file in files:
        content = file.path.read_bytes()
        if problem := find_invalid_byte(content):
            raise ValueError(f"{file.path} is not a UTF-8 text: {problem}; {_conversion(file.path, content)}")
        content = content.removeprefix(codecs.BOM_UTF8)
        texts.append(content if content.endswith(b"\n") or not content else content + b"\n")
    if (total := sum(map(len, texts))) < _min_size():
        raise ValueError(f"{path} has {total} bytes of text; expected at least {_min_size()}, to be split in three")
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return TextData(f"text:{name}", *split_at_lines(np.frombuffer(b"".join(texts), dtype=np.uint8)))


def _min_size(split: int = MIN_SPLIT_BYTES) -> int:
    """Return how many bytes a text needs for splits of at least ``split`` bytes.

    The validation and test text have a tenth each, of which a cut at the end of a line may take half.
    """
    return 20 * split


def _below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[TextFile]:
    """Yield the texts in ``folder``, except those already ``seen`` under another name."""
    open_folders = [iter(sorted(folder.iterdir()))]  # no recursion, which has a limit
    while open_folders:
        path = next(open_folders[-1], None)
        if path is None:
            open_folders.pop()
            continue
        if path.name.startswith(".") or not (path.is_dir() or path.suffix.lower() in SUFFIXES):
            continue
        identity = _identity(path)
        if identity in seen:
            continue
        seen.add(identity)
        if path.is_dir():
            open_folders.append(iter(sorted(path.iterdir())))
        else:
            yield _file(path)


def _identity(path: Path) -> tuple[int, int]:
    """Return device and inode, which are the same under any name."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _file(path: Path) -> TextFile:
    status = path.stat()
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder; expected a UTF-8 text")
    return TextFile(path, status.st_size, status.st_mtime_ns)


def _conversion(path: Path, content: bytes) -> str:
    """Return the command that converts a file to UTF-8 from its likely encoding."""
    encoding = "UTF-16" if b"\0" in content else "ISO-8859-1"
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # the first begins with UTF-16's mark
        encoding = "UTF-32"
    elif content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "UTF-16"
    converted = path.with_name(f"{path.stem}-utf8{path.suffix}")
    command = f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(converted))}"
    return f"if it is {encoding}, convert it with `{command}` and use the new file instead"
