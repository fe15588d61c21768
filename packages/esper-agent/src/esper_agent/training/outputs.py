"""Log files of a run, which a resumed run continues: progress.csv, episodes.csv, TensorBoard files, and events."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from esper_env.paths import user_path
from esper_env.persistence import Tree, check_keys, check_like, write_text
from esper_env.rules import Op
from esper_env.telemetry import Telemetry, drop_events
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat, filter_excluded_keys
from torch.utils.tensorboard.writer import SummaryWriter

from esper_agent.evaluation.play import COMMITTED, committed_results


class CsvLog:
    """A CSV file whose rows are also kept in memory and in the state of the training.

    The first write, and every write that adds a column, replaces the whole file by the rows in memory; other writes
    append. A resumed run therefore restores a lost or damaged file. If the file cannot be written, training
    continues without it, with one ``RuntimeWarning``. Rows may add columns.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self.path, self.columns = path, list(columns)
        self.rows: list[dict[str, Any]] = []  # JSON values by column
        self._file: IO[str] | None = None
        self._writable = True

    def get_state(self) -> Tree:
        """Return columns and rows as JSON, in an array of bytes to keep the header of a checkpoint small."""
        text = json.dumps([self.columns, list(self._values(self.rows))])
        return {"json": np.frombuffer(text.encode(), dtype=np.uint8)}

    def set_state(self, state: Tree) -> None:
        """Continue from a state: the next write removes what was written later."""
        check_keys(state, ("json",))
        columns, rows = json.loads(state["json"].tobytes())
        self.close()
        self.columns, self.rows = columns, [dict(zip(columns, row, strict=True)) for row in rows]

    def add(self, *rows: dict[str, Any]) -> None:
        """Add rows of JSON values and write them. Without rows, a file that is not open is replaced."""
        new = {name for row in rows for name in row} - set(self.columns)
        self.columns += sorted(new)
        self.rows += rows
        if not self._writable:
            return
        try:
            if self._file is None or new:
                self.close()
                write_text(self.path, _lines([self.columns, *self._values(self.rows)]))
                self._file = self.path.open("a", newline="", encoding="utf-8")
            else:
                self._file.write(_lines(self._values(rows)))
                self._file.flush()
        except OSError as error:
            self._writable = False
            with suppress(OSError):  # closing flushes what could not be written
                self.close()
            warnings.warn(
                f"{self.path} cannot be written ({error.strerror}) and lacks further lines; training is not affected",
                RuntimeWarning,
                stacklevel=2,
            )

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _values(self, rows: Iterable[Mapping[str, Any]]) -> Iterable[list[Any]]:
        return ([row.get(name) for name in self.columns] for row in rows)


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


class ProgressFile(CsvLog, KVWriter):
    """A CSV file with one line per dump, and a column for every name logged so far.

    Unlike that of Stable-Baselines3, it has the same order of columns in every process.
    """

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:  # noqa: ARG002
        """Append a line of the values that are not excluded from "csv"."""
        row = filter_excluded_keys(key_values, key_excluded, "csv")
        self.add({name: None if value is None else str(value) for name, value in row.items()})


class TensorBoardFile(TensorBoardOutputFormat):
    """A new TensorBoard file in a folder. TensorBoard ignores earlier files' events from ``first_step`` on."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self.writer = SummaryWriter(log_dir=str(folder), purge_step=first_step)
        self._is_closed = False


class CurvesRecorder(BaseCallback):
    """Writes a line to a CSV file for every finished training episode; ``log.rows`` holds the lines in memory.

    Returns come from ``VecMonitor``, so they are not normalised. Truncated episodes have no committed accuracies; these
    fields are empty. Further training with ``reset_num_timesteps=False`` continues the file. If the file
    cannot be written, training continues with a ``RuntimeWarning``.

    Raises:
        RuntimeError: the environment has no ``VecMonitor``; raised at the end of the first episode.
    """

    COLUMNS = ("timesteps", "env", "return", "length", "truncated", *COMMITTED, "wait_share")

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.log = CsvLog(user_path(path), self.COLUMNS)
        self._waits = np.zeros(0, dtype=np.int64)  # of each environment in its episode

    def get_state(self) -> Tree:
        """Return the lines, and how often each environment has waited in its episode."""
        return {"log": self.log.get_state(), "waits": self._waits.copy()}

    def set_state(self, state: Tree) -> None:
        """Continue from a state."""
        check_keys(state, ("log", "waits"))
        check_like(state["waits"], np.zeros(len(state["waits"]), dtype=np.int64), "waits")
        self.log.set_state(state["log"])
        self._waits = state["waits"].copy()

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:
            self.log.rows.clear()
        if self.num_timesteps == 0 or len(self._waits) != self.training_env.num_envs:
            self._waits = np.zeros(self.training_env.num_envs, dtype=np.int64)
        self.log.add()

    def _on_step(self) -> bool:
        for env, (info, done) in enumerate(zip(self.locals["infos"], self.locals["dones"], strict=True)):
            self._waits[env] += info["op"] == Op.WAIT
            if done:
                self.log.add(self._row(env, info))
                self._waits[env] = 0
        return True

    def _row(self, env: int, info: Mapping[str, Any]) -> dict[str, Any]:
        if "episode" not in info:
            raise RuntimeError("an episode ended without its return; wrap the environment in VecMonitor")
        length = int(info["episode"]["l"])
        return {
            "timesteps": self.num_timesteps,
            "env": env,
            "return": float(info["episode"]["r"]),
            "length": length,
            "truncated": bool(info["TimeLimit.truncated"]),
            "wait_share": int(self._waits[env]) / length,
            **committed_results(info),
        }

    def _on_training_end(self) -> None:
        self.log.close()


class EventLog(BaseCallback):
    """Saves the next event id in a checkpoint, and removes later events on resume.

    The files of the run, in ``folder``, therefore hold each event once, however often the run was interrupted.
    """

    def __init__(self, hub: Telemetry, folder: Path) -> None:
        super().__init__()
        self.hub, self.folder = hub, folder

    def get_state(self) -> Tree:
        """Return the next id, after all earlier events are in the files."""
        self.hub.flush()
        return {"next_id": self.hub.next_id}

    def set_state(self, state: Tree) -> None:
        """Continue the numbering from a state."""
        check_like(state, {"next_id": 0})
        self.hub.next_id = state["next_id"]

    def drop_later_events(self) -> None:
        """Remove events from the files that the hub will emit again."""
        drop_events(self.folder, self.hub.next_id)

    def _on_step(self) -> bool:
        return True
