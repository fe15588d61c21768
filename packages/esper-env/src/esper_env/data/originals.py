"""The downloadable datasets: their files with sizes, URLs and checksums, instructions for getting them, and errors."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from esper_env.paths import user_path
from esper_env.suggestions import esper_command


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


@dataclass(frozen=True)
class DataFile:
    """A file that is downloaded, or that a loader reads, or both."""

    name: str
    size: int  # bytes
    sha256: str = ""  # of a file to download
    unpacked_size: int = 0  # bytes without gzip, if a loader also accepts that form, whose name lacks ".gz"

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the original by each accepted name, in the order in which they are looked for."""
        unpacked = {self.name.removesuffix(".gz"): self.unpacked_size} if self.unpacked_size else {}
        return unpacked | {self.name: self.size}

    def find(self, folder: Path) -> Path | None:
        """Return the file's path in ``folder``; None if it is not there."""
        return next((folder / name for name in self.sizes if (folder / name).exists()), None)

    def is_original(self, path: Path) -> bool:
        """Return True if the file at ``path`` is the one to download."""
        return path.stat().st_size == self.size and sha256_of(path) == self.sha256


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


DATA_DIR_VARIABLE = "ESPER_DATA_DIR"
#: Where users name the data folder.
DATA_DIR_PLACES = f"data_dir or the environment variable {DATA_DIR_VARIABLE}"


def default_folder() -> Path:
    """Return the data folder in the user's cache."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "esper"


def data_dir_option(root: Path) -> tuple[str, ...]:
    """Return the option that names a data folder in a command; empty for the default folder.

    A folder that the environment variable names has the option, too, so the command works where it is not set.
    """
    return () if root == default_folder() else ("--data-dir", str(root))


@dataclass(frozen=True)
class Source:
    """A downloadable dataset."""

    name: str  # value of ``dataset``
    title: str
    description: str
    homepage: str
    licence: str
    folder: str  # of its files, below the data folder
    files: tuple[DataFile, ...]
    url: str  # of the folder of the downloads
    archive: DataFile | None = None  # a .tar.gz with the files; None if they are downloaded one by one
    version: str = ""  # which version to download, if there are several
    lookalikes: Mapping[str, str] = field(default_factory=dict)  # file often found instead -> description

    @property
    def downloads(self) -> tuple[DataFile, ...]:
        """The files on the server."""
        return self.files if self.archive is None else (self.archive,)

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
        if missing := self.missing(folder):
            raise MissingDataError(f"{self.title} in {folder} is incomplete, without {', '.join(missing)}")

    def lookalike(self, root: Path) -> str:
        """Describe something at ``root`` that resembles the dataset; empty if there is nothing."""
        if root.is_file():
            return " (a file, where a folder was expected)"
        found = next((name for name in self.lookalikes if (root / name).exists()), None)
        return f" (there is {found}: {self.lookalikes[found]})" if found else ""

    def remedy(self, root: Path) -> str:
        """Describe how to get the dataset into ``root``."""
        unpack = "unpack it" if self.archive else f"put them into a folder {self.folder}"
        return (
            f"with esper-agent installed, `{self.fetch_command(root)}`; or download {self.originals}, {unpack} and "
            f"name the folder that holds {self.folder} in {DATA_DIR_PLACES}"
        )

    def repair(self, folder: Path, root: Path) -> str:
        """Describe how to replace damaged files in ``folder`` that a fetch into ``root`` leaves alone."""
        return f"move {shlex.quote(str(folder))} away, then `{self.fetch_command(root)}`"

    @property
    def originals(self) -> str:
        """The files to download, and their homepage."""
        return f"{', '.join(file.name for file in self.downloads)}{self.version} from {self.homepage}"

    def fetch_command(self, root: Path) -> str:
        """Return the command that fetches the dataset into ``root``."""
        return esper_command("data", "fetch", self.name, *data_dir_option(root))


_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_PYTHON, _MATLAB, _PACKED = "the Python version", "the MATLAB version", "the archive, not unpacked"
_CIFAR_LICENCE = "none stated; cite Krizhevsky (2009)"

#: The checksums of CIFAR-10, CIFAR-100 and Fashion-MNIST come from TensorFlow Datasets' url_checksums (cifar10.txt,
#: cifar100.txt, fashion_mnist.txt). The same files match the MD5 sums on the datasets' own pages. The checksums of
#: TinyStories are the Git LFS object ids that Hugging Face shows. The last two URLs name a fixed commit.
ORIGINALS: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="cifar10",
            title="CIFAR-10",
            description="60,000 colour photographs, 32x32, 10 classes",
            version=" (the binary version)",
            homepage=f"{_TORONTO}cifar.html",
            licence=_CIFAR_LICENCE,
            folder="cifar-10-batches-bin",
            files=tuple(
                DataFile(name, 30_730_000) for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
            ),
            url=_TORONTO,
            archive=DataFile(
                "cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
            lookalikes={
                "cifar-10-binary.tar.gz": _PACKED,
                "cifar-10-python.tar.gz": _PYTHON,
                "cifar-10-batches-py": _PYTHON,
                "cifar-10-batches-mat": _MATLAB,
            },
        ),
        Source(
            name="cifar100",
            title="CIFAR-100",
            description="60,000 colour photographs, 32x32, 100 classes",
            version=" (the binary version)",
            homepage=f"{_TORONTO}cifar.html",
            licence=_CIFAR_LICENCE,
            folder="cifar-100-binary",
            files=(DataFile("train.bin", 153_700_000), DataFile("test.bin", 30_740_000)),
            url=_TORONTO,
            archive=DataFile(
                "cifar-100-binary.tar.gz",
                168_513_733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
            lookalikes={
                "cifar-100-binary.tar.gz": _PACKED,
                "cifar-100-python.tar.gz": _PYTHON,
                "cifar-100-python": _PYTHON,
                "cifar-100-matlab": _MATLAB,
            },
        ),
        Source(
            name="fashion-mnist",
            title="Fashion-MNIST",
            description="70,000 grey pictures of clothes, 28x28, 10 classes",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            licence="MIT",
            folder="fashion-mnist",
            url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
            "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/",
            files=(
                DataFile(
                    "train-images-idx3-ubyte.gz",
                    26_421_880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                    unpacked_size=47_040_016,
                ),
                DataFile(
                    "train-labels-idx1-ubyte.gz",
                    29_515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                    unpacked_size=60_008,
                ),
                DataFile(
                    "t10k-images-idx3-ubyte.gz",
                    4_422_102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                    unpacked_size=7_840_016,
                ),
                DataFile(
                    "t10k-labels-idx1-ubyte.gz",
                    5_148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                    unpacked_size=10_008,
                ),
            ),
        ),
        Source(
            name="tinystories",
            title="TinyStories",
            description="2.7 million short stories in plain English",
            version=" (version 2, by GPT-4)",
            homepage="https://huggingface.co/datasets/roneneldan/TinyStories",
            licence="CDLA-Sharing-1.0",
            folder="tinystories",
            url="https://huggingface.co/datasets/roneneldan/TinyStories/resolve/"
            "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/",
            files=(
                DataFile(
                    "TinyStoriesV2-GPT4-train.txt",
                    2_227_753_162,
                    "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
                ),
                DataFile(
                    "TinyStoriesV2-GPT4-valid.txt",
                    22_502_601,
                    "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
                ),
            ),
            lookalikes={
                "TinyStories_all_data.tar.gz": "the version with the prompts",
                "TinyStories-train.txt": "version 1",
            },
        ),
    )
}
