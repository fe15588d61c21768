"""The logger's files hold the logged values, in the same order in every process, and continue from a saved state."""

import csv
import os

import numpy as np
import pytest
import torch
from esper_agent.training.outputs import ProgressFile, TensorBoardFiles, keep_rows
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.logger import Figure, FormatUnsupportedError

NAMES = st.sampled_from(["b", "a/x", "time, s", 'say "c"', "d\ne"])
VALUES = st.none() | st.integers() | st.floats() | st.booleans() | st.text("ab,\"'\n é", min_size=1)
DUMPS = st.lists(st.dictionaries(NAMES, VALUES, min_size=1), max_size=6)


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def put(output, dumps):
    for values in dumps:
        output.write(values, dict.fromkeys(values, ("",)))


def written(values):
    """A dump as text without empty values, because later columns are empty in earlier lines."""
    return {name: str(value) for name, value in values.items() if value is not None}


@given(DUMPS)
def test_lines_match_the_logged_values(tmp_path_factory, dumps):
    path = tmp_path_factory.mktemp("progress") / "progress.csv"
    output = ProgressFile(path)
    put(output, dumps)
    output.close()
    lines = [{name: text for name, text in line.items() if text} for line in (read(path) if dumps else [])]
    assert lines == [written(values) for values in dumps]


@given(DUMPS, DUMPS, DUMPS)
def test_continued_file_equals_uninterrupted_file(tmp_path_factory, before, lost, after):
    folder = tmp_path_factory.mktemp("progress")
    whole, first, second = (ProgressFile(folder / name) for name in ("whole.csv", "cut.csv", "cut.csv"))
    put(whole, [*before, *after])
    put(first, before)
    state = first.get_state()
    put(first, lost)
    first.close()
    second.set_state(state)
    assert second.get_state() == state
    lines = second.path.read_bytes() if before or lost else b""
    assert not lines or second.path.read_bytes() == lines
    put(second, after)
    assert second.get_state() == whole.get_state()
    for output in (whole, second):
        output.close()
    if after:  # the first write removes the lost lines
        assert second.path.read_bytes() == whole.path.read_bytes()


def test_numbers_are_written_exactly_unless_excluded(tmp_path):
    output = ProgressFile(tmp_path / "progress.csv")
    values = {"f": np.float32(0.1), "t": torch.tensor(2), "x": 1}
    output.write(values, {"f": ("",), "t": ("stdout",), "x": ("stdout", "csv")})
    assert read(output.path) == [{"f": "0.1", "t": "tensor(2)"}]
    with pytest.raises(FormatUnsupportedError, match="figure"):
        put(output, [{"f": Figure(None, close=True)}])
    assert len(read(output.path)) == 1
    output.close()


def test_kill_while_adding_a_column_keeps_the_lines(tmp_path, monkeypatch):
    output = ProgressFile(tmp_path / "progress.csv")
    put(output, [{"a": 1}])

    def killed(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        put(output, [{"b": 1}])
    assert read(output.path) == [{"a": "1"}]
    output.close()


def test_new_run_replaces_old_lines(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("old\n1\n2\n")
    output = ProgressFile(path)
    assert path.read_text() == "old\n1\n2\n"  # unchanged until the first write
    put(output, [{"a": 1}])
    output.close()
    assert read(path) == [{"a": "1"}]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (None, []),
        ("", []),
        ("a,b\n", []),
        ("a,b\n1,2\n3", [("1", "2")]),
        ("a,b\n1,2,3\n1,2\n", [("1", "2")]),
        ("a,b\n1,2,3\n1,2\n7,8\n9,9\n", [("1", "2")]),  # later lines do not replace a lost one
        ("1,2\n1,2\n1,2\n", []),  # another file, or its first line is lost
        ("a,b\n1,2\n" + 200_000 * "x" + "\n", []),
    ],
)
def test_file_with_lost_lines_keeps_the_rest_and_warns(tmp_path, text, rows):
    path = tmp_path / "x.csv"
    if text is not None:
        path.write_text(text)
    with pytest.warns(RuntimeWarning, match=rf"has {len(rows)} of the 2 lines"):
        kept = keep_rows(path, ["a", "b"], 2)
    assert [tuple(row.values()) for row in kept] == rows
    assert [tuple(row.values()) for row in read(path)] == rows


def test_tensorboard_records_the_next_step(tmp_path):
    output = TensorBoardFiles(str(tmp_path))
    assert not list(tmp_path.iterdir())
    output.write({"a": 1.0}, {"a": ("",)}, 7)
    assert output.get_state() == {"next_step": 8}
    output.set_state({"next_step": 3})
    assert output.get_state() == {"next_step": 3}
    output.close()
