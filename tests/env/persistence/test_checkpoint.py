"""Checkpoints: what is written comes back, damage is noticed, and there is a complete one at every moment."""

import errno
import json
import math
import os
import random
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from esper_env.persistence.checkpoint import FORMAT, MANIFEST, CheckpointError, read_checkpoint, write_checkpoint
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


def read(folder):
    return read_checkpoint(folder, kind=KIND)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def arrays_file(folder):
    (path,) = folder.glob("arrays-*")
    return path


def reseal(folder, change):
    """Let ``change`` edit the manifest, and give it the checksum that belongs to it then."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    change(manifest)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    digest = sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(f'{text[:-1]},\n"sha256":"{digest}"}}\n')


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint", OLD, kind=KIND)


# What is written comes back


@given(tree=TREES)
@settings(max_examples=60)
def test_a_tree_comes_back_as_it_was(tmp_path_factory, tree):
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "a", tree, kind=KIND)
    assert same(read(folder), tree)


def test_integers_have_no_limit(tmp_path):
    tree = {"huge": 10**5000, "list": [-(10**5000), 2**53 + 1]}
    folder = write_checkpoint(tmp_path / "a", tree, kind=KIND)
    assert read(folder) == tree


def test_what_comes_back_can_be_written_to_and_an_array_of_any_layout_can_be_saved(tmp_path):
    array = np.arange(12).reshape(3, 4)
    folder = write_checkpoint(tmp_path / "a", {"columns": np.asfortranarray(array), "part": array[:, ::2]}, kind=KIND)
    tree = read(folder)
    np.testing.assert_array_equal(tree["columns"], array)
    np.testing.assert_array_equal(tree["part"], array[:, ::2])
    tree["part"] += 1


def test_the_manifest_says_what_the_checkpoint_is_and_what_wrote_it(folder):
    manifest = json.loads((folder / MANIFEST).read_text(), parse_constant=pytest.fail)
    packed = arrays_file(folder).read_bytes()
    digest = sha256(packed).hexdigest()
    assert (manifest["format"], manifest["kind"]) == (FORMAT, KIND)
    assert manifest["versions"].keys() == {"esper-env", "numpy", "torch", "python"}
    assert manifest["arrays"] == {"file": arrays_file(folder).name, "sha256": digest, "size": len(packed)}
    assert arrays_file(folder).name == f"arrays-{digest[:16]}.safetensors"


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
        ({"a": "\ud800"}, "surrogate"),
        ({"a": [{"\udfff": 1}]}, "surrogate"),
        ({"a": object()}, "object"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_name(folder, tree, message):
    before = files(folder)
    with pytest.raises(CheckpointError, match=message):
        write_checkpoint(folder, tree, kind=KIND)
    assert files(folder) == before


# Where it is written


def test_a_new_checkpoint_takes_the_place_of_the_old_one_and_leaves_nothing_of_it(folder):
    for tree in (NEW, OLD, OLD, {}):
        assert write_checkpoint(folder, tree, kind=KIND) == folder
        assert same(read(folder), tree)
        assert len(files(folder)) == 2


def test_what_a_killed_writer_left_is_cleaned_up(folder):
    for name in (".manifest.77.json", f".arrays-{'a' * 16}.77.safetensors", f"arrays-{'b' * 16}.safetensors"):
        (folder / name).write_bytes(b"torn")
    assert same(read(folder), OLD)
    write_checkpoint(folder, NEW, kind=KIND)
    assert files(folder).keys() == {MANIFEST, arrays_file(folder).name}


@pytest.mark.parametrize("name", ["notes.txt", "arrays-1.safetensors", "arrays-0123456789abcdef.safetensors.bak"])
def test_a_folder_with_something_else_is_left_alone(folder, name):
    (folder / name).write_text("mine")
    before = files(folder)
    with pytest.raises(CheckpointError, match=f"'{name}'.*folder of its own"):
        write_checkpoint(folder, NEW, kind=KIND)
    assert files(folder) == before


def test_a_file_or_a_checkpoint_of_another_kind_is_not_replaced(folder, tmp_path):
    before = files(folder)
    with pytest.raises(CheckpointError, match="'test'; expected 'other'"):
        write_checkpoint(folder, NEW, kind="other")
    assert files(folder) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        write_checkpoint(tmp_path / "file", NEW, kind=KIND)


# What cannot be read


def test_a_missing_folder_manifest_or_arrays_file_is_named(folder, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", folder / MANIFEST):
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            read(path)
    arrays_file(folder).unlink()
    with pytest.raises(CheckpointError, match=r"arrays-.* is missing"):
        read(folder)


def test_another_kind_is_named(folder):
    with pytest.raises(CheckpointError, match="the kind 'test'; expected 'other'"):
        read_checkpoint(folder, kind="other")


@pytest.mark.parametrize("which", ["manifest", "arrays"])
def test_a_file_that_ends_anywhere_too_early_or_too_late_is_noticed(folder, which):
    path = folder / MANIFEST if which == "manifest" else arrays_file(folder)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 7), *range(len(whole) - 20, len(whole))}:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read(folder)
    path.write_bytes(whole + b"\n")
    with pytest.raises(CheckpointError):
        read(folder)
    path.write_bytes(whole)
    assert same(read(folder), OLD)


@pytest.mark.parametrize("which", ["manifest", "arrays"])
def test_a_flipped_bit_is_noticed(folder, which):
    path = folder / MANIFEST if which == "manifest" else arrays_file(folder)
    whole = path.read_bytes()
    bits = random.Random(0).sample(range(8 * len(whole)), 150)
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read(folder)


@pytest.mark.parametrize("change", [-1, 1, 98])
def test_another_format_says_which_one_is_read_and_what_to_do(folder, change):
    reseal(folder, lambda manifest: manifest.update(format=FORMAT + change))
    age = "older" if change < 0 else "newer"
    with pytest.raises(CheckpointError, match=f"{age} format, {FORMAT + change}.*reads format {FORMAT}.*Read it with"):
        read(folder)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"format": 1}', '{"format": "1", "kind": "test"}', "[" * 10**6, "\xff", "NaN"]
)
def test_foreign_json_is_no_checkpoint(folder, text):
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="manifest"):
        read(folder)


@pytest.mark.parametrize(
    "arrays",
    [
        None,
        {},
        {"file": "../secret"},
        {"file": "/etc/passwd"},
        {"file": "manifest.json"},
        {"sha256": "../" * 21 + "x"},
        {"sha256": 5},
        {"size": "many"},
    ],
)
def test_a_manifest_that_names_another_file_is_not_followed(folder, arrays, monkeypatch):
    outside = folder.parent / "secret"
    outside.write_bytes(arrays_file(folder).read_bytes())

    def change(manifest):
        manifest["arrays"] = {**manifest["arrays"], **arrays} if arrays else arrays

    reseal(folder, change)
    opened = []
    inner = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or inner(path))
    with pytest.raises(CheckpointError):
        read(folder)
    assert {path.parent for path in opened} == {folder}
    assert "secret" not in {path.name for path in opened}


@pytest.mark.parametrize(
    "tree", [None, 5, "x", {"weights": 3}, {"rng": {"$int": 5}}, {"rng": {"$int": "x"}}, {"rng": {"$float": []}}]
)
def test_a_tree_that_does_not_fit_its_arrays_is_an_error(folder, tree):
    reseal(folder, lambda manifest: manifest.update(tree=tree))
    with pytest.raises(CheckpointError, match="does not fit"):
        read(folder)


def test_a_foreign_arrays_file_is_an_error_whatever_it_is_called(folder):
    packed = b"\x80\x04\x95 not an arrays file"  # as a pickle begins
    digest = sha256(packed).hexdigest()
    entry = {"file": f"arrays-{digest[:16]}.safetensors", "sha256": digest, "size": len(packed)}
    (folder / entry["file"]).write_bytes(packed)
    reseal(folder, lambda manifest: manifest.update(arrays=entry))
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read(folder)


# At every moment


def test_whenever_the_writer_is_killed_the_old_or_the_new_checkpoint_is_complete(folder, tmp_path, monkeypatch):
    moments = []

    def look():
        moments.append(shutil.copytree(folder, tmp_path / f"moment {len(moments)}"))

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
    write_checkpoint(folder, NEW, kind=KIND)
    monkeypatch.undo()

    steps = [read(moment)["step"] for moment in moments]
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}
    for moment in moments:  # and the next writer gets along with what it finds
        write_checkpoint(moment, NEW, kind=KIND)
        assert same(read(moment), NEW)
        assert len(files(moment)) == 2


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (os, "replace"), (Path, "replace"), (Path, "unlink")])
def test_a_failure_at_any_step_leaves_the_old_or_the_new_checkpoint(folder, monkeypatch, owner, name):
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
        write_checkpoint(folder, OLD, kind=KIND)
        calls = allowed
        try:
            write_checkpoint(folder, NEW, kind=KIND)
        except OSError:
            assert read(folder)["step"] in (1, 2)
        else:
            break
    assert allowed >= 2
    assert same(read(folder), NEW)


@pytest.mark.parametrize("full_at", [0, 1])
def test_a_full_disk_is_an_os_error_and_the_previous_checkpoint_stays(folder, monkeypatch, full_at):
    inner, written = Path.write_bytes, []

    def write(path, data):
        written.append(path)
        if len(written) > full_at:
            inner(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return inner(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(folder, NEW, kind=KIND)
    monkeypatch.undo()
    assert same(read(folder), OLD)
    assert not list(folder.glob(".*"))
    write_checkpoint(folder, NEW, kind=KIND)
    assert len(files(folder)) == 2


def test_a_reader_that_is_overtaken_by_a_writer_reads_the_new_checkpoint(folder, monkeypatch):
    inner = Path.read_bytes

    def overtaken(path):
        data = inner(path)
        if path.name == MANIFEST:
            monkeypatch.undo()
            write_checkpoint(folder, NEW, kind=KIND)
        return data

    monkeypatch.setattr(Path, "read_bytes", overtaken)
    assert same(read(folder), NEW)


def test_nothing_is_unpickled():
    sources = Path(write_checkpoint.__code__.co_filename).parent
    for name in ("checkpoint.py", "tree.py"):
        text = (sources / name).read_text()
        assert not any(word in text for word in ("import pickle", "np.load(", "torch.load", "allow_pickle", "eval("))
