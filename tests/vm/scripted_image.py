"""A driver image made of jumps: every callback leads to a function of Python, every import is called from driver code.

So a filter that is written in Python is, for the kernel, a loaded image: it is named in violations, its frames are found
on stacks, and it is missed when it was unloaded too early.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PAGE = 0x1000
TEXT, DATA, INIT = PAGE, 2 * PAGE, 3 * PAGE
"""RVAs of the sections: code, variables, and the entry point, which is discarded after DriverEntry."""
_SIZE = 4 * PAGE
_HEADERS = 0x400
_JUMP_STRIDE = 0x10
_CALL_STRIDE = 0x80
_LOCAL = 0x58
"""Stack of a calling stub: shadow space, four stack arguments, alignment."""
_RAW = {TEXT: (0x400, PAGE), DATA: (0x1400, 0), INIT: (0x1400, 0x200)}


@dataclass(frozen=True, slots=True)
class ScriptedImage:
    """The file, and where its stubs are (RVA by name)."""

    data: bytes
    callbacks: Mapping[str, int]
    calls: Mapping[str, int]


def scripted_image(entry: int, callbacks: Mapping[str, int], calls: Mapping[str, int]) -> ScriptedImage:
    """Build an image.

    Args:
        entry: address of the function behind DriverEntry.
        callbacks: address of the function behind each callback.
        calls: address of each export that the driver calls.
    """
    text = bytearray(PAGE)
    callback_rvas: dict[str, int] = {}
    call_rvas: dict[str, int] = {}
    position = 0
    for name, target in callbacks.items():
        code = _jump(target)
        text[position : position + len(code)] = code
        callback_rvas[name] = TEXT + position
        position += _JUMP_STRIDE
    position = (position + _CALL_STRIDE - 1) & -_CALL_STRIDE
    for name, target in calls.items():
        code = _call(target)
        assert len(code) <= _CALL_STRIDE
        assert position + len(code) <= PAGE
        text[position : position + len(code)] = code
        call_rvas[name] = TEXT + position
        position += _CALL_STRIDE
    init = _jump(entry).ljust(0x200, b"\xcc")
    return ScriptedImage(_headers() + bytes(text) + init, callback_rvas, call_rvas)


def _jump(target: int) -> bytes:
    return b"\x48\xb8" + struct.pack("<Q", target) + b"\xff\xe0"  # mov rax, target; jmp rax


def _call(target: int) -> bytes:
    """Call `target` with the arguments of this call, up to eight."""
    code = bytearray((0x48, 0x83, 0xEC, _LOCAL))  # sub rsp, _LOCAL
    for position in range(4):
        code += b"\x48\x8b\x84\x24" + struct.pack("<I", _LOCAL + 0x28 + 8 * position)  # mov rax, [rsp + ...]
        code += b"\x48\x89\x84\x24" + struct.pack("<I", 0x20 + 8 * position)  # mov [rsp + ...], rax
    code += b"\x48\xb8" + struct.pack("<Q", target) + b"\xff\xd0"  # mov rax, target; call rax
    return bytes(code) + bytes((0x48, 0x83, 0xC4, _LOCAL, 0xC3))  # add rsp, _LOCAL; ret


def _headers() -> bytes:
    """DOS, file, optional and section headers of a native x64 image (winnt.h)."""
    sections: Sequence[tuple[bytes, int, int]] = (
        (b".text", TEXT, 0x6800_0020),
        (b".data", DATA, 0xC800_0040),
        (b"INIT", INIT, 0x6200_0020),
    )
    data = bytearray(_HEADERS)
    data[0:2] = b"MZ"
    struct.pack_into("<I", data, 60, 0x80)
    data[0x80:0x84] = b"PE\0\0"
    optional_size = 112 + 16 * 8
    struct.pack_into("<HHIIIHH", data, 0x84, 0x8664, len(sections), 0, 0, 0, optional_size, 0x0022)
    optional = 0x98
    struct.pack_into("<HBBIIIII", data, optional, 0x20B, 14, 0, PAGE, PAGE, 0, INIT, TEXT)
    struct.pack_into("<QII", data, optional + 24, 0x1_4000_0000, PAGE, 0x200)
    struct.pack_into("<HHHHHHIIII", data, optional + 40, 10, 0, 0, 0, 10, 0, 0, _SIZE, _HEADERS, 0)
    struct.pack_into("<HH", data, optional + 68, 1, 0)
    struct.pack_into("<QQQQII", data, optional + 72, 0x10_0000, PAGE, 0x10_0000, PAGE, 0, 16)
    table = optional + optional_size
    for index, (name, rva, characteristics) in enumerate(sections):
        offset, size = _RAW[rva]
        struct.pack_into(
            "<8sIIIIIIHHI",
            data,
            table + 40 * index,
            name,
            PAGE,
            rva,
            size,
            offset,
            0,
            0,
            0,
            0,
            characteristics,
        )
    return bytes(data)
