"""File operations with NT's own numbers, and a directory to do them in.

Everything goes through the binding, so that each call here is one operation that the filter sees, on Windows and on
the emulated machine alike. Python's own file functions would do more than one, and do not reach the emulated volumes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from harness.client import binding as bindings
from harness.client import fileinformation as info
from harness.client import ntstatus
from harness.client.binding import Binding
from harness.client.errors import FileError

READ_DATA: Final = 0x0001
WRITE_DATA: Final = 0x0002
APPEND_DATA: Final = 0x0004
READ_ATTRIBUTES: Final = 0x0080
WRITE_ATTRIBUTES: Final = 0x0100
DELETE: Final = 0x00010000
READ_CONTROL: Final = 0x00020000
WRITE_DAC: Final = 0x00040000
WRITE_OWNER: Final = 0x00080000
SYNCHRONIZE: Final = 0x00100000
GENERIC_READ: Final = 0x00120089
"""FILE_GENERIC_READ, already mapped."""
GENERIC_WRITE: Final = 0x00120116
"""FILE_GENERIC_WRITE, already mapped."""

SHARE_READ: Final = 1
SHARE_WRITE: Final = 2
SHARE_DELETE: Final = 4
SHARE_ALL: Final = 7

SUPERSEDE: Final = 0
OPEN: Final = 1
CREATE: Final = 2
OPEN_IF: Final = 3
OVERWRITE: Final = 4
OVERWRITE_IF: Final = 5

SUPERSEDED: Final = 0
OPENED: Final = 1
CREATED: Final = 2
OVERWRITTEN: Final = 3
"""What the I/O status block's Information says after a create."""

DIRECTORY_FILE: Final = 0x0001
SYNCHRONOUS_IO_NONALERT: Final = 0x0020
NON_DIRECTORY_FILE: Final = 0x0040
DELETE_ON_CLOSE: Final = 0x1000
OPEN_REPARSE_POINT: Final = 0x00200000

ATTRIBUTE_READONLY: Final = 0x01
ATTRIBUTE_HIDDEN: Final = 0x02
ATTRIBUTE_DIRECTORY: Final = 0x10
ATTRIBUTE_NORMAL: Final = 0x80

OWNER_SECURITY_INFORMATION: Final = 0x1
DACL_SECURITY_INFORMATION: Final = 0x4
NULL_DACL_DESCRIPTOR: Final = bytes.fromhex("0100048000000000000000000000000000000000")
"""A self-relative SECURITY_DESCRIPTOR with SE_DACL_PRESENT and a NULL DACL."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a directory."""

    name: str
    attributes: int
    size: int
    file_id: int

    @property
    def directory(self) -> bool:
        return bool(self.attributes & ATTRIBUTE_DIRECTORY)


class File:
    """An open file or directory; made by `open_file`. Every operation raises `FileError` with its NTSTATUS."""

    def __init__(self, binding: Binding, handle: int, path: str, information: int) -> None:
        self._binding = binding
        self._handle: int | None = handle
        self.path = path
        self.information = information
        """SUPERSEDED, OPENED, CREATED or OVERWRITTEN."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"File('{self.path}'{', closed' if self._handle is None else ''})"

    @property
    def handle(self) -> int:
        if self._handle is None:
            raise ValueError(f"'{self.path}' has been closed")
        return self._handle

    def read(self, length: int, offset: int | None = None) -> bytes:
        """Up to `length` bytes from `offset` or the current position; empty at the end of the file."""
        return self._binding.read_file(self.handle, offset, length)

    def write(self, data: bytes, offset: int | None = None) -> int:
        """Write at `offset` or the current position; the bytes written."""
        return self._binding.write_file(self.handle, offset, data)

    def rename(self, target: str, *, replace: bool = False) -> None:
        """Rename to a full path on the same volume; the handle must have DELETE access."""
        data = info.name_information(nt_path(target), replace=replace)
        self._binding.set_information(self.handle, info.FILE_RENAME_INFORMATION, data)
        self.path = target

    def link(self, target: str, *, replace: bool = False) -> None:
        """Make a hard link with a full path on the same volume."""
        data = info.name_information(nt_path(target), replace=replace)
        self._binding.set_information(self.handle, info.FILE_LINK_INFORMATION, data)

    def set_delete(self, delete: bool = True) -> None:
        """FileDispositionInformation: the file goes when the last handle is closed, or stays after all."""
        data = info.disposition(delete=delete)
        self._binding.set_information(self.handle, info.FILE_DISPOSITION_INFORMATION, data)

    def delete_posix(self) -> None:
        """FileDispositionInformationEx with POSIX semantics: the name goes when this handle is closed."""
        data = info.disposition_ex(info.DISPOSITION_DELETE | info.DISPOSITION_POSIX_SEMANTICS)
        self._binding.set_information(self.handle, info.FILE_DISPOSITION_INFORMATION_EX, data)

    def set_end_of_file(self, size: int) -> None:
        self._binding.set_information(
            self.handle, info.FILE_END_OF_FILE_INFORMATION, info.large_integer(size)
        )

    def set_basic(self, basic: info.BasicInformation) -> None:
        """Attributes and times; what is 0 stays as it is."""
        self._binding.set_information(self.handle, info.FILE_BASIC_INFORMATION, basic.encode())

    def set_security(
        self,
        descriptor: bytes = NULL_DACL_DESCRIPTOR,
        information: int = DACL_SECURITY_INFORMATION,
    ) -> None:
        self._binding.set_security(self.handle, information, descriptor)

    def basic(self) -> info.BasicInformation:
        data = self._binding.query_information(
            self.handle, info.FILE_BASIC_INFORMATION, info.BasicInformation.SIZE
        )
        return info.BasicInformation.decode(data)

    def standard(self) -> info.StandardInformation:
        data = self._binding.query_information(
            self.handle, info.FILE_STANDARD_INFORMATION, info.StandardInformation.SIZE
        )
        return info.StandardInformation.decode(data)

    def entries(self, pattern: str | None = None) -> list[Entry]:
        """Entries of the directory, without '.' and '..'."""
        found = self._binding.query_directory(self.handle, pattern)
        return [Entry(*entry) for entry in found if entry[0] not in (".", "..")]

    def flush(self) -> None:
        self._binding.flush(self.handle)

    def close(self) -> None:
        """Close the handle; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._binding.close(handle)


def open_file(
    path: str,
    *,
    access: int = GENERIC_READ,
    share: int = SHARE_ALL,
    disposition: int = OPEN,
    options: int = NON_DIRECTORY_FILE,
    attributes: int = ATTRIBUTE_NORMAL,
) -> File:
    """NtCreateFile, for synchronous use.

    Args:
        path: "D:\\dir\\name" or a device path.
        access, share, disposition, options, attributes: NT's numbers, as the constants of this module.

    Raises:
        FileError: with the NTSTATUS.
    """
    binding = bindings.current()
    handle, information = binding.create_file(
        path, access | SYNCHRONIZE, share, disposition, options | SYNCHRONOUS_IO_NONALERT, attributes
    )
    return File(binding, handle, path, information)


def create(path: str, data: bytes = b"") -> None:
    """Make a new file: create, one write if there is data, close."""
    with open_file(path, access=GENERIC_WRITE, disposition=CREATE) as file:
        if data:
            file.write(data)


def write(path: str, data: bytes, offset: int = 0) -> None:
    """Write into an existing file: open, one write, close."""
    with open_file(path, access=GENERIC_WRITE) as file:
        file.write(data, offset)


def read(path: str, length: int = 1 << 20) -> bytes:
    """Open, one read, close."""
    with open_file(path) as file:
        return file.read(length, 0)


def rename(path: str, target: str, *, replace: bool = False) -> None:
    """Open for DELETE, rename, close."""
    with open_file(path, access=DELETE | READ_ATTRIBUTES, options=0) as file:
        file.rename(target, replace=replace)


def delete(path: str) -> None:
    """Open for DELETE, mark, close; a directory must be empty."""
    with open_file(path, access=DELETE | READ_ATTRIBUTES, options=OPEN_REPARSE_POINT) as file:
        file.set_delete()


def mkdir(path: str) -> None:
    """Make a directory; its parent must exist."""
    open_file(path, disposition=CREATE, options=DIRECTORY_FILE, attributes=ATTRIBUTE_DIRECTORY).close()


def listdir(path: str) -> list[Entry]:
    """Entries of a directory."""
    with open_file(path, options=DIRECTORY_FILE) as directory:
        return directory.entries()


def exists(path: str) -> bool:
    """True if the path can be opened for its attributes."""
    try:
        open_file(path, access=READ_ATTRIBUTES, options=0).close()
    except FileError:
        return False
    return True


def remove_tree(path: str) -> None:
    """Delete a directory and all that is in it, also what somebody else (a scanner, an indexer) has open just now."""
    for entry in listdir(path):
        below = f"{path}\\{entry.name}"
        if entry.directory:
            remove_tree(below)
        else:
            _remove(below)
    _remove(path)


def _remove(path: str) -> None:
    access = DELETE | READ_ATTRIBUTES
    with open_file(path, access=access, options=OPEN_REPARSE_POINT) as file:
        try:
            file.delete_posix()
        except FileError as error:
            if error.status not in _NO_POSIX_DELETE:
                raise
            file.set_delete()


def nt_path(path: str) -> str:
    """A path as NtCreateFile and the rename structures want it: "\\??\\D:\\dir"; device paths stay as they are."""
    return path if path.startswith("\\") else f"\\??\\{path}"


@dataclass(frozen=True, slots=True)
class ScratchDirectory:
    """A directory of one's own on a filtered volume."""

    path: str
    """"D:\\downlink-4711-0" on the emulated machine, a temporary directory on Windows."""
    device_path: str
    """The same as the driver reports it: "\\Device\\HarddiskVolume2\\downlink-4711-0"."""

    def __truediv__(self, name: str) -> str:
        """The path of something in it."""
        return f"{self.path}\\{name}"

    def device(self, name: str) -> str:
        """The same as `/`, as the driver reports it."""
        return f"{self.device_path}\\{name}"

    @property
    def volume(self) -> str:
        """The device of its volume: "\\Device\\HarddiskVolume2"."""
        return self.device_path[: len(self.device_path) - len(self.path) + len("D:")]


@contextlib.contextmanager
def scratch_directory() -> Iterator[ScratchDirectory]:
    """A fresh directory, removed with all that is in it at the end."""
    binding = bindings.current()
    root = binding.scratch_root()
    for number in _numbers:
        path = f"{root}\\downlink-{os.getpid()}-{number}"
        if not exists(path):
            break
    mkdir(path)
    try:
        yield ScratchDirectory(path, binding.device_path(path))
    finally:
        remove_tree(path)


_numbers: Final = itertools.count()

_NO_POSIX_DELETE: Final = frozenset(
    (
        ntstatus.INVALID_PARAMETER,
        ntstatus.INVALID_DEVICE_REQUEST,
        ntstatus.INVALID_INFO_CLASS,
        ntstatus.NOT_SUPPORTED,
    )
)
"""What file systems answer that do not know FileDispositionInformationEx."""
