"""Sizes: the ways to set one, what each is told as, and what changes a size without setting it."""

from __future__ import annotations

import contextlib

import pytest

from harness.client import binding as bindings
from harness.client import fileinformation as info
from harness.client import files
from harness.client.errors import FileError
from harness.client.listener import matching
from harness.client.protocol import Kind, SizeKind

SIZES = Kind.FILE_SIZE_SET.bit | Kind.FILE_OPENED.bit
VALID_DATA_LENGTH_INFORMATION = 39
CLUSTER = 4096


@pytest.fixture
def until_marked(scratch):
    """All records of a listener up to the making of a file that marks the end."""

    def collect(listener):
        files.create(scratch / "mark")
        return listener.until("the mark", matching(Kind.FILE_OPENED, scratch.device("mark")))[:-1]

    return collect


@pytest.fixture
def file(scratch):
    """An open file of ten thousand bytes."""
    files.create(scratch / "a", bytes(10_000))
    with files.open_file(scratch / "a", access=files.GENERIC_READ | files.GENERIC_WRITE) as opened:
        yield opened


def set_size(file, information_class, size):
    bindings.current().set_information(file.handle, information_class, info.large_integer(size))


def sizes(records):
    return [(r.value, r.detail) for r in records if r.kind == Kind.FILE_SIZE_SET]


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    ("information_class", "kind"),
    [
        pytest.param(info.FILE_END_OF_FILE_INFORMATION, SizeKind.END_OF_FILE, id="end of file"),
        pytest.param(info.FILE_ALLOCATION_INFORMATION, SizeKind.ALLOCATION, id="allocation"),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 10_000, 100_000], ids=str)
def test_a_size_is_told_as_it_was_asked_for_whatever_class_sets_it(
    listen, file, until_marked, information_class, kind, size
):
    listener = listen(event_mask=SIZES)
    set_size(file, information_class, size)
    assert sizes(until_marked(listener)) == [(size, kind)]


@pytest.mark.fact("N3")
def test_an_allocation_below_the_end_of_the_file_cuts_it_and_is_told_once(listen, file, until_marked):
    listener = listen(event_mask=SIZES)
    set_size(file, info.FILE_ALLOCATION_INFORMATION, CLUSTER)
    assert file.standard().end_of_file == CLUSTER
    assert sizes(until_marked(listener)) == [(CLUSTER, SizeKind.ALLOCATION)]


@pytest.mark.fact("N3")
def test_an_allocation_beyond_the_end_of_the_file_leaves_the_end_and_is_told(listen, file, until_marked):
    listener = listen(event_mask=SIZES)
    set_size(file, info.FILE_ALLOCATION_INFORMATION, 1 << 20)
    standard = file.standard()
    assert standard.end_of_file == 10_000
    assert standard.allocation_size >= 1 << 20
    assert sizes(until_marked(listener)) == [(1 << 20, SizeKind.ALLOCATION)]


@pytest.mark.fact("N3")
def test_each_of_several_sizes_is_told_in_its_order(listen, file, until_marked):
    listener = listen(event_mask=SIZES)
    for size in (5, 7, 7, 0):
        file.set_end_of_file(size)
    set_size(file, info.FILE_ALLOCATION_INFORMATION, 9)
    told = sizes(until_marked(listener))
    assert told == [(size, SizeKind.END_OF_FILE) for size in (5, 7, 7, 0)] + [(9, SizeKind.ALLOCATION)]


@pytest.mark.fact("N3")
@pytest.mark.parametrize(
    "information_class", [info.FILE_END_OF_FILE_INFORMATION, info.FILE_ALLOCATION_INFORMATION], ids=str
)
def test_the_close_of_a_handle_that_set_a_size_tells_that_it_did(listen, scratch, information_class):
    files.create(scratch / "a", b"text")
    listener = listen(event_mask=Kind.FILE_CLOSED.bit)
    with files.open_file(scratch / "a", access=files.GENERIC_WRITE) as file:
        set_size(file, information_class, 2)
    record = listener.next()
    assert (record.detail, record.value) == (Kind.FILE_SIZE_SET.bit, 0)


@pytest.mark.fact("N3")
def test_a_write_that_lengthens_a_file_is_a_write_and_no_set_size(listen, file, until_marked):
    listener = listen()
    file.write(b"more", 50_000)
    assert file.standard().end_of_file == 50_004
    records = until_marked(listener)
    assert [(r.kind, r.value) for r in records if r.kind != Kind.FILE_OPENED] == [(Kind.FILE_WRITTEN, 4)]


@pytest.mark.fact("N3")
@pytest.mark.parametrize("disposition", [files.OVERWRITE, files.OVERWRITE_IF, files.SUPERSEDE], ids=str)
def test_an_open_that_empties_a_file_is_an_open_and_no_set_size(listen, scratch, until_marked, disposition):
    files.create(scratch / "a", b"text")
    listener = listen()
    access = files.GENERIC_WRITE | files.DELETE
    with files.open_file(scratch / "a", access=access, disposition=disposition) as file:
        assert file.standard().end_of_file == 0
    records = until_marked(listener)
    emptied = files.SUPERSEDED if disposition == files.SUPERSEDE else files.OVERWRITTEN
    assert [(r.kind, r.detail) for r in records] == [(Kind.FILE_OPENED, emptied)]


@pytest.mark.fact("N3")
def test_the_valid_data_length_is_no_size(listen, file, until_marked):
    listener = listen(event_mask=SIZES)
    file.set_end_of_file(20_000)
    with contextlib.suppress(FileError):  # it needs a privilege that not every administrator has enabled
        set_size(file, VALID_DATA_LENGTH_INFORMATION, 15_000)
    assert sizes(until_marked(listener)) == [(20_000, SizeKind.END_OF_FILE)]
