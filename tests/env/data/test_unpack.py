"""Archives yield the expected files, and nothing outside of the folder."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest
from archives import member, packed
from esper_env.data.progress import FetchProgress, FetchStage
from esper_env.data.sources import FetchError
from esper_env.data.unpack import ALLOWANCE, UnsafeArchiveError, unpack
from hypothesis import given
from hypothesis import strategies as st

ONE, TWO = b"first file", bytes(3_000)
EXPECTED = {"set/one.bin": len(ONE), "set/two.bin": len(TWO)}
GOOD = [member("set", kind=tarfile.DIRTYPE), member("set/one.bin", ONE), member("set/two.bin", TWO)]
WRITTEN = {"set.tar.gz", "out", "out/one.bin", "out/two.bin"}


def unpack_bytes(tmp_path: Path, content: bytes) -> list[FetchProgress]:
    archive = tmp_path / "set.tar.gz"
    archive.write_bytes(content)
    seen: list[FetchProgress] = []
    unpack(archive, EXPECTED, tmp_path / "out", seen.append)
    return seen


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_unpack_extracts_only_the_expected_files(tmp_path: Path, form: int) -> None:
    others = [
        member("set/readme.html", b"x"),
        member("set/" + "long/" * 30 + "name", b"y"),
        member("one.bin", b"z"),
        member("/evil", b"x"),
        member("..\\evil", b"x"),
        member("set/link", kind=tarfile.SYMTYPE, link="one.bin"),
    ]
    seen = unpack_bytes(tmp_path, packed([*others, *GOOD], form))
    assert names_below(tmp_path) == WRITTEN
    assert (tmp_path / "out" / "one.bin").read_bytes() == ONE
    assert (tmp_path / "out" / "two.bin").read_bytes() == TWO
    assert seen == [FetchProgress(FetchStage.UNPACK, "one.bin"), FetchProgress(FetchStage.UNPACK, "two.bin")]


SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
UNSAFE, SPECIAL = "an unsafe member", "is not a plain file"
HOSTILE = {
    "parent": (member("../evil", b"x"), UNSAFE),
    "parent-inside": (member("set/../../evil", b"x"), UNSAFE),
    "symlink": (member("set/link", kind=SYM, link="/etc"), UNSAFE),
    "symlink-in-place-of-a-file": (member("set/one.bin", kind=SYM, link="/etc/passwd"), UNSAFE),
    "symlink-inside-in-place-of-a-file": (member("set/one.bin", kind=SYM, link="two.bin"), SPECIAL),
    "symlink-in-place-of-the-folder": (member("set", kind=SYM, link=".."), UNSAFE),
    "hardlink": (member("set/one.bin", kind=HARD, link="../set.tar.gz"), UNSAFE),
    "hardlink-inside": (member("set/one.bin", kind=HARD, link="set/two.bin"), SPECIAL),
    "character-device": (member("set/one.bin", kind=tarfile.CHRTYPE), UNSAFE),
    "block-device": (member("set/dev", kind=tarfile.BLKTYPE), UNSAFE),
    "fifo": (member("set/pipe", kind=tarfile.FIFOTYPE), UNSAFE),
    "longer": (member("set/one.bin", ONE + b"x"), "11 bytes, expected 10"),
    "shorter": (member("set/one.bin", ONE[:-1]), "9 bytes, expected 10"),
    "folder-in-place-of-a-file": (member("set/one.bin", kind=tarfile.DIRTYPE), SPECIAL),
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("name", HOSTILE)
def test_unpack_rejects_a_hostile_archive(tmp_path: Path, name: str, first: bool) -> None:
    hostile, why = HOSTILE[name]
    others = [header_and_content for header_and_content in GOOD if header_and_content[0].name != hostile[0].name]
    content = packed([hostile, *others] if first else [*others, hostile])
    with pytest.raises(UnsafeArchiveError, match=rf"set\.tar\.gz has .*{why}"):
        unpack_bytes(tmp_path, content)
    assert names_below(tmp_path) <= WRITTEN
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_unpack_rejects_a_sparse_file(tmp_path: Path) -> None:
    """Its type is that of plain files, and its content is a map of the positions of its bytes."""
    header, content = member("set/one.bin", ONE)
    header.pax_headers = {"GNU.sparse.size": str(len(ONE)), "GNU.sparse.map": f"0,{len(ONE)}"}
    with pytest.raises(UnsafeArchiveError, match=r"set/one\.bin, which is not a plain file"):
        unpack_bytes(tmp_path, packed([(header, content), *GOOD[2:]], tarfile.PAX_FORMAT))


def test_unpack_rejects_duplicate_files(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchiveError, match=r"has set/one.bin twice"):
        unpack_bytes(tmp_path, packed([*GOOD, member("set/one.bin", b"other file")]))
    assert (tmp_path / "out" / "one.bin").read_bytes() == ONE


def test_unpack_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"lacks set/two.bin"):
        unpack_bytes(tmp_path, packed(GOOD[:2]))


def endless_name() -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 50 * ALLOWANCE
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + b"a" * (50 * ALLOWANCE))


BOMBS = {
    "other-member": lambda: packed([member("set/bomb", bytes(50 * ALLOWANCE)), *GOOD]),
    "expected-member": lambda: packed([member("set/one.bin", bytes(50 * ALLOWANCE)), *GOOD]),
    "after-the-last-member": lambda: packed(GOOD) + gzip.compress(bytes(50 * ALLOWANCE)),
    "name": endless_name,
}


@pytest.mark.parametrize("name", BOMBS)
def test_unpack_rejects_a_bomb(tmp_path: Path, name: str) -> None:
    bomb = BOMBS[name]()
    assert len(bomb) < ALLOWANCE / 10
    with pytest.raises(UnsafeArchiveError, match=r"unpacks to more bytes|bytes, expected 10"):
        unpack_bytes(tmp_path, bomb)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < ALLOWANCE


@pytest.mark.parametrize("cut", [1, 4, 8, 12, 40, 100])
def test_unpack_rejects_a_truncated_archive(tmp_path: Path, cut: int) -> None:
    with pytest.raises(FetchError, match="is damaged and cannot be unpacked"):
        unpack_bytes(tmp_path, packed(GOOD)[:-cut])


def nested_headers() -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 0
    return gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) * 1_900)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", gzip.compress(b"<html>404</html>", mtime=0), gzip.compress(b"", mtime=0),
     nested_headers()],
    ids=["empty", "text", "gzipped-text", "gzipped-nothing", "nested-headers"],
)  # fmt: skip
def test_unpack_rejects_other_than_archives(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(FetchError, match=r"is damaged and cannot be unpacked|lacks set/one.bin|unpacks to more"):
        unpack_bytes(tmp_path, content)


@given(place=st.integers(0, 5_600), byte=st.integers(0, 255))
def test_unpack_of_a_damaged_archive_yields_the_files_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    damaged = bytearray(gzip.decompress(packed(GOOD)))
    damaged[place] = byte
    folder = tmp_path_factory.mktemp("damaged")
    try:
        unpack_bytes(folder, gzip.compress(damaged))
    except FetchError:
        pass
    else:
        assert {path.stat().st_size for path in (folder / "out").iterdir()} == {len(ONE), len(TWO)}
    assert names_below(folder) <= WRITTEN


def test_unpack_needs_the_data_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter")  # as in Python 3.11.0 to 3.11.3
    with pytest.raises(FetchError, match=r"use Python 3\.11\.4 or newer"):
        unpack_bytes(tmp_path, packed(GOOD))
    assert not (tmp_path / "out").exists()
