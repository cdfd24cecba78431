"""Files behave with the filter as without it: the filter looks on, it changes nothing."""

from __future__ import annotations

import os
import time

import pytest

from harness.client import fileinformation as info
from harness.client import files
from harness.client.binding import OPERATION_SECONDS
from harness.client.errors import FileError, OperationTimeoutError

READ_WRITE = files.GENERIC_READ | files.GENERIC_WRITE


@pytest.fixture(autouse=True)
def watched(listen):
    """All of it happens under the eyes of a client that asks for everything, and of one that never reads.

    A test here is a few file operations: if it takes long, they wait for somebody.
    """
    clients = listen(), listen(queue_bytes=0x1000)
    started = time.monotonic()
    yield clients
    elapsed = time.monotonic() - started
    if elapsed > OPERATION_SECONDS:
        raise OperationTimeoutError(f"a few file operations took {elapsed:.1f} s: the I/O path waits")


@pytest.mark.fact("N3")
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 70_000])
def test_what_was_written_is_read_back(scratch, size):
    data = os.urandom(size)
    files.create(scratch / "a", data)
    assert files.read(scratch / "a") == data


@pytest.mark.fact("N3")
def test_writing_in_the_middle_and_beyond_the_end_gives_the_file_that_it_should(scratch):
    files.create(scratch / "a", b"0123456789")
    files.write(scratch / "a", b"abc", 4)
    files.write(scratch / "a", b"end", 12)
    assert files.read(scratch / "a") == b"0123abc789\0\0end"


@pytest.mark.fact("N3")
def test_a_handle_s_position_moves_with_reads_and_writes(scratch):
    with files.open_file(scratch / "a", access=READ_WRITE, disposition=files.CREATE) as file:
        assert [file.write(b"one"), file.write(b"two")] == [3, 3]
        assert file.read(6, 0) == b"onetwo"
        assert file.read(6) == b""


@pytest.mark.fact("N3")
def test_overwriting_empties_a_file_first(scratch):
    files.create(scratch / "a", b"old text")
    with files.open_file(scratch / "a", access=files.GENERIC_WRITE, disposition=files.OVERWRITE) as file:
        assert file.information == files.OVERWRITTEN
        file.write(b"new")
    assert files.read(scratch / "a") == b"new"


@pytest.mark.fact("N3")
def test_a_set_size_cuts_or_lengthens_a_file(scratch):
    files.create(scratch / "a", b"0123456789")
    with files.open_file(scratch / "a", access=READ_WRITE) as file:
        file.set_end_of_file(4)
        file.flush()
        assert file.standard().end_of_file == 4
        file.set_end_of_file(6)
        assert file.read(10, 0) == b"0123\0\0"


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    ("action", "status"),
    [
        pytest.param(lambda s: files.open_file(s / "none").close(), "OBJECT_NAME_NOT_FOUND", id="missing"),
        pytest.param(lambda s: files.create(s / "none\\a"), "OBJECT_PATH_NOT_FOUND", id="missing directory"),
        pytest.param(lambda s: files.create(s / "there"), "OBJECT_NAME_COLLISION", id="there already"),
        pytest.param(lambda s: files.open_file(s / "below").close(), "FILE_IS_A_DIRECTORY", id="a directory"),
    ],
)
def test_failures_keep_their_status(scratch, action, status):
    files.create(scratch / "there")
    files.mkdir(scratch / "below")
    with pytest.raises(FileError, match=f"STATUS_{status}"):
        action(scratch)


@pytest.mark.fact("N3")
def test_names_are_found_in_any_case_and_listed_as_they_were_given(scratch):
    files.create(scratch / "Mixed Case.TXT", b"x")
    assert files.read(scratch / "mixed case.txt") == b"x"
    assert [entry.name for entry in files.listdir(scratch.path)] == ["Mixed Case.TXT"]


@pytest.mark.fact("N3")
def test_a_directory_lists_its_entries_with_size_and_kind(scratch):
    files.create(scratch / "file", b"12345")
    files.mkdir(scratch / "directory")
    entries = {entry.name: entry for entry in files.listdir(scratch.path)}
    assert (entries["file"].size, entries["file"].directory) == (5, False)
    assert entries["directory"].directory


@pytest.mark.fact("N3")
def test_renaming_moves_the_content_and_replaces_only_when_asked_to(scratch):
    files.create(scratch / "a", b"a")
    files.create(scratch / "b", b"b")
    with pytest.raises(FileError, match="COLLISION"):
        files.rename(scratch / "a", scratch / "b")
    files.rename(scratch / "a", scratch / "b", replace=True)
    assert files.read(scratch / "b") == b"a"
    assert not files.exists(scratch / "a")


@pytest.mark.fact("N3")
def test_a_file_marked_for_deletion_goes_with_its_last_handle(scratch):
    files.create(scratch / "a")
    access = files.DELETE | files.READ_ATTRIBUTES
    with files.open_file(scratch / "a", access=access) as file:
        file.set_delete()
        with pytest.raises(FileError, match="DELETE_PENDING"):
            files.open_file(scratch / "a").close()
    assert not files.exists(scratch / "a")


@pytest.mark.fact("N3")
def test_attributes_are_kept(scratch):
    files.create(scratch / "a")
    access = files.WRITE_ATTRIBUTES | files.READ_ATTRIBUTES
    with files.open_file(scratch / "a", access=access) as file:
        file.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_HIDDEN))
    with files.open_file(scratch / "a", access=files.READ_ATTRIBUTES) as file:
        assert file.basic().attributes & files.ATTRIBUTE_HIDDEN


@pytest.mark.fact("N3")
def test_a_file_opened_for_itself_alone_cannot_be_opened_again(scratch):
    with files.open_file(scratch / "a", access=files.GENERIC_WRITE, share=0, disposition=files.CREATE):
        with pytest.raises(FileError, match="SHARING_VIOLATION"):
            files.open_file(scratch / "a").close()
    files.open_file(scratch / "a").close()
