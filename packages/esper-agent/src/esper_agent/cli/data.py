"""``esper data``: which data sets there are, how they get onto the disk, and whether they are whole."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from esper_env.data.catalog import DATASETS, MADE, TEXT_FAMILIES, DataFamily, data_folder
from esper_env.data.fetch import fetch
from esper_env.data.originals import ORIGINALS
from esper_env.data.progress import Progress, Stage, Watcher
from esper_env.data.verify import State, find_source, verify
from esper_env.tasks import TASKS
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table

#: Columns that the table needs.
LEAST_WIDTH = 100

#: The subcommands.
DATA_COMMANDS = LIST, FETCH, VERIFY = "list", "fetch", "verify"

DataDir = Annotated[str | None, tyro.conf.DisallowNone, tyro.conf.arg(metavar="DIR")]


@dataclass(frozen=True)
class ListSettings:
    """List the data sets: what they are, which tasks take them, how much there is to fetch, and where they lie."""

    data_dir: DataDir = None
    """Folder of the data sets; $ESPER_DATA_DIR, or esper in the user's cache folder, when not given."""


@dataclass(frozen=True)
class FetchSettings:
    """Download a data set, compare it with the SHA-256 of the original, and put it where tasks find it.

    Run it again to go on with a download that was interrupted; nothing is done where the files are there and whole.
    Files that were put there by hand are never replaced. An archive that lies in the folder already is unpacked instead
    of downloaded. Proxies are taken from the environment (https_proxy)."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Data set; `esper data list` lists them."""
    data_dir: DataDir = None
    """Folder to put it into; $ESPER_DATA_DIR, or esper in the user's cache folder, when not given."""
    url: Annotated[str | None, tyro.conf.DisallowNone, tyro.conf.arg(metavar="URL")] = None
    """Another place that has the same files: the address of the file or, ending in /, of a folder that has them all."""


@dataclass(frozen=True)
class VerifySettings:
    """Compare data sets on the disk with what was fetched, and read them as a task does.

    The exit code is 1 if one is damaged, or is not there although it was named."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """Data sets; all that are on the disk when none is named."""
    data_dir: DataDir = None
    """Folder of the data sets; $ESPER_DATA_DIR, or esper in the user's cache folder, when not given."""


@dataclass(frozen=True)
class DataSettings:
    """List the data sets, fetch one from the web, or verify what is on the disk."""

    command: Annotated[
        Annotated[ListSettings, tyro.conf.subcommand(LIST, prefix_name=False)]
        | Annotated[FetchSettings, tyro.conf.subcommand(FETCH, prefix_name=False)]
        | Annotated[VerifySettings, tyro.conf.subcommand(VERIFY, prefix_name=False)],
        tyro.conf.arg(name=""),
    ]


def run_data(settings: DataSettings, console: Console) -> int:
    """Run the subcommand and return its exit code."""
    return _RUNNERS[type(settings.command)](settings.command, console)


def run_list(settings: ListSettings, console: Console) -> int:
    """Print the table of data sets."""
    root = data_folder(settings.data_dir)
    places = whereabouts(root)
    console.width = max(console.width, LEAST_WIDTH)  # on a narrower terminal lines run over instead
    table = _table("Data sets", "name", "what it is", "tasks", "to fetch", "on this disk")
    for name, source in ORIGINALS.items():
        table.add_row(name, source.what, _tasks(name), decimal(source.download_size), escape(places[name]))
    for name, made in MADE.items():
        table.add_row(name, made.what, _tasks(name), "nothing", escape(places[name]))
    table.add_row("a path", "your own text: a UTF-8 file, or a folder of *.txt and *.md", _tasks("grammar"), "nothing")
    console.print(table)
    place = f" --data-dir {shlex.quote(str(root))}" if settings.data_dir else ""
    line = f"The data folder is {root}; `esper data fetch NAME{place}` fetches into it."
    console.print(line, soft_wrap=True, markup=False, highlight=False)
    return 0


def whereabouts(root: Path) -> dict[str, str]:
    """For each data set, the folder below ``root`` it lies in, or why it is in none."""
    found = {name: source.find(root) for name, source in ORIGINALS.items()}
    made = dict.fromkeys(MADE, "needs no files")
    if importlib.util.find_spec("sklearn") is None:
        made["digits"] = "needs scikit-learn: esper-env[digits]"
    return {name: "no" if folder is None else _below(root, folder) for name, folder in found.items()} | made


def _below(root: Path, folder: Path) -> str:
    """A folder by its name in the data folder, which is printed once; on its own where it is the data folder."""
    return str(folder if folder == root else folder.relative_to(root))


def _tasks(name: str) -> str:
    """The tasks that take a data set: all of a kind, or their ids."""
    families = {family for family, names in DATASETS.items() if name in names}
    kinds = {"all on images": set(DataFamily).difference(TEXT_FAMILIES), "all on text": set(TEXT_FAMILIES)}
    ids = [env_id for env_id, task in TASKS.items() if task.family in families]
    return next((kind for kind, of_kind in kinds.items() if families == of_kind), ", ".join(ids))


def run_fetch(settings: FetchSettings, console: Console) -> int:
    """Fetch a data set and say where it is."""
    source, root = find_source(settings.name), data_folder(settings.data_dir)
    try:
        with _bars(console) as watch:
            outcome = fetch(settings.name, root, settings.url, watch)
    except KeyboardInterrupt:
        again = "run the same command again to go on"
        raise KeyboardInterrupt(f"Interrupted; what has arrived stays in {root}: {again}") from None
    lines = [
        f"{source.title} is {'already ' if outcome.already_there else ''}in {outcome.folder}",
        f"  checked   {outcome.detail}",
        f"  licence   {source.licence} ({source.homepage})",
        f"  use it    --env-settings dataset={settings.name}" + (f" data_dir={root}" if settings.data_dir else ""),
    ]
    if outcome.kept is not None:
        lines.append(f"  kept      {outcome.kept}, with other files that were in the damaged folder")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return 0


def run_verify(settings: VerifySettings, console: Console) -> int:
    """Print what is known of the data sets on the disk."""
    root = data_folder(settings.data_dir)
    for name in settings.names:
        find_source(name)  # an unknown name is told before anything is read
    names = settings.names or tuple(name for name, source in ORIGINALS.items() if source.find(root) is not None)
    if not names:
        line = f"There is no data set in {root}; `esper data list` lists them."
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        return 0
    with _bars(console) as watch:
        verdicts = [verify(name, root, watch) for name in dict.fromkeys(names)]
    console.print(f"Data sets in {root}", soft_wrap=True, markup=False, highlight=False)
    table = _table(None, "name", "state", "folder", "what was found")
    for verdict in verdicts:
        style = "red" if verdict.state in _FAILURES else "green"
        folder = "" if verdict.folder is None else _below(root, verdict.folder)
        table.add_row(verdict.name, f"[{style}]{verdict.state}[/]", escape(folder), escape(verdict.detail))
    console.print(table)
    return int(any(verdict.state in _FAILURES for verdict in verdicts))


_FAILURES = (State.DAMAGED, State.ABSENT)

_RUNNERS: dict[type, Callable[[Any, Console], int]] = {
    ListSettings: run_list,
    FetchSettings: run_fetch,
    VerifySettings: run_verify,
}


@contextmanager
def _bars(console: Console) -> Iterator[Watcher]:
    """A bar for the file at work and what is done to it, on a terminal; elsewhere only why another try has to wait."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        shown: dict[tuple[Stage, str], TaskID] = {}

        def watch(progress: Progress) -> None:
            if progress.stage is Stage.WAIT:
                console.print(f"{progress.file}: {progress.reason}", soft_wrap=True, markup=False, highlight=False)
                return
            key = progress.stage, progress.file
            if key not in shown:
                for task in shown.values():
                    bars.remove_task(task)
                shown.clear()
                name = escape(f"{progress.stage} {progress.file}")
                shown[key] = bars.add_task(name, completed=progress.done, total=progress.total)
            bars.update(shown[key], completed=progress.done, refresh=progress.done == progress.total)

        yield watch


def _table(title: str | None, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, no_wrap=heading in ("name", "to fetch", "state"), overflow="fold")
    return table
