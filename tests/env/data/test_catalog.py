"""Names, folders, the stand-in and its warning."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from archives import cifar_files, fashion_files, tinystories_files, write
from esper_env.data import (
    DATASETS,
    DataFamily,
    ImageData,
    MissingDataError,
    SyntheticDataWarning,
    TextData,
    catalog,
    data_folder,
    load_data,
)
from esper_env.data.originals import ORIGINALS
from esper_env.data.sources import DamagedDataError
from esper_env.data.verify import verify

CIFAR, DIGITS, TINYSTORIES, TEXT = DataFamily
NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


@pytest.fixture(autouse=True)
def nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder of this machine's user, and nothing announced yet."""
    monkeypatch.delenv("ESPER_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(catalog, "_announced", set())


def write_cifar(parent: Path, fill: int) -> Path:
    folder = parent / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    records = np.full((20, 3073), fill, np.uint8)
    records[:, 0] = np.arange(20) % 10
    for name in NAMES:
        (folder / name).write_bytes(records.tobytes())
    return folder


def fill_of(data: ImageData) -> int:
    return int(data.train_images[0, 0, 0, 0])


def test_auto_takes_cifar10_when_it_is_on_disk(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cache" / "esper", 1)
    data = load_data("auto", family=CIFAR)  # warnings are errors here: nothing is announced
    assert (data.name, fill_of(data)) == ("cifar10", 1)


def test_argument_before_environment_variable_before_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fill, place in enumerate(("cache/esper", "variable", "argument"), start=1):
        write_cifar(tmp_path / place, fill)
    assert fill_of(load_data("cifar10", family=CIFAR)) == 1
    monkeypatch.setenv("ESPER_DATA_DIR", str(tmp_path / "variable"))
    assert fill_of(load_data("cifar10", family=CIFAR)) == 2
    assert fill_of(load_data("cifar10", str(tmp_path / "argument"), family=CIFAR)) == 3
    inside = tmp_path / "argument" / "cifar-10-batches-bin"
    assert fill_of(load_data("cifar10", str(inside), family=CIFAR)) == 3


def test_without_any_setting_the_folder_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_folder() == tmp_path / "cache" / "esper"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "esper"
    assert data_folder("~/mine") == tmp_path / "mine"


def test_auto_without_data_is_the_stand_in_and_says_so_once(tmp_path: Path) -> None:
    with pytest.warns(SyntheticDataWarning, match="not CIFAR-10 accuracies") as caught:
        data = load_data("auto", str(tmp_path / "a"), family=CIFAR)
    assert data.name == "procedural-cifar"
    assert str(tmp_path / "a") in str(caught[0].message)
    assert "cifar-10-binary.tar.gz" in str(caught[0].message)
    assert load_data("auto", str(tmp_path / "b"), family=CIFAR) is data  # a second warning would be an error


def test_where_warnings_are_errors_every_attempt_fails() -> None:
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(SyntheticDataWarning):
                load_data("auto", family=CIFAR)


@pytest.mark.parametrize("name", ["procedural", "procedural-cifar"])
def test_the_stand_in_asked_for_by_name_needs_no_warning(name: str, tmp_path: Path) -> None:
    write_cifar(tmp_path / "cache" / "esper", 1)
    assert load_data(name, family=CIFAR).name == "procedural-cifar"


@pytest.mark.parametrize("family", [CIFAR, DIGITS])
def test_every_set_of_images_is_one_of_both_families_except_for_the_small_digits(
    family: DataFamily, tmp_path: Path
) -> None:
    write_cifar(tmp_path, 1)
    write(tmp_path / "cifar-100-binary", cifar_files((20, 100), ["train.bin", "test.bin"], 500))
    write(tmp_path / "fashion-mnist", fashion_files())
    for name in ("cifar10", "cifar100", "fashion-mnist", "procedural-cifar"):
        assert load_data(name, str(tmp_path), family=family).name == name
    assert [known for known in DataFamily if "digits" in DATASETS[known]] == [DIGITS]


@pytest.mark.parametrize("family", [TINYSTORIES, TEXT])
def test_every_text_is_one_of_both_families(family: DataFamily, tmp_path: Path) -> None:
    write(tmp_path / "tinystories", tinystories_files())
    for name in ("tinystories", "grammar"):
        data = load_data(name, str(tmp_path), family=family)
        assert isinstance(data, TextData)
        assert data.name == name


def test_auto_of_each_family_where_nothing_is_on_the_disk() -> None:
    assert load_data(family=DIGITS).name == "digits"
    assert load_data(family=TEXT).name == "grammar"  # a warning would be an error here: the grammar is the task's data
    with pytest.warns(SyntheticDataWarning, match="TinyStories is not in .* Losses are not TinyStories losses") as told:
        assert load_data(family=TINYSTORIES).name == "grammar"
    assert "pass dataset='grammar'" in str(told[0].message)
    assert "esper data fetch tinystories" in str(told[0].message)
    assert told[0].filename == __file__
    assert load_data(family=TINYSTORIES).name == "grammar"  # told once


def test_auto_takes_tinystories_when_they_are_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "cache" / "esper" / "tinystories", tinystories_files())
    assert load_data(family=TINYSTORIES).name == "tinystories"
    assert load_data(family=TEXT).name == "grammar"


def test_both_stand_ins_are_announced() -> None:
    for family, name in ((CIFAR, "CIFAR-10"), (TINYSTORIES, "TinyStories")):
        with pytest.warns(SyntheticDataWarning, match=f"^{name} is not in"):
            load_data(family=family)


@pytest.mark.parametrize(("name", "family"), [("cifar100", CIFAR), ("fashion-mnist", DIGITS), ("tinystories", TEXT)])
def test_a_data_set_that_is_named_is_never_replaced(name: str, family: DataFamily, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=f"was asked for by name and is not in {tmp_path}/a; ") as caught:
        load_data(name, str(tmp_path / "a"), family=family)
    assert f"`esper data fetch {name} --data-dir {tmp_path}/a`" in str(caught.value)


def test_cifar10_by_name_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cifar-10-binary\.tar\.gz") as caught:
        load_data("cifar10", str(tmp_path / "empty"), family=CIFAR)
    for part in (str(tmp_path / "empty"), "ESPER_DATA_DIR", "data_dir", "https://"):
        assert part in str(caught.value)


@pytest.mark.parametrize("dataset", ["auto", "cifar10"])
def test_damaged_data_is_never_replaced_even_after_it_was_read_once(dataset: str, tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, 7)
    assert load_data(dataset, str(tmp_path), family=CIFAR).name == "cifar10"
    damaged = folder / "data_batch_2.bin"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin is damaged"):
        load_data(dataset, str(tmp_path), family=CIFAR)
    damaged.unlink()
    with pytest.raises(FileNotFoundError, match=r"incomplete, without data_batch_2\.bin"):
        load_data(dataset, str(tmp_path), family=CIFAR)


def test_loaded_once_and_shared_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, 7)
    first = load_data("auto", str(tmp_path), family=CIFAR)
    monkeypatch.chdir(tmp_path)
    assert load_data("cifar10", ".", family=CIFAR) is first
    assert load_data("digits", family=DIGITS) is load_data("auto", family=DIGITS)
    with pytest.raises(ValueError, match="read-only"):
        first.val_images[:] = 0


@pytest.mark.parametrize("form", [".gz", ""])
def test_files_that_changed_at_equal_size_are_read_again(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "fashion-mnist"
    for fill in (3, 4):
        files = {name: gzip.decompress(content) for name, content in fashion_files(seed=5).items()}
        name = "train-images-idx3-ubyte.gz"
        files[name] = files[name][:16] + bytes([fill]) * (len(files[name]) - 16)
        if form:  # not compressed, so that contents of one size make files of one size
            files = {name: gzip.compress(content, 0, mtime=0) for name, content in files.items()}
        write(folder, {name.removesuffix(".gz") + form: content for name, content in files.items()})
        for path in folder.iterdir():
            os.utime(path, ns=(fill, fill))
        assert fill_of(load_data("fashion-mnist", str(tmp_path), family=CIFAR)) == fill


#: A data set of each loader: its files, one that goes missing, one that is damaged.
SETS = {
    "cifar10": (lambda: cifar_files((10,), NAMES, 20), "data_batch_2.bin"),
    "cifar100": (lambda: cifar_files((20, 100), ["train.bin", "test.bin"], 500), "test.bin"),
    "fashion-mnist": (fashion_files, "t10k-labels-idx1-ubyte.gz"),
    "tinystories": (tinystories_files, "TinyStoriesV2-GPT4-valid.txt"),
}


@pytest.mark.parametrize("by_variable", [True, False], ids=["variable", "argument"])
@pytest.mark.parametrize("damage", ["missing", "damaged"])
@pytest.mark.parametrize("name", SETS)
def test_damage_is_told_with_the_remedy_that_works(
    name: str, damage: str, by_variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, one = SETS[name]
    source, root = ORIGINALS[name], tmp_path / "my data"
    folder = write(root / source.folder, make())
    (folder / one).unlink() if damage == "missing" else (folder / one).write_bytes(b"short")
    if by_variable:
        monkeypatch.setenv("ESPER_DATA_DIR", str(root))
    family = TEXT if name == "tinystories" else CIFAR
    with pytest.raises(MissingDataError if damage == "missing" else DamagedDataError) as caught:
        load_data(name, None if by_variable else str(root), family=family)
    command = f"esper data fetch {name} --data-dir '{root}'"
    remedy = f"; move '{folder}' away, then `{command}`"
    said = str(caught.value)
    assert remedy in said
    assert said.count("esper data fetch") == 1
    assert f"or download {source.wanted}" in said
    assert verify(name, root).detail.endswith(remedy)  # in the same words


def test_damage_in_the_usual_folder_is_fetched_anew_without_naming_it(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / "cache" / "esper", 1)
    (folder / "test_batch.bin").unlink()
    with pytest.raises(MissingDataError, match=f"; move {folder} away, then `esper data fetch cifar10` "):
        load_data(family=CIFAR)


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    folders = [write_cifar(tmp_path / str(i), i).parent for i in range(5)]
    for folder in folders:
        load_data("cifar10", str(folder), family=CIFAR)
    assert catalog._read.cache_info().currsize <= 2


@pytest.mark.parametrize(
    ("dataset", "family"),
    [
        ("cifar-10", CIFAR),
        ("tinystories", CIFAR),
        ("grammar", DIGITS),
        ("", DIGITS),
        (".", CIFAR),
        (None, CIFAR),
        ("tinystoris", TINYSTORIES),
        ("", TEXT),
        (7, TEXT),
        ("cifar10", TEXT),
        ("nul\0", TEXT),
        ("x" * 5000, TEXT),
        ("~nobody-of-this-name/a", TEXT),
    ],
)
def test_an_unknown_name_lists_the_known(dataset: str, family: DataFamily) -> None:
    with pytest.raises(ValueError, match="dataset is") as caught:
        load_data(dataset, family=family)
    for known in DATASETS[family]:
        assert repr(known) in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "family", "said"),
    [
        ("CIFAR10", CIFAR, r"did you mean 'cifar10'\?"),
        ("Fashion_MNIST", DIGITS, r"did you mean 'fashion-mnist'\?"),
        ("TinyStories", TEXT, r"did you mean 'tinystories'\?"),
        (Path("book.txt"), TEXT, r"Path\('book.txt'\); .* the path of a UTF-8 file .* as a text: give str\(path\)$"),
        (123, TEXT, r"dataset is 123; .* the path of a UTF-8 file .* reads as a number, so write './123'$"),
        ("cifar10", TEXT, r"dataset is 'cifar10', a data set of images; a text task knows 'auto', .* and the path of"),
        ("digits", TINYSTORIES, r"dataset is 'digits', a data set of images; a tinystories task knows 'auto', "),
        ("grammar", CIFAR, r"dataset is 'grammar', a text; a cifar task knows 'auto', 'cifar10'"),
        ("/nowhere/gramar", TEXT, r"dataset is '/nowhere/gramar', and .*; did you mean 'grammar'\?"),
        ("a" * 5000, TEXT, "dataset is 'a{99}\\.\\.\\., and there is nothing at that path"),
        ("a" * 5000, CIFAR, "dataset is 'a{99}\\.\\.\\.; a cifar task knows"),
    ],
)
def test_an_error_says_what_may_have_been_meant(dataset: object, family: DataFamily, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_data(dataset, family=family)


def test_only_a_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somebody")
    cases = {"book.txt": str(tmp_path / "book.txt"), "~/book.txt": "/somebody/book.txt", "/b.txt": "/b.txt"}
    for family in (TEXT, TINYSTORIES):
        for dataset, absolute in (cases | {name: name for name in DATASETS[family]}).items():
            assert catalog.absolute_dataset(dataset, family) == absolute
    assert catalog.absolute_dataset("cifar10", CIFAR) == "cifar10"


def test_the_grammar_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from esper_env.data import load_data; data = load_data(family='text'); "
        "print(hashlib.sha256(data.train.tobytes() + data.val.tobytes() + data.test.tobytes()).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0] == digests[1] != ""


def test_importing_needs_neither_torch_nor_scikit_learn() -> None:
    code = "import sys, esper_env.data; print(sorted({'torch', 'sklearn', 'urllib.request'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
