"""The container of a PDB: MSF 7.00, a file system of numbered streams made of blocks."""

from __future__ import annotations

import struct

from vm.errors import PackageError

_MAGIC = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0"
_OLD_MAGIC = b"Microsoft C/C++ program database 2.00"
_PORTABLE_MAGIC = b"BSJB"
_NO_STREAM_SIZE = 0xFFFFFFFF
NO_STREAM = 0xFFFF

REBUILD_HINT = "build the driver again; the .pdb has to come from the same link as the .sys"


class StreamFile:
    """The streams of one PDB file.

    Raises:
        PackageError: from the constructor and from `stream`, when the file is not MSF 7.00 or is cut off.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self.name = name
        if not data.startswith(_MAGIC):
            raise PackageError(f"'{name}' is not a PDB file{_what_instead(data)}.", hint=REBUILD_HINT)
        if len(data) < 56:
            raise self.cut_off()
        block_size: int
        block_size, _, block_count, directory_size, _, map_block = struct.unpack_from("<6I", data, 32)
        if block_size not in (512, 1024, 2048, 4096, 8192, 16384, 32768):
            raise PackageError(f"'{name}' is damaged: its block size is {block_size}.", hint=REBUILD_HINT)
        self._block_size = block_size
        if block_count * block_size > len(data):
            raise self.cut_off()
        directory = self._join(
            self._numbers(map_block * block_size, self._blocks(directory_size)), directory_size
        )
        self._streams = self._read_directory(directory)

    def stream(self, index: int) -> bytes:
        """The bytes of stream `index`; empty for one that does not exist."""
        if not 0 <= index < len(self._streams):
            return b""
        blocks, size = self._streams[index]
        return self._join(blocks, size)

    def cut_off(self) -> PackageError:
        return PackageError(f"'{self.name}' is cut off or damaged.", hint=REBUILD_HINT)

    def _read_directory(self, directory: bytes) -> list[tuple[tuple[int, ...], int]]:
        try:
            (count,) = struct.unpack_from("<I", directory)
            sizes = struct.unpack_from(f"<{count}I", directory, 4)
            position = 4 + 4 * count
            streams: list[tuple[tuple[int, ...], int]] = []
            for size in sizes:
                size = 0 if size == _NO_STREAM_SIZE else size
                blocks = struct.unpack_from(f"<{self._blocks(size)}I", directory, position)
                position += 4 * len(blocks)
                streams.append((blocks, size))
        except struct.error:
            raise self.cut_off() from None
        return streams

    def _blocks(self, size: int) -> int:
        return -(-size // self._block_size)

    def _numbers(self, offset: int, count: int) -> tuple[int, ...]:
        if offset + 4 * count > len(self._data):
            raise self.cut_off()
        return struct.unpack_from(f"<{count}I", self._data, offset)

    def _join(self, blocks: tuple[int, ...], size: int) -> bytes:
        block_size = self._block_size
        joined = b"".join([self._data[block * block_size : (block + 1) * block_size] for block in blocks])[
            :size
        ]
        if len(joined) != size:
            raise self.cut_off()
        return joined


def _what_instead(data: bytes) -> str:
    if data.startswith(_PORTABLE_MAGIC):
        return " of native code but a portable one of .NET"
    if data.startswith(_OLD_MAGIC):
        return " of a supported version (it is older than Visual C++ 7)"
    return ""
