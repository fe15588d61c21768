"""``esper data``: list, fetch and verify datasets."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from esper_env.data import (
    BUILT_IN,
    DATASETS,
    ORIGINALS,
    TEXT_FAMILIES,
    DataFamily,
    DatasetState,
    FetchProgress,
    FetchStage,
    Watcher,
    data_dir_option,
    data_folder,
    fetch_dataset,
    find_source,
    verify_dataset,
)
from esper_env.suggestions import esper_command
from esper_env.tasks import TASKS
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table

from esper_agent.cli.commands import DataSettings, FetchSettings, VerifySettings
from esper_agent.cli.progress import say
from esper_agent.evaluation.tables import print_table


def run_data(settings: DataSettings, console: Console) -> int:
    """Run the subcommand and return its exit code."""
    command, root = settings.command, data_folder(settings.command.data_dir)
    if isinstance(command, FetchSettings):
        return run_fetch(command, root, console)
    return run_verify(command.names, root, console) if isinstance(command, VerifySettings) else run_list(root, console)


def run_list(root: Path, console: Console) -> int:
    """Print the table of datasets."""
    places = dataset_places(root)
    table = _table("Datasets", "name", "description", "tasks", "to fetch", "on this disk")
    for name, source in ORIGINALS.items():
        size = decimal(sum(file.size for file in source.downloads))
        table.add_row(name, source.description, _tasks(name), size, escape(places[name]))
    for name, built_in in BUILT_IN.items():
        table.add_row(name, built_in.description, _tasks(name), "nothing", escape(places[name]))
    table.add_row("a path", "your own text: a UTF-8 file, or a folder of *.txt and *.md", _tasks("grammar"), "nothing")
    print_table(console, table)
    command = esper_command("data", "fetch", "NAME", *data_dir_option(root))
    _print(console, f"The data folder is {root}; `{command}` fetches into it.")
    return 0


def dataset_places(root: Path) -> dict[str, str]:
    """Return, for each dataset, its folder below ``root``, or why it has none."""
    found = {name: source.find(root) for name, source in ORIGINALS.items()}
    built_in = dict.fromkeys(BUILT_IN, "needs no files")
    if importlib.util.find_spec("sklearn") is None:
        built_in["digits"] = "needs scikit-learn: esper-env[digits]"
    return {name: "no" if folder is None else _below(root, folder) for name, folder in found.items()} | built_in


def _below(root: Path, folder: Path) -> str:
    """Return the folder relative to ``root``, or ``root`` in full."""
    return str(folder if folder == root else folder.relative_to(root))


def _tasks(name: str) -> str:
    """Return the tasks that accept a dataset: all of a kind, or their ids."""
    families = {family for family, names in DATASETS.items() if name in names}
    kinds = {"all on images": set(DataFamily).difference(TEXT_FAMILIES), "all on text": set(TEXT_FAMILIES)}
    ids = [env_id for env_id, task in TASKS.items() if task.family in families]
    return next((kind for kind, of_kind in kinds.items() if families == of_kind), ", ".join(ids))


def run_fetch(settings: FetchSettings, root: Path, console: Console) -> int:
    """Fetch a dataset and print its folder."""
    source = find_source(settings.name)
    try:
        with _bars(console) as watch:
            outcome = fetch_dataset(settings.name, root, settings.url, watch)
    except KeyboardInterrupt as interrupt:
        kept = f"the bytes that have arrived stay in {root}: run the same command again to resume"
        interrupt.args = (f"Interrupted; {kept}",)
        raise
    place = [f"data_dir={root}"] if data_dir_option(root) else []
    _print(
        console,
        f"{source.title} is {'already ' if outcome.already_there else ''}in {outcome.folder}",
        f"  checked   {outcome.detail}",
        f"  licence   {source.licence} ({source.homepage})",
        f"  use it    {shlex.join(['--env-settings', f'dataset={settings.name}', *place])}",
    )
    return 0


def run_verify(names: Sequence[str], root: Path, console: Console) -> int:
    """Print the state of the named datasets, or of all on the disk."""
    for name in names:
        find_source(name)  # report an unknown name before reading anything
    names = names or [name for name, source in ORIGINALS.items() if source.find(root) is not None]
    if not names:
        _print(console, f"{root} holds no datasets; `{esper_command('data', 'list')}` lists them.")
        return 0
    with _bars(console) as watch:
        verdicts = [verify_dataset(name, root, watch) for name in dict.fromkeys(names)]
    _print(console, f"Datasets in {root}")
    table = _table(None, "name", "state", "folder", "findings")
    failed = False
    for verdict in verdicts:
        is_bad = verdict.state in (DatasetState.DAMAGED, DatasetState.ABSENT)
        state = f"[{'red' if is_bad else 'green'}]{verdict.state}[/]"
        folder = "" if verdict.folder is None else _below(root, verdict.folder)
        table.add_row(verdict.name, state, escape(folder), escape(verdict.detail))
        failed |= is_bad
    print_table(console, table)
    return int(failed)


@contextmanager
def _bars(console: Console) -> Iterator[Watcher]:
    """Show a progress bar for the current file on a terminal; elsewhere print a line when a stage of a file begins."""
    sizes = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *sizes)
    with ProgressBars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        shown: dict[str, TaskID] = {}

        def watch(progress: FetchProgress) -> None:
            if progress.stage is FetchStage.WAIT:
                _print(console, f"{progress.file}: {progress.reason}")
                return
            name = escape(f"{progress.stage} {progress.file}")
            if name not in shown:
                if not console.is_terminal:
                    _print(console, f"{progress.stage} {progress.file}")
                while shown:
                    bars.remove_task(shown.popitem()[1])
                shown[name] = bars.add_task(name, completed=progress.done, total=progress.total or None)
            bars.update(shown[name], completed=progress.done, refresh=progress.done == progress.total)

        yield watch


def _print(console: Console, *lines: str) -> None:
    """Print lines without wrapping and markup."""
    for line in lines:
        say(console, line)


def _table(title: str | None, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, no_wrap=heading in ("name", "to fetch", "state"), overflow="fold")
    return table
