"""Readers for the directories of a mapped PE image: imports, exports, base relocations, debug record. Strict: an
address that leaves the image is a PackageError, never a silent end."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from vm.errors import PackageError

_ORDINAL_FLAG = 1 << 63
_REL_ABSOLUTE = 0
_REL_DIR64 = 10
_DEBUG_CODEVIEW = 2
_RSDS = b"RSDS"
_LONGEST_NAME = 4096


@dataclass(frozen=True, slots=True)
class Import:
    """One imported symbol; exactly one of `name` and `ordinal` is set.

    Attributes:
        dll: in lower case, as written in the image (`ntoskrnl.exe`, `fltmgr.sys`).
        slot_rva: its slot in the import address table.
    """

    dll: str
    name: str | None
    ordinal: int | None
    slot_rva: int

    @property
    def symbol(self) -> str:
        """The name, or `#<ordinal>`."""
        return self.name if self.name is not None else f"#{self.ordinal}"

    def __str__(self) -> str:
        return f"{self.dll}!{self.symbol}"


@dataclass(frozen=True, slots=True)
class Export:
    """One exported address; `name` is None for exports by ordinal, `forwarder` is set instead of an own address."""

    name: str | None
    ordinal: int
    rva: int
    forwarder: str | None = None


@dataclass(frozen=True, slots=True)
class DebugRecord:
    """The RSDS record: which PDB belongs to the image."""

    guid: uuid.UUID
    age: int
    pdb_path: str


@dataclass(frozen=True, slots=True)
class ImageView:
    """Bounds-checked access to an image laid out at RVAs."""

    data: bytes
    name: str

    def bytes_at(self, rva: int, size: int, what: str) -> bytes:
        """`size` bytes at `rva`; PackageError naming `what` when they are not inside the image."""
        if rva < 0 or rva + size > len(self.data):
            raise self.damaged(what, rva)
        return self.data[rva : rva + size]

    def quad(self, rva: int, what: str) -> int:
        return int.from_bytes(self.bytes_at(rva, 8, what), "little")

    def text(self, rva: int, what: str) -> str:
        """The zero-terminated ASCII text at `rva`."""
        end = self.data.find(b"\0", rva, rva + _LONGEST_NAME) if 0 < rva < len(self.data) else -1
        if end < 0:
            raise self.damaged(what, rva)
        return self.data[rva:end].decode("latin-1")

    def damaged(self, what: str, rva: int) -> PackageError:
        return PackageError(
            f"'{self.name}' is damaged: its {what} points to {rva:#x}, outside of the image.",
            hint="build it again; if it was copied, compare the SHA-256 of both files",
        )


def read_imports(view: ImageView, rva: int, size: int) -> tuple[Import, ...]:
    """Every import of every descriptor, in the order of the image."""
    if not rva or not size:
        return ()
    what = "import directory"
    imports: list[Import] = []
    while True:
        names, _, _, dll_rva, slots = struct.unpack("<5I", view.bytes_at(rva, 20, what))
        if not dll_rva or not slots:
            return tuple(imports)
        dll = view.text(dll_rva, what).lower()
        lookup = names or slots
        while entry := view.quad(lookup, what):
            view.bytes_at(slots, 8, what)
            if entry & _ORDINAL_FLAG:
                imports.append(Import(dll, None, entry & 0xFFFF, slots))
            else:
                imports.append(Import(dll, view.text((entry & 0x7FFFFFFF) + 2, what), None, slots))
            lookup += 8
            slots += 8
        rva += 20


def read_relocations(view: ImageView, rva: int, size: int) -> tuple[int, ...]:
    """RVAs of the 64-bit pointers that move with the base; other relocation types do not occur on x64."""
    what = "relocation directory"
    block = view.bytes_at(rva, size, what) if size else b""
    found: list[int] = []
    position = 0
    while position + 8 <= len(block):
        page, length = struct.unpack_from("<II", block, position)
        if length < 8 or position + length > len(block):
            raise view.damaged(what, rva + position)
        for (entry,) in struct.iter_unpack("<H", block[position + 8 : position + length - length % 2]):
            kind, target = entry >> 12, page + (entry & 0xFFF)
            if kind == _REL_DIR64:
                view.bytes_at(target, 8, what)
                found.append(target)
            elif kind != _REL_ABSOLUTE:
                raise PackageError(
                    f"'{view.name}' uses relocation type {kind}, which x64 images do not have.",
                    hint="build it again; the relocation directory is damaged or not for x64",
                )
        position += length
    return tuple(found)


def read_exports(view: ImageView, rva: int, size: int) -> tuple[Export, ...]:
    """Exports in the order of their ordinals."""
    if not rva or not size:
        return ()
    what = "export directory"
    ordinal_base, functions, names, function_table, name_table, ordinal_table = struct.unpack(
        "<6I", view.bytes_at(rva + 16, 24, what)
    )
    addresses = struct.unpack(f"<{functions}I", view.bytes_at(function_table, 4 * functions, what))
    name_rvas = struct.unpack(f"<{names}I", view.bytes_at(name_table, 4 * names, what))
    indexes = struct.unpack(f"<{names}H", view.bytes_at(ordinal_table, 2 * names, what))
    named = {index: view.text(name_rva, what) for index, name_rva in zip(indexes, name_rvas, strict=True)}
    return tuple(
        Export(
            named.get(index),
            ordinal_base + index,
            address,
            view.text(address, what) if rva <= address < rva + size else None,
        )
        for index, address in enumerate(addresses)
        if address
    )


def read_debug_record(view: ImageView, rva: int, size: int) -> DebugRecord | None:
    """The first CodeView record of kind RSDS, or None. Records outside of the mapped image are not looked at."""
    what = "debug directory"
    for entry in range(rva, rva + size - size % 28, 28):
        kind, length, address = struct.unpack("<III", view.bytes_at(entry, 28, what)[12:24])
        if kind != _DEBUG_CODEVIEW or not address or length < 25:
            continue
        record = view.bytes_at(address, length, what)
        if record[:4] == _RSDS:
            return DebugRecord(
                guid=uuid.UUID(bytes_le=record[4:20]),
                age=int.from_bytes(record[20:24], "little"),
                pdb_path=record[24:].split(b"\0", 1)[0].decode("utf-8", "replace"),
            )
    return None
