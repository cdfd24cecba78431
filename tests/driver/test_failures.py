"""Operations that fail: told, with their status and what they asked for, to the connections that asked, and to no other;
and requests that Windows refuses before the volume hears of them, which are told to nobody."""

from __future__ import annotations

import pytest

from harness.client import binding as bindings
from harness.client import fileinformation as info
from harness.client import files
from harness.client.errors import FileError
from harness.client.listener import matching
from harness.client.protocol import MASK_FILES, ConnectFlag, Kind, SetFlag, SizeKind

OWN = ConnectFlag.INCLUDE_OWN_PROCESS
FAILED = OWN | ConnectFlag.FAILED_OPERATIONS
TOO_MUCH = 1 << 60
"""More bytes than any volume has, and more than NTFS lets a file have."""
NO_ROOM = {"STATUS_DISK_FULL", "STATUS_INVALID_PARAMETER", "STATUS_FILE_TOO_LARGE"}
OWNED_BY_EVERYONE = bytes.fromhex("0100008014000000000000000000000000000000" + "010100000000000100000000")
"""A self-relative SECURITY_DESCRIPTOR whose owner is S-1-1-0, which no token may give."""


@pytest.fixture
def place(scratch):
    """What the failing operations need: 'a' and 'taken' with data, 'readonly', 'busy' with an open file in it."""
    files.create(scratch / "a", b"text")
    files.create(scratch / "taken", b"text")
    files.create(scratch / "readonly")
    with files.open_file(scratch / "readonly", access=files.WRITE_ATTRIBUTES) as file:
        file.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_READONLY))
    files.mkdir(scratch / "busy")
    with files.open_file(scratch / "busy\\open", access=files.GENERIC_WRITE, disposition=files.CREATE):
        yield scratch
    with files.open_file(scratch / "readonly", access=files.WRITE_ATTRIBUTES) as file:
        file.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_NORMAL))


def opening(path, **options):
    return lambda s: files.open_file(s / path, **options).close()


def through(path, act, *, access, options=files.NON_DIRECTORY_FILE):
    """An operation on a handle with this access; only the operation may fail."""

    def perform(scratch):
        with files.open_file(scratch / path, access=access, options=options) as file:
            act(file, scratch)

    return perform


def set_allocation(file, size):
    data = info.large_integer(size)
    bindings.current().set_information(file.handle, info.FILE_ALLOCATION_INFORMATION, data)


def case(name, kind, path, act, *statuses, second="", value=0, detail=0):
    return pytest.param(kind, path, second, act, set(statuses), value, detail, id=name)


CREATE = {"access": files.GENERIC_WRITE, "disposition": files.CREATE}
MOVE = files.DELETE | files.READ_ATTRIBUTES
DIRECTORY = files.DIRECTORY_FILE

FAILURES = [
    case("open of nothing", Kind.FILE_OPENED, "none", opening("none"), "STATUS_OBJECT_NAME_NOT_FOUND"),
    case(
        "open below nothing",
        Kind.FILE_OPENED,
        "none\\below",
        opening("none\\below"),
        "STATUS_OBJECT_PATH_NOT_FOUND",
    ),
    case(
        "create of what is there",
        Kind.FILE_OPENED,
        "taken",
        opening("taken", **CREATE),
        "STATUS_OBJECT_NAME_COLLISION",
    ),
    case(
        "open of a directory as a file",
        Kind.FILE_OPENED,
        "busy",
        opening("busy"),
        "STATUS_FILE_IS_A_DIRECTORY",
    ),
    case(
        "open of a file as a directory",
        Kind.FILE_OPENED,
        "a",
        opening("a", options=DIRECTORY),
        "STATUS_NOT_A_DIRECTORY",
    ),
    case(
        "open to write to a read-only file",
        Kind.FILE_OPENED,
        "readonly",
        opening("readonly", access=files.GENERIC_WRITE),
        "STATUS_ACCESS_DENIED",
    ),
    case(
        "open of what shares nothing with it",
        Kind.FILE_OPENED,
        "busy\\open",
        opening("busy\\open", share=0),
        "STATUS_SHARING_VIOLATION",
    ),
    case(
        "open with an illegal name",
        Kind.FILE_OPENED,
        "a|b",
        opening("a|b", **CREATE),
        "STATUS_OBJECT_NAME_INVALID",
    ),
    case(
        "write beyond all bounds",
        Kind.FILE_WRITTEN,
        "a",
        through("a", lambda f, s: f.write(b"x", TOO_MUCH), access=files.GENERIC_WRITE),
        *NO_ROOM,
    ),
    case(
        "write to a directory",
        Kind.FILE_WRITTEN,
        "busy",
        through("busy", lambda f, s: f.write(b"x", 0), access=files.GENERIC_WRITE, options=DIRECTORY),
        "STATUS_INVALID_DEVICE_REQUEST",
        "STATUS_INVALID_PARAMETER",
    ),
    case(
        "size beyond all bounds",
        Kind.FILE_SIZE_SET,
        "a",
        through("a", lambda f, s: f.set_end_of_file(TOO_MUCH), access=files.GENERIC_WRITE),
        *NO_ROOM,
        value=TOO_MUCH,
        detail=SizeKind.END_OF_FILE,
    ),
    case(
        "space beyond all bounds",
        Kind.FILE_SIZE_SET,
        "a",
        through("a", lambda f, s: set_allocation(f, TOO_MUCH), access=files.GENERIC_WRITE),
        *NO_ROOM,
        value=TOO_MUCH,
        detail=SizeKind.ALLOCATION,
    ),
    case(
        "size of a directory",
        Kind.FILE_SIZE_SET,
        "busy",
        through("busy", lambda f, s: f.set_end_of_file(1), access=files.GENERIC_WRITE, options=DIRECTORY),
        "STATUS_INVALID_DEVICE_REQUEST",
        "STATUS_INVALID_PARAMETER",
        value=1,
        detail=SizeKind.END_OF_FILE,
    ),
    case(
        "rename to a name that is taken",
        Kind.FILE_RENAMED,
        "a",
        through("a", lambda f, s: f.rename(s / "taken"), access=MOVE),
        "STATUS_OBJECT_NAME_COLLISION",
        second="taken",
    ),
    case(
        "rename over a directory",
        Kind.FILE_RENAMED,
        "a",
        through("a", lambda f, s: f.rename(s / "busy", replace=True), access=MOVE),
        "STATUS_ACCESS_DENIED",
        second="busy",
    ),
    case(
        "rename of a directory with open files",
        Kind.FILE_RENAMED,
        "busy",
        through("busy", lambda f, s: f.rename(s / "idle"), access=MOVE, options=DIRECTORY),
        "STATUS_ACCESS_DENIED",
        second="idle",
    ),
    case(
        "link to a name that is taken",
        Kind.FILE_LINKED,
        "a",
        through("a", lambda f, s: f.link(s / "taken"), access=files.GENERIC_WRITE),
        "STATUS_OBJECT_NAME_COLLISION",
        second="taken",
    ),
    case(
        "link of a directory",
        Kind.FILE_LINKED,
        "busy",
        through("busy", lambda f, s: f.link(s / "idle"), access=files.GENERIC_WRITE, options=DIRECTORY),
        "STATUS_FILE_IS_A_DIRECTORY",
        second="idle",
    ),
    case(
        "attribute that a file cannot have",
        Kind.FILE_ATTRIBUTES_SET,
        "a",
        through(
            "a",
            lambda f, s: f.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_DIRECTORY)),
            access=files.WRITE_ATTRIBUTES,
        ),
        "STATUS_INVALID_PARAMETER",
        value=files.ATTRIBUTE_DIRECTORY,
        detail=SetFlag.ATTRIBUTES,
    ),
    case(
        "time that is none",
        Kind.FILE_ATTRIBUTES_SET,
        "a",
        through(
            "a",
            lambda f, s: f.set_basic(info.BasicInformation(last_write_time=-3)),
            access=files.WRITE_ATTRIBUTES,
        ),
        "STATUS_INVALID_PARAMETER",
        detail=SetFlag.LAST_WRITE_TIME,
    ),
    case(
        "owner whom nobody may give",
        Kind.FILE_SECURITY_SET,
        "a",
        through(
            "a",
            lambda f, s: f.set_security(OWNED_BY_EVERYONE, files.OWNER_SECURITY_INFORMATION),
            access=files.WRITE_OWNER,
        ),
        "STATUS_INVALID_OWNER",
        value=files.OWNER_SECURITY_INFORMATION,
    ),
]


@pytest.mark.fact("N3")
@pytest.mark.parametrize(("kind", "path", "second", "act", "statuses", "value", "detail"), FAILURES)
def test_an_operation_that_fails_is_told_to_who_asked_for_failures_and_to_nobody_else(
    listen, place, kind, path, second, act, statuses, value, detail
):
    asked, other = listen(flags=FAILED), listen(flags=OWN)
    with pytest.raises(FileError) as caught:
        act(place)
    assert caught.value.name in statuses
    files.create(place / "mark")
    mark = matching(Kind.FILE_OPENED, place.device("mark"))
    heard = asked.until("the mark", mark)
    failed = [record for record in heard if record.status]
    assert [record.kind for record in failed] == [kind]
    assert failed[0].status == caught.value.status
    assert failed[0].path.casefold() == place.device(path).casefold()
    assert failed[0].second_path.casefold() == (place.device(second).casefold() if second else "")
    assert (failed[0].value, failed[0].detail) == (value, detail)
    # The other one hears all that the first one hears, but for the failure: not even a number is missing.
    unaffected = other.until("the mark", mark)
    assert [(r.kind, r.path) for r in unaffected] == [(r.kind, r.path) for r in heard if not r.status]
    assert [record.sequence for record in unaffected] == list(range(1, len(unaffected) + 1))


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda f, s: f.set_end_of_file(TOO_MUCH), id="size"),
        pytest.param(lambda f, s: f.write(b"x", TOO_MUCH), id="write"),
        pytest.param(
            lambda f, s: f.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_DIRECTORY)),
            id="attributes",
        ),
        pytest.param(lambda f, s: f.rename(s / "taken"), id="rename"),
        pytest.param(lambda f, s: f.link(s / "taken"), id="link"),
        pytest.param(
            lambda f, s: f.set_security(OWNED_BY_EVERYONE, files.OWNER_SECURITY_INFORMATION), id="owner"
        ),
    ],
)
def test_a_handle_through_which_every_change_failed_is_not_told_when_it_is_closed(listen, place, act):
    listener = listen(flags=FAILED)
    access = files.GENERIC_WRITE | files.DELETE | files.WRITE_OWNER
    with files.open_file(place / "a", access=access) as file, pytest.raises(FileError):
        act(file, place)
    files.create(place / "mark")
    heard = listener.until("the mark", matching(Kind.FILE_OPENED, place.device("mark")))
    assert Kind.FILE_CLOSED not in {record.kind for record in heard}


@pytest.mark.fact("N3")
def test_a_failed_write_is_not_added_to_the_total_of_its_handle(listen, place):
    listener = listen(flags=FAILED)
    with files.open_file(place / "a", access=files.GENERIC_WRITE) as file:
        file.write(b"one", 0)
        with pytest.raises(FileError):
            file.write(b"lost", TOO_MUCH)
        file.write(b"three", 3)
    closed = listener.wait_for("the close", matching(Kind.FILE_CLOSED, place.device("a")))
    assert closed.value == len(b"onethree")
    written = [(r.value, bool(r.status)) for r in listener.records if r.kind == Kind.FILE_WRITTEN]
    assert written == [(3, False), (0, True), (5, False)]


@pytest.mark.fact("N3")
def test_failures_of_kinds_that_were_not_asked_for_are_left_out(listen, place):
    listener = listen(event_mask=Kind.FILE_SIZE_SET.bit, flags=FAILED)
    with pytest.raises(FileError):
        files.open_file(place / "none").close()
    with files.open_file(place / "a", access=files.GENERIC_WRITE) as file, pytest.raises(FileError):
        file.set_end_of_file(TOO_MUCH)
    record = listener.next()
    assert (record.sequence, record.kind) == (1, Kind.FILE_SIZE_SET)


REFUSED = [
    ("write", lambda f, s: f.write(b"x", 0)),
    ("size", lambda f, s: f.set_end_of_file(1)),
    ("space", lambda f, s: set_allocation(f, 1)),
    ("attributes", lambda f, s: f.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_HIDDEN))),
    ("rename", lambda f, s: f.rename(s / "b")),
    ("deletion", lambda f, s: f.set_delete()),
    ("security", lambda f, s: f.set_security()),
]


@pytest.mark.fact("N3")
@pytest.mark.parametrize("act", [act for _, act in REFUSED], ids=[name for name, _ in REFUSED])
def test_what_the_handle_s_access_does_not_allow_never_reaches_the_driver(listen, place, act):
    listener = listen(event_mask=MASK_FILES, flags=FAILED)
    with files.open_file(place / "a", access=files.GENERIC_READ) as file:
        with pytest.raises(FileError, match="STATUS_ACCESS_DENIED"):
            act(file, place)
    files.create(place / "mark")
    heard = listener.until("the mark", matching(Kind.FILE_OPENED, place.device("mark")))
    assert {(record.kind, record.status) for record in heard} == {(Kind.FILE_OPENED, 0)}
    assert files.read(place / "a") == b"text"


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    ("act", "access"),
    [(files.File.rename, MOVE), (files.File.link, files.GENERIC_WRITE)],
    ids=["rename", "link"],
)
def test_a_target_directory_that_is_missing_ends_a_rename_or_link_before_it_begins(
    listen, place, act, access
):
    listener = listen(flags=FAILED)
    with files.open_file(place / "a", access=access) as file:
        with pytest.raises(FileError, match="STATUS_OBJECT_PATH_NOT_FOUND"):
            act(file, place / "none\\b")
    files.create(place / "mark")
    heard = listener.until("the mark", matching(Kind.FILE_OPENED, place.device("mark")))
    assert {(record.kind, record.status) for record in heard} == {(Kind.FILE_OPENED, 0)}
