"""`esper data`: its output, its exit codes, and the files that it leaves on the disk."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from archives import fashion_files, small_cifar10, write
from command_line import bad, interruptible, text_of
from esper_agent.cli.data import FetchSettings, run_fetch
from esper_agent.cli.main import FAILED, OK, main
from esper_env.data import download
from esper_env.data.originals import ORIGINALS
from esper_env.suggestions import esper_command
from fetching import ARCHIVE, FOLDER
from rich.console import Console
from serving import begin, file, serving, status


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The user's data folder, not created yet."""
    monkeypatch.setenv("ESPER_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def server(monkeypatch):
    """A server with a small CIFAR-10."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    with serving() as running:
        source, _, archive = small_cifar10(running.url + "/")
        monkeypatch.setitem(ORIGINALS, "cifar10", source)
        running.says(ARCHIVE, file(archive))
        running.archive = archive
        yield running


def words(capsys):
    """The output in one line, without the rules of tables."""
    out, err = text_of(capsys)
    assert err == ""
    return " ".join(word for word in out.split() if word.isascii())


@pytest.mark.usefixtures("server")
def test_list_prints_datasets_and_the_data_folder(root, capsys):
    assert main(["data", "list"]) == OK
    out = words(capsys)
    for name in ("cifar10", "cifar100", "fashion-mnist", "tinystories", "digits", "procedural", "grammar"):
        assert name in out
    assert "2.3 GB" in out
    assert "30.9 MB" in out
    assert "your own text" in out
    command = esper_command("data", "fetch", "NAME", "--data-dir", str(root))
    assert f"The data folder is {root}; `{command}` fetches into it." in out
    assert "needs no files" in out
    assert not root.exists()


def test_list_of_a_named_folder_prints_the_command_for_it(tmp_path, capsys):
    other = tmp_path / "my data"
    assert main(["data", "list", "--data-dir", str(other)]) == OK
    command = esper_command("data", "fetch", "NAME", "--data-dir", str(other))
    assert command.endswith(f"--data-dir '{other}'")
    assert f"is {other}; `{command}` fetches into it." in words(capsys)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("named", [True, False])
def test_commands_name_no_folder_if_it_is_the_default(tmp_path, monkeypatch, capsys, named):
    monkeypatch.delenv("ESPER_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = ["--data-dir", str(tmp_path / "cache" / "esper")] if named else []
    assert main(["data", "list", *place]) == OK
    assert f"`{esper_command('data', 'fetch', 'NAME')}` fetches into it." in words(capsys)
    assert main(["data", "fetch", "cifar10", *place]) == OK
    assert words(capsys).endswith("use it --env-settings dataset=cifar10")


@pytest.mark.parametrize("command", [["data", "list"], ["info"]])
def test_tables_print_the_names_and_folders_of_datasets(root, command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    for expected in ("no", "fashion-mnist"):
        assert main(command) == OK
        rows = [line.strip("│ ").split() for line in text_of(capsys)[0].splitlines() if line.startswith("│")]
        rows = {row[0]: row for row in rows if row}
        assert {"digits", "procedural", "grammar"} <= set(rows)
        assert rows["fashion-mnist"][-1] == expected
        if command == ["data", "list"]:
            assert {" ".join(rows[name]).count("all on images") for name in ("cifar10", "procedural")} == {1}
            assert "Esper-Digits-v0" in rows["digits"]
            assert " ".join(rows["tinystories"]).count("all on text") == 1
        write(root / "fashion-mnist", fashion_files())


def test_fetch_prints_the_folder_and_reports_present_data(root, server, capsys):
    assert main(["data", "fetch", "cifar10"]) == OK
    out = words(capsys)
    assert f"CIFAR-10 is in {root / FOLDER} checked sizes and SHA-256 are the original's" in out
    assert "cite Krizhevsky (2009)" in out
    assert out.endswith(f"use it --env-settings dataset=cifar10 data_dir={root}")
    assert (root / FOLDER / "test_batch.bin").exists()
    assert main(["data", "fetch", "cifar10"]) == OK
    assert f"CIFAR-10 is already in {root / FOLDER} checked sizes and SHA-256 as fetched" in words(capsys)
    assert len(server.requests) == 1


def test_task_uses_the_data_that_was_fetched_from_a_url_into_a_folder(root, server, tmp_path, capsys):
    other = tmp_path / "other [x]"
    server.says(ARCHIVE, status(500))
    server.says("/mirror" + ARCHIVE, file(server.archive))
    arguments = ["data", "fetch", "cifar10", "--data-dir", str(other), "--url", server.url + "/mirror/"]
    assert main(arguments) == OK
    assert f"dataset=cifar10 'data_dir={other}'" in words(capsys)
    assert not root.exists()
    settings = ["dataset=cifar10", f"data_dir={other}", "horizon=2", "batches_per_step=1", "batch_size=8"]
    arguments = ["evaluate", "--policy", "wait", "--env", "Esper-CIFAR-v0", "--episodes", "1"]
    assert main([*arguments, "--env-settings", *settings]) == OK
    assert "Esper-CIFAR-v0 on cifar10" in words(capsys)


def test_failed_fetch_exits_with_1_and_one_line(root, server, capsys):
    server.says(ARCHIVE, status(404))
    assert main(["data", "fetch", "cifar10"]) == FAILED
    out, err = text_of(capsys)
    assert err.startswith(
        f"Error: {server.url}{ARCHIVE} answers HTTP 404 Not Found; try another URL (--url). On a mach"
    )
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert not (root / FOLDER).exists()


def test_fetch_prints_the_reason_of_a_wait(server, capsys):
    damaged = bytes(len(server.archive))
    server.says(ARCHIVE, status(503), file(damaged), file(server.archive))
    assert main(["data", "fetch", "cifar10"]) == OK
    out, err = text_of(capsys)
    name = "cifar-10-binary.tar.gz"
    assert out.startswith(
        f"{name}: HTTP 503 Service Unavailable; trying again in 0 s\ndownload {name}\ncheck {name}\n"
        f"{name}: its SHA-256 is wrong; downloading it again\n"
    )
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fetch", "cifar"], "dataset 'cifar' is not known; expected one of cifar10"),
        (["fetch", "cifar10", "--url", "/etc/passwd"], "expected a URL that begins with https://"),
        (["verify", "cifar10", "mnist"], "dataset 'mnist' is not known"),
        (["list", "--url", "x"], "--url"),
        (["delete"], "delete"),
        (["fetch"], "NAME"),
        ([], "list"),
    ],
)
def test_bad_input_exits_with_2_before_anything_is_created(root, arguments, said, capsys):
    assert said in bad(["data", *arguments], capsys)
    assert not root.exists()


@pytest.mark.usefixtures("server")
def test_verify_prints_the_state_of_each_dataset(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # paths are long

    def verify(*arguments, code=OK):
        assert main(["data", "verify", *arguments]) == code
        return words(capsys)

    assert f"{root} holds no datasets" in verify()
    main(["data", "fetch", "cifar10"])
    write(root / "fashion-mnist", fashion_files())
    text_of(capsys)
    out = verify()
    assert "cifar10 intact" in out
    assert "fashion-mnist readable" in out
    assert "without a manifest" in out
    assert "tinystories" not in out
    assert "cifar10 absent" in verify("cifar10", "--data-dir", str(tmp_path / "other"), code=FAILED)
    (root / FOLDER / "test_batch.bin").unlink()
    assert "cifar10 damaged" in verify(code=FAILED)
    assert "cifar10" not in verify("fashion-mnist")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data"], ["list", "fetch", "verify", "SHA-256 of the original", "exit code is 1"]),
        (["data", "fetch"], ["NAME", "--data-dir DIR", "--url URL", "interrupted", "never replaced", "https_proxy"]),
        (["data", "verify"], ["--data-dir DIR", "default: all that are on the disk"]),
        (["data", "list"], ["--data-dir DIR", "$ESPER_DATA_DIR"]),
    ],
)
def test_help_is_complete(arguments, expected, capsys):
    assert main([*arguments, "--help"]) == OK
    out = " ".join(text_of(capsys)[0].replace("│", " ").split())
    assert all(part in out for part in expected)


@pytest.mark.usefixtures("server")
def test_terminal_shows_bars_with_rate_and_remaining_time(root):
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    assert run_fetch(FetchSettings("cifar10"), root, console) == 0
    shown = console.file.getvalue()
    files = ("download cifar-10-binary.tar.gz", "check cifar-10-binary.tar.gz", "unpack test_batch.bin")
    assert all(part in shown for part in (*files, "/s", "0:00:00"))


INTERRUPTED = """
import sys
from archives import small_cifar10
from esper_env.data.originals import ORIGINALS
ORIGINALS["cifar10"] = small_cifar10(sys.argv[1] + "/")[0]
from esper_agent.cli.main import main
sys.exit(main(["data", "fetch", "cifar10"]))
"""


def test_ctrl_c_exits_with_130_and_the_next_fetch_resumes(root, server, capsys):
    def send_half(handler):
        begin(handler, 200, Content_Length=len(server.archive))
        handler.wfile.write(server.archive[:300_000])
        handler.wfile.flush()
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    server.says(ARCHIVE, send_half)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, server.url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    part = root / ".esper-downloads" / "cifar10" / "cifar-10-binary.tar.gz.part"
    deadline = time.monotonic() + 300
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err == (f"Interrupted; the bytes that have arrived stay in {root}: run the same command again to resume\n")
    there = part.stat().st_size
    assert 0 < there <= 300_000
    server.says(ARCHIVE, file(server.archive))
    assert main(["data", "fetch", "cifar10"]) == OK
    assert server.ranges[-1] == f"bytes={there}-"
    text_of(capsys)
