"""What a record carries, field by field: identity, flags, kinds of change, and nothing but zeros where nothing is."""

from __future__ import annotations

import struct

import pytest

from harness.client import binding as bindings
from harness.client import fileinformation as info
from harness.client import files
from harness.client.binding import InstanceInformation
from harness.client.errors import FileError
from harness.client.listener import matching
from harness.client.protocol import (
    MESSAGE_LAYOUT,
    QUEUE_BYTES_MINIMUM,
    RECORD_LAYOUT,
    ConnectFlag,
    Kind,
    RecordFlag,
    SetFlag,
)

FILTER = "Downlink"
ALL_ACCESS = (
    files.GENERIC_READ
    | files.GENERIC_WRITE
    | files.DELETE
    | files.WRITE_DAC
    | files.WRITE_OWNER
    | files.READ_CONTROL
)
SOME_TIME = 132_000_000_000_000_000
"""2019-04-17, 100 ns since 1601."""
GROUP_SECURITY_INFORMATION = 0x2
ADMINISTRATORS = bytes.fromhex("01020000000000052000000020020000")
OWNED_BY_ADMINISTRATORS = (
    struct.pack("<BBHIIII", 1, 0, 0x8004, 20, 20 + len(ADMINISTRATORS), 0, 0)
    + ADMINISTRATORS
    + ADMINISTRATORS
)
"""Self-relative: owner and group S-1-5-32-544, a NULL DACL."""


@pytest.fixture
def until_marked(scratch):
    """All records of a listener up to the making of a file that marks the end."""
    marks = iter(range(1000))

    def collect(listener):
        mark = f"mark-{next(marks)}"
        files.create(scratch / mark)
        return listener.until("the mark", matching(Kind.FILE_OPENED, scratch.device(mark)))[:-1]

    return collect


def file_id(path):
    """FileIdInformation, or FileInternalInformation where the volume has no 128-bit identifiers."""
    binding = bindings.current()
    with files.open_file(path, access=files.READ_ATTRIBUTES, options=0) as file:
        try:
            return binding.query_information(file.handle, info.FILE_ID_INFORMATION, 24)[8:]
        except FileError:
            return binding.query_information(file.handle, info.FILE_INTERNAL_INFORMATION, 8) + bytes(8)


@pytest.mark.fact("N3")
def test_every_record_of_a_file_has_the_identifier_that_the_volume_tells(listen, scratch, until_marked):
    files.create(scratch / "a")
    files.create(scratch / "other")
    expected = file_id(scratch / "a")
    listener = listen()
    with files.open_file(scratch / "a", access=ALL_ACCESS) as file:
        file.write(b"x")
        file.set_end_of_file(5)
        file.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_HIDDEN))
        file.set_security()
        file.link(scratch / "link")
        file.rename(scratch / "b")
    files.delete(scratch / "b")
    files.delete(scratch / "link")
    records = until_marked(listener)
    assert {record.kind for record in records} == {kind for kind in Kind if kind.name.startswith("FILE_")}
    assert {(bool(record.flags & RecordFlag.FILE_ID), record.file_id) for record in records} == {
        (True, expected)
    }
    assert file_id(scratch / "other") != expected


@pytest.mark.fact("N3")
def test_a_failed_open_has_no_identifier(listen, scratch):
    listener = listen(
        event_mask=Kind.FILE_OPENED.bit, flags=ConnectFlag.INCLUDE_OWN_PROCESS | ConnectFlag.FAILED_OPERATIONS
    )
    with pytest.raises(FileError):
        files.open_file(scratch / "none").close()
    record = listener.next()
    assert not record.flags & RecordFlag.FILE_ID
    assert record.file_id == bytes(16)


TIMES = [
    ("creation_time", SetFlag.CREATION_TIME),
    ("last_access_time", SetFlag.LAST_ACCESS_TIME),
    ("last_write_time", SetFlag.LAST_WRITE_TIME),
    ("change_time", SetFlag.CHANGE_TIME),
]


@pytest.mark.fact("N3")
@pytest.mark.parametrize(("name", "flag"), TIMES)
def test_each_time_stamp_has_a_bit_of_its_own(listen, scratch, name, flag):
    files.create(scratch / "a")
    listener = listen(event_mask=Kind.FILE_ATTRIBUTES_SET.bit)
    with files.open_file(scratch / "a", access=files.WRITE_ATTRIBUTES) as file:
        file.set_basic(info.BasicInformation(**{name: SOME_TIME}))
    record = listener.next()
    assert (record.detail, record.value) == (flag, 0)


@pytest.mark.fact("N3")
def test_what_is_set_together_is_told_together(listen, scratch):
    files.create(scratch / "a")
    listener = listen(event_mask=Kind.FILE_ATTRIBUTES_SET.bit)
    everything = dict.fromkeys([name for name, _ in TIMES], SOME_TIME)
    with files.open_file(scratch / "a", access=files.WRITE_ATTRIBUTES) as file:
        file.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_HIDDEN, **everything))
    record = listener.next()
    assert record.detail == sum(flag for _, flag in TIMES) | SetFlag.ATTRIBUTES
    assert record.value == files.ATTRIBUTE_HIDDEN


@pytest.mark.fact("N3")
@pytest.mark.parametrize("time", [0, -1, -2], ids=["leave", "stop", "resume"])
def test_times_that_set_nothing_are_not_told(listen, scratch, until_marked, time):
    files.create(scratch / "a")
    listener = listen()
    with files.open_file(scratch / "a", access=files.WRITE_ATTRIBUTES) as file:
        file.set_basic(info.BasicInformation(last_write_time=time))
    assert {record.kind for record in until_marked(listener)} == {Kind.FILE_OPENED}


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    "information",
    [
        files.OWNER_SECURITY_INFORMATION,
        GROUP_SECURITY_INFORMATION,
        files.DACL_SECURITY_INFORMATION,
        files.OWNER_SECURITY_INFORMATION | GROUP_SECURITY_INFORMATION | files.DACL_SECURITY_INFORMATION,
    ],
    ids=["owner", "group", "list", "all of it"],
)
def test_each_part_of_a_security_descriptor_is_told(listen, scratch, information):
    files.create(scratch / "a")
    listener = listen(event_mask=Kind.FILE_SECURITY_SET.bit)
    with files.open_file(scratch / "a", access=ALL_ACCESS) as file:
        file.set_security(OWNED_BY_ADMINISTRATORS, information)
    record = listener.next()
    assert (record.value, record.path.casefold()) == (information, scratch.device("a").casefold())


CHANGES = [
    ("written", Kind.FILE_WRITTEN, lambda f, s: f.write(b"12345"), 5),
    ("size", Kind.FILE_SIZE_SET, lambda f, s: f.set_end_of_file(9), 0),
    ("renamed", Kind.FILE_RENAMED, lambda f, s: f.rename(s / "b"), 0),
    ("linked", Kind.FILE_LINKED, lambda f, s: f.link(s / "c"), 0),
    (
        "attributes",
        Kind.FILE_ATTRIBUTES_SET,
        lambda f, s: f.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_HIDDEN)),
        0,
    ),
    ("security", Kind.FILE_SECURITY_SET, lambda f, s: f.set_security(), 0),
]


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    ("kind", "act", "value"), [change[1:] for change in CHANGES], ids=[change[0] for change in CHANGES]
)
def test_the_close_of_a_handle_tells_what_was_changed_through_it(listen, scratch, kind, act, value):
    files.create(scratch / "a")
    listener = listen(event_mask=Kind.FILE_CLOSED.bit)
    with files.open_file(scratch / "a", access=ALL_ACCESS) as file:
        act(file, scratch)
    record = listener.next()
    assert (record.detail, record.value) == (kind.bit, value)


@pytest.mark.fact("N3")
def test_the_close_tells_all_changes_of_its_own_handle_and_none_of_another(listen, scratch, until_marked):
    files.create(scratch / "a")
    listener = listen()
    with (
        files.open_file(scratch / "a", access=ALL_ACCESS) as one,
        files.open_file(scratch / "a", access=ALL_ACCESS) as two,
    ):
        one.set_end_of_file(9)
        one.write(b"12345")
        two.set_security()
    closed = [(r.detail, r.value) for r in until_marked(listener) if r.kind == Kind.FILE_CLOSED]
    assert closed == [(Kind.FILE_SECURITY_SET.bit, 0), (Kind.FILE_WRITTEN.bit | Kind.FILE_SIZE_SET.bit, 5)]


@pytest.mark.fact("N3")
def test_everything_that_happens_to_a_directory_is_marked(listen, scratch, until_marked):
    listener = listen()
    files.mkdir(scratch / "one")
    with files.open_file(scratch / "one", access=ALL_ACCESS, options=files.DIRECTORY_FILE) as directory:
        directory.set_basic(info.BasicInformation(creation_time=SOME_TIME))
        directory.set_security()
        directory.rename(scratch / "two")
    files.delete(scratch / "two")
    records = until_marked(listener)
    assert [record.kind for record in records] == [
        Kind.FILE_OPENED,
        Kind.FILE_OPENED,
        Kind.FILE_ATTRIBUTES_SET,
        Kind.FILE_SECURITY_SET,
        Kind.FILE_RENAMED,
        Kind.FILE_CLOSED,
        Kind.FILE_OPENED,
        Kind.FILE_DELETED,
    ]
    assert all(record.flags & RecordFlag.DIRECTORY for record in records)


@pytest.mark.fact("N3")
def test_nothing_that_happens_to_a_file_is_marked_as_a_directory(listen, scratch, until_marked):
    listener = listen()
    files.create(scratch / "a", b"text")
    files.rename(scratch / "a", scratch / "b")
    files.delete(scratch / "b")
    assert not any(record.flags & RecordFlag.DIRECTORY for record in until_marked(listener))


@pytest.mark.fact("N3")
def test_the_path_is_the_file_s_however_it_was_spelt(listen, scratch, observe):
    files.mkdir(scratch / "Directory")
    files.create(scratch / "Directory\\File.Txt")
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    files.open_file(scratch / "DIRECTORY\\fILE.tXT").close()
    record = listener.next()
    observe("normalised name", record.path.removeprefix(scratch.device_path))
    # The directory is as the volume spells it; of the last part the documentation does not say.
    assert record.path in {scratch.device("Directory\\File.Txt"), scratch.device("Directory\\fILE.tXT")}


@pytest.mark.fact("N3")
def test_what_is_written_behind_is_not_told_again(listen, scratch, until_marked):
    listener = listen()
    with files.open_file(scratch / "a", access=files.GENERIC_WRITE, disposition=files.CREATE) as file:
        for _ in range(3):
            file.write(bytes(5000))
            file.flush()
    records = until_marked(listener)
    assert [(r.kind, r.value) for r in records[1:]] == [
        (Kind.FILE_WRITTEN, 5000),
        (Kind.FILE_WRITTEN, 10_000),
        (Kind.FILE_CLOSED, 15_000),
    ]
    # Flushes go by the handle; what the memory manager still writes comes later, before or after this.
    assert {r.kind for r in until_marked(listener)} <= {Kind.FILE_WRITTEN, Kind.FILE_OPENED, Kind.FILE_CLOSED}
    assert sum(r.value for r in listener.records if r.kind == Kind.FILE_WRITTEN) == 15_000


@pytest.mark.fact("S17", "S21")
def test_between_records_and_behind_names_there_are_only_zeros_however_often_the_ring_was_used(
    listen, scratch
):
    listener = listen(event_mask=Kind.FILE_OPENED.bit, queue_bytes=QUEUE_BYTES_MINIMUM)
    ends = set()
    for number in range(60):
        name = f"{number:02}" + "\uffff" * (number % 9)
        files.create(scratch / name)
        listener.wait_for("the file", matching(path=scratch.device(name)))
    for message in listener.messages:
        at = MESSAGE_LAYOUT.size
        while at < len(message.data):
            fields = RECORD_LAYOUT.unpack_from(message.data, at)
            size, paths, reserved = fields[0], fields[-4] + fields[-3], fields[-1]
            behind = message.data[at + RECORD_LAYOUT.size + paths : at + size]
            ends.add(len(behind))
            assert (size % 8, reserved, behind) == (0, 0, bytes(len(behind)))
            at += size
        assert at == len(message.data)
    assert ends == {0, 2, 4, 6}, "names of all lengths were to be tried"


@pytest.mark.fact("L9")
def test_the_filter_is_attached_to_local_file_systems_and_to_no_other():
    binding = bindings.current()
    volumes = binding.volumes()

    def volume_of(instance: InstanceInformation) -> object:
        name = instance.volume.casefold()
        return next(v for v in volumes if name in {v.device_name.casefold(), (v.dos_name or "").casefold()})

    attached = [volume_of(i) for i in binding.instances() if i.filter == FILTER]
    assert attached
    assert {volume.file_system.upper() for volume in attached} <= {"NTFS", "REFS", "FAT", "EXFAT"}
    assert len({volume.device_name for volume in attached}) == len(attached), "two instances on one volume"
