"""Physical memory and the page table of the emulated processor.

One anonymous mapping is the RAM; a dictionary from virtual page number to (physical address, access) is the page
table, read by the engine through its TLB-fill hook and by the model directly. Nothing here knows the kernel.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from enum import IntFlag

PAGE_SIZE = 0x1000
PAGE_SHIFT = 12
USER_PAGES_END = 0x0000_8000_0000_0000 >> PAGE_SHIFT
"""First page number beyond the user half of an address space (x64, 47 bits)."""

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Access(IntFlag):
    """What a page allows; the values are the engine's (UC_PROT_*)."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXECUTE = 4
    READ_WRITE = 3
    READ_EXECUTE = 5


class MemoryFaultError(Exception):
    """The model touched memory that driver code must not give it: the driver's fault, at the model's hand.

    Args:
        address: first address that is not accessible.
        access: what was tried.
    """

    def __init__(self, address: int, access: Access) -> None:
        super().__init__(f"{access.name} of {address:#x}")
        self.address = address
        self.access = access


# Plain integers for the paths taken millions of times: arithmetic with the enumeration costs ten times as much.
_READ = int(Access.READ)
_WRITE = int(Access.WRITE)

PageTable = dict[int, tuple[int, int]]
"""Virtual page number -> (physical address of the frame, Access as int)."""


class Memory:
    """RAM of `size` bytes with a page table for the kernel half and one for the current user half.

    `stale` is set by every edit that could leave a wrong entry in the engine's TLB; the engine flushes and clears it
    before it runs again. Forgetting that hides a use after free (measured: see tests/vm/test_engine.py).
    """

    __slots__ = ("_free", "_next", "pages", "ram", "size", "stale", "user_pages")

    def __init__(self, size: int) -> None:
        self.size = size
        self.ram = mmap.mmap(-1, size)
        self.pages: PageTable = {}
        self.user_pages: PageTable = {}
        self._free: list[int] = []
        self._next = PAGE_SIZE  # frame 0 stays unused: a zero physical address is always a mistake
        self.stale = False

    # Frames

    def allocate_frame(self) -> int:
        """Physical address of a zeroed frame.

        Raises:
            MemoryError: the RAM is used up.
        """
        if self._free:
            frame = self._free.pop()
            self.ram[frame : frame + PAGE_SIZE] = _ZERO_PAGE
            return frame
        frame = self._next
        if frame >= self.size:
            raise MemoryError("the emulated machine's RAM is used up")
        self._next = frame + PAGE_SIZE
        return frame

    @property
    def frames_in_use(self) -> int:
        """Frames handed out and not returned."""
        return self._next // PAGE_SIZE - 1 - len(self._free)

    # The page table

    def table_of(self, page: int) -> PageTable:
        """The table that a virtual page number belongs to."""
        return self.user_pages if page < USER_PAGES_END else self.pages

    def map(self, address: int, size: int, access: int) -> None:
        """Back [address, address+size) with fresh zeroed frames. Both are page aligned; nothing is mapped there yet."""
        allowed = int(access)
        for page in _page_range(address, size):
            table = self.table_of(page)
            assert page not in table, f"{page << PAGE_SHIFT:#x} is mapped already"
            table[page] = (self.allocate_frame(), allowed)

    def alias(self, address: int, target: int, size: int, access: int) -> None:
        """Map [address, address+size) to the frames that back `target`: an MDL's second view, for example."""
        for page, source in zip(_page_range(address, size), _page_range(target, size), strict=True):
            self.table_of(page)[page] = (self.table_of(source)[source][0], int(access))

    def unmap(self, address: int, size: int, *, release: bool = True) -> None:
        """Remove the mapping; the frames are free again unless `release` is False (they are aliased)."""
        for page in _page_range(address, size):
            frame, _ = self.table_of(page).pop(page)
            if release:
                self._free.append(frame)
        self.stale = True

    def protect(self, address: int, size: int, access: int) -> None:
        """Change what the pages allow."""
        for page in _page_range(address, size):
            table = self.table_of(page)
            table[page] = (table[page][0], int(access))
        self.stale = True

    def switch_user(self, table: PageTable) -> None:
        """Make `table` the current user half of the address space."""
        if table is not self.user_pages:
            self.user_pages = table
            self.stale = True

    def is_mapped(self, address: int, access: int = _READ) -> bool:
        """True if the byte at `address` allows `access`."""
        page = address >> PAGE_SHIFT
        entry = self.table_of(page).get(page)
        return entry is not None and entry[1] & access == access

    def physical(self, address: int, access: int = _READ) -> int:
        """Physical address of a virtual one.

        Raises:
            MemoryFaultError: not mapped, or the page does not allow `access`.
        """
        page = address >> PAGE_SHIFT
        entry = (self.pages if page >= USER_PAGES_END else self.user_pages).get(page)
        if entry is None or entry[1] & access != access:
            raise MemoryFaultError(address, Access(access))
        return entry[0] + (address & 0xFFF)

    # Access by the model: checked as the processor would, except that writes ignore EXECUTE

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at a virtual address."""
        offset = address & 0xFFF
        if offset + size <= PAGE_SIZE:
            if size == 0:
                return b""
            start = self.physical(address)
            return self.ram[start : start + size]
        parts = []
        while size:
            count = min(size, PAGE_SIZE - (address & 0xFFF))
            start = self.physical(address)
            parts.append(self.ram[start : start + count])
            address += count
            size -= count
        return b"".join(parts)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes at a virtual address; all pages are checked before the first byte is stored."""
        size = len(data)
        offset = address & 0xFFF
        if offset + size <= PAGE_SIZE:
            if size:
                start = self.physical(address, _WRITE)
                self.ram[start : start + size] = data
            return
        pieces = []
        done = 0
        while done < size:
            count = min(size - done, PAGE_SIZE - (address + done & 0xFFF))
            pieces.append((self.physical(address + done, _WRITE), done, count))
            done += count
        view = memoryview(data)
        for start, done, count in pieces:
            self.ram[start : start + count] = view[done : done + count]

    def poke(self, address: int, data: bytes | bytearray) -> None:
        """Store bytes whatever the page allows: for the loader and for read-only pages that the kernel fills."""
        done = 0
        while done < len(data):
            count = min(len(data) - done, PAGE_SIZE - (address + done & 0xFFF))
            start = self.physical(address + done, Access.NONE)
            self.ram[start : start + count] = data[done : done + count]
            done += count

    def fill(self, address: int, size: int, byte: int) -> None:
        """`size` bytes of one value."""
        self.write(address, bytes((byte,)) * size)

    def u8(self, address: int) -> int:
        return self.ram[self.physical(address)]

    def u16(self, address: int) -> int:
        if address & 0xFFF > 0xFFE:
            return int.from_bytes(self.read(address, 2), "little")
        value: int = _U16.unpack_from(self.ram, self.physical(address))[0]
        return value

    def u32(self, address: int) -> int:
        if address & 0xFFF > 0xFFC:
            return int.from_bytes(self.read(address, 4), "little")
        value: int = _U32.unpack_from(self.ram, self.physical(address))[0]
        return value

    def u64(self, address: int) -> int:
        # The one access of nearly every export: what `physical` does, without the call.
        offset = address & 0xFFF
        if offset > 0xFF8:
            return int.from_bytes(self.read(address, 8), "little")
        page = address >> PAGE_SHIFT
        entry = (self.pages if page >= USER_PAGES_END else self.user_pages).get(page)
        if entry is None or not entry[1] & _READ:
            raise MemoryFaultError(address, Access.READ)
        value: int = _U64.unpack_from(self.ram, entry[0] + offset)[0]
        return value

    def i32(self, address: int) -> int:
        value = self.u32(address)
        return value - 0x1_0000_0000 if value & 0x8000_0000 else value

    def i64(self, address: int) -> int:
        value = self.u64(address)
        return value - 0x1_0000_0000_0000_0000 if value & 0x8000_0000_0000_0000 else value

    def put8(self, address: int, value: int) -> None:
        self.ram[self.physical(address, _WRITE)] = value & 0xFF

    def put16(self, address: int, value: int) -> None:
        self.write(address, _U16.pack(value & 0xFFFF))

    def put32(self, address: int, value: int) -> None:
        if address & 0xFFF > 0xFFC:
            self.write(address, _U32.pack(value & 0xFFFF_FFFF))
        else:
            _U32.pack_into(self.ram, self.physical(address, _WRITE), value & 0xFFFF_FFFF)

    def put64(self, address: int, value: int) -> None:
        if address & 0xFFF > 0xFF8:
            self.write(address, _U64.pack(value & 0xFFFF_FFFF_FFFF_FFFF))
        else:
            _U64.pack_into(self.ram, self.physical(address, _WRITE), value & 0xFFFF_FFFF_FFFF_FFFF)

    def c_string(self, address: int, limit: int = 4096) -> bytes:
        """The bytes up to a NUL, at most `limit`."""
        parts = bytearray()
        while len(parts) < limit:
            chunk = self.read(address, min(limit - len(parts), PAGE_SIZE - (address & 0xFFF)))
            end = chunk.find(0)
            if end >= 0:
                return bytes(parts + chunk[:end])
            parts += chunk
            address += len(chunk)
        return bytes(parts)

    def wide_string(self, address: int, limit: int = 32767) -> str:
        """The UTF-16 text up to a NUL, at most `limit` characters; lone surrogates survive."""
        raw = bytearray()
        while len(raw) < 2 * limit:
            unit = self.read(address + len(raw), 2)
            if unit == b"\0\0":
                break
            raw += unit
        return raw.decode("utf-16-le", "surrogatepass")

    def unicode_string(self, address: int) -> str:
        """The text of a UNICODE_STRING (Length at 0, Buffer at 8)."""
        length = self.u16(address)
        return self.read(self.u64(address + 8), length).decode("utf-16-le", "surrogatepass") if length else ""

    def close(self) -> None:
        """Give the RAM back. The engine that uses it must be closed first."""
        self.ram.close()


def pages(size: int) -> int:
    """Number of pages that hold `size` bytes."""
    return (size + PAGE_SIZE - 1) >> PAGE_SHIFT


def _page_range(address: int, size: int) -> Iterator[int]:
    return iter(range(address >> PAGE_SHIFT, (address + size + PAGE_SIZE - 1) >> PAGE_SHIFT))


_ZERO_PAGE = bytes(PAGE_SIZE)
