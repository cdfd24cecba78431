"""Finding the instructions that the engine must not run by itself."""

from __future__ import annotations

import re
import struct

import pytest

from vm.emulated.image.patches import Site, SiteKind, find_sites
from vm.emulated.image.pe import Image, parse_image

# Every function begins with a marker so that the test knows where it lies; `decoy` holds the same bytes as data.
SOURCE = r"""
#define ASM(text) __asm__ volatile(text ::: "memory", "rax", "rcx", "rdx", "r8", "r9")
unsigned long long irql(void) { unsigned long long v; __asm__ volatile("movq %%cr8, %0" : "=r"(v)); return v; }
__attribute__((noinline)) void Everything(void) {
    ASM("movq %%cr8, %%r9\n movq %%r8, %%cr8\n movq %%rax, %%cr8");
    ASM("rdtsc\n rdtscp\n rdrand %%eax\n rdrand %%r9\n rdseed %%cx\n cli\n sti\n swapgs");
    ASM("inb %%dx, %%al\n inl $0x60, %%eax\n outb %%al, %%dx\n outw %%ax, $0x80\n rdmsr\n wrmsr\n invlpg (%%rax)\n hlt");
    ASM("rep insb\n outsl");
}
__attribute__((noinline)) unsigned long long Decoys(void) {
    unsigned long long v;
    __asm__ volatile("movabs $0x310F310FC0200F44, %0\n leaq 0x310F(%0), %0\n addl $0x310F, %k0" : "=r"(v));
    return v;
}
__attribute__((naked, noinline)) void Leaf(void) { __asm__("rdtsc\n nop\n ret\n .byte 0x0f,0x31,0xc3,0x0f,0x31,0xc3"); }
void (*leaf)(void) = Leaf;
__attribute__((naked, noinline)) void Called(void) { __asm__("testl %eax, %eax\n jne 1f\n ret\n .byte 0xf4,0xf4,0xf4\n 1: cli\n ret"); }
int DriverEntry(void *driver, void *path) {
    Everything(); Called(); leaf();
    return (int)(irql() + Decoys());
}
"""


@pytest.fixture(scope="module")
def image(compile_driver) -> Image:
    return parse_image(compile_driver(SOURCE).sys, "test.sys")


@pytest.fixture(scope="module")
def sites(image: Image) -> tuple[Site, ...]:
    return find_sites(image)


def test_every_kind_is_found_with_its_register_and_its_length(sites: tuple[Site, ...]):
    begin = next(i for i, site in enumerate(sites) if site.kind is SiteKind.READ_CR8 and site.register == 9)
    found = [(s.kind, s.register, s.width, s.encoding.hex()) for s in sites[begin : begin + 21]]
    kind = SiteKind
    assert found == [
        (kind.READ_CR8, 9, 64, "450f20c1"),
        (kind.WRITE_CR8, 8, 64, "450f22c0"),
        (kind.WRITE_CR8, 0, 64, "440f22c0"),
        (kind.RDTSC, None, 0, "0f31"),
        (kind.RDTSCP, None, 0, "0f01f9"),
        (kind.RDRAND, 0, 32, "0fc7f0"),
        (kind.RDRAND, 9, 64, "490fc7f1"),
        (kind.RDSEED, 1, 16, "660fc7f9"),
        (kind.CLI, None, 0, "fa"),
        (kind.STI, None, 0, "fb"),
        (kind.SWAPGS, None, 0, "0f01f8"),
        (kind.IN, None, 0, "ec"),
        (kind.IN, None, 0, "e560"),
        (kind.OUT, None, 0, "ee"),
        (kind.OUT, None, 0, "66e780"),
        (kind.RDMSR, None, 0, "0f32"),
        (kind.WRMSR, None, 0, "0f30"),
        (kind.INVLPG, None, 0, "0f0138"),
        (kind.HLT, None, 0, "f4"),
        (kind.IN, None, 0, "f36c"),
        (kind.OUT, None, 0, "6f"),
    ]
    assert {s.kind for s in sites} == set(SiteKind)
    assert all(len(s.encoding) == s.length for s in sites)


def test_the_inlined_irql_is_found_wherever_it_was_inlined(image: Image, sites: tuple[Site, ...]):
    in_bytes = {m.start() for m in re.finditer(rb"\x44\x0f\x20[\xc0-\xc7]", image.template)}
    found = {
        s.rva for s in sites if s.kind is SiteKind.READ_CR8 and s.register is not None and s.register < 8
    }
    decoy = image.template.index(b"\x48\xb8\x44\x0f\x20\xc0\x0f\x31") + 2
    assert found == in_bytes - {decoy} and len(found) >= 2


def test_constants_and_displacements_that_look_like_instructions_are_left_alone(
    image: Image, sites: tuple[Site, ...]
):
    movabs = image.template.index(b"\x48\xb8\x44\x0f\x20\xc0\x0f\x31")
    assert [s for s in sites if movabs <= s.rva < movabs + 24] == []


def test_a_leaf_without_unwind_data_is_swept_but_the_data_behind_it_is_not(
    image: Image, sites: tuple[Site, ...]
):
    leaf = image.template.index(b"\x0f\x31\x90\xc3\x0f\x31\xc3")
    assert not any(begin <= leaf < end for begin, end, _ in image.runtime_functions())
    assert [s.rva for s in sites if leaf <= s.rva < leaf + 10] == [leaf]


def test_a_branch_over_data_is_followed(image: Image, sites: tuple[Site, ...]):
    data = image.template.index(b"\xc3\xf4\xf4\xf4\xfa\xc3") + 1
    assert [(s.rva, s.kind) for s in sites if data <= s.rva < data + 4] == [(data + 3, SiteKind.CLI)]


def _with_table(displacement: int, entries: tuple[int, ...]) -> Image:
    """mov eax, [rdx + rax*4 + displacement]; add rax, rdx; jmp rax; nops; then `entries` at 0x1100."""
    code = b"\x8b\x84\x82" + struct.pack("<I", displacement) + bytes.fromhex("4801d0ffe0")
    return _image_of(code.ljust(0x100, b"\x90") + struct.pack(f"<{len(entries)}I", *entries))


def test_a_jump_table_behind_the_code_of_a_function_is_not_swept():
    assert find_sites(_with_table(0x1100, (0x10F4, 0x10FA))) == ()  # as instructions: hlt, adc, ..., cli


def test_an_array_in_a_structure_is_no_jump_table_and_hides_no_site():
    for displacement, entries in (
        (0x1100, (0x310F, 0x10FA)),
        (0x1100, (0x10F4, 0xFA)),
        (0x5100, (0x10F4, 0x10FA)),
    ):
        found = find_sites(_with_table(displacement, entries))
        assert [site.rva for site in found if site.rva >= 0x1100] != [], (displacement, entries)


def test_a_damaged_function_table_is_no_reason_to_crash(compile_driver):
    data = bytearray(compile_driver(SOURCE).sys)
    image = parse_image(bytes(data), "test.sys")
    section = image.section_at(image.exception_directory[0])
    assert section is not None
    at = data.index(section.data[:12])
    for value in (0, 1, 0x1003, 0xFFFFFFFF, 0x7FFFFFFF):
        for field in range(0, 36, 4):
            damaged = data.copy()
            struct.pack_into("<I", damaged, at + field, value)
            find_sites(parse_image(bytes(damaged), "damaged.sys"))


def test_undecodable_bytes_do_not_hide_what_a_branch_reaches():
    code = b"\xeb\x03" + b"\x06\x06\x06" + b"\x0f\x31\xc3"  # jmp over bytes that 64-bit mode does not know
    assert [(s.rva, s.kind) for s in find_sites(_image_of(code))] == [(0x1005, SiteKind.RDTSC)]


def _image_of(code: bytes) -> Image:
    """An image made of one executable section with `code` as its only function."""
    from vm.emulated.image.pe import Section

    data = code.ljust(0x200, b"\xcc")
    table = len(data)
    data += (0x1000).to_bytes(4, "little") + (0x1000 + len(code)).to_bytes(4, "little") + bytes(4)
    section = Section(".text", 0x1000, len(data), data, True, False, True, False)
    return Image(
        name="made.sys",
        sha256="",
        base=0x140000000,
        size=0x2000,
        entry_rva=0x1000,
        timestamp=0,
        headers_size=0x400,
        sections=(section,),
        imports=(),
        relocations=(),
        exports=(),
        exception_directory=(0x1000 + table, 12),
        debug=None,
        security_cookie_rva=None,
        checksum=0,
        checksum_ok=True,
        is_signed=False,
        template=(bytes(0x1000) + data).ljust(0x2000, b"\0"),
        _base_field=0,
    )
