"""The in-memory file system: every failure with the status that NTFS gives, and nothing changed then."""

from __future__ import annotations

from typing import Any

import pytest

from vm.emulated.fltmgr import file_links, file_security
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_names import matches
from vm.emulated.fltmgr.file_nodes import Node, Open
from vm.emulated.fltmgr.filesystem import FileSystem, OpenRequest
from vm.emulated.kernel import status as s
from vm.emulated.kernel.objects import StatusError

ALL = n.FILE_GENERIC_READ | n.FILE_GENERIC_WRITE | n.DELETE


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.time = 1000

    def __call__(self) -> int:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fs(clock: Clock) -> FileSystem:
    return FileSystem(clock, capacity_bytes=1 << 20)


def make(fs: FileSystem, path: str, data: bytes = b"", *, directory: bool = False) -> Node:
    opened = open_(fs, path, n.FILE_CREATE, options=n.FILE_DIRECTORY_FILE if directory else 0)
    if data:
        fs.write(opened, 0, data)
    end(fs, opened)
    return opened.node


def open_(fs: FileSystem, path: str, disposition: int = n.FILE_OPEN, **rest: Any) -> Open:
    rest.setdefault("access", ALL)
    rest.setdefault("share", 7)
    return fs.open(OpenRequest(path, disposition=disposition, **rest))[0]


def end(fs: FileSystem, *opens: Open) -> None:
    for opened in opens:
        fs.cleanup(opened)
        fs.close(opened)


def fails(status: int, function: Any, *arguments: Any, **rest: Any) -> None:
    with pytest.raises(StatusError) as caught:
        function(*arguments, **rest)
    assert s.status_name(caught.value.status) == s.status_name(status)


def exists(fs: FileSystem, path: str) -> bool:
    try:
        end(fs, open_(fs, path, access=n.FILE_READ_ATTRIBUTES))
    except StatusError:
        return False
    return True


# Opening


@pytest.mark.parametrize(
    ("disposition", "there", "not_there"),
    [
        (n.FILE_SUPERSEDE, n.FILE_SUPERSEDED, n.FILE_CREATED),
        (n.FILE_OPEN, n.FILE_OPENED, s.STATUS_OBJECT_NAME_NOT_FOUND),
        (n.FILE_CREATE, s.STATUS_OBJECT_NAME_COLLISION, n.FILE_CREATED),
        (n.FILE_OPEN_IF, n.FILE_OPENED, n.FILE_CREATED),
        (n.FILE_OVERWRITE, n.FILE_OVERWRITTEN, s.STATUS_OBJECT_NAME_NOT_FOUND),
        (n.FILE_OVERWRITE_IF, n.FILE_OVERWRITTEN, n.FILE_CREATED),
    ],
)
def test_each_disposition_does_and_tells_what_it_should(
    fs: FileSystem, disposition: int, there: int, not_there: int
) -> None:
    make(fs, "\\old", b"data")
    for path, expected in (("\\old", there), ("\\new", not_there)):
        request = OpenRequest(path, ALL, 7, disposition)
        if expected > 3:
            fails(expected, fs.open, request)
            continue
        opened, information = fs.open(request)
        assert information == expected
        kept = path == "\\old" and disposition in (n.FILE_OPEN, n.FILE_OPEN_IF)
        assert opened.stream.size == (4 if kept else 0)
        end(fs, opened)


def test_names_keep_their_case_and_are_found_in_any(fs: FileSystem) -> None:
    node = make(fs, "\\ReadMe.TXT")
    opened = open_(fs, "\\README.txt")
    assert opened.node is node and opened.path() == "\\ReadMe.TXT"
    fails(s.STATUS_OBJECT_NAME_COLLISION, open_, fs, "\\readme.txt", n.FILE_CREATE)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("\\missing", s.STATUS_OBJECT_NAME_NOT_FOUND),
        ("\\missing\\x", s.STATUS_OBJECT_PATH_NOT_FOUND),
        ("\\file\\x", s.STATUS_OBJECT_PATH_NOT_FOUND),
        ("\\file\\", s.STATUS_OBJECT_NAME_INVALID),
        ("\\a*b", s.STATUS_OBJECT_NAME_INVALID),
        ("\\a\\\\b", s.STATUS_OBJECT_NAME_INVALID),
        ("\\..", s.STATUS_OBJECT_NAME_INVALID),
        ("\\dir\\.\\x", s.STATUS_OBJECT_NAME_INVALID),
        ("\\" + "x" * 256, s.STATUS_OBJECT_NAME_INVALID),
        ("\\a\tb", s.STATUS_OBJECT_NAME_INVALID),
        ("no-backslash", s.STATUS_OBJECT_NAME_INVALID),
        ("\\file:s:$WRONG", s.STATUS_OBJECT_NAME_INVALID),
        ("\\file::", s.STATUS_OBJECT_NAME_INVALID),
        ("\\file:a:$DATA:b", s.STATUS_OBJECT_NAME_INVALID),
    ],
)
def test_a_path_that_cannot_be_opened_says_why(fs: FileSystem, path: str, status: int) -> None:
    make(fs, "\\file")
    make(fs, "\\dir", directory=True)
    fails(status, open_, fs, path)


def test_a_name_of_255_characters_is_the_longest(fs: FileSystem) -> None:
    make(fs, "\\" + "x" * 255)
    fails(s.STATUS_OBJECT_NAME_INVALID, make, fs, "\\" + "y" * 256)
    # Each of these counts as two UTF-16 units.
    fails(s.STATUS_OBJECT_NAME_INVALID, make, fs, "\\" + "\U0001f600" * 128)


def test_directories_and_files_are_not_taken_for_each_other(fs: FileSystem) -> None:
    make(fs, "\\file")
    make(fs, "\\dir", directory=True)
    fails(s.STATUS_NOT_A_DIRECTORY, open_, fs, "\\file", options=n.FILE_DIRECTORY_FILE)
    fails(s.STATUS_FILE_IS_A_DIRECTORY, open_, fs, "\\dir", options=n.FILE_NON_DIRECTORY_FILE)
    fails(s.STATUS_OBJECT_NAME_COLLISION, open_, fs, "\\dir", n.FILE_OVERWRITE_IF)
    opened = open_(fs, "\\dir")
    fails(s.STATUS_INVALID_DEVICE_REQUEST, fs.read, opened, 0, 1)
    fails(s.STATUS_INVALID_DEVICE_REQUEST, fs.write, opened, 0, b"x")


def test_a_file_is_opened_by_its_id_and_relative_to_a_directory(fs: FileSystem) -> None:
    make(fs, "\\dir", directory=True)
    node = make(fs, "\\dir\\file")
    assert node.id128 == node.id.to_bytes(8, "little") + bytes(8)
    assert open_(fs, "", file_id=node.id).node is node
    directory = open_(fs, "\\dir")
    assert open_(fs, "file", related=directory).node is node
    fails(s.STATUS_OBJECT_NAME_INVALID, open_, fs, "\\file", related=directory)
    fails(s.STATUS_INVALID_PARAMETER, open_, fs, "", file_id=12345)
    assert open_(fs, "\\dir\\other", target_directory=True).node is directory.node


@pytest.mark.parametrize(
    ("first_access", "first_share", "access", "share", "allowed"),
    [
        (n.FILE_READ_DATA, 1, n.FILE_READ_DATA, 1, True),
        (n.FILE_READ_DATA, 1, n.FILE_WRITE_DATA, 7, False),
        (n.FILE_WRITE_DATA, 7, n.FILE_READ_DATA, 1, False),
        (n.FILE_WRITE_DATA, 7, n.FILE_READ_DATA, 2, True),
        (n.DELETE, 7, n.FILE_READ_DATA, 3, False),
        (n.FILE_READ_DATA, 3, n.DELETE, 7, False),
        (n.FILE_READ_DATA, 0, n.FILE_READ_ATTRIBUTES, 0, True),
        (n.FILE_READ_ATTRIBUTES, 0, n.FILE_WRITE_DATA, 0, True),
    ],
)
def test_share_access_is_checked_both_ways(
    fs: FileSystem, first_access: int, first_share: int, access: int, share: int, allowed: bool
) -> None:
    make(fs, "\\f")
    first = open_(fs, "\\f", access=first_access, share=first_share)
    if allowed:
        open_(fs, "\\f", access=access, share=share)
    else:
        fails(s.STATUS_SHARING_VIOLATION, open_, fs, "\\f", access=access, share=share)
        fs.cleanup(first)
        open_(fs, "\\f", access=access, share=share)


def test_a_read_only_file_cannot_be_written_replaced_or_deleted(fs: FileSystem) -> None:
    opened = open_(fs, "\\f", n.FILE_CREATE, attributes=n.FILE_ATTRIBUTE_READONLY)
    fs.write(opened, 0, b"the creator may still write")
    end(fs, opened)
    fails(s.STATUS_ACCESS_DENIED, open_, fs, "\\f", access=n.FILE_WRITE_DATA)
    fails(s.STATUS_ACCESS_DENIED, open_, fs, "\\f", n.FILE_OVERWRITE, access=n.FILE_READ_DATA)
    reader = open_(fs, "\\f", access=n.DELETE)
    fails(s.STATUS_CANNOT_DELETE, fs.set_delete, reader, n.FILE_DISPOSITION_DELETE)
    fails(s.STATUS_CANNOT_DELETE, open_, fs, "\\f", access=n.DELETE, options=n.FILE_DELETE_ON_CLOSE)
    fs.set_delete(reader, n.FILE_DISPOSITION_DELETE | n.FILE_DISPOSITION_IGNORE_READONLY_ATTRIBUTE)
    end(fs, reader)
    assert not exists(fs, "\\f")


def test_overwriting_needs_the_hidden_and_system_attributes_it_would_lose(fs: FileSystem) -> None:
    end(fs, open_(fs, "\\f", n.FILE_CREATE, attributes=n.FILE_ATTRIBUTE_HIDDEN))
    fails(s.STATUS_ACCESS_DENIED, open_, fs, "\\f", n.FILE_OVERWRITE)
    open_(fs, "\\f", n.FILE_OVERWRITE, attributes=n.FILE_ATTRIBUTE_HIDDEN)


def test_a_read_only_volume_refuses_every_change(clock: Clock) -> None:
    fs = FileSystem(clock, read_only=True)
    fails(s.STATUS_MEDIA_WRITE_PROTECTED, open_, fs, "\\f", n.FILE_CREATE)


# Data


def test_data_is_read_back_with_zeros_in_the_gaps(fs: FileSystem) -> None:
    opened = open_(fs, "\\f", n.FILE_CREATE)
    assert fs.write(opened, 5, b"abc") == 5
    assert fs.read(opened, 0, 100) == b"\0\0\0\0\0abc"
    assert fs.write(opened, -1, b"d") == 8
    fs.set_end_of_file(opened, 12)
    assert fs.read(opened, 7, 100) == b"cd\0\0\0"
    fs.set_end_of_file(opened, 6)
    assert fs.read(opened, 0, 100) == b"\0\0\0\0\0a"
    fails(s.STATUS_END_OF_FILE, fs.read, opened, 6, 1)
    fails(s.STATUS_INVALID_PARAMETER, fs.set_end_of_file, opened, -1)
    assert fs.read(opened, 6, 0) == b""


def test_a_handle_with_append_access_only_writes_at_the_end(fs: FileSystem) -> None:
    make(fs, "\\f", b"12345")
    opened = open_(fs, "\\f", access=n.FILE_APPEND_DATA)
    assert fs.write(opened, 0, b"6") == 5


def test_a_full_volume_refuses_and_keeps_what_it_has(fs: FileSystem) -> None:
    opened = open_(fs, "\\f", n.FILE_CREATE)
    fs.write(opened, 0, bytes(1 << 19))
    fails(s.STATUS_DISK_FULL, fs.write, opened, 1 << 19, bytes((1 << 19) + 1))
    fails(s.STATUS_DISK_FULL, fs.set_end_of_file, opened, 1 << 40)
    fails(s.STATUS_DISK_FULL, open_, fs, "\\g", n.FILE_CREATE, allocation=1 << 20)
    assert (opened.stream.size, fs.used_bytes, exists(fs, "\\g")) == (1 << 19, 1 << 19, False)
    fs.set_delete(opened, n.FILE_DISPOSITION_DELETE)
    end(fs, opened)
    assert fs.used_bytes == 0


def test_allocation_is_kept_in_clusters_and_cuts_the_file_when_smaller(fs: FileSystem) -> None:
    opened = open_(fs, "\\f", n.FILE_CREATE, allocation=5000)
    assert opened.stream.allocation == 8192 and opened.stream.size == 0
    fs.write(opened, 0, b"x" * 100)
    assert opened.stream.allocation == 8192
    fs.set_allocation(opened, 10)
    assert (opened.stream.size, opened.stream.allocation) == (10, 4096)


def test_times_move_as_the_file_is_used(fs: FileSystem, clock: Clock) -> None:
    opened = open_(fs, "\\f", n.FILE_CREATE)
    clock.time = 2000
    fs.write(opened, 0, b"x")
    times = opened.node.times
    assert (times.creation, times.write, times.change) == (1000, 2000, 2000)
    fs.set_basic(opened, (0, 0, 500, 0), 0)
    clock.time = 3000
    fs.write(opened, 0, b"y")
    assert opened.node.times.write == 500
    assert fs.root.times.write == 1000


def test_attributes_that_do_not_fit_the_object_are_refused(fs: FileSystem) -> None:
    opened = open_(fs, "\\f", n.FILE_CREATE)
    fails(s.STATUS_INVALID_PARAMETER, fs.set_basic, opened, (0, 0, 0, 0), n.FILE_ATTRIBUTE_DIRECTORY)
    fails(s.STATUS_INVALID_PARAMETER, fs.set_basic, opened, (-3, 0, 0, 0), 0)
    fs.set_basic(opened, (0, 0, 0, 0), n.FILE_ATTRIBUTE_NORMAL)
    assert opened.node.shown_attributes == n.FILE_ATTRIBUTE_NORMAL


# Streams


def test_alternate_streams_have_their_own_data_sharing_and_deletion(fs: FileSystem) -> None:
    make(fs, "\\f", b"main")
    stream = open_(fs, "\\f:Side", n.FILE_CREATE, share=0)
    fs.write(stream, 0, b"side data")
    end(fs, open_(fs, "\\f", share=0))
    assert open_(fs, "\\f::$DATA").stream.size == 4
    fails(s.STATUS_SHARING_VIOLATION, open_, fs, "\\f:SIDE:$data")
    assert stream.path() == "\\f:Side"
    fs.set_delete(stream, n.FILE_DISPOSITION_DELETE)
    end(fs, stream)
    fails(s.STATUS_OBJECT_NAME_NOT_FOUND, open_, fs, "\\f:side")
    assert exists(fs, "\\f")


def test_a_stream_can_make_its_file_and_belong_to_a_directory(fs: FileSystem) -> None:
    opened = open_(fs, "\\new:s", n.FILE_OPEN_IF)
    assert opened.stream.name == "s" and exists(fs, "\\new")
    make(fs, "\\dir", directory=True)
    on_directory = open_(fs, "\\dir:s", n.FILE_CREATE)
    fs.write(on_directory, 0, b"x")
    fails(s.STATUS_NOT_A_DIRECTORY, open_, fs, "\\dir:s", options=n.FILE_DIRECTORY_FILE)


def test_overwriting_a_file_removes_its_streams(fs: FileSystem) -> None:
    end(fs, open_(fs, "\\f:s", n.FILE_CREATE))
    end(fs, open_(fs, "\\f", n.FILE_OVERWRITE))
    assert not exists(fs, "\\f:s")


# Deleting


def test_a_file_marked_for_deletion_goes_with_its_last_handle(fs: FileSystem) -> None:
    make(fs, "\\f")
    one, two = open_(fs, "\\f"), open_(fs, "\\f")
    fs.set_delete(one, n.FILE_DISPOSITION_DELETE)
    fails(s.STATUS_DELETE_PENDING, open_, fs, "\\f")
    assert fs.cleanup(one) is False
    fails(s.STATUS_DELETE_PENDING, open_, fs, "\\f", n.FILE_CREATE)
    assert fs.cleanup(two) is True
    make(fs, "\\f")


def test_a_deletion_can_be_taken_back(fs: FileSystem) -> None:
    opened = open_(fs, "\\f", n.FILE_CREATE)
    fs.set_delete(opened, n.FILE_DISPOSITION_DELETE)
    fs.set_delete(opened, 0)
    end(fs, opened)
    assert exists(fs, "\\f")


def test_posix_deletion_frees_the_name_at_once(fs: FileSystem) -> None:
    make(fs, "\\f", b"data")
    other, opened = open_(fs, "\\f"), open_(fs, "\\f")
    fs.set_delete(opened, n.FILE_DISPOSITION_DELETE | n.FILE_DISPOSITION_POSIX_SEMANTICS)
    end(fs, opened)
    make(fs, "\\f", b"new")
    assert fs.read(other, 0, 10) == b"data"
    end(fs, other)
    assert len(fs.nodes) == 2


def test_delete_on_close_needs_the_right_and_acts_at_the_cleanup(fs: FileSystem) -> None:
    fails(
        s.STATUS_INVALID_PARAMETER,
        open_, fs, "\\f", n.FILE_CREATE, access=n.FILE_READ_DATA, options=n.FILE_DELETE_ON_CLOSE,
    )  # fmt: skip
    opened = open_(fs, "\\f", n.FILE_CREATE, options=n.FILE_DELETE_ON_CLOSE)
    other = open_(fs, "\\f")
    end(fs, opened)
    fails(s.STATUS_DELETE_PENDING, open_, fs, "\\f")
    end(fs, other)
    assert not exists(fs, "\\f")


def test_a_directory_with_entries_and_the_root_cannot_be_deleted(fs: FileSystem) -> None:
    make(fs, "\\dir", directory=True)
    node = make(fs, "\\dir\\f")
    directory = open_(fs, "\\dir")
    fails(s.STATUS_DIRECTORY_NOT_EMPTY, fs.set_delete, directory, n.FILE_DISPOSITION_DELETE)
    fails(s.STATUS_CANNOT_DELETE, fs.set_delete, open_(fs, "\\"), n.FILE_DISPOSITION_DELETE)
    fs.remove_link(node.links[0])
    fs.set_delete(directory, n.FILE_DISPOSITION_DELETE)
    fails(s.STATUS_DELETE_PENDING, open_, fs, "\\dir\\new", n.FILE_CREATE)
    end(fs, directory)
    assert not exists(fs, "\\dir")


# Renames and links


def rename(fs: FileSystem, opened: Open, parent: str, name: str, flags: int = 0) -> None:
    file_links.rename(fs, opened, open_(fs, parent, access=n.FILE_READ_ATTRIBUTES).node, name, flags)


def test_a_rename_moves_the_name_and_keeps_the_file(fs: FileSystem) -> None:
    make(fs, "\\dir", directory=True)
    node = make(fs, "\\f", b"data")
    opened = open_(fs, "\\f")
    rename(fs, opened, "\\dir", "G")
    assert opened.path() == "\\dir\\G" and open_(fs, "\\dir\\g").node is node
    assert not exists(fs, "\\f")
    rename(fs, opened, "\\dir", "g")
    assert opened.path() == "\\dir\\g"


def test_a_taken_name_is_replaced_only_when_asked_and_not_open(fs: FileSystem) -> None:
    make(fs, "\\a", b"a")
    target = make(fs, "\\b", b"b")
    opened = open_(fs, "\\a")
    fails(s.STATUS_OBJECT_NAME_COLLISION, rename, fs, opened, "\\", "b")
    held = open_(fs, "\\b")
    fails(s.STATUS_ACCESS_DENIED, rename, fs, opened, "\\", "b", n.FILE_RENAME_REPLACE_IF_EXISTS)
    rename(fs, opened, "\\", "b", n.FILE_RENAME_REPLACE_IF_EXISTS | n.FILE_RENAME_POSIX_SEMANTICS)
    assert fs.read(held, 0, 1) == b"b" and target.links == []
    assert open_(fs, "\\b").node is opened.node


def test_renames_that_cannot_be_are_refused(fs: FileSystem) -> None:
    make(fs, "\\dir", directory=True)
    make(fs, "\\dir\\sub", directory=True)
    make(fs, "\\empty", directory=True)
    file = open_(fs, "\\f", n.FILE_CREATE)
    directory = open_(fs, "\\dir")
    replace = n.FILE_RENAME_REPLACE_IF_EXISTS
    fails(s.STATUS_ACCESS_DENIED, rename, fs, file, "\\", "empty", replace)
    fails(s.STATUS_INVALID_PARAMETER, file_links.rename, fs, directory, directory.node, "x", 0)
    fails(s.STATUS_OBJECT_NAME_INVALID, rename, fs, file, "\\", "a?")
    fails(s.STATUS_INVALID_PARAMETER, rename, fs, open_(fs, "\\"), "\\empty", "x")
    open_(fs, "\\dir\\sub")
    fails(s.STATUS_ACCESS_DENIED, rename, fs, directory, "\\", "other")
    fs.set_delete(file, n.FILE_DISPOSITION_DELETE)
    fails(s.STATUS_DELETE_PENDING, rename, fs, file, "\\", "g")


def test_a_hard_link_is_one_more_name_of_the_same_data(fs: FileSystem) -> None:
    node = make(fs, "\\f", b"data")
    opened = open_(fs, "\\f")
    file_links.hard_link(fs, opened, fs.root, "g", 0)
    assert len(node.links) == 2
    fs.set_delete(opened, n.FILE_DISPOSITION_DELETE)
    end(fs, opened)
    assert not exists(fs, "\\f")
    assert fs.read(open_(fs, "\\g"), 0, 10) == b"data"
    make(fs, "\\dir", directory=True)
    fails(s.STATUS_FILE_IS_A_DIRECTORY, file_links.hard_link, fs, open_(fs, "\\dir"), fs.root, "x", 0)
    fails(s.STATUS_OBJECT_NAME_COLLISION, file_links.hard_link, fs, open_(fs, "\\g"), fs.root, "dir", 0)


def test_a_file_has_at_most_1024_names(fs: FileSystem) -> None:
    opened = open_(fs, "\\f", n.FILE_CREATE)
    for number in range(1023):
        file_links.hard_link(fs, opened, fs.root, f"l{number}", 0)
    fails(file_links.STATUS_TOO_MANY_LINKS, file_links.hard_link, fs, opened, fs.root, "one-more", 0)


def test_a_stream_can_be_renamed(fs: FileSystem) -> None:
    opened = open_(fs, "\\f:one", n.FILE_CREATE)
    file_links.rename(fs, opened, fs.root, ":two:$DATA", 0)
    assert exists(fs, "\\f:two") and not exists(fs, "\\f:one")


# Directories


def test_a_query_goes_on_where_it_stopped_although_the_directory_changes(fs: FileSystem) -> None:
    for name in ("a", "c", "e"):
        make(fs, f"\\{name}")
    root = open_(fs, "\\")
    assert [e.name for e in fs.query_directory(root, "*", restart=True, most=2)] == ["a", "c"]
    make(fs, "\\b")
    make(fs, "\\d")
    assert [e.name for e in fs.query_directory(root, None, restart=False, most=9)] == ["d", "e"]
    fails(s.STATUS_NO_MORE_FILES, fs.query_directory, root, None, restart=False, most=9)
    fails(s.STATUS_NO_SUCH_FILE, fs.query_directory, root, "nothing", restart=True, most=9)


@pytest.mark.parametrize(
    ("expression", "name", "expected"),
    [
        ("*", "anything", True),
        ("*.txt", "A.TXT", True),
        ("*.txt", "a.txt.bak", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("a??", "ab", False),
        ("a>>", "ab", True),
        ("a>>", "abcd", False),
        ("<.txt", "a.b.txt", True),
        ("<", "a.b", False),
        ("<", "noext", True),
        ('a"', "a", True),
        ('a"', "a.", True),
        ('a"', "ab", False),
        ("*a*b*", "xxaxxbxx", True),
        ("*a*b*", "xxbxxaxx", False),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_wildcards_match_as_dos_did(expression: str, name: str, expected: bool) -> None:
    assert matches(expression, name) is expected


# Security descriptors


def test_parts_of_a_security_descriptor_are_taken_and_replaced() -> None:
    owner = bytes.fromhex("01020000000000052000000020020000")
    acl = bytes.fromhex("0200080000000000")
    with_owner = bytes.fromhex("0100008014000000000000000000000000000000") + owner
    with_dacl = bytes.fromhex("0100048000000000000000000000000014000000") + acl
    both = file_security.replace(with_owner, file_security.DACL_SECURITY_INFORMATION, with_dacl)
    assert file_security.select(both, file_security.OWNER_SECURITY_INFORMATION) == with_owner
    assert file_security.select(both, file_security.DACL_SECURITY_INFORMATION) == with_dacl
    fails(s.STATUS_INVALID_SECURITY_DESCR, file_security.replace, b"", 4, b"\1\0\4\0" + bytes(16))
    fails(s.STATUS_INVALID_SECURITY_DESCR, file_security.replace, b"", 4, with_dacl[:22])
