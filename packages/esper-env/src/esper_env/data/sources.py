"""Downloadable datasets: their files on the disk, their originals, and the errors about them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ARCHIVE = ".tar.gz"


class MissingDataError(FileNotFoundError, ValueError):
    """A requested dataset is not on the disk, or not completely; the message says how to get it."""


class DamagedDataError(ValueError):
    """A file of a dataset has invalid contents."""

    @classmethod
    def of(cls, path: Path, problem: str) -> DamagedDataError:
        """Return the error for a problem of this file."""
        return cls(f"{path} is damaged: {problem}")


class FetchError(OSError):
    """A dataset could not be fetched; the message gives the reason and the remedy."""


class UnreachableError(FetchError):
    """A server gave no usable answer in several attempts."""


@dataclass(frozen=True)
class DataFile:
    """A file that a loader reads."""

    name: str
    size: int  # bytes of the original
    unpacked: str = ""  # name of the decompressed file, which a loader prefers
    unpacked_size: int = 0  # bytes of the original, decompressed

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the original by each accepted name, in the order in which they are looked for."""
        decompressed = {self.unpacked: self.unpacked_size} if self.unpacked else {}
        return decompressed | {self.name: self.size}

    def find(self, folder: Path) -> Path | None:
        """Return the file's path in ``folder``; None if it is not there."""
        return next((folder / name for name in self.sizes if (folder / name).exists()), None)


@dataclass(frozen=True)
class Download:
    """A file on a server. A .tar.gz is unpacked, any other file is kept unchanged."""

    url: str
    size: int  # bytes
    sha256: str

    @property
    def name(self) -> str:
        """Its name on the server and on the disk."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """A downloadable dataset."""

    name: str  # value of ``dataset``
    title: str
    description: str
    version: str  # in words, if there are several; else empty
    homepage: str
    licence: str
    folder: str  # of its files, below the data folder
    files: tuple[DataFile, ...]
    downloads: tuple[Download, ...]
    lookalikes: Mapping[str, str] = field(default_factory=dict)  # file often found instead -> description

    @property
    def download_size(self) -> int:
        """Bytes to download."""
        return sum(download.size for download in self.downloads)

    @property
    def archive(self) -> Download | None:
        """The download that contains the files; None if the downloads are the files."""
        return next((download for download in self.downloads if download.name.endswith(ARCHIVE)), None)

    def find(self, root: Path) -> Path | None:
        """Return the folder with its files, ``root/folder`` or ``root`` itself; None if neither has them.

        One file is enough in a folder of the dataset's name, so that the loader reports a partial copy. In a ``root``
        of any other name, all files must be present.
        """
        for folder in (root / self.folder, root):
            count = len(self.files) - len(self.missing(folder))
            if count == len(self.files) or (count and folder.resolve().name == self.folder):
                return folder
        return None

    def missing(self, folder: Path) -> list[str]:
        """Return the names of the files that are not in ``folder``."""
        return [file.name for file in self.files if file.find(folder) is None]

    def refuse_missing(self, folder: Path) -> None:
        """Raise ``MissingDataError`` unless every file is in ``folder``."""
        missing = self.missing(folder)
        if missing:
            raise MissingDataError(f"{self.title} in {folder} is incomplete, without {', '.join(missing)}")

    def lookalike(self, root: Path) -> str:
        """Describe something at ``root`` that resembles the dataset; empty if there is nothing."""
        if root.is_file():
            return " (a file, where a folder was expected)"
        found = next((name for name in self.lookalikes if (root / name).exists()), None)
        return f" (there is {found}: {self.lookalikes[found]})" if found else ""

    def remedy(self, root: Path | None = None) -> str:
        """Describe how to get the dataset, into ``root`` unless that is the default folder."""
        unpack = "unpack it" if self.archive else f"put them into a folder {self.folder}"
        return (
            f"with esper-agent installed, `{self.command('fetch', root)}`; or download {self.originals}, {unpack} and "
            f"name the folder that holds {self.folder} in data_dir or in the environment variable ESPER_DATA_DIR"
        )

    def repair(self, folder: Path, root: Path | None = None) -> str:
        """Describe how to replace damaged files in ``folder`` that a fetch leaves alone."""
        return f"move {shlex.quote(str(folder))} away, then `{self.command('fetch', root)}`"

    @property
    def originals(self) -> str:
        """The files to download, and their homepage."""
        return f"{', '.join(download.name for download in self.downloads)}{self.version} from {self.homepage}"

    def command(self, verb: str, root: Path | None = None) -> str:
        """Return the command that fetches or verifies the dataset."""
        place = "" if root is None else f" --data-dir {shlex.quote(str(root))}"
        return f"esper data {verb} {self.name}{place}"
