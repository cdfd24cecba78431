"""Names that are odd, long, longer than a message, and longer than a name can be."""

from __future__ import annotations

import pytest

from harness.client import files
from harness.client.listener import matching
from harness.client.protocol import (
    MESSAGE_BYTES_DEFAULT,
    MESSAGE_BYTES_MINIMUM,
    MESSAGE_LAYOUT,
    PATH_BYTES_MAXIMUM,
    QUEUE_BYTES_MAXIMUM,
    QUEUE_BYTES_MINIMUM,
    RECORD_LAYOUT,
    ConnectFlag,
    Kind,
    RecordFlag,
)

OPENED = Kind.FILE_OPENED.bit
NAME_CHARACTERS = 255
LARGE_MESSAGE = 0x20000


def room(capacity):
    """Characters that the paths of a record have in so many bytes for all of the record."""
    return (capacity // 8 * 8 - RECORD_LAYOUT.size) // 2


def room_in_message(message_bytes):
    return room(message_bytes - MESSAGE_LAYOUT.size)


@pytest.fixture
def deep(scratch):
    """Make directories in each other; returns a function that gives a path of exactly so many characters, as the driver
    tells it, for a file in the deepest directory that leaves room for its name."""

    def path(characters):
        rest = characters - len(scratch.device_path)
        inside = ""
        while rest > NAME_CHARACTERS + 1:
            # What is left for the file's own name must not be empty.
            level = min(NAME_CHARACTERS, rest - 3)
            inside += "\\" + "d" * level
            rest -= level + 1
            if not files.exists(scratch.path + inside):
                files.mkdir(scratch.path + inside)
        return inside + "\\" + "f" * (rest - 1)

    return path


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    "name",
    [
        "CON",
        "aux.txt",
        "NUL",
        "a~1.txt",
        "-rf",
        "100%s%n",
        "'q'",
        ".",
        "...",
        "\u202etxt.exe",
        "\x7f",
        "\ufffe\uffff",
    ],
    ids=ascii,
)
def test_names_that_mean_something_elsewhere_are_just_names(listen, scratch, name):
    listener = listen(event_mask=OPENED | Kind.FILE_RENAMED.bit | Kind.FILE_DELETED.bit)
    odd, plain = rf"{scratch.device_path}\{name}!", rf"{scratch.device_path}\{name}"
    if set(name) == {"."}:
        odd = plain = rf"{scratch.device_path}\{name} "
    files.create(odd)
    if odd != plain:
        files.rename(odd, plain)
    files.delete(plain)
    records = listener.until("the deletion", matching(Kind.FILE_DELETED))
    assert {records[0].path, records[-1].path} == {odd, plain}
    assert {r.second_path for r in records if r.kind == Kind.FILE_RENAMED} <= {plain}


@pytest.mark.fact("N3", "S17")
@pytest.mark.parametrize("excess", [-1, 0, 1, 4], ids=lambda n: f"{n:+}")
def test_a_path_is_cut_where_the_smallest_message_ends(listen, deep, scratch, excess):
    whole = room_in_message(MESSAGE_BYTES_MINIMUM)
    inside = deep(whole + excess)
    listener = listen(event_mask=OPENED, message_bytes=MESSAGE_BYTES_MINIMUM)
    files.create(scratch.path + inside)
    expected = scratch.device_path + inside
    record = listener.next()
    assert record.path == expected[:whole]
    assert bool(record.flags & RecordFlag.PATH_TRUNCATED) == (excess > 0)
    assert not record.flags & RecordFlag.NO_PATH
    assert record.flags & RecordFlag.FILE_ID
    assert record.volume.casefold() == scratch.volume.casefold()
    assert len(listener.messages[0].data) <= MESSAGE_BYTES_MINIMUM


@pytest.mark.fact("N3")
def test_a_path_is_cut_where_the_smallest_queue_ends(listen, deep, scratch):
    whole = room(QUEUE_BYTES_MINIMUM)
    inside = deep(whole + 1)
    listener = listen(event_mask=OPENED, queue_bytes=QUEUE_BYTES_MINIMUM)
    files.create(scratch.path + inside)
    record = listener.next()
    assert record.path == (scratch.device_path + inside)[:whole]
    assert record.flags & RecordFlag.PATH_TRUNCATED


@pytest.mark.fact("N3")
def test_two_paths_that_do_not_fit_together_share_the_room(listen, deep, scratch):
    whole = room_in_message(MESSAGE_BYTES_MINIMUM)
    long = scratch.path + deep(whole - 60)
    files.create(long)
    listener = listen(event_mask=Kind.FILE_RENAMED.bit, message_bytes=MESSAGE_BYTES_MINIMUM)
    target = long[:-1] + "g"
    files.rename(long, target)
    record = listener.next()
    device = scratch.device_path + long.removeprefix(scratch.path)
    assert (record.path, record.second_path) == (device[: whole // 2], (device[:-1] + "g")[: whole // 2])
    assert record.flags & RecordFlag.PATH_TRUNCATED


@pytest.mark.fact("N3")
@pytest.mark.parametrize("short_first", [True, False], ids=["short to long", "long to short"])
def test_a_short_path_leaves_its_room_to_the_long_one(listen, deep, scratch, short_first):
    whole = room_in_message(MESSAGE_BYTES_MINIMUM)
    long = deep(whole - 20)
    paths = [scratch / "s", scratch.path + long]
    expected = [scratch.device("s"), scratch.device_path + long]
    if not short_first:
        paths.reverse()
    files.create(paths[0])
    listener = listen(event_mask=Kind.FILE_RENAMED.bit, message_bytes=MESSAGE_BYTES_MINIMUM)
    files.rename(*paths)
    record = listener.next()
    left = whole - len(expected[0])
    assert whole // 2 < left < len(expected[1]), "the scratch directory's own name does not suit this test"
    expected[1] = expected[1][:left]
    assert [record.path, record.second_path] == (expected if short_first else expected[::-1])
    assert record.flags & RecordFlag.PATH_TRUNCATED


@pytest.mark.fact("N3")
def test_a_cut_path_cuts_nobody_else_s(listen, deep, scratch):
    inside = deep(room_in_message(MESSAGE_BYTES_MINIMUM) + 100)
    small = listen(event_mask=OPENED, message_bytes=MESSAGE_BYTES_MINIMUM)
    large = listen(event_mask=OPENED)
    files.create(scratch.path + inside)
    files.create(scratch / "next")
    assert small.next().flags & RecordFlag.PATH_TRUNCATED
    assert large.next().path == scratch.device_path + inside
    for listener in (small, large):
        record = listener.next()
        assert (record.path, record.sequence) == (scratch.device("next"), 2)
        assert not record.flags & RecordFlag.PATH_TRUNCATED


@pytest.mark.fact("N3")
def test_a_prefix_is_compared_with_the_whole_path_also_where_the_record_cuts_it(listen, deep, scratch):
    inside = deep(room_in_message(MESSAGE_BYTES_MINIMUM) + 200)
    expected = scratch.device_path + inside
    files.create(scratch.path + inside)
    listener = listen(event_mask=OPENED, message_bytes=MESSAGE_BYTES_MINIMUM, path_prefix=expected)
    files.create(scratch.path + inside[:-1])
    files.open_file(scratch.path + inside).close()
    record = listener.next()
    assert (record.sequence, record.detail) == (1, files.OPENED)
    assert expected.startswith(record.path)
    assert record.flags & RecordFlag.PATH_TRUNCATED


@pytest.mark.slow
@pytest.mark.fact("N3")
def test_the_longest_path_is_told_whole_and_a_longer_one_by_its_file_and_volume(
    listen, deep, scratch, observe
):
    longest = PATH_BYTES_MAXIMUM // 2
    inside, beyond = deep(longest), deep(longest + 1)
    flags = ConnectFlag.INCLUDE_OWN_PROCESS | ConnectFlag.FAILED_OPERATIONS
    large = listen(
        event_mask=OPENED, flags=flags, message_bytes=LARGE_MESSAGE, queue_bytes=QUEUE_BYTES_MAXIMUM
    )
    usual = listen(event_mask=OPENED, flags=flags)
    files.create(scratch.path + inside)
    files.create(scratch.path + beyond)
    whole = scratch.device_path + inside
    assert len(whole) == longest
    record = large.next()
    assert (record.path, record.flags & RecordFlag.PATH_TRUNCATED) == (whole, 0)
    cut = usual.next()
    assert cut.path == whole[: room_in_message(MESSAGE_BYTES_DEFAULT)]
    assert cut.flags & RecordFlag.PATH_TRUNCATED
    # No UNICODE_STRING holds this one; what the Filter Manager answers is not documented.
    over = large.next()
    observe("longest path", len(over.path))
    assert over.status == 0 and over.flags & RecordFlag.FILE_ID
    assert over.file_id != record.file_id
    assert over.flags & (RecordFlag.NO_PATH | RecordFlag.PATH_TRUNCATED)
    assert over.volume.casefold() == scratch.volume.casefold()
    if over.flags & RecordFlag.NO_PATH:
        assert over.path == over.volume
    else:
        assert (scratch.device_path + beyond).startswith(over.path)
