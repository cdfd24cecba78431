"""`tar` in the guest: archives that come and go, and none that reaches out of its directory."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

NAMES = {"a.txt": b"alpha", "dir/b.bin": bytes(range(256)) * 500, "dir/deep/c.txt": b""}


def pack(path: Path, names: dict[str, bytes], mode: str = "w:gz") -> None:
    if mode == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, data in names.items():
                zipped.writestr(name, data)
        return
    with tarfile.open(path, mode) as packed:  # type: ignore[call-overload]  # the mode is one of its own
        for name, data in names.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mtime = 1_700_000_000
            packed.addfile(entry, io.BytesIO(data))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "zip"])
def test_archives_are_told_apart_by_what_is_in_them(prompt: Any, mode: str) -> None:
    pack(prompt.path("pack.bin"), NAMES, mode)
    assert prompt("tar -tf pack.bin").lines == list(NAMES)
    prompt.path("out").mkdir()
    result = prompt("tar -xf pack.bin -C out")
    assert (result.code, result.out, result.err) == (0, "", "")
    for name, data in NAMES.items():
        assert prompt.path(f"out/{name}").read_bytes() == data
    assert mode == "zip" or prompt.path("out/a.txt").stat().st_mtime == 1_700_000_000


def test_only_what_is_named_is_extracted_files_and_directories(prompt: Any) -> None:
    pack(prompt.path("pack.tar"), NAMES, "w")
    assert prompt("tar -xvf pack.tar dir").err.splitlines() == ["x dir/b.bin", "x dir/deep/c.txt"]
    assert not prompt.path("a.txt").exists()


@pytest.mark.parametrize(
    "name", ["../out.txt", "dir/../../out.txt", "..\\out.txt", "x/..", "C:/out.txt", "nul"]
)
@pytest.mark.parametrize("mode", ["w", "zip"])
def test_an_entry_that_leads_out_is_refused_and_the_others_are_written(
    prompt: Any, name: str, mode: str
) -> None:
    prompt.path("in").mkdir()
    pack(prompt.path("evil.bin"), {name: b"evil", "good.txt": b"good"}, mode)
    result = prompt("tar -xf evil.bin -C in")
    assert (result.code, "Error exit delayed" in result.err) == (1, True)
    assert prompt.path("in/good.txt").read_bytes() == b"good"
    assert not list(prompt.guest.drive.root.rglob("out.txt"))
    assert not (prompt.guest.drive.root.parent / "out.txt").exists()


def test_an_absolute_name_lands_below_the_directory(prompt: Any) -> None:
    prompt.path("in").mkdir()
    pack(prompt.path("pack.tar"), {"/etc/passwd": b"mine"}, "w")
    assert prompt("tar -xf pack.tar -C in").code == 0
    assert prompt.path("in/etc/passwd").read_bytes() == b"mine"


def test_links_are_refused(prompt: Any) -> None:
    with tarfile.open(prompt.path("pack.tar"), "w") as packed:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        packed.addfile(entry)
    with zipfile.ZipFile(prompt.path("pack.zip"), "w") as zipped:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc")
    for archive in ("pack.tar", "pack.zip"):
        result = prompt(f"tar -xf {archive}")
        assert (result.code, "Can't create link" in result.err) == (1, True)
        assert not prompt.path("link").exists()


@pytest.mark.parametrize("archive", ["new.tar", "new.tar.gz", "new.zip"])
def test_what_is_packed_comes_out_again(prompt: Any, archive: str) -> None:
    for name, data in NAMES.items():
        target = prompt.path(f"src/{name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    assert prompt(f"tar -a -cf {archive} -C src a.txt dir").code == 0
    kind = zipfile.is_zipfile(prompt.path(archive)), prompt.path(archive).read_bytes()[:2] == b"\x1f\x8b"
    assert kind == (archive.endswith(".zip"), archive.endswith(".gz"))
    prompt.path("out").mkdir()
    assert prompt(f"tar -xf {archive} -C out").code == 0
    for name, data in NAMES.items():
        assert prompt.path(f"out/{name}").read_bytes() == data


@pytest.mark.parametrize("mode", ["w:gz", "zip"])
def test_a_truncated_archive_is_an_error(prompt: Any, mode: str) -> None:
    pack(prompt.path("pack.bin"), NAMES, mode)
    data = prompt.path("pack.bin").read_bytes()
    prompt.path("pack.bin").write_bytes(data[: len(data) // 2])
    result = prompt("tar -xf pack.bin")
    assert (result.code, result.err.startswith("tar: ")) == (1, True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tar -xf none.tar", "Failed to open 'none.tar'"),
        ("tar -xf text.txt", "Unrecognized archive format"),
        ("tar -xf text.txt -C nowhere", "could not chdir to 'nowhere'"),
        ("tar -cf new.tar", "no files or directories specified"),
        ("tar -cf new.tar nothing", "Couldn't find file"),
        ("tar -Q", "Option -Q is not supported"),
        ("tar -x", "tape0"),
    ],
)
def test_what_cannot_be_is_said(prompt: Any, line: str, said: str) -> None:
    prompt.path("text.txt").write_text("no archive")
    result = prompt(line)
    assert (result.code, said in result.err) == (1, True)
