"""Checkpoints: trees survive a round trip, damage is detected, and a complete checkpoint exists at every moment."""

import errno
import json
import math
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from esper_env.persistence import checkpoint
from esper_env.persistence.checkpoint import FORMAT, CheckpointError, read_checkpoint, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

KIND = "test"
OLD = {"step": 1, "weights": np.arange(5.0), "rng": {"state": 2**127 + 1}}
NEW = {"step": 2, "weights": np.arange(7.0), "rng": {"state": 2**126 + 3}}

KEYS = st.text(min_size=1, max_size=6).filter(lambda key: "/" not in key and key != "__metadata__")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2))
DTYPES = st.sampled_from(["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]).map(np.dtype)
ARRAYS = DTYPES.flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
LEAVES = SCALARS | st.lists(JSON, max_size=3) | ARRAYS
NODES = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=12)
TREES = st.dictionaries(KEYS, NODES, max_size=4)


def same(left, right):
    """Equal, with types, NaNs and the sign of zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return (left.shape, left.dtype, left.tobytes()) == (right.shape, right.dtype, right.tobytes())
    if isinstance(left, float):
        return repr(left) == repr(right)
    return left == right


def read(path):
    return read_checkpoint(path, kind=KIND)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest_of(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["esper"])


@pytest.fixture
def saved(tmp_path):
    return write_checkpoint(tmp_path / "checkpoints" / "a.safetensors", OLD, kind=KIND)


# Round trips


@given(tree=TREES)
@settings(max_examples=60)
def test_read_checkpoint_returns_the_written_tree(tmp_path_factory, tree):
    assert same(read(write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "a", tree, kind=KIND)), tree)


def test_read_checkpoint_returns_writable_arrays_of_any_layout(tmp_path):
    array = np.arange(12).reshape(3, 4)
    tree = read(write_checkpoint(tmp_path / "a", {"f": np.asfortranarray(array), "part": array[:, ::2]}, kind=KIND))
    np.testing.assert_array_equal(tree["f"], array)
    np.testing.assert_array_equal(tree["part"], array[:, ::2])
    tree["part"] += 1


def test_equal_trees_give_equal_files_readable_by_other_programs(saved, tmp_path):
    again = write_checkpoint(tmp_path / "b.safetensors", OLD, kind=KIND)
    assert again.read_bytes() == saved.read_bytes()
    np.testing.assert_array_equal(safetensors.numpy.load_file(saved)["weights"], OLD["weights"])
    manifest = manifest_of(saved)
    assert (manifest["format"], manifest["kind"]) == (FORMAT, KIND)
    assert manifest["versions"].keys() == {"esper-env", "numpy", "torch", "python"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a/b": 1}, "'a/b'"),
        ({"a": {"": 1}}, "in 'a'"),
        ({1: 2}, "key 1"),
        ({"__metadata__": np.zeros(1)}, "__metadata__"),
        ({"a": {"b": (1, 2)}}, r"'a/b' is .*tuple"),
        ({"a": np.float64(1.0)}, "float64"),
        ({"a": [1, [np.zeros(2)]]}, r"a\[1\]\[0\]"),
        ({"a": np.array([object()])}, "object"),
        ({"a": np.zeros(2, ">f4")}, "byte order"),
        ({"a": np.zeros(2, np.complex64)}, "complex64"),
        ({"a": np.ma.masked_array([1.0], [True])}, "MaskedArray"),
        ({"a": [{1: 2}]}, r"a\[0\]"),
        ({"a": object()}, "object"),
    ],
)
def test_write_checkpoint_rejects_unsupported_trees(saved, tree, message):
    before = files(saved.parent)
    with pytest.raises(CheckpointError, match=message):
        write_checkpoint(saved, tree, kind=KIND)
    assert files(saved.parent) == before


# Replacing


def test_write_checkpoint_replaces_the_previous_one(saved):
    for tree in (NEW, OLD, OLD, {}):
        assert write_checkpoint(saved, tree, kind=KIND) == saved
        assert same(read(saved), tree)
    assert files(saved.parent).keys() == {saved.name}


def test_write_checkpoint_replaces_nothing_else(saved, tmp_path):
    before = files(saved.parent)
    with pytest.raises(CheckpointError, match="'test'; expected 'other'"):
        write_checkpoint(saved, NEW, kind="other")
    assert files(saved.parent) == before
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        write_checkpoint(tmp_path / "notes", NEW, kind=KIND)
    safetensors.numpy.save_file({"weights": np.zeros(3)}, tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="not an Esper checkpoint"):
        write_checkpoint(tmp_path / "theirs", NEW, kind=KIND)
    with pytest.raises(CheckpointError, match="is a folder"):
        write_checkpoint(saved.parent, NEW, kind=KIND)
    assert (tmp_path / "notes").read_text() == "mine"


# Reading what is damaged or foreign


def test_read_checkpoint_rejects_missing_files_folders_and_other_kinds(saved, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(CheckpointError, match="the kind 'test'; expected 'other'"):
        read_checkpoint(saved, kind="other")


def test_read_checkpoint_detects_a_file_of_another_length(saved):
    whole = saved.read_bytes()
    for length in {*range(0, len(whole), 7), *range(len(whole) - 20, len(whole))}:
        saved.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read(saved)
    saved.write_bytes(whole + b"\n")
    with pytest.raises(CheckpointError):
        read(saved)
    saved.write_bytes(whole)
    assert same(read(saved), OLD)


def test_read_checkpoint_detects_a_flipped_bit(saved):
    whole = saved.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 300):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read(saved)


@pytest.mark.parametrize("change", [-1, 1])
def test_read_checkpoint_rejects_another_format_with_the_remedy(saved, change):
    manifest, arrays = manifest_of(saved), safetensors.numpy.load(saved.read_bytes())
    manifest["format"] += change
    safetensors.numpy.save_file(arrays, saved, {"esper": json.dumps(manifest)})
    with pytest.raises(CheckpointError, match=f"has format {FORMAT + change}; .* reads format {FORMAT}. Read it with"):
        read(saved)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "x"])
def test_read_checkpoint_rejects_foreign_manifests(saved, text):
    safetensors.numpy.save_file({}, saved, {"esper": text})
    with pytest.raises(CheckpointError, match="not an Esper checkpoint"):
        read(saved)


def test_read_checkpoint_never_unpickles():
    sources = Path(write_checkpoint.__code__.co_filename).parent
    for name in ("checkpoint.py", "tree.py"):
        text = (sources / name).read_text()
        assert not any(word in text for word in ("import pickle", "np.load(", "torch.load", "allow_pickle", "eval("))


# Interruptions


def test_killed_writer_leaves_the_old_or_the_new_checkpoint(saved, tmp_path, monkeypatch):
    moments = []

    def look():
        moments.append(shutil.copytree(saved.parent, tmp_path / f"moment {len(moments)}"))

    def watched(owner, name):
        inner = getattr(owner, name)

        def call(*args, **kwargs):
            look()
            if name == "write_bytes":  # half of it is there
                inner(args[0], args[1][: len(args[1]) // 2])
                look()
            result = inner(*args, **kwargs)
            look()
            return result

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink"), (Path, "write_bytes")):
        watched(owner, name)
    write_checkpoint(saved, NEW, kind=KIND)
    monkeypatch.undo()

    steps = [read(moment / saved.name)["step"] for moment in moments]
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}
    for moment in moments:  # the next writer can always continue
        write_checkpoint(moment / saved.name, NEW, kind=KIND)
        assert same(read(moment / saved.name), NEW)


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace"), (Path, "write_bytes")])
def test_failing_call_leaves_the_old_or_the_new_checkpoint(saved, monkeypatch, owner, name):
    inner, calls = getattr(owner, name), math.inf

    def failing(*args, **kwargs):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise OSError(errno.EIO, "broken")
        return inner(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    for allowed in range(20):
        calls = math.inf
        write_checkpoint(saved, OLD, kind=KIND)
        calls = allowed
        try:
            write_checkpoint(saved, NEW, kind=KIND)
        except OSError:
            assert read(saved)["step"] in (1, 2)
            assert files(saved.parent).keys() == {saved.name}
        else:
            break
    assert allowed >= 1
    assert same(read(saved), NEW)


def test_reader_overtaken_by_a_writer_returns_one_of_the_two_checkpoints(saved, monkeypatch):
    inner = checkpoint._parsed

    def overtaken(*args):
        monkeypatch.undo()
        write_checkpoint(saved, NEW, kind=KIND)
        return inner(*args)

    monkeypatch.setattr(checkpoint, "_parsed", overtaken)
    assert same(read(saved), OLD)
    assert same(read(saved), NEW)
