"""What a driver image has to be before it is worth packing: a PE file for the kernel, of the right architecture."""

from __future__ import annotations

import struct
import sys
from array import array

from vm.errors import PackageError

_MACHINES = {0x8664: "x64", 0xAA64: "arm64", 0x014C: "x86", 0x01C4: "arm"}
_PE32, _PE32_PLUS = 0x010B, 0x020B
_SUBSYSTEMS = {1: "native", 2: "Windows GUI", 3: "console", 10: "EFI application"}
_SUBSYSTEM_NATIVE = 1

# Offsets in the optional header, the same for 32 and 64 bit (PE format specification).
_CHECKSUM_OFFSET = 64
_SUBSYSTEM_OFFSET = 68


def check_image(data: bytes, name: str, architecture: str) -> None:
    """Make sure that a file is a kernel-mode image which can be loaded at all.

    Args:
        data: the file.
        name: its name, for the messages.
        architecture: "x64" or "arm64".

    Raises:
        PackageError: it is not PE, is 32-bit, is for another architecture, is not for the native subsystem or has a
            wrong checksum; always one sentence.
    """
    header = _optional_header(data, name)
    machine, magic = struct.unpack_from("<H", data, header - 20)[0], struct.unpack_from("<H", data, header)[0]
    found = _MACHINES.get(machine, f"machine 0x{machine:04X}")
    if found in ("x86", "arm") or magic == _PE32:
        raise PackageError(
            f"'{name}' is a 32-bit image, a driver for {architecture} must be 64-bit",
            hint="build it for the architecture of the machine",
        )
    if magic != _PE32_PLUS or found != architecture:
        raise PackageError(f"'{name}' is built for {found}, not for {architecture}")
    subsystem = struct.unpack_from("<H", data, header + _SUBSYSTEM_OFFSET)[0]
    if subsystem != _SUBSYSTEM_NATIVE:
        kind = _SUBSYSTEMS.get(subsystem, str(subsystem))
        raise PackageError(
            f"'{name}' is for the subsystem '{kind}', a driver must be for 'native'",
            hint="link it with /subsystem:native and /driver",
        )
    stored = struct.unpack_from("<I", data, header + _CHECKSUM_OFFSET)[0]
    computed = image_checksum(data, header + _CHECKSUM_OFFSET)
    if stored != computed:
        raise PackageError(
            f"'{name}' has the checksum 0x{stored:08X} in its header, but it is 0x{computed:08X}",
            hint="link it with /release; whoever changes the file afterwards must write the checksum anew",
        )


def image_checksum(data: bytes, checksum_offset: int) -> int:
    """The checksum of a PE file: 16-bit one's complement sum without the checksum itself, plus the length."""
    blank = data[:checksum_offset] + bytes(4) + data[checksum_offset + 4 :] + bytes(len(data) % 2)
    words = array("H", blank)
    if sys.byteorder == "big":
        words.byteswap()
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total + len(data)


def _optional_header(data: bytes, name: str) -> int:
    """Offset of the optional header."""
    if len(data) < 64 or data[:2] != b"MZ":
        raise PackageError(
            f"'{name}' is not a PE image",
            hint="a driver is what the linker made, a file that begins with 'MZ'",
        )
    offset: int = struct.unpack_from("<I", data, 60)[0]
    # Signature, file header, and the optional header up to the subsystem.
    if offset + 24 + _SUBSYSTEM_OFFSET + 2 > len(data) or data[offset : offset + 4] != b"PE\0\0":
        raise PackageError(f"'{name}' is not a PE image", hint="the file is cut off or was overwritten")
    return offset + 24
