"""Every way into a guest does the same: over SFTP, over WinRM alone, and on this host itself."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.remote.guest import Guest
from harness.remote.sftp import Upload
from tests.harness.transport_lab import WAYS, Lab
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.stop()


@pytest.fixture(params=WAYS)
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with lab.guest(request.param) as connected:
        yield connected


def soon(seconds: float = 30) -> Deadline:
    return Deadline.after(seconds=seconds)


def test_a_command_tells_its_exit_code_and_both_outputs(guest: Guest) -> None:
    found = guest.run("echo one & sc query nothing", deadline=soon(), check=False)

    assert found.exit_code == 1060
    assert found.stdout.startswith("one")


def test_input_a_directory_and_variables_reach_the_command(lab: Lab, guest: Guest) -> None:
    lab.path("Downlink", "here").mkdir(parents=True)
    script = "import os,sys;print(os.environ['DOWNLINK_X'], os.path.basename(os.getcwd()), sys.stdin.read())"

    found = guest.run(
        ["python", "-c", script],
        deadline=soon(),
        stdin=b"from the host",
        directory="C:\\Downlink\\here",
        environment={"DOWNLINK_X": "value"},
    )

    assert found.stdout.split() == ["value", "here", "from", "the", "host"]


def test_output_arrives_in_pieces_and_need_not_be_kept(guest: Guest) -> None:
    pieces: list[str] = []

    found = guest.run("echo héllo", deadline=soon(), on_output=pieces.append, keep_output=False)

    assert "".join(pieces).strip() == "héllo"
    assert found.stdout == ""


def test_a_line_that_cmd_would_cut_is_refused(guest: Guest) -> None:
    with pytest.raises(GuestError, match="too long"):
        guest.run("echo " + "x" * 9000, deadline=soon())


def test_a_file_goes_into_directories_that_are_made_and_replaces_an_older_one(
    lab: Lab, guest: Guest, tmp_path: Path
) -> None:
    source = tmp_path / "big.bin"
    target = "C:\\Downlink\\a b\\deep\\big.bin"
    for size in (700_000, 250_001):
        source.write_bytes(os.urandom(size))

        assert guest.put([Upload(source, target)], soon()) == size

        assert lab.path("Downlink", "a b", "deep", "big.bin").read_bytes() == source.read_bytes()
    assert not list(lab.path("Downlink").rglob("*.part"))


def test_an_empty_file_is_a_file(lab: Lab, guest: Guest) -> None:
    guest.put_bytes(b"", "C:\\Downlink\\empty", soon())

    assert lab.path("Downlink", "empty").read_bytes() == b""
    assert guest.size("C:\\Downlink\\empty", soon()) == 0
    assert guest.read_bytes("C:\\Downlink\\empty", soon()) == b""


def test_parts_of_a_file_are_read_as_a_follower_of_a_growing_file_needs_them(lab: Lab, guest: Guest) -> None:
    lab.path("Downlink").mkdir()
    content = os.urandom(100_000)
    lab.path("Downlink", "events").write_bytes(content)
    where = "C:\\Downlink\\events"

    assert guest.size(where, soon()) == 100_000
    assert guest.read_bytes(where, soon()) == content
    assert guest.read_bytes(where, soon(), offset=99_990) == content[99_990:]
    assert guest.read_bytes(where, soon(), offset=10, limit=20) == content[10:30]
    assert guest.read_bytes(where, soon(), offset=100_000) == b""
    assert guest.read_bytes(where, soon(), offset=200_000, limit=5) == b""


def test_what_is_not_there_is_none_and_removing_it_is_fine(guest: Guest) -> None:
    missing = "C:\\Downlink\\no\\such"

    assert guest.read_bytes(missing, soon()) is None
    assert guest.size(missing, soon()) is None
    guest.remove([missing, "C:\\Downlink\\nothing"], soon())


def test_files_are_removed_with_odd_names_too(lab: Lab, guest: Guest) -> None:
    names = ["C:\\Downlink\\a (1) & b.txt", *(f"C:\\Downlink\\{'x' * 100}{number}" for number in range(120))]
    lab.path("Downlink").mkdir()
    for name in names:
        lab.path("Downlink", name.rpartition("\\")[2]).write_bytes(b"x")

    guest.remove(names, soon())

    assert list(lab.path("Downlink").iterdir()) == []


def test_a_directory_is_fetched_with_everything_below_it(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    top = lab.path("Downlink", "results")
    (top / "deeper").mkdir(parents=True)
    (top / "a.txt").write_bytes(b"1")
    (top / "deeper" / "ü b.bin").write_bytes(os.urandom(300_000))

    fetched = guest.get_tree("C:\\Downlink\\results", tmp_path / "got", soon())

    assert {path.relative_to(tmp_path / "got").as_posix() for path in fetched} == {"a.txt", "deeper/ü b.bin"}
    assert (tmp_path / "got" / "deeper" / "ü b.bin").read_bytes() == (top / "deeper" / "ü b.bin").read_bytes()
    assert guest.get_tree("C:\\Downlink\\nowhere", tmp_path / "none", soon()) == []
    assert [
        path.name for path in lab.path("Downlink").iterdir() if path.name not in ("results", "scripts")
    ] == []


def test_a_file_where_a_directory_must_be_is_a_sentence(lab: Lab, guest: Guest) -> None:
    lab.path("Downlink").mkdir()
    lab.path("Downlink", "file").write_bytes(b"x")

    with pytest.raises(GuestError) as caught:
        guest.put_bytes(b"y", "C:\\Downlink\\file\\below", soon())

    assert "below" in caught.value.message and caught.value.machine == "lab"


def test_a_passed_deadline_is_said_before_anything_is_sent(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")

    with pytest.raises(DeadlineExceededError):
        guest.put([Upload(tmp_path / "x", "C:\\Downlink\\x")], Deadline.after(seconds=-1))

    assert not lab.path("Downlink", "x").exists()


def test_an_interrupted_upload_goes_on_where_it_stopped(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(500_000))
    lab.path("Downlink").mkdir()
    for way in ("sftp", "winrm"):
        part = lab.path("Downlink", f"{way}.part")
        part.write_bytes(source.read_bytes()[:400_000])
        with lab.guest(way) as guest:
            sent = guest.put([Upload(source, f"C:\\Downlink\\{way}")], soon(), resume=True)

        assert sent == 100_000
        assert lab.path("Downlink", way).read_bytes() == source.read_bytes()


def test_the_receiver_refuses_a_content_that_is_not_what_was_announced(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(500_000))
    lab.path("Downlink").mkdir()
    lab.path("Downlink", "x.part").write_bytes(os.urandom(400_000))

    with lab.guest("winrm") as guest:
        with pytest.raises(GuestError, match="is not what was sent"):
            guest.put([Upload(source, "C:\\Downlink\\x")], soon(), resume=True)
        assert not lab.path("Downlink", "x.part").exists()
        guest.put([Upload(source, "C:\\Downlink\\x")], soon(), resume=True)

    assert (
        hashlib.sha256(lab.path("Downlink", "x").read_bytes()).digest()
        == hashlib.sha256(source.read_bytes()).digest()
    )


def test_scripts_for_files_are_brought_again_after_a_restore(lab: Lab) -> None:
    with lab.guest("winrm") as guest:
        guest.put_bytes(b"1", "C:\\Downlink\\x", soon())
        for path in sorted(lab.path("Downlink").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

        guest.put_bytes(b"2", "C:\\Downlink\\x", soon())

        assert lab.path("Downlink", "x").read_bytes() == b"2"
        assert guest.read_bytes("C:\\Downlink\\x", soon()) == b"2"


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "C:\\out", "a\\out"])
def test_what_a_guest_packs_cannot_leave_the_directory_it_is_fetched_into(
    lab: Lab, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.path("Downlink", "results").mkdir(parents=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    with lab.guest("winrm") as guest:
        monkeypatch.setattr(guest.files, "read_bytes", lambda *_, **__: packed.getvalue())
        with pytest.raises(GuestError, match="is not fetched"):
            guest.get_tree("C:\\Downlink\\results", tmp_path / "deep" / "got", soon())

    assert not list(tmp_path.rglob("out"))


def test_links_that_a_guest_packs_are_not_fetched(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.path("Downlink", "results").mkdir(parents=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(entry)
    with lab.guest("winrm") as guest:
        monkeypatch.setattr(guest.files, "read_bytes", lambda *_, **__: packed.getvalue())

        assert guest.get_tree("C:\\Downlink\\results", tmp_path / "got", soon()) == []
