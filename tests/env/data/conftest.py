"""A web server with a small CIFAR-10, an empty data folder, and no pauses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import small_cifar10
from esper_env.data import download
from esper_env.data.originals import ORIGINALS
from fetching import ARCHIVE
from serving import Server, file, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that is reached without a proxy and retried without pauses."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0, 0.0))
    with serving() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def cifar(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """CIFAR-10's files, whose archive is on the server."""
    source, files, archive = small_cifar10(server.url + "/")
    monkeypatch.setitem(ORIGINALS, "cifar10", source)
    server.says(ARCHIVE, file(archive))
    server.archive = archive
    return files
