"""Reads a PDB as clang/lld and MSVC write it: finds the streams, walks the modules, turns segments into RVAs."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vm.emulated.image.pdb import codeview
from vm.emulated.image.pdb.msf import NO_STREAM, REBUILD_HINT, StreamFile
from vm.emulated.image.pdb.symbols import Function, LineRow, Symbols, make_symbols
from vm.emulated.image.pe import Image
from vm.errors import PackageError

_PDB_STREAM, _DBI_STREAM, _IPI_STREAM = 1, 3, 4
_DBI_HEADER = struct.Struct("<iIIHHHHHHiiiiiIiiHHI")
_MODULE_FIXED_SIZE = 64
_SECTION_HEADER_SIZE = 40
_SECTION_HEADER_INDEX = 5
_NAMES_SIGNATURE = 0xEFFEEFFE
_PUBLIC_IS_FUNCTION = 0x2
_C13_SIGNATURE = 4


def read_symbols(source: Path | bytes, *, image: Image | None = None, name: str = "driver.pdb") -> Symbols:
    """The symbols in a PDB file.

    Args:
        source: path or contents of the file.
        image: the image that it must belong to; None checks nothing.
        name: what messages call contents given as bytes.

    Raises:
        PackageError: not a PDB, cut off, damaged, or of another build than `image`.
    """
    if isinstance(source, Path):
        name = source.name
        try:
            source = source.read_bytes()
        except OSError as error:
            raise PackageError(
                f"The symbols '{name}' cannot be read ({error.strerror}).", hint=REBUILD_HINT
            ) from error
    streams = StreamFile(source, name)
    try:
        guid = uuid.UUID(bytes_le=streams.stream(_PDB_STREAM)[12:28])
        dbi = _DebugInformation.read(streams)
        _check_match(guid, dbi.age, image, name)
        return _Reader(streams, dbi).read(guid)
    except (struct.error, ValueError, IndexError, StopIteration, RuntimeError) as error:
        raise PackageError(f"'{name}' is cut off or damaged.", hint=REBUILD_HINT) from error


def _check_match(guid: uuid.UUID, age: int, image: Image | None, name: str) -> None:
    if image is None:
        return
    if image.debug is None:
        raise PackageError(
            f"'{image.name}' does not say which symbols belong to it.",
            hint="link it with /debug, so that it does",
        )
    if (image.debug.guid, image.debug.age) != (guid, age):
        raise PackageError(
            f"'{name}' belongs to another build than '{image.name}': it is {guid} age {age}, the image wants "
            f"{image.debug.guid} age {image.debug.age}.",
            hint=REBUILD_HINT,
        )


@dataclass(frozen=True, slots=True)
class _Module:
    stream: int
    symbols_size: int
    c11_size: int
    c13_size: int


@dataclass(frozen=True, slots=True)
class _DebugInformation:
    """The header of stream 3 and the lists behind it."""

    age: int
    records_stream: int
    modules: tuple[_Module, ...]
    section_headers_stream: int

    @classmethod
    def read(cls, streams: StreamFile) -> _DebugInformation:
        dbi = streams.stream(_DBI_STREAM)
        (_, _, age, _, _, _, _, records_stream, _, modules_size, contributions_size, map_size, sources_size,
         types_size, _, debug_size, edit_size, _, _, _) = _DBI_HEADER.unpack_from(dbi)  # fmt: skip
        begin = _DBI_HEADER.size
        debug_begin = (
            begin + modules_size + contributions_size + map_size + sources_size + types_size + edit_size
        )
        debug = struct.unpack_from(f"<{debug_size // 2}H", dbi, debug_begin)
        return cls(
            age=age,
            records_stream=records_stream,
            modules=tuple(_modules(dbi, begin, begin + modules_size)),
            section_headers_stream=debug[_SECTION_HEADER_INDEX]
            if len(debug) > _SECTION_HEADER_INDEX
            else NO_STREAM,
        )


def _modules(dbi: bytes, position: int, end: int) -> Iterator[_Module]:
    while position + _MODULE_FIXED_SIZE <= end:
        stream, symbols_size, c11_size, c13_size = struct.unpack_from("<HIII", dbi, position + 34)
        yield _Module(stream, symbols_size, c11_size, c13_size)
        position += _MODULE_FIXED_SIZE
        for _ in ("module name", "object file name"):
            position = dbi.index(b"\0", position, end) + 1
        position += -position % 4


@dataclass(frozen=True, slots=True)
class _Site:
    """An inline site within a procedure: which function, how deep, and its annotations."""

    function: int
    depth: int
    annotations: bytes


@dataclass(slots=True)
class _Procedure:
    name: str
    rva: int
    size: int
    sites: list[_Site]


class _Reader:
    """Collects everything from the modules and the public symbols of one PDB."""

    def __init__(self, streams: StreamFile, dbi: _DebugInformation) -> None:
        self._streams = streams
        self._dbi = dbi
        headers = streams.stream(dbi.section_headers_stream)
        self._section_rvas: list[int] = [
            struct.unpack_from("<I", headers, offset + 12)[0]
            for offset in range(0, len(headers) - _SECTION_HEADER_SIZE + 1, _SECTION_HEADER_SIZE)
        ]
        self._strings = _string_table(streams)
        self._function_names = codeview.read_function_ids(streams.stream(_IPI_STREAM))
        self._functions: list[Function] = []
        self._rows: list[LineRow] = []
        self._addresses: dict[str, int] = {}

    def read(self, guid: uuid.UUID) -> Symbols:
        for module in self._dbi.modules:
            if module.stream != NO_STREAM and module.symbols_size:
                self._read_module(module)
        self._read_globals()
        return make_symbols(guid, self._dbi.age, self._functions, self._rows, self._addresses)

    def _read_module(self, module: _Module) -> None:
        data = self._streams.stream(module.stream)
        if struct.unpack_from("<I", data)[0] != _C13_SIGNATURE:
            raise ValueError("module symbols of an older format")
        procedures = self._procedures(data, module.symbols_size)
        begin = module.symbols_size + module.c11_size
        lines = codeview.read_lines(data[begin : begin + module.c13_size])
        files = {
            file: codeview.zero_terminated(self._strings, name, len(self._strings))
            for file, name in lines.files.items()
        }
        starts = {procedure.rva: procedure for procedure in procedures}
        for contribution in _by_contribution(lines.blocks):
            self._add_lines(contribution, files, starts)
        for procedure in procedures:
            self._functions.append(Function(procedure.name, procedure.rva, procedure.size))
            self._addresses.setdefault(procedure.name, procedure.rva)
            for site in procedure.sites:
                self._add_site(procedure, site, lines.inlinees, files)

    def _procedures(self, data: bytes, end: int) -> list[_Procedure]:
        found: list[_Procedure] = []
        current: _Procedure | None = None
        depth = 0
        for kind, begin, stop in codeview.records(data, 4, end):
            if kind in codeview.PROCEDURES:
                (size,) = struct.unpack_from("<I", data, begin + 12)
                offset, segment = struct.unpack_from("<IH", data, begin + 28)
                current, depth = None, 0
                if (rva := self._rva(segment, offset)) is not None:
                    current = _Procedure(codeview.zero_terminated(data, begin + 35, stop), rva, size, [])
                    found.append(current)
            elif kind == codeview.S_INLINESITE:
                depth += 1
                if current is not None:
                    (function,) = struct.unpack_from("<I", data, begin + 8)
                    current.sites.append(_Site(function, depth, data[begin + 12 : stop]))
            elif kind == codeview.S_INLINESITE_END:
                depth -= 1
            elif kind in (codeview.S_LDATA32, codeview.S_GDATA32):
                self._add_data(data, begin, stop)
        return found

    def _add_data(self, data: bytes, begin: int, stop: int) -> None:
        offset, segment = struct.unpack_from("<IH", data, begin + 4)
        if (rva := self._rva(segment, offset)) is not None:
            self._addresses.setdefault(codeview.zero_terminated(data, begin + 10, stop), rva)

    def _add_lines(
        self, blocks: list[codeview.LineBlock], files: dict[int, str], procedures: dict[int, _Procedure]
    ) -> None:
        base = self._rva(blocks[0].segment, blocks[0].offset)
        if base is None:
            return
        procedure = procedures.get(base)
        name = procedure.name if procedure else ""
        lines = sorted(
            ((offset, line, files.get(block.file, "")) for block in blocks for offset, line in block.lines),
            key=lambda entry: entry[0],
        )
        ends = [offset for offset, _, _ in lines[1:]] + [blocks[0].size]
        for (offset, line, file), end in zip(lines, ends, strict=True):
            if end > offset and line not in codeview.HIDDEN_LINES and line and file:
                self._rows.append(LineRow(base + offset, end - offset, file, line, name))

    def _add_site(
        self, procedure: _Procedure, site: _Site, inlinees: dict[int, tuple[int, int]], files: dict[int, str]
    ) -> None:
        if site.function not in inlinees:
            return
        name = self._function_names.get(site.function, "")
        file, line = inlinees[site.function]
        for piece in codeview.read_annotations(site.annotations, file, line, procedure.size):
            self._rows.append(
                LineRow(
                    procedure.rva + piece.offset,
                    piece.size,
                    files.get(piece.file, ""),
                    piece.line,
                    name,
                    site.depth,
                )
            )

    def _read_globals(self) -> None:
        data = self._streams.stream(self._dbi.records_stream)
        for kind, begin, stop in codeview.records(data, 0, len(data)):
            if kind == codeview.S_PUB32:
                flags, offset, segment = struct.unpack_from("<IIH", data, begin)
                if (rva := self._rva(segment, offset)) is None:
                    continue
                name = codeview.zero_terminated(data, begin + 10, stop)
                self._addresses.setdefault(name, rva)
                if flags & _PUBLIC_IS_FUNCTION:
                    self._functions.append(Function(name, rva, 0))
            elif kind in (codeview.S_LDATA32, codeview.S_GDATA32):
                self._add_data(data, begin, stop)

    def _rva(self, segment: int, offset: int) -> int | None:
        """None for absolute symbols and for what the linker threw away."""
        if 1 <= segment <= len(self._section_rvas):
            return self._section_rvas[segment - 1] + offset
        return None


def _by_contribution(blocks: tuple[codeview.LineBlock, ...]) -> Iterator[list[codeview.LineBlock]]:
    """The blocks of one function together: its lines may come from several files, mixed."""
    groups: dict[tuple[int, int], list[codeview.LineBlock]] = {}
    for block in blocks:
        groups.setdefault((block.segment, block.offset), []).append(block)
    yield from groups.values()


def _string_table(streams: StreamFile) -> bytes:
    """The contents of the stream `/names`, which holds the paths of the sources."""
    data = streams.stream(_named_streams(streams.stream(_PDB_STREAM)).get("/names", -1))
    if len(data) < 12:
        return b""
    signature, _, size = struct.unpack_from("<III", data)
    if signature != _NAMES_SIGNATURE or 12 + size > len(data):
        raise ValueError("the string table is damaged")
    return data[12 : 12 + size]


def _named_streams(info: bytes) -> dict[str, int]:
    """The hash table behind the header of stream 1: name to number of a stream."""
    (text_size,) = struct.unpack_from("<I", info, 28)
    text_begin = 32
    position = text_begin + text_size
    count, _, present_words = struct.unpack_from("<III", info, position)
    position += 12 + 4 * present_words
    (deleted_words,) = struct.unpack_from("<I", info, position)
    position += 4 + 4 * deleted_words
    named: dict[str, int] = {}
    for _ in range(count):
        name, stream = struct.unpack_from("<II", info, position)
        position += 8
        named[codeview.zero_terminated(info, text_begin + name, text_begin + text_size)] = stream
    return named
