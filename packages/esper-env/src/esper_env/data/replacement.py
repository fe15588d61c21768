"""A folder takes the place of another, whose other files are kept, also when that is interrupted."""

from __future__ import annotations

import os
from pathlib import Path

from esper_env.data.manifest import MANIFEST
from esper_env.data.sources import Source
from esper_env.persistence import atomic

#: In the folder of what has arrived: the name of the folder that makes room, until that is done.
NOTE = "replaced"


def install(source: Source, ready: Path, target: Path, work: Path) -> Path | None:
    """Give the folder its place. What was there makes room; its other files, if it has any, stay in the folder beside
    that is returned."""
    if target.is_dir() and not is_empty_folder(target):
        aside = _unused(target)
        atomic.write_text(work / NOTE, aside.name)
        target.rename(aside)
    ready.rename(target)
    atomic.sync(target.parent)
    return settle(source, target, work)


def settle(source: Source, target: Path, work: Path) -> Path | None:
    """Finish a replacement, this one's or one that was interrupted: where nothing has come in its place, the folder is
    put back, else the data set's own files are removed from it. Returns it if others are in it."""
    note = work / NOTE
    if not note.is_file():
        return None
    kept = None
    aside = target.with_name(note.read_text(encoding="utf-8"))
    if os.path.lexists(aside):
        if os.path.lexists(target):
            kept = _without_files_of(source, aside)
        else:
            aside.rename(target)
    note.unlink()
    return kept


def _without_files_of(source: Source, folder: Path) -> Path | None:
    for path in (folder / name for name in (MANIFEST, *(file.name for file in source.files))):
        if not path.is_dir():
            path.unlink(missing_ok=True)
    if not is_empty_folder(folder):
        return folder
    folder.rmdir()
    return None


def _unused(target: Path) -> Path:
    number = 1
    while os.path.lexists(path := target.with_name(f"{target.name}.replaced-{number}")):
        number += 1
    return path


def is_empty_folder(path: Path) -> bool:
    """Whether it is a folder, no link to one, with nothing in it."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())
