"""Keeping files of the host equal in the guest: one archive, by content, only what changed, and what interrupts it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.remote.archive import digest_of, pack
from harness.remote.channels import ContentError
from harness.remote.guest import Guest
from harness.remote.sync import Sync
from tests.harness.transport_lab import WAYS, Lab
from vm.deadline import Deadline
from vm.errors import ConfigurationError, GuestError

ROOT = "C:\\Downlink\\tree"
MANIFEST = "C:\\Downlink\\tree.json"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.stop()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Four files, two of which lie deeper; one is large and does not shrink."""
    contents = {
        "a.txt": b"one",
        "lib/deep/b.py": b"x = 1\n",
        "lib/c d.bin": os.urandom(400_000),
        "lib/ü.txt": "ü".encode(),
    }
    source = tmp_path / "source"
    made = {}
    for name, content in contents.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        made[name] = path
    return made


def sync(guest: Guest, files: dict[str, Path], **options: Any) -> Sync:
    return guest.sync(files, ROOT, Deadline.after(seconds=30), manifest=MANIFEST, **options)


def there(lab: Lab) -> dict[str, bytes]:
    top = lab.path("Downlink", "tree")
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def contents(files: dict[str, Path]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files.items()}


@pytest.mark.parametrize("way", WAYS)
def test_only_what_changed_is_sent_and_what_vanished_is_removed(
    lab: Lab, files: dict[str, Path], way: str
) -> None:
    with lab.guest(way) as guest:
        first = sync(guest, files)
        assert there(lab) == contents(files)
        second = sync(guest, files)
        files["a.txt"].write_bytes(b"two")
        del files["lib/deep/b.py"]
        third = sync(guest, files)

    assert (first.sent_files, second.sent_files, third.sent_files) == (4, 0, 1)
    assert first.sent_bytes == sum(len(content) for content in contents(files).values()) + len(b"x = 1\n")
    assert first.archive_bytes > 400_000 and first.speed > 0
    assert (second.archive_bytes, second.sent_bytes, str(second)) == (0, 0, "up to date")
    assert third.removed_files == 1 and third.sent_bytes == 3 and third.archive_bytes < 1000
    assert there(lab) == contents(files)
    assert set(json.loads(lab.path("Downlink", "tree.json").read_text("utf-8"))) == set(files)


def test_equal_content_packs_to_equal_bytes_whatever_the_clock_says(
    files: dict[str, Path], tmp_path: Path
) -> None:
    digests = {name: digest_of(path) for name, path in files.items()}
    packed = []
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        for path in files.values():
            os.utime(path, (number * 1000, number * 1000))
        packed.append(pack(dict(reversed(files.items())) if number else files, digests, directory))

    assert packed[0].sha256 == packed[1].sha256
    assert packed[0].path.name == f"{packed[0].sha256}.tgz"
    assert packed[0].path.read_bytes() == packed[1].path.read_bytes()


def test_changed_content_of_the_same_size_gets_another_time(lab: Lab, files: dict[str, Path]) -> None:
    # Python compares size and time of a source with what its byte code was made from.
    place = lab.path("Downlink", "tree", "lib", "deep", "b.py")
    with lab.guest("sftp") as guest:
        sync(guest, files)
        before = place.stat()
        files["lib/deep/b.py"].write_bytes(b"x = 2\n")
        os.utime(files["lib/deep/b.py"], (1, 1))
        sync(guest, files)

    after = place.stat()
    assert after.st_size == before.st_size and after.st_mtime != before.st_mtime


def test_an_archive_that_is_there_already_is_not_sent_again(lab: Lab, files: dict[str, Path]) -> None:
    with lab.guest("sftp") as guest:
        _leave_archive(guest, lab, files)
        done = sync(guest, files)

    assert (done.sent_files, done.archive_bytes) == (4, 0)
    assert there(lab) == contents(files)


@pytest.mark.parametrize("way", ["sftp", "winrm"])
def test_an_archive_that_was_cut_off_is_completed(lab: Lab, files: dict[str, Path], way: str) -> None:
    with lab.guest(way) as guest:
        archive = _leave_archive(guest, lab, files)
        archive.with_name(archive.name + ".part").write_bytes(archive.read_bytes()[:-1000])
        archive.unlink()
        done = sync(guest, files)

    assert done.archive_bytes == 1000
    assert there(lab) == contents(files)


def test_what_a_crash_has_left_of_an_archive_is_replaced(lab: Lab, files: dict[str, Path]) -> None:
    # Files written just before a bugcheck are often filled with zeros.
    with lab.guest("sftp") as guest:
        archive = _leave_archive(guest, lab, files)
        size = archive.stat().st_size
        archive.with_name(archive.name + ".part").write_bytes(bytes(size - 1000))
        archive.unlink()
        done = sync(guest, files)

    assert done.archive_bytes == size
    assert there(lab) == contents(files)


def test_a_guest_that_changes_what_it_stores_is_found_out_before_anything_is_unpacked(
    lab: Lab, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.guest("sftp") as guest:
        put = guest.put

        def put_and_change(uploads: Any, deadline: Deadline, **options: Any) -> int:
            sent = put(uploads, deadline, **options)
            archive = next(lab.path("Downlink", "tree", ".tree").iterdir())
            content = bytearray(archive.read_bytes())
            content[len(content) // 2] ^= 1
            archive.write_bytes(content)
            return sent

        monkeypatch.setattr(guest, "put", put_and_change)
        with pytest.raises(ContentError, match="is not what was sent"):
            sync(guest, files)
        monkeypatch.undo()
        assert not lab.path("Downlink", "tree", "a.txt").exists()
        assert not lab.path("Downlink", "tree.json").exists()

        sync(guest, files)

    assert there(lab) == contents(files)


def test_a_transfer_that_was_interrupted_counts_as_none(
    lab: Lab, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.guest("sftp") as guest:
        sync(guest, files)
        files["a.txt"].write_bytes(b"two")
        with monkeypatch.context() as patch:
            patch.setattr(guest, "verify", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                sync(guest, files)
        assert not lab.path("Downlink", "tree.json").exists()

        assert sync(guest, files).sent_files == 4

    assert there(lab) == contents(files)


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"[]", b'{"a.txt": 1}', b'{"../../Windows/x": "00"}', b'{"C:/x": "00"}']
)
def test_a_manifest_that_is_not_sound_counts_as_none(
    lab: Lab, files: dict[str, Path], content: bytes
) -> None:
    lab.path("Downlink").mkdir()
    lab.path("Downlink", "tree.json").write_bytes(content)
    victim = lab.path("Windows", "x")
    victim.write_bytes(b"stays")

    with lab.guest("sftp") as guest:
        assert sync(guest, files).sent_files == 4

    assert victim.read_bytes() == b"stays"


@pytest.mark.parametrize("name", ["../up.txt", "/top", "C:/x", "a\\b", "a:stream", "", "what?", "a/../../b"])
def test_names_that_would_leave_the_directory_are_refused(
    lab: Lab, files: dict[str, Path], name: str
) -> None:
    with lab.guest("sftp") as guest:
        with pytest.raises(ConfigurationError, match="cannot be called"):
            sync(guest, {name: files["a.txt"]})

    assert not lab.path("Downlink").exists()


def test_a_file_that_is_gone_or_has_changed_meanwhile_is_a_sentence(lab: Lab, files: dict[str, Path]) -> None:
    digests = {name: digest_of(path) for name, path in files.items()}
    files["a.txt"].write_bytes(b"other")
    with lab.guest("sftp") as guest:
        with pytest.raises(ConfigurationError, match=r"a\.txt' has changed while it was sent"):
            sync(guest, files, digests=digests)
        files["a.txt"].unlink()
        with pytest.raises(ConfigurationError, match=r"a\.txt' cannot be read"):
            sync(guest, files)


def test_a_guest_without_tar_is_told_which_windows_has_it(
    lab: Lab, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vm.emulated.guest.commands import catalog

    monkeypatch.setattr(
        catalog, "PROGRAMS", {name: tool for name, tool in catalog.PROGRAMS.items() if name != "tar.exe"}
    )
    with lab.guest("sftp") as guest, pytest.raises(GuestError, match="could not be unpacked") as caught:
        sync(guest, files)

    assert "1803" in (caught.value.hint or "")
    assert not lab.path("Downlink", "tree.json").exists()


def _leave_archive(guest: Guest, lab: Lab, files: dict[str, Path]) -> Path:
    """Interrupt a transfer after the archive has arrived."""
    verify = guest.verify
    guest.verify = _interrupted  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            sync(guest, files)
    finally:
        guest.verify = verify  # type: ignore[method-assign]
    (archive,) = lab.path("Downlink", "tree", ".tree").iterdir()
    return archive


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt
