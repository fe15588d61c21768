"""Data sets that lie in files: what they are, what is looked for on the disk, and where the originals come from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ARCHIVE = ".tar.gz"


class MissingDataError(FileNotFoundError, ValueError):
    """A data set that was asked for by name is not there, or not all of it; the message says how to get it."""


class DamagedDataError(ValueError):
    """A file of a data set that does not hold what it should."""


@dataclass(frozen=True)
class DataFile:
    """A file that a loader reads."""

    name: str
    size: int  # bytes of the original
    unpacked: str = ""  # the name under which it is read in its place once it is decompressed
    unpacked_size: int = 0  # bytes of the original then

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the original by each name it is looked for by, in this order."""
        decompressed = {self.unpacked: self.unpacked_size} if self.unpacked else {}
        return decompressed | {self.name: self.size}

    def find(self, folder: Path) -> Path | None:
        """What is read of it in ``folder``; None if it is not there."""
        return next((folder / name for name in self.sizes if (folder / name).exists()), None)


@dataclass(frozen=True)
class Download:
    """A file on a server. One whose name ends in .tar.gz is unpacked; any other is kept as it is."""

    url: str
    size: int  # bytes
    sha256: str

    @property
    def name(self) -> str:
        """The name on the server and on this disk."""
        return self.url.rpartition("/")[2]

    @property
    def is_archive(self) -> bool:
        """Whether the files of the data set are inside."""
        return self.name.endswith(ARCHIVE)


@dataclass(frozen=True)
class Source:
    """One data set in files."""

    name: str  # as ``dataset`` names it
    title: str
    what: str
    version: str  # which of the versions on offer, in words; empty if there is one
    homepage: str
    licence: str
    folder: str  # that holds the files, below the data folder
    files: tuple[DataFile, ...]
    downloads: tuple[Download, ...]
    lookalikes: Mapping[str, str] = field(default_factory=dict)  # what people have instead -> what is wrong with it

    @property
    def download_size(self) -> int:
        """Bytes that are fetched."""
        return sum(download.size for download in self.downloads)

    @property
    def archive(self) -> Download | None:
        """The download that holds the files; None if the downloads are the files."""
        return next((download for download in self.downloads if download.is_archive), None)

    def find(self, root: Path) -> Path | None:
        """The folder that holds its files: ``root/folder``, or ``root`` itself; None if neither.

        Where the name fits, one file is enough to count as found: a partial copy is for the loader to refuse. A
        ``root`` of another name has to have all of them.
        """
        for folder in (root / self.folder, root):
            count = len(self.files) - len(self.missing(folder))
            if count == len(self.files) or (count and folder.resolve().name == self.folder):
                return folder
        return None

    def missing(self, folder: Path) -> list[str]:
        """Names of the files that are not in ``folder``."""
        return [file.name for file in self.files if file.find(folder) is None]

    def instead(self, root: Path) -> str:
        """What is at ``root`` that looks like the data set, in words; empty if nothing does."""
        if root.is_file():
            return " (a file, where a folder was expected)"
        found = next((name for name in self.lookalikes if (root / name).exists()), None)
        return f" (there is {found}: {self.lookalikes[found]})" if found else ""

    def remedy(self, root: Path | None = None) -> str:
        """How to get the data set, into ``root`` if that is not the usual folder."""
        unpack = "unpack it" if self.archive else f"put them into a folder {self.folder}"
        return (
            f"with esper-agent installed, `{self.command('fetch', root)}`; or download {self.wanted}, {unpack} and "
            f"name the folder that holds {self.folder} in data_dir or in the environment variable ESPER_DATA_DIR"
        )

    def repair(self, folder: Path, root: Path | None = None) -> str:
        """How to get the data set anew where ``folder`` holds damaged files that a fetch leaves as they are."""
        return f"move {shlex.quote(str(folder))} away, then `{self.command('fetch', root)}`"

    @property
    def wanted(self) -> str:
        """What to download, and where from."""
        return f"{', '.join(download.name for download in self.downloads)}{self.version} from {self.homepage}"

    def command(self, verb: str, root: Path | None = None) -> str:
        """The command that fetches or verifies it."""
        place = "" if root is None else f" --data-dir {shlex.quote(str(root))}"
        return f"esper data {verb} {self.name}{place}"

    def refuse_missing(self, folder: Path) -> None:
        """``MissingDataError`` unless every file is in ``folder``."""
        missing = self.missing(folder)
        if missing:
            raise MissingDataError(f"{self.title} in {folder} is incomplete, without {', '.join(missing)}")
