"""The fixed headers of a PE32+ file, with their file offsets: what loading, signing and verifying have in common.
Accepts any machine type and subsystem; whether an image is a driver for this machine is decided by its user."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from vm.errors import PackageError

_HINT = "build the driver with './inv build' or with the WDK and use the .sys that comes out"
_DOS_HEADER_SIZE = 64
_FILE_HEADER = struct.Struct("<HHIIIHH")
_OPTIONAL_MAGIC = 0x20B
_OPTIONAL_FIXED_SIZE = 112
_SECTION = struct.Struct("<8sIIIIIIHHI")


class Directory(IntEnum):
    """Indexes of the data directories (winnt.h, IMAGE_DIRECTORY_ENTRY_*)."""

    EXPORT = 0
    IMPORT = 1
    EXCEPTION = 3
    SECURITY = 4
    BASE_RELOCATION = 5
    DEBUG = 6
    LOAD_CONFIG = 10
    MANAGED = 14


@dataclass(frozen=True, slots=True)
class SectionHeader:
    name: str
    virtual_size: int
    rva: int
    raw_size: int
    raw_offset: int
    characteristics: int


@dataclass(frozen=True, slots=True)
class Headers:
    """Fields by their names in winnt.h; `*_offset` are positions in the file.

    Attributes:
        directories: (address, size) per data directory, sixteen of them, missing ones as (0, 0).
        directory_count: how many of them the file really has.
    """

    machine: int
    timestamp: int
    characteristics: int
    entry_rva: int
    image_base: int
    section_alignment: int
    size_of_image: int
    size_of_headers: int
    checksum: int
    subsystem: int
    directories: tuple[tuple[int, int], ...]
    directory_count: int
    sections: tuple[SectionHeader, ...]
    image_base_offset: int
    checksum_offset: int
    security_directory_offset: int


def read_headers(data: bytes, name: str) -> Headers:
    """The headers of the PE32+ file `data`, called `name` in messages.

    Raises:
        PackageError: not PE, cut off inside the headers, or 32-bit.
    """
    if data[:2] != b"MZ":
        raise PackageError(f"'{name}' is not a PE image: it does not begin with 'MZ'.", hint=_HINT)
    if len(data) < _DOS_HEADER_SIZE:
        raise _cut_off(name, "DOS header")
    (pe,) = struct.unpack_from("<I", data, 60)
    if pe + 4 + _FILE_HEADER.size > len(data):
        raise _cut_off(name, "file header")
    if data[pe : pe + 4] != b"PE\0\0":
        raise PackageError(
            f"'{name}' is not a PE image: there is no PE signature behind its DOS header.", hint=_HINT
        )
    machine, section_count, timestamp, _, _, optional_size, characteristics = _FILE_HEADER.unpack_from(
        data, pe + 4
    )
    optional = pe + 4 + _FILE_HEADER.size
    table = optional + optional_size
    if optional + _OPTIONAL_FIXED_SIZE > len(data) or table + section_count * _SECTION.size > len(data):
        raise _cut_off(name, "headers")
    if machine in (0x14C, 0x1C4):
        what = "32-bit x86" if machine == 0x14C else "32-bit ARM"
        raise PackageError(f"'{name}' is built for {what}; drivers of this machine are 64-bit.", hint=_HINT)
    (magic,) = struct.unpack_from("<H", data, optional)
    if magic != _OPTIONAL_MAGIC or optional_size < _OPTIONAL_FIXED_SIZE:
        raise PackageError(f"'{name}' has no 64-bit optional header (PE32+).", hint=_HINT)

    (count,) = struct.unpack_from("<I", data, optional + 108)
    count = min(count, 16, (optional_size - _OPTIONAL_FIXED_SIZE) // 8)
    first = optional + _OPTIONAL_FIXED_SIZE
    directories = tuple(struct.iter_unpack("<II", data[first : first + 8 * count]))
    return Headers(
        machine=machine,
        timestamp=timestamp,
        characteristics=characteristics,
        entry_rva=_u32(data, optional + 16),
        image_base=int.from_bytes(data[optional + 24 : optional + 32], "little"),
        section_alignment=_u32(data, optional + 32),
        size_of_image=_u32(data, optional + 56),
        size_of_headers=_u32(data, optional + 60),
        checksum=_u32(data, optional + 64),
        subsystem=struct.unpack_from("<H", data, optional + 68)[0],
        directories=directories + ((0, 0),) * (16 - count),
        directory_count=count,
        sections=tuple(_section(data, table + i * _SECTION.size) for i in range(section_count)),
        image_base_offset=optional + 24,
        checksum_offset=optional + 64,
        security_directory_offset=first + 8 * Directory.SECURITY,
    )


def _section(data: bytes, offset: int) -> SectionHeader:
    name, virtual_size, rva, raw_size, raw_offset, _, _, _, _, characteristics = _SECTION.unpack_from(
        data, offset
    )
    title = name.rstrip(b"\0").decode("ascii", "replace")
    return SectionHeader(title, virtual_size, rva, raw_size, raw_offset, characteristics)


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def _cut_off(name: str, where: str) -> PackageError:
    return PackageError(f"'{name}' is cut off inside its {where}.", hint=_HINT)
