"""A driver image as data: `parse_image` reads a `.sys` once into an immutable template, `Image.layout` makes the
relocated and import-bound memory contents of it for one machine. Knows no engine and no kernel."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

from vm.emulated.image.checksum import pe_checksum
from vm.emulated.image.headers import Directory, Headers, read_headers
from vm.emulated.image.tables import (
    DebugRecord,
    Export,
    ImageView,
    Import,
    read_debug_record,
    read_exports,
    read_imports,
    read_relocations,
)
from vm.errors import PackageError

PAGE_SIZE = 0x1000
LARGEST_IMAGE_BYTES = 64 << 20

_MACHINES = {0xAA64: "ARM64", 0x200: "Itanium"}
_MACHINE_AMD64 = 0x8664
_SUBSYSTEM_NATIVE = 1
_FILE_RELOCS_STRIPPED = 0x0001
_FILE_DLL = 0x2000

_SCN_DISCARDABLE = 0x02000000
_SCN_EXECUTE = 0x20000000
_SCN_READ = 0x40000000
_SCN_WRITE = 0x80000000

_COOKIE_IN_LOAD_CONFIG = 0x58
_QUAD = struct.Struct("<Q")
_RUNTIME_FUNCTION = struct.Struct("<III")

_BUILD_HINT = "build the driver for x64 with './inv build' or with the WDK and deploy the .sys that comes out"


@dataclass(frozen=True, slots=True)
class Section:
    """One section as the loader maps it; `rva` is a multiple of the page size."""

    name: str
    rva: int
    virtual_size: int
    data: bytes
    readable: bool
    writable: bool
    executable: bool
    discardable: bool

    @property
    def paged(self) -> bool:
        """Whether its name makes it pageable (`PAGE*`) or present during DriverEntry only (`INIT`)."""
        return self.name.startswith("PAGE") or self.name == "INIT"

    @property
    def end(self) -> int:
        """First RVA behind its contents; the mapping reaches to the end of that page."""
        return self.rva + self.virtual_size

    def __contains__(self, rva: int) -> bool:
        return self.rva <= rva < self.end


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """What a `.sys` says about itself, plus its contents laid out at RVAs but not yet relocated or bound.

    All `*_rva` are offsets from the base of the image. The template never changes, so one instance serves any
    number of machines and threads.

    Attributes:
        name: file name, for messages.
        sha256: hexadecimal digest of the whole file; the key under which derived data may be cached.
        base: preferred base address.
        size: SizeOfImage rounded up to whole pages; the length of what `layout` returns.
        exception_directory: RVA and size in bytes of `.pdata`, (0, 0) when there is none.
        security_cookie_rva: the `__security_cookie` the load configuration names, or None. A loader gives it a
            value per boot; images built with `/GS` stop themselves when it still has the default.
        checksum: the header's field as found; `checksum_ok` says whether it is right for the file.
        is_signed: whether there is a certificate table; says nothing about whether the signature is good.
    """

    name: str
    sha256: str
    base: int
    size: int
    entry_rva: int
    timestamp: int
    headers_size: int
    sections: tuple[Section, ...]
    imports: tuple[Import, ...]
    relocations: tuple[int, ...]
    exports: tuple[Export, ...]
    exception_directory: tuple[int, int]
    debug: DebugRecord | None
    security_cookie_rva: int | None
    checksum: int
    checksum_ok: bool
    is_signed: bool
    template: bytes
    _base_field: int

    def layout(
        self, base: int, resolve: Callable[[str, str], int], *, security_cookie: int | None = None
    ) -> bytearray:
        """The memory contents of this image loaded at `base`: relocated, imports bound, `size` bytes long.

        Args:
            base: page-aligned address the image is going to be mapped at.
            resolve: called once per import with (dll in lower case, `Import.symbol`); returns the address to put
                into its slot. What it raises passes through, so check `imports` as a whole before.
            security_cookie: value for the `/GS` cookie, if the image has one; None leaves what the file says.
        """
        if base % PAGE_SIZE:
            raise ValueError(f"base {base:#x} is not page-aligned")
        memory = bytearray(self.template)
        pack_into = _QUAD.pack_into
        delta = base - self.base
        if delta:
            unpack_from = _QUAD.unpack_from
            for rva in self.relocations:
                pack_into(memory, rva, (unpack_from(memory, rva)[0] + delta) & 0xFFFFFFFFFFFFFFFF)
            pack_into(memory, self._base_field, base)
        for entry in self.imports:
            pack_into(memory, entry.slot_rva, resolve(entry.dll, entry.symbol))
        if security_cookie is not None and self.security_cookie_rva is not None:
            pack_into(memory, self.security_cookie_rva, security_cookie)
        return memory

    def section_at(self, rva: int) -> Section | None:
        """The section that holds `rva`, or None for headers, gaps and beyond."""
        return next((section for section in self.sections if rva in section), None)

    def runtime_functions(self) -> tuple[tuple[int, int, int], ...]:
        """The RUNTIME_FUNCTION entries of `.pdata`: (begin RVA, end RVA, RVA of the unwind information)."""
        rva, size = self.exception_directory
        return tuple(_RUNTIME_FUNCTION.iter_unpack(self.template[rva : rva + size]))

    def __repr__(self) -> str:
        return f"<Image {self.name} {self.sha256[:12]} base={self.base:#x} size={self.size:#x}>"


def parse_image(data: bytes, name: str) -> Image:
    """Read the driver image `data`, called `name` in messages.

    Raises:
        PackageError: it is not a complete, relocatable, native x64 PE image; the message says in one sentence what
            is wrong with it.
    """
    headers = read_headers(data, name)
    _refuse_what_is_no_driver(headers, name)
    directories = headers.directories
    size = _pages(headers.size_of_image)
    sections = _sections(headers, data, size, name)
    _check_entry(headers.entry_rva, sections, name)
    _check_security(directories[Directory.SECURITY], len(data), name)

    template = bytearray(size)
    headers_size = min(headers.size_of_headers, sections[0].rva)
    if headers_size > len(data) or headers.checksum_offset + 4 > headers_size:
        raise PackageError(f"'{name}' is cut off inside its headers.", hint=_BUILD_HINT)
    template[:headers_size] = data[:headers_size]
    for section in sections:
        template[section.rva : section.rva + len(section.data)] = section.data
    view = ImageView(bytes(template), name)

    return Image(
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        base=headers.image_base,
        size=size,
        entry_rva=headers.entry_rva,
        timestamp=headers.timestamp,
        headers_size=headers_size,
        sections=sections,
        imports=read_imports(view, *directories[Directory.IMPORT]),
        relocations=read_relocations(view, *directories[Directory.BASE_RELOCATION]),
        exports=read_exports(view, *directories[Directory.EXPORT]),
        exception_directory=_exception_directory(view, directories[Directory.EXCEPTION]),
        debug=read_debug_record(view, *directories[Directory.DEBUG]),
        security_cookie_rva=_security_cookie(view, directories[Directory.LOAD_CONFIG], headers.image_base),
        checksum=headers.checksum,
        checksum_ok=headers.checksum == pe_checksum(data, headers.checksum_offset),
        is_signed=directories[Directory.SECURITY][1] > 0,
        template=view.data,
        _base_field=headers.image_base_offset,
    )


def _refuse_what_is_no_driver(headers: Headers, name: str) -> None:
    if headers.machine != _MACHINE_AMD64:
        what = _MACHINES.get(headers.machine, f"machine type {headers.machine:#06x}")
        raise PackageError(f"'{name}' is built for {what}, the machine is x64.", hint=_BUILD_HINT)
    if headers.directories[Directory.MANAGED][1]:
        raise PackageError(f"'{name}' is a managed (.NET) image, not a driver.", hint=_BUILD_HINT)
    if headers.subsystem != _SUBSYSTEM_NATIVE:
        kind = "DLL" if headers.characteristics & _FILE_DLL else "EXE"
        raise PackageError(
            f"'{name}' is a user-mode {kind} (subsystem {headers.subsystem}), not a driver (subsystem 1, native).",
            hint="link with /driver and /subsystem:native",
        )
    if headers.characteristics & _FILE_RELOCS_STRIPPED:
        raise PackageError(
            f"'{name}' has no relocations, so it cannot be loaded where the kernel wants it.",
            hint="link with /dynamicbase and without /fixed",
        )
    if headers.section_alignment == 0 or headers.section_alignment % PAGE_SIZE:
        raise PackageError(
            f"'{name}' aligns its sections to {headers.section_alignment:#x} bytes, not to pages, so they cannot be "
            "protected one by one.",
            hint="link without /align, or with /align:4096",
        )
    if headers.size_of_image > LARGEST_IMAGE_BYTES:
        raise PackageError(
            f"'{name}' wants {headers.size_of_image >> 20} MiB of kernel memory; the machine gives an image at most "
            f"{LARGEST_IMAGE_BYTES >> 20} MiB.",
            hint="look for a very large array in the driver's data; if there is none the file is damaged",
        )


def _sections(headers: Headers, data: bytes, size: int, name: str) -> tuple[Section, ...]:
    sections: list[Section] = []
    end_of_previous = PAGE_SIZE
    for header in headers.sections:
        virtual_size = header.virtual_size or header.raw_size
        used = min(header.raw_size, virtual_size)
        if used and header.raw_offset + used > len(data):
            raise PackageError(
                f"'{name}' is cut off: section '{header.name}' ends at file offset {header.raw_offset + used:#x}, the "
                f"file at {len(data):#x}.",
                hint=_BUILD_HINT,
            )
        if header.rva < end_of_previous or header.rva % PAGE_SIZE or header.rva + virtual_size > size:
            raise PackageError(
                f"'{name}' is damaged: section '{header.name}' at {header.rva:#x} overlaps its neighbour, is not "
                "page-aligned or lies outside of the image.",
                hint=_BUILD_HINT,
            )
        end_of_previous = _pages(header.rva + virtual_size)
        flags = header.characteristics
        sections.append(
            Section(
                name=header.name,
                rva=header.rva,
                virtual_size=virtual_size,
                data=bytes(data[header.raw_offset : header.raw_offset + used]),
                readable=bool(flags & _SCN_READ),
                writable=bool(flags & _SCN_WRITE),
                executable=bool(flags & _SCN_EXECUTE),
                discardable=bool(flags & _SCN_DISCARDABLE),
            )
        )
    if not sections:
        raise PackageError(f"'{name}' has no sections.", hint=_BUILD_HINT)
    return tuple(sections)


def _check_entry(entry_rva: int, sections: tuple[Section, ...], name: str) -> None:
    if entry_rva == 0:
        raise PackageError(
            f"'{name}' has no entry point.", hint="link with /entry:DriverEntry (or GsDriverEntry)"
        )
    if not any(entry_rva in section and section.executable for section in sections):
        raise PackageError(
            f"'{name}' has its entry point at {entry_rva:#x}, outside of its executable sections.",
            hint=_BUILD_HINT,
        )


def _check_security(directory: tuple[int, int], file_size: int, name: str) -> None:
    offset, size = directory  # the only directory whose address is a file offset
    if size and offset + size > file_size:
        raise PackageError(
            f"'{name}' is cut off inside its certificate table.", hint="sign it again, or build it again"
        )


def _exception_directory(view: ImageView, directory: tuple[int, int]) -> tuple[int, int]:
    rva, size = directory
    if not size:
        return (0, 0)
    view.bytes_at(rva, size, "exception directory")
    return (rva, size - size % 12)


def _security_cookie(view: ImageView, directory: tuple[int, int], base: int) -> int | None:
    rva, _ = directory
    if not rva:
        return None
    (length,) = struct.unpack("<I", view.bytes_at(rva, 4, "load configuration"))
    if length < _COOKIE_IN_LOAD_CONFIG + 8:
        return None
    cookie: int = view.quad(rva + _COOKIE_IN_LOAD_CONFIG, "load configuration")
    if cookie == 0:
        return None
    view.bytes_at(cookie - base, 8, "security cookie")
    return cookie - base


def _pages(size: int) -> int:
    return (size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
