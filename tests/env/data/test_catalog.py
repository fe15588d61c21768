"""Datasets by name: folders, families, and the stand-ins with their warning."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from archives import CIFAR10_NAMES, cifar_files, fashion_files, tinystories_files, write
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
from esper_env.data.originals import ORIGINALS, DamagedDataError
from esper_env.data.verify import verify_dataset
from esper_env.suggestions import esper_command

CIFAR, DIGITS, TINYSTORIES, TEXT = DataFamily


@pytest.fixture(autouse=True)
def nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder of this machine's user, and no warning issued yet."""
    monkeypatch.delenv("ESPER_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(catalog, "_warned", set())


def write_cifar(parent: Path, fill: int) -> Path:
    records = np.full((20, 3073), fill, np.uint8)
    records[:, 0] = np.arange(20) % 10
    return write(parent / "cifar-10-batches-bin", dict.fromkeys(CIFAR10_NAMES, records.tobytes()))


def fill_of(data: ImageData) -> int:
    return int(data.train_images[0, 0, 0, 0])


def test_auto_is_the_real_data_if_it_is_on_the_disk(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cache" / "esper", 1)
    write(tmp_path / "cache" / "esper" / "tinystories", tinystories_files())
    data = load_data("auto", family=CIFAR)  # a warning would be an error
    assert (data.name, fill_of(data)) == ("cifar10", 1)
    assert load_data(family=TINYSTORIES).name == "tinystories"
    assert load_data(family=TEXT).name == "grammar"
    assert load_data("procedural", family=CIFAR).name == "procedural-cifar"


def test_argument_precedes_environment_variable_precedes_cache_folder(
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


def test_data_folder_is_in_the_users_cache_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_folder() == tmp_path / "cache" / "esper"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "esper"
    assert data_folder("~/mine") == tmp_path / "mine"


@pytest.mark.parametrize(
    ("family", "name", "parts"),
    [
        (CIFAR, "procedural-cifar", ["CIFAR-10 is not in", "not CIFAR-10 accuracies", "cifar-10-binary.tar.gz"]),
        (TINYSTORIES, "grammar", ["TinyStories is not in", "not TinyStories losses", "pass dataset='grammar'"]),
    ],
)
def test_auto_without_files_is_the_stand_in_and_warns_once(
    tmp_path: Path, family: DataFamily, name: str, parts: list[str]
) -> None:
    with pytest.warns(SyntheticDataWarning) as caught:
        data = load_data("auto", str(tmp_path / "a"), family=family)
    assert data.name == name
    said = str(caught[0].message)
    assert all(part in said for part in [*parts, str(tmp_path / "a"), "esper data fetch"])
    assert caught[0].filename == __file__
    assert load_data("auto", str(tmp_path / "b"), family=family) is data  # a second warning would be an error


def test_auto_raises_every_time_if_warnings_are_errors() -> None:
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(SyntheticDataWarning):
                load_data("auto", family=CIFAR)


@pytest.mark.parametrize("family", DataFamily)
def test_family_accepts_every_dataset_of_its_kind_except_the_small_digits(family: DataFamily, tmp_path: Path) -> None:
    write_cifar(tmp_path, 1)
    write(tmp_path / "cifar-100-binary", cifar_files((20, 100), ["train.bin", "test.bin"], 500))
    write(tmp_path / "fashion-mnist", fashion_files())
    write(tmp_path / "tinystories", tinystories_files())
    is_text = family in (TINYSTORIES, TEXT)
    images, texts = ("cifar10", "cifar100", "fashion-mnist", "procedural-cifar"), ("tinystories", "grammar")
    for name in texts if is_text else images:
        data = load_data(name, str(tmp_path), family=family)
        assert data.name == name
        assert isinstance(data, TextData if is_text else ImageData)
    assert ("digits" in DATASETS[family]) == (family is DIGITS)


@pytest.mark.parametrize(
    ("name", "family"), [("cifar10", CIFAR), ("cifar100", CIFAR), ("fashion-mnist", DIGITS), ("tinystories", TEXT)]
)
def test_named_dataset_has_no_stand_in(name: str, family: DataFamily, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=f"was requested by name but is not in {tmp_path}/a; ") as caught:
        load_data(name, str(tmp_path / "a"), family=family)
    said = str(caught.value)
    assert f"`{esper_command('data', 'fetch', name, '--data-dir', f'{tmp_path}/a')}`" in said
    assert all(part in said for part in (ORIGINALS[name].downloads[0].name, "ESPER_DATA_DIR", "data_dir", "https://"))


@pytest.mark.parametrize("dataset", ["auto", "cifar10"])
def test_damaged_data_has_no_stand_in_even_after_it_was_loaded_once(dataset: str, tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, 7)
    assert load_data(dataset, str(tmp_path), family=CIFAR).name == "cifar10"
    damaged = folder / "data_batch_2.bin"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin is damaged"):
        load_data(dataset, str(tmp_path), family=CIFAR)
    damaged.unlink()
    with pytest.raises(FileNotFoundError, match=r"incomplete, without data_batch_2\.bin"):
        load_data(dataset, str(tmp_path), family=CIFAR)


def test_data_is_loaded_once_and_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, 7)
    first = load_data("auto", str(tmp_path), family=CIFAR)
    monkeypatch.chdir(tmp_path)
    assert load_data("cifar10", ".", family=CIFAR) is first
    assert load_data("digits", family=DIGITS) is load_data("auto", family=DIGITS)
    with pytest.raises(ValueError, match="read-only"):
        first.val_images[:] = 0


def test_changed_files_of_equal_size_are_loaded_again(tmp_path: Path) -> None:
    for fill in (3, 4):
        folder = write_cifar(tmp_path, fill)
        for path in folder.iterdir():
            os.utime(path, ns=(fill, fill))
        assert fill_of(load_data("cifar10", str(tmp_path), family=CIFAR)) == fill


#: For each loader, the files of a dataset, and one of them to damage.
SETS = {
    "cifar10": (lambda: cifar_files((10,), CIFAR10_NAMES, 20), "data_batch_2.bin"),
    "cifar100": (lambda: cifar_files((20, 100), ["train.bin", "test.bin"], 500), "test.bin"),
    "fashion-mnist": (fashion_files, "t10k-labels-idx1-ubyte.gz"),
    "tinystories": (tinystories_files, "TinyStoriesV2-GPT4-valid.txt"),
}


@pytest.mark.parametrize(
    ("name", "missing", "place"),
    [(name, missing, "argument") for name in SETS for missing in (True, False)]
    + [("cifar10", True, "variable"), ("cifar10", True, "default")],
)
def test_errors_about_damage_name_the_repair_command(
    name: str, missing: bool, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, one = SETS[name]
    source, root = ORIGINALS[name], tmp_path / ("cache/esper" if place == "default" else "my data")
    folder = write(root / source.folder, make())
    (folder / one).unlink() if missing else (folder / one).write_bytes(b"short")
    if place == "variable":
        monkeypatch.setenv("ESPER_DATA_DIR", str(root))
    family = TEXT if name == "tinystories" else CIFAR
    with pytest.raises(MissingDataError if missing else DamagedDataError) as caught:
        load_data(name, str(root) if place == "argument" else None, family=family)
    command = esper_command("data", "fetch", name, *([] if place == "default" else ["--data-dir", str(root)]))
    remedy = f"; move {folder if place == 'default' else repr(str(folder))} away, then `{command}`"
    said = str(caught.value)
    assert remedy in said
    assert said.count("esper data fetch") == 1
    assert f"or download {source.originals}" in said
    assert verify_dataset(name, root).detail.endswith(remedy)


@pytest.mark.parametrize("path", ["nul\0", "bad\udce9"])
def test_text_with_an_invalid_path_is_rejected(path: str) -> None:
    with pytest.raises(ValueError, match=r"the path '.*' (has a NUL byte|is not UTF-8 text); expected a path"):
        load_data(path, family=TEXT)


@pytest.mark.parametrize(
    ("dataset", "family", "said"),
    [
        ("", DIGITS, "dataset is ''; expected one of"),
        (None, CIFAR, "dataset is None; expected one of"),
        (123, TEXT, r"dataset is 123; expected one of .* and the path, as a string, of an existing UTF-8 file or "),
        (".", CIFAR, "dataset is '.'; a cifar task accepts"),
        ("~nobody-of-this-name/a", TEXT, "a text task accepts"),
        ("CIFAR10", CIFAR, r"did you mean 'cifar10'\?"),
        ("/nowhere/gramar", TEXT, r"dataset is '/nowhere/gramar'; a text .*; did you mean 'grammar'\?"),
        ("digits", TINYSTORIES, r"dataset is 'digits', a dataset of images; a tinystories task accepts 'auto', "),
        ("grammar", CIFAR, r"dataset is 'grammar', a text; a cifar task accepts 'auto', 'cifar10'"),
        ("a" * 5000, TEXT, "dataset is 'a{99}\\.\\.\\.; a text task accepts"),
    ],
)
def test_unknown_name_is_rejected_with_the_known_ones(dataset: object, family: DataFamily, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load_data(dataset, family=family)
    assert all(repr(known) in str(caught.value) for known in DATASETS[family])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_text_in_a_folder_of_other_bytes_is_read_but_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bad\udce9"
    write(folder, {"book.txt": b"a line of a text\n" * 100})
    monkeypatch.chdir(folder)
    assert load_data("book.txt", family=TEXT).name == "text:book.txt"
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        catalog.absolute_dataset("book.txt", TEXT)


def test_absolute_dataset_changes_only_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somebody")
    cases = {"book.txt": str(tmp_path / "book.txt"), "~/book.txt": "/somebody/book.txt", "/b.txt": "/b.txt"}
    for family in (TEXT, TINYSTORIES):
        for dataset, absolute in (cases | {name: name for name in DATASETS[family]}).items():
            assert catalog.absolute_dataset(dataset, family) == absolute
    assert catalog.absolute_dataset("cifar10", CIFAR) == "cifar10"


def test_import_needs_neither_torch_nor_scikit_learn() -> None:
    code = "import sys, esper_env.data; print(sorted({'torch', 'sklearn'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
