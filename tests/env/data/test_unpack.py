"""What comes out of an archive is what the table names, and nothing gets anywhere else."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from archives import member, packed
from esper_env.data.progress import Progress, Stage, unwatched
from esper_env.data.unpack import ALLOWANCE, UnsafeArchiveError, unpack
from esper_env.data.web import FetchError
from hypothesis import given
from hypothesis import strategies as st

ONE, TWO = b"first file", bytes(3_000)
EXPECTED = {"set/one.bin": len(ONE), "set/two.bin": len(TWO)}
GOOD = [member("set", kind=tarfile.DIRTYPE), member("set/one.bin", ONE), member("set/two.bin", TWO)]


def unpacked(tmp_path: Path, content: bytes) -> dict[str, str]:
    archive = tmp_path / "set.tar.gz"
    archive.write_bytes(content)
    return unpack(archive, EXPECTED, tmp_path / "out", unwatched)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_expected_files_are_written_with_their_checksums(tmp_path: Path) -> None:
    digests = unpacked(tmp_path, packed(GOOD))
    assert digests == {"one.bin": hashlib.sha256(ONE).hexdigest(), "two.bin": hashlib.sha256(TWO).hexdigest()}
    assert (tmp_path / "out" / "one.bin").read_bytes() == ONE
    assert (tmp_path / "out" / "two.bin").read_bytes() == TWO


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_plain_files_are_passed_over(tmp_path: Path, form: int) -> None:
    others = [member("set/readme.html", b"x"), member("set/" + "long/" * 30 + "name", b"y"), member("one.bin", b"z")]
    unpacked(tmp_path, packed([*others, *GOOD], form))
    assert everything(tmp_path) == {"set.tar.gz", "out", "out/one.bin", "out/two.bin"}


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    archive = tmp_path / "set.tar.gz"
    archive.write_bytes(packed(GOOD))
    seen: list[Progress] = []
    unpack(archive, EXPECTED, tmp_path / "out", seen.append)
    assert seen[-1] == Progress(Stage.UNPACK, "two.bin", len(TWO), len(TWO))


SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
HOSTILE = {
    "parent": (member("../evil", b"x"), "leads out of the folder"),
    "parent-inside": (member("set/../../evil", b"x"), "leads out of the folder"),
    "parent-backslash": (member("..\\evil", b"x"), "leads out of the folder"),
    "absolute": (member("/evil", b"x"), "leads out of the folder"),
    "symlink": (member("set/link", kind=SYM, link="/etc"), "neither a plain file nor a folder"),
    "symlink-in-place-of-a-file": (member("set/one.bin", kind=SYM, link="/etc/passwd"), "neither a plain file"),
    "symlink-in-place-of-the-folder": (member("set", kind=SYM, link=".."), "neither a plain file"),
    "hardlink": (member("set/one.bin", kind=HARD, link="../set.tar.gz"), "neither a plain file nor a folder"),
    "character-device": (member("set/one.bin", kind=tarfile.CHRTYPE), "neither a plain file nor a folder"),
    "block-device": (member("set/dev", kind=tarfile.BLKTYPE), "neither a plain file nor a folder"),
    "fifo": (member("set/pipe", kind=tarfile.FIFOTYPE), "neither a plain file nor a folder"),
    "longer": (member("set/one.bin", ONE + b"x"), "11 bytes, expected 10"),
    "shorter": (member("set/one.bin", ONE[:-1]), "9 bytes, expected 10"),
    "folder-in-place-of-a-file": (member("set/one.bin", kind=tarfile.DIRTYPE), "0 bytes, expected 10"),
}


@pytest.mark.parametrize("before", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_as_a_whole(tmp_path: Path, name: str, before: bool) -> None:
    hostile, why = HOSTILE[name]
    others = [header_and_content for header_and_content in GOOD if header_and_content[0].name != hostile[0].name]
    content = packed([hostile, *others] if before else [*others, hostile])
    with pytest.raises(UnsafeArchiveError, match=why) as caught:
        unpacked(tmp_path, content)
    assert "set.tar.gz" in str(caught.value)
    assert everything(tmp_path) <= {"set.tar.gz", "out", "out/one.bin", "out/two.bin"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    """One of the type of plain files, whose content is a map of where its bytes go."""
    header, content = member("set/one.bin", ONE)
    header.pax_headers = {"GNU.sparse.size": str(len(ONE)), "GNU.sparse.map": f"0,{len(ONE)}"}
    with pytest.raises(UnsafeArchiveError, match=r"set/one\.bin', which is neither a plain file nor a folder"):
        unpacked(tmp_path, packed([(header, content), *GOOD[2:]], tarfile.PAX_FORMAT))


def test_a_file_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchiveError, match=r"has set/one.bin twice"):
        unpacked(tmp_path, packed([*GOOD, member("set/one.bin", b"other file")]))
    assert (tmp_path / "out" / "one.bin").read_bytes() == ONE


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"lacks set/two.bin"):
        unpacked(tmp_path, packed(GOOD[:2]))


@pytest.mark.parametrize("name", ["set/bomb", "set/one.bin"])
def test_a_bomb_is_not_unpacked(tmp_path: Path, name: str) -> None:
    bomb = packed([member(name, bytes(50 * ALLOWANCE)), *GOOD])
    assert len(bomb) < ALLOWANCE / 10
    with pytest.raises(UnsafeArchiveError, match=r"unpacks to more than its files can have|bytes, expected 10"):
        unpacked(tmp_path, bomb)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < ALLOWANCE


def test_a_bomb_behind_the_last_file_is_not_unpacked(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchiveError, match="unpacks to more"):
        unpacked(tmp_path, packed(GOOD) + gzip.compress(bytes(50 * ALLOWANCE)))


def test_a_name_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 50 * ALLOWANCE
    endless = gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + b"a" * (50 * ALLOWANCE))
    with pytest.raises(UnsafeArchiveError, match="unpacks to more"):
        unpacked(tmp_path, endless)


@pytest.mark.parametrize("cut", [1, 4, 8, 12, 40, 100])
def test_a_truncated_archive_is_damaged(tmp_path: Path, cut: int) -> None:
    with pytest.raises(FetchError, match="is damaged and cannot be unpacked"):
        unpacked(tmp_path, packed(GOOD)[:-cut])


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", gzip.compress(b"<html>404</html>", mtime=0), gzip.compress(b"", mtime=0)]
)
def test_what_is_no_archive_is_damaged(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(FetchError, match=r"is damaged and cannot be unpacked|lacks set/one.bin"):
        unpacked(tmp_path, content)


def test_headers_nested_without_end_are_damage(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 0
    with pytest.raises(FetchError, match=r"is damaged and cannot be unpacked|unpacks to more"):
        unpacked(tmp_path, gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) * 1_900))


@given(place=st.integers(0, 5_600), byte=st.integers(0, 255))
def test_a_damaged_archive_gives_the_files_or_an_error_that_says_so(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for header, content in GOOD:
            archive.addfile(header, io.BytesIO(content))
    damaged = bytearray(buffer.getvalue())
    damaged[place] = byte
    folder = tmp_path_factory.mktemp("damaged")
    try:
        unpacked(folder, gzip.compress(damaged))
    except FetchError:
        pass
    else:
        assert {path.stat().st_size for path in (folder / "out").iterdir()} == {len(ONE), len(TWO)}
    assert everything(folder) <= {"set.tar.gz", "out", "out/one.bin", "out/two.bin"}
