"""The version resource of an image, made without a resource compiler.

The wheel's own (`zig rc`) compiles itself first, which takes most of a minute; a version resource is a few hundred bytes.
Layouts: VS_VERSIONINFO, StringFileInfo, VarFileInfo and the .res file format of the Windows SDK documentation.
"""

from __future__ import annotations

import struct

from harness.toolchain.source import DriverVersion

_LANGUAGE_US_ENGLISH = 0x0409
_CODE_PAGE_UNICODE = 0x04B0
_RT_VERSION = 16

_FIXED_SIGNATURE = 0xFEEF04BD
_FIXED_STRUCTURE_VERSION = 0x00010000
_FILE_FLAGS_MASK = 0x3F
_VOS_NT_WINDOWS32 = 0x00040004
_VFT_DRV = 3
_VFT2_DRV_SYSTEM = 7

_MEMORY_FLAGS = 0x0030  # MOVEABLE | PURE: what resource compilers write; nobody reads it


def version_resource(version: DriverVersion, image_name: str) -> bytes:
    """A .res file with one VERSIONINFO resource for a driver image of that name ("downlink.sys")."""
    strings = {
        "CompanyName": version.company,
        "FileDescription": version.description,
        "FileVersion": version.numbers,
        "InternalName": image_name,
        "LegalCopyright": version.copyright,
        "OriginalFilename": image_name,
        "ProductName": version.product,
        "ProductVersion": version.numbers,
    }
    table = _block(
        f"{_LANGUAGE_US_ENGLISH:04X}{_CODE_PAGE_UNICODE:04X}",
        children=[_string(name, value) for name, value in strings.items() if value],
    )
    translation = _block(
        "Translation", value=struct.pack("<HH", _LANGUAGE_US_ENGLISH, _CODE_PAGE_UNICODE), binary=True
    )
    data = _block(
        "VS_VERSION_INFO",
        value=_fixed_info(version.numbers),
        binary=True,
        children=[_block("StringFileInfo", children=[table]), _block("VarFileInfo", children=[translation])],
    )
    return _entry(0, 0, 0, 0, b"") + _entry(_RT_VERSION, 1, _MEMORY_FLAGS, _LANGUAGE_US_ENGLISH, data)


def _fixed_info(numbers: str) -> bytes:
    first, second, third, fourth = (int(number) for number in numbers.split("."))
    version = (first << 16 | second, third << 16 | fourth)
    return struct.pack(
        "<13I",
        _FIXED_SIGNATURE,
        _FIXED_STRUCTURE_VERSION,
        *version,
        *version,
        _FILE_FLAGS_MASK,
        0,
        _VOS_NT_WINDOWS32,
        _VFT_DRV,
        _VFT2_DRV_SYSTEM,
        0,
        0,
    )


def _block(
    key: str, *, value: bytes = b"", binary: bool = False, children: list[bytes] | None = None
) -> bytes:
    """One node: length, value length, type, key, value, children, each part aligned to 4 bytes."""
    value_length = len(value) if binary else len(value) // 2
    body = _aligned(struct.pack("<HHH", 0, value_length, 0 if binary else 1) + _wide(key)) + value
    for child in children or []:
        body = _aligned(body) + child
    return struct.pack("<H", len(body)) + body[2:]


def _string(name: str, text: str) -> bytes:
    return _block(name, value=_wide(text))


def _entry(kind: int, name: int, memory_flags: int, language: int, data: bytes) -> bytes:
    """One entry of a .res file: header with numeric type and name, then the data, aligned to 4 bytes."""
    header = struct.pack(
        "<IIHHHHIHHII", len(data), 32, 0xFFFF, kind, 0xFFFF, name, 0, memory_flags, language, 0, 0
    )
    return header + _aligned(data)


def _wide(text: str) -> bytes:
    return text.encode("utf-16-le") + b"\0\0"


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
