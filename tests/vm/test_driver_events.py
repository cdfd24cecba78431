"""What Downlink's driver reports of file operations: one record for what really happened, and none for what did not."""

from __future__ import annotations

import struct

import pytest

from harness.client.protocol import MASK_FILES, ConnectFlag, Kind, Record, RecordFlag
from tests.vm.driver_lab import INCLUDE_OWN, Listener, Station, Worker
from vm.emulated.fltmgr import file_io
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_objects import FileObject

VOLUME = "\\Device\\HarddiskVolume2"
SHARING_VIOLATION = 0xC000_0043
OBJECT_NAME_COLLISION = 0xC000_0035
OBJECT_NAME_NOT_FOUND = 0xC000_0034
SIZE_END_OF_FILE, SIZE_ALLOCATION = 1, 2
SET_CREATION, SET_ACCESS, SET_WRITE, SET_CHANGE, SET_ATTRIBUTES = 1, 2, 4, 8, 16
FAILED = ConnectFlag.FAILED_OPERATIONS


@pytest.fixture
def listener(station: Station) -> Listener:
    return station.listener()


@pytest.fixture
def worker(station: Station) -> Worker:
    return station.worker()


def shape(records: list[Record]) -> list[tuple[Kind | int, str, str]]:
    """Kinds and paths without the volume."""
    return [(r.kind, r.path.removeprefix(VOLUME), r.second_path.removeprefix(VOLUME)) for r in records]


def one(records: list[Record], kind: Kind) -> Record:
    found = [record for record in records if record.kind == kind]
    assert len(found) == 1, [r.kind for r in records]
    return found[0]


def test_the_life_of_a_file_is_told_in_order(listener: Listener, worker: Worker) -> None:
    handle = worker.open("D:\\a.txt")
    worker.write(handle, b"12345")
    worker.write(handle, b"678", offset=5)
    worker.close(handle)
    handle = worker.open("D:\\a.txt")
    worker.rename(handle, "b.txt")
    worker.delete(handle)
    worker.close(handle)
    assert shape(listener.records()) == [
        (Kind.FILE_OPENED, "\\a.txt", ""),
        (Kind.FILE_WRITTEN, "\\a.txt", ""),
        (Kind.FILE_WRITTEN, "\\a.txt", ""),
        (Kind.FILE_CLOSED, "\\a.txt", ""),
        (Kind.FILE_OPENED, "\\a.txt", ""),
        (Kind.FILE_RENAMED, "\\a.txt", "\\b.txt"),
        (Kind.FILE_CLOSED, "\\b.txt", ""),
        (Kind.FILE_DELETED, "\\b.txt", ""),
    ]


def test_writes_of_a_handle_are_added_up_behind_the_first(listener: Listener, worker: Worker) -> None:
    handle = worker.open("D:\\a")
    for index in range(10):
        worker.write(handle, b"12345", offset=index * 5)
    worker.close(handle)
    records = listener.of(Kind.FILE_WRITTEN, Kind.FILE_CLOSED)
    assert [(r.kind, r.value) for r in records] == [
        (Kind.FILE_WRITTEN, 5),
        (Kind.FILE_WRITTEN, 45),
        (Kind.FILE_CLOSED, 50),
    ]


def test_one_write_is_told_once(listener: Listener, worker: Worker) -> None:
    worker.file("D:\\a", b"12345")
    assert [r.value for r in listener.of(Kind.FILE_WRITTEN)] == [5]


def test_records_of_a_file_carry_its_identifier(station: Station, listener: Listener, worker: Worker) -> None:
    worker.file("D:\\a", b"1")
    worker.file("D:\\b", b"1")
    by_path: dict[str, set[bytes]] = {}
    for record in listener.records():
        assert record.flags & RecordFlag.FILE_ID
        by_path.setdefault(record.path, set()).add(record.file_id)
    assert all(len(identifiers) == 1 for identifiers in by_path.values())
    (a,), (b,) = by_path[VOLUME + "\\a"], by_path[VOLUME + "\\b"]
    handle = worker.open("D:\\a")
    _, values = worker.client.call("query_information", handle=handle, length=24, **{"class": 59})
    assert values["data"][8:] == a
    assert a != b


def test_requestor_and_time_are_those_of_the_operation(
    station: Station, listener: Listener, worker: Worker
) -> None:
    before = station.kernel.clock.system_time
    worker.file("D:\\a", b"1")
    after = station.kernel.clock.system_time
    for record in listener.records():
        assert record.process_id == worker.process_id
        assert record.thread_id == worker.process_id + 1
        assert before <= record.time <= after


@pytest.mark.parametrize(
    ("kind", "size", "detail"),
    [(n.FileEndOfFileInformation, 3, SIZE_END_OF_FILE), (n.FileAllocationInformation, 4096, SIZE_ALLOCATION)],
)
def test_a_size_that_is_set_is_told(
    listener: Listener, worker: Worker, kind: int, size: int, detail: int
) -> None:
    worker.file("D:\\a", b"1234567")
    handle = worker.open("D:\\a")
    assert worker.set(handle, kind, struct.pack("<q", size)) == 0
    worker.close(handle)
    records = listener.records()
    record = one(records, Kind.FILE_SIZE_SET)
    assert (record.value, record.detail, record.path) == (size, detail, VOLUME + "\\a")
    closed = [r for r in records if r.kind == Kind.FILE_CLOSED][-1]
    assert (closed.detail, closed.value) == (Kind.FILE_SIZE_SET.bit, 0)


@pytest.mark.parametrize(
    ("times", "attributes", "detail"),
    [
        ((0, 0, 0, 0), n.FILE_ATTRIBUTE_HIDDEN, SET_ATTRIBUTES),
        ((10**17, 0, 0, 0), 0, SET_CREATION),
        ((0, 10**17, 10**17, 10**17), 0, SET_ACCESS | SET_WRITE | SET_CHANGE),
        ((-1, -2, 10**17, 0), n.FILE_ATTRIBUTE_SYSTEM, SET_WRITE | SET_ATTRIBUTES),
    ],
)
def test_attributes_and_time_stamps_that_are_set_are_told(
    listener: Listener, worker: Worker, times: tuple[int, ...], attributes: int, detail: int
) -> None:
    handle = worker.open("D:\\a")
    assert worker.set(handle, n.FileBasicInformation, struct.pack("<qqqqI4x", *times, attributes)) == 0
    worker.close(handle)
    record = one(listener.records(), Kind.FILE_ATTRIBUTES_SET)
    assert (record.detail, record.value) == (detail, attributes)


def test_basic_information_that_sets_nothing_is_not_told(listener: Listener, worker: Worker) -> None:
    handle = worker.open("D:\\a")
    assert worker.set(handle, n.FileBasicInformation, struct.pack("<qqqqI4x", 0, -1, -2, 0, 0)) == 0
    worker.close(handle)
    assert [r.kind for r in listener.records()] == [Kind.FILE_OPENED]


def test_security_that_is_set_is_told(listener: Listener, worker: Worker) -> None:
    from vm.emulated.fltmgr.volumes import default_security

    handle = worker.open("D:\\a")
    status, _ = worker.client.call(
        "set_security", handle=handle, information=4, descriptor=default_security()
    )
    assert status == 0
    worker.close(handle)
    records = listener.records()
    assert one(records, Kind.FILE_SECURITY_SET).value == 4
    assert one(records, Kind.FILE_CLOSED).detail == Kind.FILE_SECURITY_SET.bit


def test_a_hard_link_is_told_with_both_names(listener: Listener, worker: Worker) -> None:
    worker.directory("D:\\dir")
    handle = worker.open("D:\\a")
    assert worker.link(handle, "D:\\dir\\b") == 0
    worker.close(handle)
    record = one(listener.records(), Kind.FILE_LINKED)
    assert shape([record]) == [(Kind.FILE_LINKED, "\\a", "\\dir\\b")]


def test_each_name_that_goes_is_told_once(listener: Listener, worker: Worker) -> None:
    handle = worker.open("D:\\a")
    worker.link(handle, "b")
    worker.close(handle)
    for name in ("a", "b"):
        handle = worker.open(f"D:\\{name}")
        worker.delete(handle)
        worker.close(handle)
    deleted = listener.of(Kind.FILE_DELETED)
    assert [r.path for r in deleted] == [VOLUME + "\\a", VOLUME + "\\b"]
    assert len({r.file_id for r in deleted}) == 1


def test_a_deletion_is_told_when_the_last_handle_goes_and_not_before(
    listener: Listener, worker: Worker
) -> None:
    first, second = worker.open("D:\\a"), worker.open("D:\\a")
    worker.delete(first)
    worker.close(first)
    assert not listener.of(Kind.FILE_DELETED)
    worker.close(second)
    assert [r.path for r in listener.of(Kind.FILE_DELETED)] == [VOLUME + "\\a"]


def test_a_deletion_with_posix_semantics_is_told_when_its_own_handle_goes(
    listener: Listener, worker: Worker
) -> None:
    first, second = worker.open("D:\\a"), worker.open("D:\\a")
    worker.delete_posix(first)
    worker.close(first)
    assert len(listener.of(Kind.FILE_DELETED)) == 1
    worker.close(second)
    assert not listener.of(Kind.FILE_DELETED)


@pytest.mark.parametrize("again", [False, True])
def test_a_deletion_that_was_taken_back_is_not_told(listener: Listener, worker: Worker, again: bool) -> None:
    handle = worker.open("D:\\a")
    worker.delete(handle)
    worker.delete(handle, wanted=False)
    if again:
        worker.delete(handle)
    worker.close(handle)
    assert len(listener.of(Kind.FILE_DELETED)) == again


def test_deletion_at_close_is_told(listener: Listener, worker: Worker) -> None:
    options = n.FILE_DELETE_ON_CLOSE | n.FILE_SYNCHRONOUS_IO_NONALERT
    worker.close(worker.open("D:\\a", options=options))
    worker.directory("D:\\dir")
    worker.close(
        worker.open("D:\\dir", options=options | n.FILE_DIRECTORY_FILE, access=n.DELETE | n.SYNCHRONIZE)
    )
    deleted = listener.of(Kind.FILE_DELETED)
    assert [(r.path.removeprefix(VOLUME), bool(r.flags & RecordFlag.DIRECTORY)) for r in deleted] == [
        ("\\a", False),
        ("\\dir", True),
    ]


def test_a_mark_that_was_set_before_anybody_listened_still_counts(station: Station, worker: Worker) -> None:
    handle = worker.open("D:\\a")
    worker.delete(handle)
    listener = station.listener()
    worker.close(handle)
    assert [r.path for r in listener.of(Kind.FILE_DELETED)] == [VOLUME + "\\a"]


def test_a_write_after_a_rename_has_the_new_name(listener: Listener, worker: Worker) -> None:
    handle = worker.open("D:\\a")
    other = worker.open("D:\\a")
    worker.write(handle)
    worker.rename(handle, "b")
    worker.write(other)
    worker.close(handle)
    worker.close(other)
    names = [(r.kind, r.path.removeprefix(VOLUME)) for r in listener.of(Kind.FILE_WRITTEN, Kind.FILE_CLOSED)]
    assert names == [
        (Kind.FILE_WRITTEN, "\\a"),
        (Kind.FILE_WRITTEN, "\\b"),
        (Kind.FILE_CLOSED, "\\b"),
        (Kind.FILE_CLOSED, "\\b"),
    ]


def test_a_rename_while_nobody_listened_to_renames_is_seen_by_later_records(
    station: Station, worker: Worker
) -> None:
    listener = station.listener(event_mask=Kind.FILE_WRITTEN.bit)
    handle = worker.open("D:\\a")
    worker.rename(handle, "b")
    worker.write(handle)
    assert [r.path for r in listener.records()] == [VOLUME + "\\b"]


def test_a_file_that_moved_with_its_directory_has_the_new_path(listener: Listener, worker: Worker) -> None:
    worker.directory("D:\\old")
    worker.file("D:\\old\\a", b"1")
    handle = worker.open(
        "D:\\old",
        access=n.DELETE | n.FILE_GENERIC_READ,
        options=n.FILE_DIRECTORY_FILE | n.FILE_SYNCHRONOUS_IO_NONALERT,
    )
    assert worker.rename(handle, "new") == 0
    worker.close(handle)
    worker.file("D:\\new\\a", b"2")
    records = listener.records()
    renamed = one(records, Kind.FILE_RENAMED)
    assert renamed.flags & RecordFlag.DIRECTORY
    assert shape([renamed]) == [(Kind.FILE_RENAMED, "\\old", "\\new")]
    assert records[-1].path == VOLUME + "\\new\\a"


def test_a_rename_into_another_directory_is_one_record(listener: Listener, worker: Worker) -> None:
    worker.directory("D:\\dir")
    worker.file("D:\\a")
    handle = worker.open("D:\\a")
    listener.records()
    assert worker.rename(handle, "D:\\DIR\\b") == 0
    assert shape(listener.records()) == [(Kind.FILE_RENAMED, "\\a", "\\dir\\b")]


def test_failed_operations_are_told_with_both_names_to_those_who_ask(
    station: Station, worker: Worker
) -> None:
    asking, plain = station.listener(flags=FAILED), station.listener()
    worker.file("D:\\taken")
    handle = worker.open("D:\\a")
    assert worker.rename(handle, "taken") == OBJECT_NAME_COLLISION
    assert worker.link(handle, "D:\\taken") == OBJECT_NAME_COLLISION
    status, _ = worker.try_open("D:\\absent", disposition=n.FILE_OPEN)
    assert status == OBJECT_NAME_NOT_FOUND
    failed = [r for r in asking.records() if r.status]
    assert shape(failed) == [
        (Kind.FILE_RENAMED, "\\a", "\\taken"),
        (Kind.FILE_LINKED, "\\a", "\\taken"),
        (Kind.FILE_OPENED, "\\absent", ""),
    ]
    assert [r.status for r in failed] == [OBJECT_NAME_COLLISION, OBJECT_NAME_COLLISION, OBJECT_NAME_NOT_FOUND]
    assert all(r.status == 0 for r in plain.records())


def test_a_failed_change_does_not_make_a_closed_record(station: Station, worker: Worker) -> None:
    listener = station.listener(flags=FAILED)
    handle = worker.open("D:\\a")
    worker.file("D:\\taken")
    worker.rename(handle, "taken")
    worker.close(handle)
    assert not listener.of(Kind.FILE_CLOSED)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.bit & MASK_FILES])
def test_a_mask_of_one_kind_brings_that_kind_only(station: Station, worker: Worker, kind: Kind) -> None:
    from vm.emulated.fltmgr.volumes import default_security

    listener = station.listener(event_mask=kind.bit)
    handle = worker.open("D:\\a")
    worker.write(handle)
    worker.set(handle, n.FileEndOfFileInformation, struct.pack("<q", 0))
    worker.set(handle, n.FileBasicInformation, struct.pack("<qqqqI4x", 0, 0, 0, 0, 2))
    worker.client.must("set_security", handle=handle, information=4, descriptor=default_security())
    worker.rename(handle, "b")
    worker.link(handle, "c")
    worker.delete(handle)
    worker.close(handle)
    records = listener.records()
    assert {r.kind for r in records} == {kind}
    assert [r.sequence for r in records] == list(range(1, len(records) + 1))


def test_a_listener_does_not_hear_its_own_process_unless_it_asks(station: Station) -> None:
    quiet, loud = station.listener(), station.listener(flags=INCLUDE_OWN)
    for listener in (quiet, loud):
        Worker(listener.client).file(f"D:\\{listener.process_id}", b"1")
    assert {r.process_id for r in quiet.records()} == {loud.process_id}
    assert {r.process_id for r in loud.records()} == {quiet.process_id, loud.process_id}


def test_opening_a_volume_is_not_told(listener: Listener, worker: Worker) -> None:
    status, values = worker.try_open("D:", access=n.FILE_GENERIC_READ, options=n.FILE_SYNCHRONOUS_IO_NONALERT)
    assert status == 0
    worker.close(values["handle"])
    assert not listener.records()


def test_an_alternate_stream_is_told_with_its_name(listener: Listener, worker: Worker) -> None:
    worker.file("D:\\a:more", b"123")
    assert {r.path for r in listener.records()} == {VOLUME + "\\a:more"}


def of_handle(worker: Worker, handle: int) -> FileObject:
    found: FileObject = worker.client.process.handles.get(handle).object.body
    return found


@pytest.mark.parametrize("kind", [n.FileRenameInformation, n.FileLinkInformation])
@pytest.mark.parametrize("length", [2, 0x8000, 0xFFFF_FFFE])
def test_a_name_longer_than_its_buffer_is_not_read(
    station: Station, worker: Worker, kind: int, length: int
) -> None:
    """A driver above may send what the I/O manager would not."""
    listener = station.listener(flags=FAILED)
    file = of_handle(worker, worker.open("D:\\a"))
    listener.records()
    data = struct.pack("<QQI", 0, 0, length)
    status = station.kernel.run(file_io.set_information(station.kernel, file, kind, data), "kernel caller")
    assert status >= 0xC000_0000
    (record,) = listener.records()
    assert (record.path, record.second_path) == (VOLUME + "\\a", "")


@pytest.mark.parametrize(
    ("kind", "length"),
    [(n.FileEndOfFileInformation, 4), (n.FileAllocationInformation, 0), (n.FileBasicInformation, 36)],
)
def test_information_shorter_than_its_structure_is_not_read(
    station: Station, worker: Worker, kind: int, length: int
) -> None:
    listener = station.listener(flags=FAILED)
    file = of_handle(worker, worker.open("D:\\a"))
    listener.records()
    data = b"\x01" * length
    status = station.kernel.run(file_io.set_information(station.kernel, file, kind, data), "kernel caller")
    assert status >= 0xC000_0000
    assert not listener.records()


def test_the_cache_managers_note_of_the_valid_length_is_not_a_size(
    station: Station, listener: Listener, worker: Worker
) -> None:
    """FileEndOfFileInformation with AdvanceOnly: the file has its size already."""
    file = of_handle(worker, worker.open("D:\\a"))
    listener.records()
    kernel = station.kernel
    buffer = kernel.pool.allocate(8, "Test", owner="test")
    for advance_only in (True, False):
        parameters = struct.pack("<I4xI4xQBB6xQ", 8, n.FileEndOfFileInformation, 0, 0, advance_only, buffer)
        work = file_io.simple(kernel, file, n.IRP_MJ_SET_INFORMATION, parameters)
        assert kernel.run(work, "cache manager") == (0, 0)
    assert [r.kind for r in listener.records()] == [Kind.FILE_SIZE_SET]


@pytest.mark.parametrize("answer", ["volume", "nothing"])
def test_without_a_name_the_record_has_volume_and_identifier(
    station: Station, worker: Worker, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    from vm.emulated.fltmgr import names
    from vm.emulated.fltmgr.contexts import drop_instance_contexts
    from vm.emulated.kernel.objects import StatusError
    from vm.emulated.kernel.status import STATUS_FLT_INVALID_NAME_REQUEST

    def refuse(*_: object) -> str:
        raise StatusError(STATUS_FLT_INVALID_NAME_REQUEST)

    here = station.listener(path_prefix=VOLUME.lower() + "\\dir")
    elsewhere = station.listener(path_prefix="\\Device\\HarddiskVolume3\\dir")
    if answer == "nothing":
        # As if the driver had had no memory for the volume's name when it was attached.
        owner = station.machine.manager.find("Downlink")
        assert owner is not None
        for instance in owner.instances:
            station.kernel.run(drop_instance_contexts(station.kernel, instance), "test")
    with monkeypatch.context() as patch:
        patch.setattr(names, "find_name", refuse)
        worker.file("D:\\a", b"1")
    records = here.records()
    assert [r.kind for r in records] == [Kind.FILE_OPENED, Kind.FILE_WRITTEN, Kind.FILE_CLOSED]
    for record in records:
        assert record.flags & RecordFlag.NO_PATH
        assert record.flags & RecordFlag.FILE_ID
        assert record.path == record.volume == (VOLUME if answer == "volume" else "")
    assert bool(elsewhere.records()) == (answer == "nothing")
