"""A custom text: one UTF-8 file, or all *.txt and *.md files below a folder."""

from __future__ import annotations

import codecs
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esper_env.data.splits import split_at_lines
from esper_env.data.text import MIN_SPLIT_BYTES, TextData

SUFFIXES = (".txt", ".md")

#: Maximum bytes, as the text is held in memory and on the device.
MAX_BYTES = 2**30

_CHUNK = 2**24

#: Bytes to distinguish UTF-32 from UTF-16 by; a multiple of four.
_SAMPLE = 2**12

#: Byte order marks of other encodings; UTF-32 first, because its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

#: Device and inode, which identify a file or folder under any name.
Identity = tuple[int, int]


class TextFile(NamedTuple):
    """A file of the text, and its status when it was found."""

    path: Path
    size: int  # bytes
    changed: int  # nanoseconds


def min_size(split: int = MIN_SPLIT_BYTES) -> int:
    """Return how many bytes a text needs for splits of at least ``split`` bytes.

    The validation and test text have a tenth each, of which a cut at the end of a line may take half.
    """
    return 20 * split


def find_text(path: Path) -> tuple[TextFile, ...]:
    """Find the files of a text.

    Links are followed. A file or folder with several names is used once, under its first name. Hidden files and folders
    in a folder are skipped.

    Args:
        path: A file or a folder.

    Returns:
        The file itself, or the *.txt and *.md files below the folder in the order of their names, folder by folder.

    Raises:
        ValueError: for a folder without texts or with a link to a folder that contains it, for a path that is neither a
            file nor a folder, and for too few or too many bytes.
        OSError: if a file or folder cannot be read.
    """
    files = _find_files(path)
    _check_size(path, sum(file.size for file in files))
    return files


def _find_files(path: Path) -> tuple[TextFile, ...]:
    """Find the files of a text that may be too short."""
    files = tuple(_below(path, (), set())) if path.is_dir() else (_file(path, _status(path)),)
    if not files:
        raise ValueError(f"{path} contains no text; expected *.txt or *.md files, not hidden, in it or in its folders")
    total = sum(file.size for file in files)
    if total > MAX_BYTES:
        raise ValueError(f"{path} has {total:,} bytes of text, all held in memory; expected at most {MAX_BYTES:,}")
    return files


def check_context(path: Path, context: int) -> None:
    """Check that the splits of a text are long enough for windows of ``context`` bytes and their next byte.

    Raises:
        ValueError: they may be too short, or :func:`find_text` raises it.
    """
    total, least = sum(map(_length, _find_files(path))), min_size(context + 1)
    if total < least:
        raise ValueError(
            f"{path} has {total:,} bytes of text, too few for a host that reads {context} bytes at a time; expected "
            f"at least {least:,}, of which a tenth is for validation and a tenth for the tests: use a longer text"
        )


def _check_size(path: Path, total: int) -> None:
    if total < min_size():
        raise ValueError(f"{path} has {total} bytes of text; expected at least {min_size()}, to be split in three")


def _length(file: TextFile) -> int:
    """Return the number of bytes without the byte order mark."""
    try:
        with file.path.open("rb") as opened:
            marked = opened.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
    except OSError as error:
        raise _unreadable(file.path, error) from error
    return file.size - len(codecs.BOM_UTF8) * marked


def _below(folder: Path, above: tuple[Identity, ...], seen: set[Identity]) -> Iterator[TextFile]:
    """Yield the texts in ``folder``, which lies in the folders ``above``, except those already ``seen``."""
    identity = _identity(_status(folder))
    if identity in above:
        raise ValueError(f"{folder} is a link to a folder that contains it; remove the link, or use another folder")
    if identity in seen:
        return
    seen.add(identity)
    for entry, is_folder in _entries(folder):
        if is_folder:
            yield from _below(entry, (*above, identity), seen)
        elif entry.suffix.lower() in SUFFIXES:
            status = _status(entry)
            if _identity(status) not in seen:
                seen.add(_identity(status))
                yield _file(entry, status)


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """Return the entries of a folder that are not hidden, by name, each with True if it is a folder."""
    try:
        return sorted((entry, entry.is_dir()) for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from error


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _file(path: Path, status: os.stat_result) -> TextFile:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is neither a file nor a folder; expected a UTF-8 text")
    return TextFile(path, status.st_size, status.st_mtime_ns)


def load_text(path: Path, files: tuple[TextFile, ...]) -> TextData:
    """Load the files of a text.

    Args:
        path: Path from which the name of the dataset is derived: "text:" and its last part.
        files: Files to concatenate, each from the beginning of a line, without byte order marks.

    Returns:
        The text, split by :func:`split_at_lines`.

    Raises:
        ValueError: for a file that is not UTF-8 or contains a NUL byte, with the offset.
        OSError: if a file cannot be read.
    """
    texts = []
    for file in files:
        content = _read(file.path)
        _check_utf8(file.path, content)
        content = content.removeprefix(codecs.BOM_UTF8)
        texts.append(content if content.endswith(b"\n") or not content else content + b"\n")
    _check_size(path, sum(map(len, texts)))  # now without byte order marks
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return TextData(f"text:{name}", *split_at_lines(np.frombuffer(b"".join(texts), dtype=np.uint8)))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _check_utf8(path: Path, content: bytes) -> None:
    nul = content.find(b"\0")
    if nul >= 0:
        encoding = _marked(content) or _unmarked(content)
        remedy = f"if it is {encoding}, {_conversion(path, encoding)}"
        raise ValueError(f"{path} has a NUL byte at offset {nul}; expected a UTF-8 text, not a binary file; {remedy}")
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(content), _CHUNK):
        pending = len(decoder.getstate()[0])  # bytes of a character that began in the previous chunk
        chunk = content[start : start + _CHUNK]
        try:
            decoder.decode(chunk, final=start + _CHUNK >= len(content))
        except UnicodeDecodeError as error:
            offset = start - pending + error.start
            encoding = _marked(content) or "ISO-8859-1"
            name = "Latin-1" if encoding == "ISO-8859-1" else encoding
            raise ValueError(
                f"{path} is not UTF-8: the byte at offset {offset} is {content[offset]:#04x} ({error.reason}); if it "
                f"is {name}, {_conversion(path, encoding)}"
            ) from error


def _marked(content: bytes) -> str | None:
    """Return the encoding of the byte order mark; None without one."""
    return next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)


def _unmarked(content: bytes) -> str:
    """Return the likely encoding of a text with NUL bytes: hardly anything else decodes as UTF-32."""
    for encoding in ("UTF-32LE", "UTF-32BE"):
        with suppress(UnicodeDecodeError):
            content[:_SAMPLE].decode(encoding)
            return encoding
    return "UTF-16"


def _conversion(path: Path, encoding: str) -> str:
    """Return the command that converts a file to UTF-8."""
    converted = path.with_name(f"{path.stem}-utf8{path.suffix}")
    command = f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(converted))}"
    return f"convert it with `{command}` and use the new file instead"


def _unreadable(path: Path, error: OSError) -> OSError:
    return type(error)(f"{path} cannot be read: {error.strerror}; use a readable UTF-8 file or a folder of them")
