"""What can be told of a driver image before a real Windows sees it: that it is one, for this processor, in kernel mode."""

from __future__ import annotations

import struct

from vm.errors import PackageError

MACHINE_AMD64 = 0x8664
SUBSYSTEM_NATIVE = 1
_SUBSYSTEM_OFFSET = 68
"""In the optional header of PE32+ (PE format, optional header Windows-specific fields)."""


def check_image(image: bytes, name: str) -> None:
    """Refuse what the guest's loader would refuse for its form alone.

    Raises:
        PackageError: with the reason.
    """
    try:
        (start,) = struct.unpack_from("<I", image, 0x3C)
        signature, machine = struct.unpack_from("<4sH", image, start)
        (magic,) = struct.unpack_from("<H", image, start + 24)
        (subsystem,) = struct.unpack_from("<H", image, start + 24 + _SUBSYSTEM_OFFSET)
    except struct.error as error:
        raise PackageError(f"'{name}' is no executable image: it ends too early") from error
    if image[:2] != b"MZ" or signature != b"PE\0\0" or magic != 0x20B:
        raise PackageError(f"'{name}' is no 64-bit executable image")
    if machine != MACHINE_AMD64:
        raise PackageError(
            f"'{name}' is built for the processor {machine:#06x}, and Hyper-V machines here are x64",
            hint="build it with --architecture x64",
        )
    if subsystem != SUBSYSTEM_NATIVE:
        raise PackageError(
            f"'{name}' is no driver: its subsystem is {subsystem} instead of {SUBSYSTEM_NATIVE}"
        )
