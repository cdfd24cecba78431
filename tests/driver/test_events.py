"""Events: which file operations are reported, and what a record says of them."""

from __future__ import annotations

import os
import threading
import time

import pytest

from harness.client import binding as bindings
from harness.client import fileinformation as info
from harness.client import files, ntstatus
from harness.client.errors import FileError
from harness.client.listener import matching
from harness.client.protocol import MASK_FILES, ConnectFlag, Kind, RecordFlag, SetFlag, SizeKind

FILETIME_OF_UNIX_EPOCH = 116444736000000000
ATTRIBUTE_ACCESS = files.WRITE_ATTRIBUTES | files.READ_ATTRIBUTES


def of(kind, records):
    return [record for record in records if record.kind == kind]


@pytest.fixture
def until_marked(scratch):
    """All records of a listener up to the making of a file that marks the end."""
    marks = iter(range(1000))

    def collect(listener):
        mark = f"mark-{next(marks)}"
        files.create(scratch / mark)
        return listener.until("the mark", matching(Kind.FILE_OPENED, scratch.device(mark)))[:-1]

    return collect


@pytest.mark.fact("N3")
def test_a_file_that_is_made_is_reported_as_created(listen, scratch):
    listener = listen()
    files.create(scratch / "a")
    record = listener.wait_for("the file", matching(Kind.FILE_OPENED, scratch.device("a")))
    assert (record.detail, record.status) == (files.CREATED, ntstatus.SUCCESS)


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    ("disposition", "result"),
    [
        pytest.param(files.OPEN, files.OPENED, id="open"),
        pytest.param(files.OPEN_IF, files.OPENED, id="open if"),
        pytest.param(files.OVERWRITE, files.OVERWRITTEN, id="overwrite"),
        pytest.param(files.OVERWRITE_IF, files.OVERWRITTEN, id="overwrite if"),
        pytest.param(files.SUPERSEDE, files.SUPERSEDED, id="supersede"),
    ],
)
def test_the_record_of_an_open_says_what_became_of_the_file(listen, scratch, disposition, result):
    files.create(scratch / "a", b"old")
    listener = listen()
    access = files.GENERIC_READ | files.GENERIC_WRITE | files.DELETE
    files.open_file(scratch / "a", access=access, disposition=disposition).close()
    assert listener.wait_for("the open", matching(Kind.FILE_OPENED)).detail == result


@pytest.mark.fact("N3")
def test_a_path_is_the_device_path_and_its_volume_part_is_marked(listen, scratch):
    listener = listen()
    files.create(scratch / "a")
    record = listener.wait_for("the file", matching(Kind.FILE_OPENED))
    assert record.path.casefold() == scratch.device("a").casefold()
    assert record.volume.casefold() == scratch.volume.casefold()


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Grüße.txt", id="umlauts"),
        pytest.param("文件 имя", id="other scripts"),
        pytest.param("\U0001f4be.bin", id="beyond 16 bits"),
        pytest.param("a b  c;,=+[]!", id="odd characters"),
        pytest.param("n" * 200, id="200 characters"),
        pytest.param("lone-\ud800-surrogate", id="unpaired surrogate"),
    ],
)
def test_names_come_through_unchanged(listen, scratch, name):
    listener = listen()
    files.create(scratch / name)
    record = listener.wait_for("the file", matching(Kind.FILE_OPENED))
    assert record.path.rpartition("\\")[2] == name


@pytest.mark.fact("N3")
def test_a_file_in_a_directory_is_reported_with_its_whole_path(listen, scratch):
    files.mkdir(scratch / "one")
    files.mkdir(scratch / "one\\two")
    listener = listen()
    files.create(scratch / "one\\two\\three")
    listener.wait_for("the file", matching(Kind.FILE_OPENED, scratch.device("one\\two\\three")))


@pytest.mark.fact("N3")
def test_a_directory_is_marked_as_one(listen, scratch):
    listener = listen()
    files.mkdir(scratch / "directory")
    files.create(scratch / "file")
    directory = listener.wait_for("the directory", matching(Kind.FILE_OPENED, scratch.device("directory")))
    file = listener.wait_for("the file", matching(Kind.FILE_OPENED, scratch.device("file")))
    assert directory.flags & RecordFlag.DIRECTORY
    assert not file.flags & RecordFlag.DIRECTORY


@pytest.mark.fact("N3")
@pytest.mark.parametrize("size", [1, 4096, 100_000])
def test_a_write_is_reported_with_its_length(listen, scratch, size, until_marked):
    listener = listen()
    files.create(scratch / "a", bytes(size))
    written = of(Kind.FILE_WRITTEN, until_marked(listener))
    assert {record.path.casefold() for record in written} == {scratch.device("a").casefold()}
    assert sum(record.value for record in written) == size


@pytest.mark.fact("N3")
def test_the_lengths_of_several_writes_add_up(listen, scratch, until_marked):
    listener = listen()
    with files.open_file(scratch / "a", access=files.GENERIC_WRITE, disposition=files.CREATE) as file:
        for size in (1, 10, 100, 1000):
            file.write(bytes(size))
    written = of(Kind.FILE_WRITTEN, until_marked(listener))
    assert sum(record.value for record in written) == 1111


@pytest.mark.fact("N3")
def test_the_first_write_is_reported_before_the_file_is_closed(listen, scratch):
    listener = listen()
    with files.open_file(scratch / "a", access=files.GENERIC_WRITE, disposition=files.CREATE) as file:
        file.write(b"text")
        listener.wait_for("the write", matching(Kind.FILE_WRITTEN, scratch.device("a")))


@pytest.mark.fact("N3")
def test_reading_is_not_reported_as_writing(listen, scratch, until_marked):
    files.create(scratch / "a", b"text")
    listener = listen()
    assert files.read(scratch / "a") == b"text"
    assert {record.kind for record in until_marked(listener)} <= {Kind.FILE_OPENED}


@pytest.mark.fact("N3")
def test_a_rename_is_reported_with_both_names(listen, scratch):
    files.create(scratch / "before")
    listener = listen()
    files.rename(scratch / "before", scratch / "after")
    record = listener.wait_for("the rename", matching(Kind.FILE_RENAMED))
    assert record.path.casefold() == scratch.device("before").casefold()
    assert record.second_path.casefold() == scratch.device("after").casefold()


@pytest.mark.fact("N3")
def test_a_rename_into_another_directory_is_reported_with_both_paths(listen, scratch):
    files.create(scratch / "a")
    files.mkdir(scratch / "below")
    listener = listen()
    files.rename(scratch / "a", scratch / "below\\b")
    record = listener.wait_for("the rename", matching(Kind.FILE_RENAMED, scratch.device("a")))
    assert record.second_path.casefold() == scratch.device("below\\b").casefold()


@pytest.mark.fact("N3")
def test_a_renamed_directory_is_marked_as_one_and_its_files_have_the_new_path(listen, scratch):
    files.mkdir(scratch / "old")
    listener = listen()
    files.rename(scratch / "old", scratch / "new")
    files.create(scratch / "new\\a")
    record = listener.wait_for("the rename", matching(Kind.FILE_RENAMED, scratch.device("old")))
    assert record.flags & RecordFlag.DIRECTORY
    listener.wait_for("the file below", matching(Kind.FILE_OPENED, scratch.device("new\\a")))


@pytest.mark.fact("N3")
def test_a_renamed_file_is_reported_under_its_new_name_from_then_on(listen, scratch):
    listener = listen()
    files.create(scratch / "a")
    files.rename(scratch / "a", scratch / "b")
    files.write(scratch / "b", b"text")
    listener.wait_for("the write", matching(Kind.FILE_WRITTEN, scratch.device("b")))


@pytest.mark.fact("N3")
def test_a_rename_that_fails_is_not_reported(listen, scratch, until_marked):
    files.create(scratch / "a")
    files.create(scratch / "b")
    listener = listen()
    with pytest.raises(FileError, match="COLLISION"):
        files.rename(scratch / "a", scratch / "b")
    assert of(Kind.FILE_RENAMED, until_marked(listener)) == []


@pytest.mark.fact("N3")
def test_a_deleted_file_is_reported_once(listen, scratch, until_marked):
    files.create(scratch / "a")
    listener = listen()
    files.delete(scratch / "a")
    deleted = of(Kind.FILE_DELETED, until_marked(listener))
    assert [record.path.casefold() for record in deleted] == [scratch.device("a").casefold()]


@pytest.mark.fact("N3")
def test_a_deletion_is_reported_when_it_happens_not_when_it_is_asked_for(listen, scratch, until_marked):
    files.create(scratch / "a")
    listener = listen()
    access = files.DELETE | files.READ_ATTRIBUTES
    with files.open_file(scratch / "a", access=access) as file:
        file.set_delete()
        assert of(Kind.FILE_DELETED, until_marked(listener)) == []
    listener.wait_for("the deletion", matching(Kind.FILE_DELETED, scratch.device("a")))


@pytest.mark.fact("N3")
def test_a_deletion_that_was_undone_is_not_reported(listen, scratch, until_marked):
    files.create(scratch / "a")
    listener = listen()
    with files.open_file(scratch / "a", access=files.DELETE | files.READ_ATTRIBUTES) as file:
        file.set_delete()
        file.set_delete(False)
    assert of(Kind.FILE_DELETED, until_marked(listener)) == []
    assert files.exists(scratch / "a")


@pytest.mark.fact("N3")
def test_a_file_that_deletes_itself_on_close_is_reported(listen, scratch):
    listener = listen()
    files.open_file(
        scratch / "a",
        access=files.GENERIC_WRITE | files.DELETE,
        disposition=files.CREATE,
        options=files.NON_DIRECTORY_FILE | files.DELETE_ON_CLOSE,
    ).close()
    listener.wait_for("the deletion", matching(Kind.FILE_DELETED, scratch.device("a")))
    assert not files.exists(scratch / "a")


@pytest.mark.fact("N3")
def test_a_deletion_with_posix_semantics_is_reported(listen, scratch):
    files.create(scratch / "a")
    listener = listen()
    with files.open_file(scratch / "a", access=files.DELETE | files.READ_ATTRIBUTES) as file:
        file.delete_posix()
    listener.wait_for("the deletion", matching(Kind.FILE_DELETED, scratch.device("a")))


@pytest.mark.fact("N3")
def test_a_deleted_directory_is_marked_as_one(listen, scratch):
    files.mkdir(scratch / "directory")
    listener = listen()
    with files.open_file(scratch / "directory", access=files.DELETE, options=files.DIRECTORY_FILE) as it:
        it.set_delete()
    record = listener.wait_for("the deletion", matching(Kind.FILE_DELETED, scratch.device("directory")))
    assert record.flags & RecordFlag.DIRECTORY


@pytest.mark.fact("N3")
def test_a_directory_that_is_not_empty_is_not_reported_as_deleted(listen, scratch, until_marked):
    files.mkdir(scratch / "directory")
    files.create(scratch / "directory\\a")
    listener = listen()
    with pytest.raises(FileError, match="NOT_EMPTY"):
        files.delete(scratch / "directory")
    assert of(Kind.FILE_DELETED, until_marked(listener)) == []


@pytest.mark.fact("N3")
def test_operations_that_fail_are_left_out(listen, scratch, until_marked):
    files.create(scratch / "a")
    listener = listen()
    with pytest.raises(FileError, match="NOT_FOUND"):
        files.open_file(scratch / "missing").close()
    with pytest.raises(FileError, match="COLLISION"):
        files.create(scratch / "a")
    assert until_marked(listener) == []


@pytest.mark.fact("N3")
def test_operations_that_fail_are_reported_with_their_status_to_those_who_ask(listen, scratch):
    flags = ConnectFlag.INCLUDE_OWN_PROCESS | ConnectFlag.FAILED_OPERATIONS
    listener = listen(flags=flags)
    with pytest.raises(FileError):
        files.open_file(scratch / "missing").close()
    record = listener.wait_for("the failed open", matching(Kind.FILE_OPENED))
    assert record.status == ntstatus.OBJECT_NAME_NOT_FOUND


@pytest.mark.fact("N6")
def test_a_client_s_own_operations_are_left_out_by_default(listen, scratch, fence):
    listener = listen(flags=0, lifecycle=True)
    listener.next()
    files.create(scratch / "a", b"text")
    files.delete(scratch / "a")
    assert fence(listener) == []


@pytest.mark.fact("N6")
def test_operations_of_other_processes_are_reported_with_their_process(listen, scratch, agent):
    listener = listen(flags=0)
    agent.call("create", scratch / "a", 10)
    for kind in (Kind.FILE_OPENED, Kind.FILE_WRITTEN):
        record = listener.wait_for("the other process's work", matching(kind, scratch.device("a")))
        assert record.process_id == agent.call("process_id")


@pytest.mark.fact("N6")
def test_a_client_s_own_operations_are_reported_to_those_who_ask_with_its_process(listen, scratch):
    listener = listen()
    files.create(scratch / "a", b"text")
    record = listener.wait_for("the write", matching(Kind.FILE_WRITTEN))
    assert record.process_id == os.getpid()


@pytest.mark.fact("C2")
def test_a_record_names_the_thread_that_did_it(listen, scratch):
    listener = listen()
    threads = []

    def create() -> None:
        files.create(scratch / "b")
        threads.append(bindings.current().thread_id)

    files.create(scratch / "a")
    thread = threading.Thread(target=create)
    thread.start()
    thread.join(30)
    first = listener.wait_for("the first file", matching(Kind.FILE_OPENED, scratch.device("a")))
    second = listener.wait_for("the second file", matching(Kind.FILE_OPENED, scratch.device("b")))
    assert [first.thread_id, second.thread_id] == [bindings.current().thread_id, *threads]


@pytest.mark.fact("D2")
def test_a_file_that_a_killed_process_had_open_can_be_deleted_after_it(listen, scratch, agent, observer):
    agent.call("connect", {"event_mask": MASK_FILES})
    agent.call("hold_open", scratch / "a")
    agent.kill()
    observer.wait_for("the killed client's end", matching(Kind.CLIENT_DISCONNECTED))
    listener = listen()
    files.delete(scratch / "a")
    listener.wait_for("the deletion", matching(Kind.FILE_DELETED, scratch.device("a")))


@pytest.mark.fact("N3")
def test_a_record_has_the_time_of_its_operation(listen, scratch):
    listener = listen()
    files.create(scratch / "a")
    files.create(scratch / "b")
    first = listener.wait_for("the first file", matching(Kind.FILE_OPENED, scratch.device("a")))
    second = listener.wait_for("the second file", matching(Kind.FILE_OPENED, scratch.device("b")))
    now = time.time_ns() // 100 + FILETIME_OF_UNIX_EPOCH
    assert 0 <= second.time - first.time < 600 * 10**7
    assert abs(now - second.time) < 600 * 10**7


@pytest.mark.fact("N3")
@pytest.mark.parametrize("size", [0, 4, 5000])
def test_a_set_size_is_reported_with_the_new_size(listen, scratch, size):
    files.create(scratch / "a", b"some text")
    listener = listen()
    with files.open_file(scratch / "a", access=files.GENERIC_WRITE) as file:
        file.set_end_of_file(size)
    record = listener.wait_for("the new size", matching(Kind.FILE_SIZE_SET, scratch.device("a")))
    assert (record.value, record.detail) == (size, SizeKind.END_OF_FILE)


@pytest.mark.fact("N3")
def test_set_attributes_are_reported_with_what_they_are_now(listen, scratch):
    files.create(scratch / "a")
    listener = listen()
    with files.open_file(scratch / "a", access=ATTRIBUTE_ACCESS) as file:
        file.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_HIDDEN))
    record = listener.wait_for("the attributes", matching(Kind.FILE_ATTRIBUTES_SET, scratch.device("a")))
    assert (record.value, record.detail) == (files.ATTRIBUTE_HIDDEN, SetFlag.ATTRIBUTES)


@pytest.mark.fact("N3")
def test_a_set_time_is_reported_as_that(listen, scratch):
    files.create(scratch / "a")
    listener = listen()
    with files.open_file(scratch / "a", access=ATTRIBUTE_ACCESS) as file:
        file.set_basic(info.BasicInformation(creation_time=FILETIME_OF_UNIX_EPOCH))
    record = listener.wait_for("the time", matching(Kind.FILE_ATTRIBUTES_SET, scratch.device("a")))
    assert (record.value, record.detail) == (0, SetFlag.CREATION_TIME)


@pytest.mark.fact("N3")
def test_a_hard_link_is_reported_with_both_names(listen, scratch):
    files.create(scratch / "a")
    listener = listen()
    with files.open_file(scratch / "a", access=files.GENERIC_WRITE) as file:
        file.link(scratch / "b")
    record = listener.wait_for("the link", matching(Kind.FILE_LINKED, scratch.device("a")))
    assert record.second_path.casefold() == scratch.device("b").casefold()


@pytest.mark.fact("N3")
def test_set_security_is_reported_with_what_was_set(listen, scratch):
    files.create(scratch / "a")
    listener = listen()
    with files.open_file(scratch / "a", access=files.WRITE_DAC | files.READ_CONTROL) as file:
        file.set_security()
    record = listener.wait_for("the descriptor", matching(Kind.FILE_SECURITY_SET, scratch.device("a")))
    assert record.value == files.DACL_SECURITY_INFORMATION


@pytest.mark.fact("N3")
def test_a_handle_that_changed_nothing_is_not_reported_when_it_is_closed(listen, scratch, until_marked):
    files.create(scratch / "a", b"text")
    listener = listen()
    files.read(scratch / "a")
    assert of(Kind.FILE_CLOSED, until_marked(listener)) == []


@pytest.mark.fact("N3")
def test_a_handle_that_wrote_is_reported_when_it_is_closed(listen, scratch):
    listener = listen()
    with files.open_file(scratch / "a", access=files.GENERIC_WRITE, disposition=files.CREATE) as file:
        file.write(bytes(100))
        file.write(bytes(11))
    record = listener.wait_for("the close", matching(Kind.FILE_CLOSED, scratch.device("a")))
    assert record.value == 111
    assert record.detail & Kind.FILE_WRITTEN.bit


@pytest.mark.fact("N3")
def test_a_prefix_leaves_out_what_lies_elsewhere(listen, scratch):
    files.mkdir(scratch / "in")
    files.mkdir(scratch / "out")
    listener = listen(path_prefix=scratch.device("in\\"))
    files.create(scratch / "out\\a")
    files.create(scratch / "in\\b")
    record = listener.next()
    assert (record.sequence, record.path.casefold()) == (1, scratch.device("in\\b").casefold())


@pytest.mark.fact("N3")
def test_a_prefix_is_compared_without_regard_to_case(listen, scratch):
    listener = listen(path_prefix=scratch.device("").upper())
    files.create(scratch / "a")
    listener.wait_for("the file", matching(Kind.FILE_OPENED, scratch.device("a")))
