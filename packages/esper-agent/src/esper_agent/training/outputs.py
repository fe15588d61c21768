"""Log files of a run, progress.csv and TensorBoard's, which a resumed run continues."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from esper_env.persistence import Tree, check_like, write_text
from stable_baselines3.common.logger import (
    Figure,
    FormatUnsupportedError,
    HParam,
    Image,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    Video,
    filter_excluded_keys,
)
from torch.utils.tensorboard.writer import SummaryWriter

_NO_TEXT = {Video: "video", Figure: "figure", Image: "image", HParam: "hparam"}


def run_logger(folder: Path, progress: str) -> Logger:
    """Return a logger that writes the file ``progress`` and TensorBoard's into the folder of a run.

    Files are created by the first log. Outputs start from scratch unless a state is set before.
    """
    return Logger(str(folder), [ProgressFile(folder / progress), TensorBoardFiles(str(folder))])


class ProgressFile(KVWriter):
    """A CSV file with one line per dump, and a column for every name logged so far.

    Unlike Stable-Baselines3's, it orders columns equally in every process, and a killed process leaves no torn file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._rows = 0
        self._file: IO[str] | None = None

    def get_state(self) -> Tree:
        """Return the columns and the number of lines."""
        return {"columns": list(self._columns), "rows": self._rows}

    def set_state(self, state: Tree) -> None:
        """Continue from a state: the next write removes lines and columns that were written later."""
        check_like(state, {"columns": [], "rows": 0})
        self.close()
        self._columns, self._rows = list(state["columns"]), state["rows"]

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:  # noqa: ARG002
        """Append a line; ``FormatUnsupportedError`` for images, figures and videos."""
        row = filter_excluded_keys(key_values, key_excluded, "csv")
        for value in row.values():
            if type(value) in _NO_TEXT:
                raise FormatUnsupportedError(["csv"], _NO_TEXT[type(value)])
        file = self._opened(sorted(row.keys() - set(self._columns)))
        file.write(_lines([[row.get(name) for name in self._columns]]))
        file.flush()
        self._rows += 1

    def _opened(self, new: Sequence[str]) -> IO[str]:
        """Return the file, ready for a line with these new columns."""
        if self._file is None or new:
            kept = keep_rows(self.path, self._columns, self._rows) if self._rows else []
            self._rows = len(kept)
            self.close()
            _replace(self.path, [*self._columns, *new], kept)
            self._columns += new
            self._file = self.path.open("a", newline="", encoding="utf-8")
        return self._file

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoardFiles(TensorBoardOutputFormat):
    """TensorBoard's events. On resume, events after the checkpoint are purged."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._next = 0
        self._is_closed = False
        self.writer: Any = None

    def get_state(self) -> Tree:
        """Return the step after the latest one."""
        return {"next_step": self._next}

    def set_state(self, state: Tree) -> None:
        """Continue from a state."""
        check_like(state, {"next_step": 0})
        self.close()
        self._is_closed, self.writer, self._next = False, None, state["next_step"]

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write the events of one step."""
        if self.writer is None:
            self.writer = SummaryWriter(log_dir=self._folder, purge_step=self._next)
        super().write(key_values, key_excluded, step)
        self._next = step + 1


def keep_rows(
    path: Path, columns: Sequence[str], count: int, readable: Callable[[Mapping[str, str]], bool] | None = None
) -> list[dict[str, str]]:
    """Cut a CSV file to its first ``count`` lines and return them.

    Torn lines and lines that are not ``readable`` are dropped; all lines are dropped if a column is missing.
    Warns with a ``RuntimeWarning`` if fewer than ``count`` lines remain.
    """
    rows = _first_rows(path, columns, count)
    if readable is not None:
        rows = [row for row in rows if readable(row)]
    if len(rows) < count:
        warnings.warn(
            f"{path} has {len(rows)} of the {count} lines that were written before the checkpoint; it continues after "
            "a gap",
            RuntimeWarning,
            stacklevel=2,
        )
    _replace(path, columns, rows)
    return rows


def _first_rows(path: Path, columns: Sequence[str], count: int) -> list[dict[str, str]]:
    """Return the complete ones among the first ``count`` lines."""
    if not path.is_file():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        # Count before dropping: a later line must not replace a dropped one.
        with suppress(csv.Error):
            rows += [row for row in islice(reader, count) if None not in row and None not in row.values()]
        known = set(columns) <= set(reader.fieldnames or ())
    return [{name: row[name] for name in columns} for row in rows] if known else []


def _replace(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    lines = [list(columns), *([row.get(name, "") for name in columns] for row in rows)] if columns else []
    write_text(path, _lines(lines))


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
