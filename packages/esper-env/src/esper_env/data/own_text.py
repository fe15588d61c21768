"""A user's own text: one UTF-8 file, or every *.txt and *.md file below a folder."""

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
from esper_env.data.text import LEAST_BYTES, TextData

SUFFIXES = (".txt", ".md")

#: Most bytes in all: everything is held in memory, and on the device.
MOST = 2**30

_CHUNK = 2**24

#: Bytes that tell UTF-32 from UTF-16; whole characters, of four bytes each.
_SAMPLE = 2**12

#: How texts in other encodings may begin; UTF-32 first, whose mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


#: What a file or folder is, whatever its name: device and inode.
Identity = tuple[int, int]


class TextFile(NamedTuple):
    """A file of the text as it was when it was found."""

    path: Path
    size: int  # bytes
    changed: int  # nanoseconds


def least_size(split: int = LEAST_BYTES) -> int:
    """Fewest bytes of a whole text whose splits have ``split`` bytes each: a tenth is for validation and a tenth for
    the tests, and a cut that moves to the end of its line may take half of such a tenth away."""
    return 20 * split


def find_text(path: Path) -> tuple[TextFile, ...]:
    """The files of the text: ``path`` itself, or those below it in the order of their names, folder by folder.

    Links are followed, and what is reached in several ways is read once, where its first name stands. In a folder,
    hidden files and folders are passed over. Raises ``ValueError`` for a folder without texts, a folder that contains
    itself by a link, something that is neither file nor folder, and too few or too many bytes; ``OSError`` for what
    cannot be read.
    """
    files = _found(path)
    _check_least(path, sum(file.size for file in files))
    return files


def _found(path: Path) -> tuple[TextFile, ...]:
    """The files of a text that may be too short."""
    files = tuple(_below(path, (), set())) if path.is_dir() else (_file(path, _status(path)),)
    if not files:
        raise ValueError(f"{path} holds no text; expected *.txt or *.md files, not hidden, in it or in its folders")
    total = sum(file.size for file in files)
    if total > MOST:
        raise ValueError(f"{path} has {total:,} bytes of text, all held in memory; expected at most {MOST:,}")
    return files


def check_context(path: Path, context: int) -> None:
    """``ValueError`` for a text whose splits may be too short for windows of ``context`` bytes and what follows them;
    for all else as :func:`find_text`."""
    total, least = sum(map(_length, _found(path))), least_size(context + 1)
    if total < least:
        raise ValueError(
            f"{path} has {total:,} bytes of text, too few for a host that reads {context} bytes at a time; expected "
            f"at least {least:,}, of which a tenth is for validation and a tenth for the tests: give more text"
        )


def _check_least(path: Path, total: int) -> None:
    if total < least_size():
        raise ValueError(f"{path} has {total} bytes of text; expected at least {least_size()}, to be cut in three")


def _length(file: TextFile) -> int:
    """Bytes without the byte order mark."""
    try:
        with file.path.open("rb") as opened:
            marked = opened.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
    except OSError as error:
        raise _unreadable(file.path, error) from error
    return file.size - len(codecs.BOM_UTF8) * marked


def _below(folder: Path, above: tuple[Identity, ...], seen: set[Identity]) -> Iterator[TextFile]:
    """The texts in ``folder``, which is in the folders ``above``, but for those that were ``seen``."""
    identity = _identity(_status(folder))
    if identity in above:
        raise ValueError(f"{folder} is a link to a folder that it is in; remove the link, or name a folder without it")
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
    """What is in a folder and not hidden, by name, and whether it is a folder."""
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
    """The files one after the other, each from the beginning of a line, cut in three by :func:`split_at_lines`. The
    name is "text:" and that of ``path``. A byte order mark in front of a file is no part of the text.

    Raises ``ValueError`` for what is no UTF-8 or has a NUL byte in it, with the offset, and ``OSError`` for a file that
    cannot be read.
    """
    texts = []
    for file in files:
        content = _read(file.path)
        _check_utf8(file.path, content)
        content = content.removeprefix(codecs.BOM_UTF8)
        texts.append(content if content.endswith(b"\n") or not content else content + b"\n")
    _check_least(path, sum(map(len, texts)))  # byte order marks do not count
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
        raise ValueError(f"{path} has a NUL byte at offset {nul}; expected a UTF-8 text, no binary file; {remedy}")
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(content), _CHUNK):
        pending = len(decoder.getstate()[0])  # bytes of a character that began in the chunk before
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
    """The encoding that the content's byte order mark tells; None without one."""
    return next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)


def _unmarked(content: bytes) -> str:
    """The encoding of content with NUL bytes, if it is a text: next to nothing else decodes as UTF-32."""
    for encoding in ("UTF-32LE", "UTF-32BE"):
        with suppress(UnicodeDecodeError):
            content[:_SAMPLE].decode(encoding)
            return encoding
    return "UTF-16"


def _conversion(path: Path, encoding: str) -> str:
    """The command that makes a UTF-8 file of one in another encoding."""
    converted = path.with_name(f"{path.stem}-utf8{path.suffix}")
    command = f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(converted))}"
    return f"convert it with `{command}` and take the new file in its place"


def _unreadable(path: Path, error: OSError) -> OSError:
    return type(error)(f"{path} cannot be read: {error.strerror}; name a UTF-8 file or a folder of them")
