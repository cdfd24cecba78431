"""What a connection asked for: path prefixes, failed operations, its own process, and memory within the budget."""

from __future__ import annotations

import pytest

from harness.client import fileinformation as info
from harness.client import files, ntstatus
from harness.client import hresult as hr
from harness.client.errors import FileError, PortError
from harness.client.listener import matching
from harness.client.protocol import (
    MASK_FILES,
    QUEUE_BYTES_MAXIMUM,
    QUEUE_BYTES_MINIMUM,
    ConnectFlag,
    Kind,
    RecordFlag,
)

OWN = ConnectFlag.INCLUDE_OWN_PROCESS
FAILED = OWN | ConnectFlag.FAILED_OPERATIONS
MOVE_ACCESS = files.GENERIC_WRITE | files.DELETE


@pytest.fixture
def sides(scratch):
    """Two directories: 'in' is watched, 'out' is not."""
    files.mkdir(scratch / "in")
    files.mkdir(scratch / "out")
    return scratch


def link(path, target):
    with files.open_file(path, access=files.GENERIC_WRITE) as file:
        file.link(target)


@pytest.mark.fact("N3")
@pytest.mark.parametrize("act", [files.rename, link], ids=["rename", "link"])
@pytest.mark.parametrize(("old", "new"), [("out\\a", "in\\b"), ("in\\a", "out\\b")], ids=["into", "out of"])
def test_a_prefix_lets_through_what_has_either_name_below_it(listen, sides, act, old, new):
    files.create(sides / old)
    listener = listen(
        event_mask=Kind.FILE_RENAMED.bit | Kind.FILE_LINKED.bit, path_prefix=sides.device("in\\")
    )
    act(sides / old, sides / new)
    record = listener.next()
    assert (record.path, record.second_path) == (sides.device(old), sides.device(new))


@pytest.mark.fact("N3")
def test_a_prefix_leaves_out_a_rename_that_lies_elsewhere_with_both_names(listen, sides):
    files.create(sides / "out\\a")
    listener = listen(event_mask=Kind.FILE_RENAMED.bit, path_prefix=sides.device("in\\"))
    files.rename(sides / "out\\a", sides / "out\\b")
    files.rename(sides / "out\\b", sides / "in\\c")
    record = listener.next()
    assert (record.sequence, record.second_path) == (1, sides.device("in\\c"))


@pytest.mark.fact("N3")
@pytest.mark.parametrize(("prefix", "name"), [("GRÜSSE-", "grüsse-1"), ("дом", "ДОМ 2")])
def test_a_prefix_is_compared_without_regard_to_case_in_other_scripts_too(listen, scratch, prefix, name):
    listener = listen(event_mask=Kind.FILE_OPENED.bit, path_prefix=scratch.device(prefix))
    files.create(scratch / "other")
    files.create(scratch / name)
    assert (listener.next().path, listener.records[0].sequence) == (scratch.device(name), 1)


@pytest.mark.fact("N3")
def test_a_prefix_need_not_end_at_a_directory(listen, scratch):
    listener = listen(event_mask=Kind.FILE_OPENED.bit, path_prefix=scratch.device("log-"))
    for name in ("log", "log-1", "other", "log-2"):
        files.create(scratch / name)
    paths = [r.path for r in listener.until("the last", matching(path=scratch.device("log-2")))]
    assert paths == [scratch.device("log-1"), scratch.device("log-2")]


@pytest.mark.fact("N3")
def test_without_a_prefix_everything_is_told(listen, scratch):
    listener = listen(event_mask=Kind.FILE_OPENED.bit, path_prefix="")
    files.create(scratch / "a")
    listener.wait_for("the file", matching(path=scratch.device("a")))


def refused_create(scratch):
    files.create(scratch / "there")


def refused_rename(scratch):
    files.rename(scratch / "there", scratch / "taken")


def refused_link(scratch):
    link(scratch / "there", scratch / "taken")


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    ("kind", "act", "second"),
    [
        pytest.param(Kind.FILE_OPENED, refused_create, None, id="open"),
        pytest.param(Kind.FILE_RENAMED, refused_rename, "taken", id="rename"),
        pytest.param(Kind.FILE_LINKED, refused_link, "taken", id="link"),
    ],
)
def test_a_refused_operation_is_told_with_its_names_to_those_who_ask_and_to_nobody_else(
    listen, scratch, kind, act, second
):
    files.create(scratch / "there")
    files.create(scratch / "taken")
    asked, other = listen(event_mask=kind.bit, flags=FAILED), listen(event_mask=MASK_FILES)
    with pytest.raises(FileError, match="COLLISION"):
        act(scratch)
    files.create(scratch / "mark")
    record = asked.wait_for("the failure", lambda r: r.status != ntstatus.SUCCESS)
    assert (record.kind, record.status) == (kind, ntstatus.OBJECT_NAME_COLLISION)
    assert record.path == scratch.device("there")
    assert record.second_path == (scratch.device(second) if second else "")
    heard = other.until("the mark", matching(Kind.FILE_OPENED, scratch.device("mark")))
    assert {r.status for r in heard} == {ntstatus.SUCCESS}


@pytest.mark.fact("N3")
def test_a_refused_deletion_is_never_told_as_one(listen, scratch):
    files.create(scratch / "a")
    with files.open_file(scratch / "a", access=files.WRITE_ATTRIBUTES) as file:
        file.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_READONLY))
    listener = listen(event_mask=Kind.FILE_DELETED.bit | Kind.FILE_OPENED.bit, flags=FAILED)
    with pytest.raises(FileError, match="CANNOT_DELETE"):
        files.delete(scratch / "a")
    with files.open_file(scratch / "a", access=files.WRITE_ATTRIBUTES) as file:
        file.set_basic(info.BasicInformation(attributes=files.ATTRIBUTE_NORMAL))
    files.create(scratch / "mark")
    heard = listener.until("the mark", matching(Kind.FILE_OPENED, scratch.device("mark")))
    assert Kind.FILE_DELETED not in {r.kind for r in heard}


@pytest.mark.fact("N3")
def test_failed_operations_of_the_own_process_need_both_flags(listen, scratch, agent):
    foreign = listen(event_mask=Kind.FILE_OPENED.bit, flags=ConnectFlag.FAILED_OPERATIONS)
    with pytest.raises(FileError):
        files.open_file(scratch / "mine").close()
    agent.call("perform", scratch.path, [("open_in_vain", ["theirs"])])
    record = foreign.next()
    assert (record.sequence, record.path) == (1, scratch.device("theirs"))
    assert record.process_id == agent.process_id


@pytest.mark.fact("N6")
def test_two_connections_of_one_process_exclude_it_each_for_itself(listen, scratch, agent):
    without, including = (
        listen(event_mask=Kind.FILE_OPENED.bit, flags=0),
        listen(event_mask=Kind.FILE_OPENED.bit),
    )
    files.create(scratch / "mine")
    agent.call("create", scratch / "theirs")
    assert without.next().path == scratch.device("theirs")
    assert [including.next().path for _ in range(2)] == [scratch.device("mine"), scratch.device("theirs")]


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    "name", [" leading", "trailing.", "trailing ", "..a", "a" * 255, "\udfff\ud800", "a\u0301", "\ufeff"]
)
def test_odd_names_come_through_unchanged(listen, scratch, name):
    listener = listen(event_mask=Kind.FILE_OPENED.bit | Kind.FILE_DELETED.bit)
    device = rf"{scratch.device_path}\{name}"
    # By the device path: nobody tidies names up on the way there.
    files.create(device)
    files.delete(device)
    records = listener.until("the deletion", matching(Kind.FILE_DELETED))
    assert {record.path for record in records} == {device}


@pytest.mark.fact("N3")
def test_a_path_of_thousands_of_characters_is_told_whole(listen, scratch):
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    path = scratch.device_path
    for level in range(20):
        path += f"\\{level:02}-{'d' * 200}"
        files.mkdir(path)
    files.create(f"{path}\\file")
    record = listener.wait_for("the file", lambda r: r.path.endswith("\\file"))
    assert record.path == f"{path}\\file"
    assert len(record.path) > 4000
    assert not record.flags & (RecordFlag.PATH_TRUNCATED | RecordFlag.NO_PATH)


@pytest.mark.fact("C6")
def test_queues_beyond_the_memory_budget_are_refused_and_give_it_back(listen, scratch):
    large = []
    with pytest.raises(PortError) as caught:
        for _ in range(8):
            large.append(listen(queue_bytes=QUEUE_BYTES_MAXIMUM))
    assert caught.value.hresult == hr.NO_SYSTEM_RESOURCES
    assert 1 <= len(large) < 8
    small = listen(queue_bytes=QUEUE_BYTES_MINIMUM, message_bytes=0x400)
    files.create(scratch / "a")
    for listener in (*large, small):
        listener.wait_for("the file", matching(Kind.FILE_OPENED, scratch.device("a")))
    large.pop().close()
    listen(queue_bytes=QUEUE_BYTES_MAXIMUM)
