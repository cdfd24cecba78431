"""File operations on Windows: the native functions of `ntdll.dll`, because they take the numbers that filters see.

CreateFileW knows neither supersede nor most create options, and maps statuses to fewer error codes.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from ctypes import byref, c_int64, c_uint64
from typing import Any, Final, TypeVar

from harness.client import ntstatus
from harness.client.binding import OPERATION_SECONDS
from harness.client.errors import FileError
from harness.client.fileinformation import FILE_ID_BOTH_DIRECTORY_INFORMATION
from harness.client.operator_thread import Operator
from harness.client.windows_api import IoStatusBlock, Libraries, ObjectAttributes, UnicodeString

T = TypeVar("T")

_OBJ_CASE_INSENSITIVE: Final = 0x40
_DIRECTORY_BUFFER_BYTES: Final = 65536
_ID_BOTH: Final = struct.Struct("<IIqqqqqqIIIB x24s2xq")
"""FILE_ID_BOTH_DIR_INFORMATION: NextEntryOffset, FileIndex, four times, EndOfFile, AllocationSize, FileAttributes,
FileNameLength, EaSize, ShortNameLength, ShortName, FileId; FileName follows at 0x68."""


class WindowsFiles:
    """The file part of `WindowsBinding`. Every call is made on the calling thread's helper, with a deadline."""

    def __init__(self, libraries: Libraries) -> None:
        self._api = libraries
        self._operator = Operator()

    def run(self, what: str, function: Callable[[], T], *, seconds: float | None = OPERATION_SECONDS) -> T:
        """Make a system call; raises `OperationTimeoutError` if it does not return in time."""
        return self._operator.run(what, function, seconds=seconds)

    def create_file(
        self, path: str, access: int, share: int, disposition: int, options: int, attributes: int
    ) -> tuple[int, int]:
        name = (path if path.startswith("\\") else f"\\??\\{path}").encode("utf-16-le", "surrogatepass")
        buffer = ctypes.create_string_buffer(name, len(name))
        text = UnicodeString(len(name), len(name), ctypes.addressof(buffer))
        target = ObjectAttributes(
            ctypes.sizeof(ObjectAttributes), None, ctypes.pointer(text), _OBJ_CASE_INSENSITIVE, None, None
        )
        handle, block = c_uint64(), IoStatusBlock()
        self._call(
            "NtCreateFile",
            f"create '{path}'",
            byref(handle),
            access,
            byref(target),
            byref(block),
            None,
            attributes,
            share,
            disposition,
            options,
            None,
            0,
            keep=(buffer, text),
        )
        return handle.value, int(block.Information)

    def read_file(self, handle: int, offset: int | None, length: int) -> bytes:
        buffer, block = ctypes.create_string_buffer(max(1, length)), IoStatusBlock()
        try:
            self._transfer("NtReadFile", "read", handle, buffer, length, offset, block)
        except FileError as error:
            if error.status == ntstatus.END_OF_FILE:
                return b""
            raise
        return buffer.raw[: block.Information]

    def write_file(self, handle: int, offset: int | None, data: bytes) -> int:
        buffer, block = ctypes.create_string_buffer(data, max(1, len(data))), IoStatusBlock()
        self._transfer("NtWriteFile", "write", handle, buffer, len(data), offset, block)
        return int(block.Information)

    def set_information(self, handle: int, information_class: int, data: bytes) -> None:
        buffer, block = ctypes.create_string_buffer(data, len(data)), IoStatusBlock()
        what = f"set information class {information_class}"
        self._call("NtSetInformationFile", what, handle, byref(block), buffer, len(data), information_class)

    def query_information(self, handle: int, information_class: int, length: int) -> bytes:
        buffer, block = ctypes.create_string_buffer(length), IoStatusBlock()
        what = f"query information class {information_class}"
        self._call("NtQueryInformationFile", what, handle, byref(block), buffer, length, information_class)
        return buffer.raw[: block.Information]

    def query_directory(self, handle: int, pattern: str | None) -> list[tuple[str, int, int, int]]:
        buffer, block = ctypes.create_string_buffer(_DIRECTORY_BUFFER_BYTES), IoStatusBlock()
        name = (pattern or "*").encode("utf-16-le", "surrogatepass")
        characters = ctypes.create_string_buffer(name, len(name))
        mask = UnicodeString(len(name), len(name), ctypes.addressof(characters))
        entries: list[tuple[str, int, int, int]] = []
        restart = 1
        while True:
            try:
                self._call(
                    "NtQueryDirectoryFile",
                    "query directory",
                    handle,
                    None,
                    None,
                    None,
                    byref(block),
                    buffer,
                    _DIRECTORY_BUFFER_BYTES,
                    FILE_ID_BOTH_DIRECTORY_INFORMATION,
                    0,
                    byref(mask),
                    restart,
                    keep=characters,
                )
            except FileError as error:
                if error.status in (ntstatus.NO_MORE_FILES, ntstatus.NO_SUCH_FILE):
                    return entries
                raise
            entries += parse_directory(buffer.raw[: block.Information])
            restart = 0

    def flush(self, handle: int) -> None:
        block = IoStatusBlock()
        self._call("NtFlushBuffersFile", "flush", handle, byref(block))

    def set_security(self, handle: int, information: int, descriptor: bytes) -> None:
        buffer = ctypes.create_string_buffer(descriptor, len(descriptor))
        self._call("NtSetSecurityObject", "set security", handle, information, buffer)

    def _transfer(
        self,
        function: str,
        what: str,
        handle: int,
        buffer: Any,
        length: int,
        offset: int | None,
        block: IoStatusBlock,
    ) -> None:
        # Files are opened for synchronous use: without an offset the file object's own position counts.
        position = None if offset is None else byref(c_int64(offset))
        self._call(function, what, handle, None, None, None, byref(block), buffer, length, position, None)

    def _call(self, function: str, what: str, *arguments: Any, keep: Any = None) -> None:
        entry = getattr(self._api.ntdll, function)

        def call(_keep: Any = keep) -> int:
            # `keep` is what arguments point into: it must live as long as the call, also when the caller gave it up.
            return int(entry(*arguments))

        status = self.run(f"{function} ({what})", call) & 0xFFFFFFFF
        if not ntstatus.succeeded(status):
            raise FileError(status, what)


def parse_directory(data: bytes) -> list[tuple[str, int, int, int]]:
    """FILE_ID_BOTH_DIR_INFORMATION entries as (name, attributes, size in bytes, file id)."""
    entries = []
    offset = 0
    while offset + _ID_BOTH.size <= len(data):
        fields = _ID_BOTH.unpack_from(data, offset)
        following, size, attributes, name_length, identity = (fields[i] for i in (0, 6, 8, 9, 13))
        start = offset + _ID_BOTH.size
        name = data[start : start + name_length].decode("utf-16-le", "surrogatepass")
        entries.append((name, attributes, size, identity & 0xFFFFFFFFFFFFFFFF))
        if not following:
            break
        offset += following
    return entries
