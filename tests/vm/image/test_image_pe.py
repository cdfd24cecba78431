"""Parsing and laying out driver images."""

from __future__ import annotations

import contextlib
import struct
import time
import uuid

import pefile
import pytest

from vm.emulated.image.pe import Image, parse_image
from vm.errors import PackageError

SOURCE = r"""
__declspec(dllimport) unsigned long DbgPrint(const char *, ...);
__declspec(dllimport) int FltThing(void *);
__declspec(dllimport) int ByOrdinal(void);
static int table[4];
int *into_table = &table[2];
int (*into_code)(int);
unsigned long long __security_cookie = 0x00002B992DDFA232;
__declspec(dllexport) __attribute__((noinline)) int Twice(int x) { return x * 2; }
__attribute__((section("PAGE"), noinline)) int Pageable(int x) { return DbgPrint("p %d", x) + 1; }
__attribute__((section("INIT"))) int DriverEntry(void *driver, void *path) {
    into_code = Twice;
    return FltThing(driver) + Pageable(*into_table) + ByOrdinal() + (int)__security_cookie;
}
int (*pointer)(int) = Pageable;
struct { unsigned size; char before[0x54]; unsigned long long *cookie; char after[0x40]; }
    _load_config __asm__("_load_config_used") = {sizeof(_load_config), {0}, &__security_cookie, {0}};
void *keep = &_load_config;
"""
IMPORTS = {"ntoskrnl.exe": ["DbgPrint"], "FLTMGR.SYS": ["FltThing", "ByOrdinal @77 NONAME"]}
BASE = 0xFFFFF80123400000


@pytest.fixture(scope="module")
def driver(compile_driver) -> bytes:
    return compile_driver(SOURCE, IMPORTS, compile_flags=("-Xclang", "-O0")).sys


@pytest.fixture(scope="module")
def image(driver: bytes) -> Image:
    return parse_image(driver, "test.sys")


def test_the_image_says_what_an_independent_parser_says(driver: bytes, image: Image):
    reference = pefile.PE(data=driver)
    assert image.base == reference.OPTIONAL_HEADER.ImageBase
    assert image.entry_rva == reference.OPTIONAL_HEADER.AddressOfEntryPoint
    assert image.size == (reference.OPTIONAL_HEADER.SizeOfImage + 0xFFF) & ~0xFFF
    assert image.timestamp == reference.FILE_HEADER.TimeDateStamp
    assert [(i.dll, i.name, i.ordinal, i.slot_rva) for i in image.imports] == [
        (
            e.dll.decode().lower(),
            i.name.decode() if i.name else None,
            i.ordinal if not i.name else None,
            i.address - image.base,
        )
        for e in reference.DIRECTORY_ENTRY_IMPORT
        for i in e.imports
    ]
    assert list(image.relocations) == [
        e.rva for block in reference.DIRECTORY_ENTRY_BASERELOC for e in block.entries if e.type == 10
    ]
    assert len(image.relocations) >= 3
    assert [(e.name, e.rva, e.ordinal) for e in image.exports] == [
        (s.name.decode(), s.address, s.ordinal) for s in reference.DIRECTORY_ENTRY_EXPORT.symbols
    ]
    record = reference.DIRECTORY_ENTRY_DEBUG[0].entry
    assert image.debug is not None
    assert image.debug.pdb_path == record.PdbFileName.rstrip(b"\0").decode() == "test.pdb"
    assert image.debug.guid == uuid.UUID(
        fields=(record.Signature_Data1, record.Signature_Data2, record.Signature_Data3, record.Signature_Data4,
                record.Signature_Data5, int.from_bytes(record.Signature_Data6, "big"))
    )  # fmt: skip
    assert image.debug.age == record.Age


def test_imports_by_ordinal_have_a_symbol_with_a_hash(image: Image):
    assert {str(i) for i in image.imports} == {
        "ntoskrnl.exe!DbgPrint",
        "fltmgr.sys!FltThing",
        "fltmgr.sys!#77",
    }


def test_sections_say_whether_they_are_pageable_and_what_may_be_done_with_them(image: Image):
    sections = {section.name: section for section in image.sections}
    assert sections["PAGE"].paged and sections["PAGE"].executable and not sections["PAGE"].writable
    assert sections["INIT"].paged
    assert not sections[".text"].paged
    assert sections[".data"].writable and not sections[".data"].executable
    assert image.section_at(image.entry_rva) is sections["INIT"]
    assert image.section_at(0) is None


def test_layout_equals_the_independent_relocation_and_binds_every_slot(driver: bytes, image: Image):
    addresses = {"DbgPrint": 0x1111, "FltThing": 0x2222, "#77": 0x3333}
    memory = image.layout(BASE, lambda dll, symbol: addresses[symbol])
    reference = pefile.PE(data=driver)
    reference.relocate_image(BASE)
    expected = bytearray(reference.get_memory_mapped_image().ljust(image.size, b"\0"))
    for entry in image.imports:
        expected[entry.slot_rva : entry.slot_rva + 8] = struct.pack("<Q", addresses[entry.symbol])
    assert len(memory) == image.size and image.size % 0x1000 == 0
    for section in image.sections:
        assert memory[section.rva : section.end] == expected[section.rva : section.end], section.name
    assert struct.unpack_from("<Q", memory, memory.index(b"PE\0\0") + 24 + 24)[0] == BASE


def test_layout_at_the_preferred_base_moves_nothing_and_leaves_the_template_alone(image: Image):
    before = image.template
    image.layout(BASE, lambda dll, symbol: 1)
    untouched = image.layout(image.base, lambda dll, symbol: 0)
    for rva in image.relocations:
        assert untouched[rva : rva + 8] == before[rva : rva + 8]
    assert image.template == before


def test_the_security_cookie_gets_the_value_of_the_boot(image: Image):
    if image.security_cookie_rva is None:
        pytest.fail("the test image has a load configuration with a cookie")
    memory = image.layout(BASE, lambda dll, symbol: 0, security_cookie=0x1234)
    assert struct.unpack_from("<Q", memory, image.security_cookie_rva)[0] == 0x1234
    default = image.layout(BASE, lambda dll, symbol: 0)
    assert struct.unpack_from("<Q", default, image.security_cookie_rva)[0] == 0x2B992DDFA232


def test_the_checksum_equals_what_an_independent_parser_computes(driver: bytes, image: Image):
    assert image.checksum == pefile.PE(data=driver).generate_checksum()
    assert image.checksum_ok
    broken = bytearray(driver)
    broken[-1] ^= 1
    assert not parse_image(bytes(broken), "test.sys").checksum_ok


def test_layout_of_a_60_kb_driver_takes_less_than_a_millisecond(driver: bytes):
    image = parse_image(_with_big_data(driver), "test.sys")
    assert image.size > 60_000
    best = min(_timed(lambda: image.layout(BASE, lambda dll, symbol: 1)) for _ in range(20))
    assert best < 0.001


@pytest.mark.parametrize("length", [0, 1, 2, 60, 64, 200, 300, 700, 1100])
def test_a_cut_off_file_is_refused_with_one_sentence(driver: bytes, length: int):
    with pytest.raises(PackageError) as refusal:
        parse_image(driver[:length], "short.sys")
    assert "short.sys" in refusal.value.message and refusal.value.hint


def test_every_cut_of_the_file_is_refused_or_only_loses_unmapped_bytes(driver: bytes, image: Image):
    for length in range(0, len(driver), 7):
        try:
            cut = parse_image(driver[:length], "cut.sys")
        except PackageError:
            continue
        assert cut.template == image.template


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("machine", 0x14C, "32-bit x86"),
        ("machine", 0xAA64, "ARM64"),
        ("machine", 0x1234, "0x1234"),
        ("magic", 0x10B, "64-bit optional header"),
        ("subsystem", 3, "user-mode EXE"),
        ("entry", 0, "no entry point"),
        ("entry", 0x7FFFFF00, "outside of its executable sections"),
        ("characteristics", 0x23, "no relocations"),
        ("managed", 72, "managed"),
        ("size_of_image", 0x7FFFF000, "MiB"),
        ("size_of_image", 0x2000, "damaged"),
        ("import_rva", 0x7FFFF000, "import directory"),
        ("relocation_rva", 0x7FFFF000, "relocation directory"),
        ("export_rva", 0x7FFFF000, "export directory"),
        ("debug_rva", 0x7FFFF000, "debug directory"),
        ("exception_rva", 0x7FFFF000, "exception directory"),
        ("load_config_rva", 0x7FFFF000, "load configuration"),
        ("security_size", 0x7FFFF000, "certificate table"),
    ],
)
def test_what_is_no_driver_is_refused_by_name_with_a_hint(
    driver: bytes, field: str, value: int, sentence: str
):
    with pytest.raises(PackageError) as refusal:
        parse_image(_with_field(driver, field, value), "odd.sys")
    assert sentence in refusal.value.message and "odd.sys" in refusal.value.message
    assert refusal.value.hint


def test_a_dll_is_called_a_dll(driver: bytes):
    with pytest.raises(PackageError, match="user-mode DLL"):
        parse_image(_with_field(_with_field(driver, "subsystem", 2), "characteristics", 0x2022), "odd.dll")


def test_text_is_not_taken_for_an_image():
    with pytest.raises(PackageError, match="does not begin with 'MZ'"):
        parse_image(b"#!/bin/sh\n", "script.sys")


def test_damage_anywhere_in_the_headers_is_refused_or_read_but_never_crashes(driver: bytes):
    for offset in range(0x3C, 0x400):
        for value in (0x00, 0x7F, 0xFF):
            damaged = bytearray(driver)
            damaged[offset] = value
            with contextlib.suppress(PackageError):
                parse_image(bytes(damaged), "damaged.sys").layout(BASE, lambda dll, symbol: 0)


def _timed(action) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _with_field(data: bytes, field: str, value: int) -> bytes:
    pe = struct.unpack_from("<I", data, 0x3C)[0]
    optional = pe + 24
    directory = optional + 112
    offset, form = {
        "machine": (pe + 4, "<H"),
        "characteristics": (pe + 22, "<H"),
        "magic": (optional, "<H"),
        "entry": (optional + 16, "<I"),
        "size_of_image": (optional + 56, "<I"),
        "subsystem": (optional + 68, "<H"),
        "export_rva": (directory, "<I"),
        "import_rva": (directory + 8, "<I"),
        "exception_rva": (directory + 24, "<I"),
        "security_size": (directory + 36, "<I"),
        "relocation_rva": (directory + 40, "<I"),
        "debug_rva": (directory + 48, "<I"),
        "load_config_rva": (directory + 80, "<I"),
        "managed": (directory + 116, "<I"),
    }[field]
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, value)
    return bytes(changed)


def _with_big_data(data: bytes) -> bytes:
    """The same image with its last section grown to 64 KiB of real bytes."""
    reference = pefile.PE(data=data, fast_load=True)
    last = reference.sections[-1]
    raw = data[: last.PointerToRawData + last.SizeOfRawData].ljust(last.PointerToRawData + 0x10000, b"\xa5")
    last.SizeOfRawData = last.Misc_VirtualSize = 0x10000
    reference.OPTIONAL_HEADER.SizeOfImage = last.VirtualAddress + 0x10000
    return bytes(reference.write())[: last.PointerToRawData] + raw[last.PointerToRawData :]
