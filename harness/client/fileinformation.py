"""File information classes and structures as bytes: the same numbers on Windows and on the emulated machine.

Offsets are those of facts Appendix A.1 and of the public headers (`wdm.h`, `ntifs.h`), x64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

FILE_BASIC_INFORMATION: Final = 4
FILE_STANDARD_INFORMATION: Final = 5
FILE_INTERNAL_INFORMATION: Final = 6
FILE_RENAME_INFORMATION: Final = 10
FILE_LINK_INFORMATION: Final = 11
FILE_DISPOSITION_INFORMATION: Final = 13
FILE_POSITION_INFORMATION: Final = 14
FILE_ALLOCATION_INFORMATION: Final = 19
FILE_END_OF_FILE_INFORMATION: Final = 20
FILE_ID_BOTH_DIRECTORY_INFORMATION: Final = 37
FILE_ID_INFORMATION: Final = 59
FILE_DISPOSITION_INFORMATION_EX: Final = 64

DISPOSITION_DELETE: Final = 0x1
DISPOSITION_POSIX_SEMANTICS: Final = 0x2

_NAME: Final = struct.Struct("<B7xQI")
"""ReplaceIfExists at 0, RootDirectory at 8, FileNameLength at 0x10; FileName follows at 0x14."""

_NAME_BYTES_MINIMUM: Final = 0x18
"""sizeof(FILE_RENAME_INFORMATION); the I/O manager refuses less."""

_BASIC: Final = struct.Struct("<qqqqI4x")
_STANDARD: Final = struct.Struct("<qqIBB2x")


@dataclass(frozen=True, slots=True)
class BasicInformation:
    """FILE_BASIC_INFORMATION. Times are 100 ns since 1601-01-01 UTC; 0 leaves a time, or the attributes, as they are."""

    creation_time: int = 0
    last_access_time: int = 0
    last_write_time: int = 0
    change_time: int = 0
    attributes: int = 0

    def encode(self) -> bytes:
        return _BASIC.pack(
            self.creation_time, self.last_access_time, self.last_write_time, self.change_time, self.attributes
        )

    @classmethod
    def decode(cls, data: bytes) -> BasicInformation:
        return cls(*_BASIC.unpack_from(data))

    SIZE = _BASIC.size


@dataclass(frozen=True, slots=True)
class StandardInformation:
    """FILE_STANDARD_INFORMATION; sizes in bytes."""

    allocation_size: int
    end_of_file: int
    links: int
    delete_pending: bool
    directory: bool

    @classmethod
    def decode(cls, data: bytes) -> StandardInformation:
        allocation, end, links, pending, directory = _STANDARD.unpack_from(data)
        return cls(allocation, end, links, bool(pending), bool(directory))

    SIZE = _STANDARD.size


def name_information(target: str, *, replace: bool) -> bytes:
    """FILE_RENAME_INFORMATION and FILE_LINK_INFORMATION: `target` is a full NT path or a bare name."""
    name = target.encode("utf-16-le", "surrogatepass")
    data = _NAME.pack(int(replace), 0, len(name)) + name
    return data.ljust(_NAME_BYTES_MINIMUM, b"\0")


def disposition(*, delete: bool) -> bytes:
    """FILE_DISPOSITION_INFORMATION."""
    return struct.pack("<B", int(delete))


def disposition_ex(flags: int) -> bytes:
    """FILE_DISPOSITION_INFORMATION_EX."""
    return struct.pack("<I", flags)


def large_integer(value: int) -> bytes:
    """FILE_END_OF_FILE_INFORMATION, FILE_ALLOCATION_INFORMATION and FILE_POSITION_INFORMATION: one LARGE_INTEGER."""
    return struct.pack("<q", value)
