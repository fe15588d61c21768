"""Commands end well if standard output or standard error is closed, broken or full, or lacks a character."""

import errno
import io
import json
import os
import subprocess
import sys

import pytest
from command_line import SMALL, text_of
from esper_agent.cli.main import FAILED, OK, exit_code, main
from esper_agent.cli.streams import LenientStream
from esper_agent.demo import main as demo_main

PLAY = ["evaluate", "--policy", "wait", "--episodes", "2"]


class Failing(io.RawIOBase):
    """A file that cannot be written."""

    def __init__(self, number):
        self.number = number

    def writable(self):
        return True

    def write(self, _data):
        raise OSError(self.number, os.strerror(self.number))

    def close(self):
        """Lose what waits in the buffers."""


def failing(number):
    return io.TextIOWrapper(io.BufferedWriter(Failing(number)), encoding="utf-8")


def test_characters_that_the_encoding_lacks_are_replaced(toy_id, tmp_path, monkeypatch):
    commands = (
        [main, "train", "--out", str(tmp_path / "r"), *SMALL[:-1]],
        [main, *PLAY],
        [main, "benchmark", "--policies", "wait", "--episodes", "2", "--out", str(tmp_path / "b")],
        [demo_main, "--out", str(tmp_path / "d"), "--episodes", "2", "--total-timesteps", "640"],
    )
    for command, *arguments in commands:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", out)
            patch.setattr("sys.stderr", err)
            assert command([*arguments, "--env", toy_id]) == OK, arguments
        written = out.buffer.getvalue()
        assert b"WAIT" in written
        assert b" ? " in written


@pytest.mark.parametrize("command", [["info"], ["data", "list"], ["train", "--help"], ["--version"]])
def test_output_without_a_result_is_replaced_too(command, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert main(command) == OK
    assert len(out.buffer.getvalue()) > 5


def test_error_with_a_character_that_the_encoding_lacks_is_printed(monkeypatch):
    err = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stderr", err)
    assert main(["evaluate", "--policy", "grün"]) == 2
    assert b"Error: policy 'gr?n' is neither" in err.buffer.getvalue()


def test_results_are_complete_if_the_reader_of_the_output_has_ended(toy_id, run_folder, tmp_path, monkeypatch):
    file, folder = tmp_path / "e.json", tmp_path / "b"
    monkeypatch.setattr("sys.stdout", failing(errno.EPIPE))
    monkeypatch.setattr("sys.stderr", failing(errno.EPIPE))
    assert main(["evaluate", "--policy", str(run_folder), "--episodes", "2", "--json", str(file)]) == OK
    assert len(json.loads(file.read_text())["episodes"]) == 2
    assert main(["benchmark", "--policies", str(run_folder), "--episodes", "2", "--out", str(folder)]) == OK
    assert {path.name for path in folder.iterdir()} == {"episodes.csv", "summary.csv", "settings.json"}
    assert main(["train", "--env", toy_id, "--out", str(tmp_path / "r"), *SMALL[:-1]]) == OK
    assert (tmp_path / "r" / "model.zip").exists()
    assert main(["info"]) == main(["--help"]) == OK


def test_full_standard_output_fails_after_the_results_are_written(toy_id, tmp_path, monkeypatch, capsys):
    file = tmp_path / "e.json"
    monkeypatch.setattr("sys.stdout", failing(errno.ENOSPC))
    assert main([*PLAY, "--env", toy_id, "--json", str(file)]) == FAILED
    assert len(json.loads(file.read_text())["episodes"]) == 2
    assert capsys.readouterr().err == "Error: standard output cannot be written: No space left on device\n"


def test_results_are_written_before_they_are_printed(toy_id, tmp_path, monkeypatch):
    def stop(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("esper_agent.cli.play.print_summaries", stop)
    monkeypatch.setattr("esper_agent.cli.demo.print_summaries", stop)
    main([*PLAY, "--env", toy_id, "--json", str(tmp_path / "e.json")])
    main(["benchmark", "--policies", "wait", "--env", toy_id, "--episodes", "2", "--out", str(tmp_path / "b")])
    demo_main(["--env", toy_id, "--episodes", "2", "--total-timesteps", "640", "--out", str(tmp_path / "d")])
    for name in ("e.json", "b/summary.csv", "d/summary.csv", "d/training.png"):
        assert (tmp_path / name).exists(), name


@pytest.mark.parametrize("missing", [["sys.stdout"], ["sys.stderr"], ["sys.stdout", "sys.stderr"]])
def test_commands_run_without_standard_streams(toy_id, tmp_path, monkeypatch, capsys, missing):
    for name in missing:
        monkeypatch.setattr(name, None)
    assert main(["train", "--env", toy_id, "--out", str(tmp_path / "r"), *SMALL]) == OK
    assert main([*PLAY, "--env", toy_id, "--json", str(tmp_path / "e.json")]) == OK
    assert main(["info"]) == main(["--help"]) == OK
    assert main(["train"]) == 2
    assert json.loads((tmp_path / "e.json").read_text())["episodes"]
    text_of(capsys)


def test_lenient_stream_keeps_the_attributes_of_its_stream():
    stream = LenientStream(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert (stream.encoding, stream.isatty(), stream.failure, stream.problem) == ("ascii", False, None, None)
    assert stream.write("a\udcff±") == 3
    stream.flush()
    assert stream.buffer.getvalue() == b"a??"


#: Opens a file without standard streams; prints to a file the numbers of the descriptors.
OPENED = """
import os, sys
from esper_agent.cli.streams import open_missing_descriptors
open_missing_descriptors()
print("lost")
with open(sys.argv[1], "w") as file:
    file.write(str(file.fileno() > 2))
"""


@pytest.mark.skipif(os.name != "posix", reason="the shell of POSIX closes the streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_files_do_not_take_the_place_of_closed_streams(tmp_path, closed):
    file = tmp_path / "file"
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", OPENED, str(file)], check=False)
    assert (done.returncode, file.read_text()) == (0, "True")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a shell of POSIX")
@pytest.mark.parametrize("shell", ["| head -1", ">&- 2>&-"])
def test_results_of_a_command_in_a_shell_are_complete(tmp_path, shell):
    play = ["evaluate", "--policy", "wait", "--episodes", "2", "--env-settings", "horizon=2", "--json", "e.json"]
    script = f'{{ "$@"; echo $? >code; }} {shell}'
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "esper_agent", *play]
    subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    assert (tmp_path / "code").read_text() == "0\n"
    assert len(json.loads((tmp_path / "e.json").read_text())["episodes"]) == 2


def test_streams_are_restored(capsys):
    before = sys.stdout, sys.stderr
    assert exit_code(lambda console: console.print("said") or OK) == OK
    assert (sys.stdout, sys.stderr) == before
    assert text_of(capsys)[0] == "said\n"
