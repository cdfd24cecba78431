"""File names as filters get them: which name, when it may be asked for, how it is parsed, and that none is leaked."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.filter_lab import Data, FilterLab, rename_data
from vm.emulated.fltmgr import names
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.contexts import drop_volume_contexts
from vm.emulated.kernel.kernel import MachineCrashedError
from vm.emulated.kernel.status import (
    STATUS_FILE_DELETED,
    STATUS_FLT_INVALID_NAME_REQUEST,
    STATUS_FLT_NAME_CACHE_MISS,
    STATUS_INVALID_PARAMETER,
    STATUS_NAME_TOO_LONG,
    STATUS_NOT_SAME_DEVICE,
    STATUS_OBJECT_NAME_NOT_FOUND,
)
from vm.emulated.kernel.threads import Model

NO_CALLBACK, WITH_CALLBACK = 1, 0
NORMALIZED = names.NORMALIZED | names.QUERY_DEFAULT
OPENED = names.OPENED | names.QUERY_DEFAULT
DEVICE = r"\Device\HarddiskVolume2"


@pytest.fixture
def lab() -> Iterator[FilterLab]:
    made = FilterLab()
    yield made
    made.kernel.close()


class Asker:
    """Callbacks that ask for a name and write (status, name) down."""

    def __init__(self, lab: FilterLab, options: int = NORMALIZED, *, release: bool = True) -> None:
        self.lab = lab
        self.options = options
        self.release = release
        self.answers: list[tuple[int, str]] = []
        self.slot = lab.buffer(8)

    def ask(self, data: Data) -> Model:
        status = yield from self.lab.call("FltGetFileNameInformation", data.address, self.options, self.slot)
        memory = self.lab.kernel.memory
        text = ""
        if not status:
            name = memory.u64(self.slot)
            text = memory.unicode_string(name + names.NAME)
            if self.release:
                yield from self.lab.call("FltReleaseFileNameInformation", name)
        self.answers.append((status, text))

    def pre(self, data: Data, context: int) -> Model:
        yield from self.ask(data)
        return NO_CALLBACK

    def post(self, data: Data, context: int, flags: int) -> Model:
        yield from self.ask(data)
        return 0


def ask(lab: FilterLab, major: int, options: int = NORMALIZED, *, post: bool = False) -> Asker:
    asker = Asker(lab, options)
    lab.filter({major: (None, asker.post) if post else (asker.pre, None)}, name=f"asker{len(lab.d.instances)}",
               altitude=str(300000 + len(lab.d.instances)))  # fmt: skip
    return asker


def test_the_normalised_name_has_the_spelling_of_the_volume(lab: FilterLab) -> None:
    lab.mkdir(r"D:\Dir")
    lab.close(lab.open(r"D:\Dir\File.txt"))
    before, after = ask(lab, n.IRP_MJ_CREATE), ask(lab, n.IRP_MJ_CREATE, post=True)
    typed = ask(lab, n.IRP_MJ_CREATE, OPENED)
    lab.open(r"D:\DIR\file.TXT")
    assert before.answers == after.answers == [(0, DEVICE + r"\Dir\File.txt")]
    assert typed.answers == [(0, DEVICE + r"\DIR\file.TXT")]


def test_a_name_before_the_create_is_what_will_be_created(lab: FilterLab) -> None:
    asker = ask(lab, n.IRP_MJ_CREATE)
    lab.open(r"D:\New.txt", disposition=n.FILE_CREATE)
    lab.open(r"D:\New.txt:Stream", disposition=n.FILE_CREATE)
    lab.open("D:\\", options=0x21, access=n.FILE_READ_ATTRIBUTES | n.SYNCHRONIZE)
    assert [answer[1] for answer in asker.answers] == [
        DEVICE + r"\New.txt",
        DEVICE + r"\New.txt:Stream",
        DEVICE + "\\",
    ]


def test_a_path_that_fits_alone_but_not_behind_its_volume_has_no_name(lab: FilterLab) -> None:
    path = "D:"
    for level in range(127):
        path += f"\\{level:0255}"
        lab.mkdir(path)
    whole = 0x7FFF - len(DEVICE) - len(path.removeprefix("D:"))
    asker = ask(lab, n.IRP_MJ_CREATE, post=True)
    for name in ("x" * (whole - 1), "y" * whole):
        lab.close(lab.open(f"{path}\\{name}"))
    assert [(status, len(text)) for status, text in asker.answers] == [(0, 0x7FFF), (STATUS_NAME_TOO_LONG, 0)]


def test_the_name_follows_a_rename(lab: FilterLab) -> None:
    asker = ask(lab, n.IRP_MJ_WRITE)
    handle = lab.open(r"D:\a.txt")
    lab.write(handle, b"x")
    assert lab.set(handle, n.FileRenameInformation, rename_data(r"\??\D:\B.txt")) == 0
    lab.write(handle, b"x")
    assert [answer[1] for answer in asker.answers] == [DEVICE + r"\a.txt", DEVICE + r"\B.txt"]


@pytest.mark.parametrize("major", [n.IRP_MJ_CLEANUP, n.IRP_MJ_CLOSE])
def test_the_name_can_be_had_until_the_close_has_been_done(lab: FilterLab, major: int) -> None:
    before, after = ask(lab, major), ask(lab, major, post=True)
    lab.close(lab.open(r"D:\a.txt"))
    assert before.answers == [(0, DEVICE + r"\a.txt")]
    refused = (STATUS_FLT_INVALID_NAME_REQUEST, "")
    assert after.answers == [refused if major == n.IRP_MJ_CLOSE else (0, DEVICE + r"\a.txt")]


def test_no_name_can_be_had_in_the_paging_path_except_from_the_cache(lab: FilterLab) -> None:
    lab.settings.lazy_writer = True
    asker = ask(lab, n.IRP_MJ_WRITE)
    cached = ask(lab, n.IRP_MJ_WRITE, names.NORMALIZED | names.QUERY_ALWAYS_ALLOW_CACHE_LOOKUP)
    handle = lab.open(r"D:\a.txt")
    lab.write(handle, b"x")
    lab.close(handle)
    assert asker.answers == [(0, DEVICE + r"\a.txt"), (STATUS_FLT_INVALID_NAME_REQUEST, "")]
    assert cached.answers == [(0, DEVICE + r"\a.txt")] * 2


def test_no_name_can_be_had_with_a_top_level_irp(lab: FilterLab) -> None:
    asker = ask(lab, n.IRP_MJ_WRITE)
    handle = lab.open(r"D:\a.txt")
    lab.thread.top_level_irp = 1
    lab.write(handle, b"x")
    lab.thread.top_level_irp = 0
    assert asker.answers == [(STATUS_FLT_INVALID_NAME_REQUEST, "")]


def test_the_cache_alone_knows_only_what_was_asked_before(lab: FilterLab) -> None:
    options = names.NORMALIZED | names.QUERY_CACHE_ONLY
    asker = ask(lab, n.IRP_MJ_WRITE, options)
    handle = lab.open(r"D:\a.txt")
    lab.write(handle, b"x")
    filler = ask(lab, n.IRP_MJ_READ)
    lab.service("read_file", handle=handle, offset=0, length=1)
    lab.write(handle, b"x")
    assert filler.answers[0][0] == 0
    assert [answer[0] for answer in asker.answers] == [STATUS_FLT_NAME_CACHE_MISS, 0]


def test_a_deleted_file_has_no_name_after_its_cleanup(lab: FilterLab) -> None:
    asker = ask(lab, n.IRP_MJ_CLEANUP, post=True)
    handle = lab.open(r"D:\a.txt")
    assert lab.set(handle, n.FileDispositionInformation, b"\1") == 0
    lab.close(handle)
    assert asker.answers == [(STATUS_FILE_DELETED, "")]


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (0, STATUS_INVALID_PARAMETER),
        (names.NORMALIZED, STATUS_INVALID_PARAMETER),
        (names.QUERY_DEFAULT, STATUS_INVALID_PARAMETER),
        (4 | names.QUERY_DEFAULT, STATUS_INVALID_PARAMETER),
        (NORMALIZED | 0x8000_0000, STATUS_INVALID_PARAMETER),
        (names.SHORT | names.QUERY_DEFAULT, STATUS_FLT_INVALID_NAME_REQUEST),
    ],
)
def test_options_that_make_no_sense_are_refused(lab: FilterLab, options: int, status: int) -> None:
    asker = ask(lab, n.IRP_MJ_CREATE, options)
    lab.open(r"D:\a.txt")
    assert asker.answers == [(status, "")]


def test_a_short_name_exists_only_where_the_long_one_is_short(lab: FilterLab) -> None:
    asker = ask(lab, n.IRP_MJ_WRITE, names.SHORT | names.QUERY_DEFAULT)
    lab.write(lab.open(r"D:\short.txt"), b"x")
    lab.write(lab.open(r"D:\a long name.text"), b"x")
    assert asker.answers == [(0, "short.txt"), (STATUS_OBJECT_NAME_NOT_FOUND, "")]


def parsed(lab: FilterLab, path: str, *, options: int = 0x20) -> dict[str, str]:
    """The parts of the name of a created file or stream."""
    parts: dict[str, str] = {}
    slot = lab.buffer(8)
    memory = lab.kernel.memory

    def post(data: Data, context: int, flags: int) -> Model:
        assert not (yield from lab.call("FltGetFileNameInformation", data.address, NORMALIZED, slot))
        name = memory.u64(slot)
        assert not (yield from lab.call("FltParseFileNameInformation", name))
        for label, offset in (
            ("volume", names.VOLUME),
            ("share", names.SHARE),
            ("extension", names.EXTENSION),
            ("stream", names.STREAM),
            ("final", names.FINAL_COMPONENT),
            ("parent", names.PARENT_DIR),
        ):
            parts[label] = memory.unicode_string(name + offset)
        parts["flags"] = str(memory.u16(name + names.NAMES_PARSED))
        parts["size"] = str(memory.u16(name))
        yield from lab.call("FltReleaseFileNameInformation", name)
        return 0

    lab.filter({n.IRP_MJ_CREATE: (None, post)})
    lab.open(path, options=options)
    return parts


def test_a_name_is_parsed_into_volume_directory_file_extension_and_stream(lab: FilterLab) -> None:
    lab.mkdir(r"D:\Some Dir")
    assert parsed(lab, r"D:\Some Dir\Test.Results.txt:stream1") == {
        "volume": DEVICE,
        "share": "",
        "parent": "\\Some Dir\\",
        "final": "Test.Results.txt",
        "extension": "txt",
        "stream": ":stream1",
        "flags": "15",
        "size": str(0x78),
    }


def test_a_name_without_extension_or_directory_has_empty_parts(lab: FilterLab) -> None:
    parts = parsed(lab, r"D:\README")
    assert (parts["parent"], parts["final"], parts["extension"], parts["stream"]) == ("\\", "README", "", "")


def test_a_bare_file_name_is_parsed_in_place(lab: FilterLab) -> None:
    name, out = lab.string(r"\x\file.ext:s"), lab.buffer(48)

    def work() -> Model:
        return (yield from lab.call("FltParseFileName", name, out, out + 16, out + 32))

    assert lab.kernel.run(work()) == 0
    memory = lab.kernel.memory
    assert [memory.unicode_string(out + 16 * i) for i in range(3)] == ["ext", ":s", "file.ext"]
    assert memory.u64(out + 8) == memory.u64(name + 8) + 2 * 8


def test_the_destination_of_a_rename_is_normalised(lab: FilterLab) -> None:
    lab.mkdir(r"D:\Target")
    slot, answers = lab.buffer(8), []
    memory = lab.kernel.memory

    def pre(data: Data, context: int) -> Model:
        info = data.parameter(0x20)
        length = memory.u32(info + 0x10)
        status = yield from lab.call(
            "FltGetDestinationFileNameInformation",
            data.instance,
            data.file_object,
            memory.u64(info + 8),
            info + 0x14,
            length,
            NORMALIZED,
            slot,
        )
        text = ""
        if not status:
            text = memory.unicode_string(memory.u64(slot) + names.NAME)
            yield from lab.call("FltReleaseFileNameInformation", memory.u64(slot))
        answers.append((status, text))
        return NO_CALLBACK

    lab.filter({n.IRP_MJ_SET_INFORMATION: (pre, None)})
    handle = lab.open(r"D:\a.txt")
    directory = lab.open(r"D:\Target", options=0x21, access=n.FILE_GENERIC_READ)
    relative = struct.pack("<IxxxxQI", 0, directory, 10) + "C.txt".encode("utf-16-le")
    lab.set(handle, n.FileRenameInformation, rename_data(r"\??\D:\TARGET\New.txt"))
    lab.set(handle, n.FileRenameInformation, rename_data("simple.txt"))
    lab.set(handle, n.FileRenameInformation, relative)
    stream = lab.open(r"D:\b.txt:old")
    lab.set(stream, n.FileRenameInformation, rename_data(":new"))
    assert answers == [
        (0, DEVICE + r"\Target\New.txt"),
        (0, DEVICE + r"\Target\simple.txt"),
        (0, DEVICE + r"\Target\C.txt"),
        (0, DEVICE + r"\b.txt:new"),
    ]


def test_a_destination_on_another_volume_has_no_name_here(lab: FilterLab) -> None:
    instance = lab.filter({})
    handle = lab.open(r"D:\a.txt")
    raw = r"\??\E:\b.txt".encode("utf-16-le")
    text, slot = lab.buffer(len(raw), raw), lab.buffer(8)
    file_object = lab.file_object(handle).address

    def work() -> Model:
        return (
            yield from lab.call(
                "FltGetDestinationFileNameInformation",
                instance.address,
                file_object,
                0,
                text,
                len(raw),
                NORMALIZED,
                slot,
            )
        )

    assert lab.kernel.run(work()) == STATUS_NOT_SAME_DEVICE


def test_a_name_used_after_its_release_stops_the_machine(lab: FilterLab) -> None:
    kept: list[int] = []
    asker = Asker(lab)

    def pre(data: Data, context: int) -> Model:
        yield from asker.ask(data)
        kept.append(lab.kernel.memory.u64(asker.slot))
        return NO_CALLBACK

    lab.filter({n.IRP_MJ_CREATE: (pre, None)})
    lab.open(r"D:\a.txt")
    assert not lab.kernel.memory.is_mapped(kept[0])
    with pytest.raises(MachineCrashedError):
        lab.kernel.run(lab.call("FltReleaseFileNameInformation", kept[0]))
        lab.kernel.check_alive()
    assert "not a FLT_FILE_NAME_INFORMATION (any more)" in lab.rule


def test_a_name_that_is_never_released_is_reported_at_unload(lab: FilterLab) -> None:
    asker = Asker(lab, release=False)
    instance = lab.filter({n.IRP_MJ_CREATE: (asker.pre, None)}, name="nt")
    lab.close(lab.open(r"D:\leaked.txt"))
    lab.kernel.run(drop_volume_contexts(lab.kernel, instance.filter))
    assert [(v.rule, DEVICE + r"\leaked.txt" in v.message) for v in lab.kernel.violations] == [
        ("name-leaked", True)
    ]


def test_object_names_of_files_and_devices_are_told(lab: FilterLab) -> None:
    handle = lab.open(r"D:\a.txt")
    out, needed = lab.buffer(0x100), lab.buffer(4)
    memory = lab.kernel.memory

    def query(address: int, length: int) -> Any:
        return lab.kernel.run(lab.call("ObQueryNameString", address, out, length, needed))

    assert query(lab.file_object(handle).address, 0x100) == 0
    assert memory.unicode_string(out) == DEVICE + r"\a.txt"
    assert query(lab.d.device_object, 0x100) == 0
    assert memory.unicode_string(out) == DEVICE
    assert query(lab.d.device_object, 4) == 0xC0000004
    assert memory.u32(needed) == 16 + 2 * len(DEVICE) + 2


def test_volumes_tell_their_names_and_properties(lab: FilterLab) -> None:
    instance = lab.filter({})
    memory = lab.kernel.memory
    string, needed, out = lab.string("x" * 80), lab.buffer(4), lab.buffer(0x200)
    memory.put16(string + 2, 160)
    run, call = lab.kernel.run, lab.call
    assert run(call("FltGetVolumeName", lab.d.address, 0, needed)) == 0xC0000023
    assert memory.u32(needed) == 2 * len(DEVICE)
    assert run(call("FltGetVolumeName", lab.d.address, string, 0)) == 0
    assert memory.unicode_string(string) == DEVICE
    assert run(call("FltGetVolumeGuidName", lab.d.address, string, 0)) == 0
    assert memory.unicode_string(string).startswith("\\??\\Volume{")
    assert run(call("FltGetVolumeProperties", lab.d.address, out, 0x200, needed)) == 0
    assert (memory.u32(out), memory.u16(out + 0x10)) == (8, 512)
    assert memory.unicode_string(out + 0x38) == DEVICE
    assert run(call("FltGetVolumeProperties", lab.d.address, out, 0x48, needed)) == 0x80000005
    assert run(call("FltGetFileSystemType", instance.address, out)) == 0 and memory.u32(out) == 2
    assert run(call("FltIsVolumeWritable", lab.d.address, out)) == 0 and memory.u8(out) == 1
