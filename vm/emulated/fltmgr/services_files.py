"""The user-mode services that concern files (docs/architecture.md). Each is a generator that runs in the client's
emulated thread and returns (NTSTATUS, values)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import wraps
from typing import Any

from vm.emulated.fltmgr import file_io
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.close import drop_reference
from vm.emulated.fltmgr.file_objects import FILE_TYPE, FileObject
from vm.emulated.fltmgr.operations import SET_CLASSES
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.objects import HandleEntry, StatusError
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_BUFFER_OVERFLOW,
    STATUS_INFO_LENGTH_MISMATCH,
    STATUS_INVALID_INFO_CLASS,
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_TYPE_MISMATCH,
    STATUS_SUCCESS,
    nt_success,
)
from vm.emulated.kernel.threads import KThread, Model

Values = dict[str, Any]
TRANSFER_BYTES_MAXIMUM = 64 << 20
DIRECTORY_BUFFER_BYTES = 0x4000
_AT_POSITION = -2
"""FILE_USE_FILE_POINTER_POSITION as a signed offset."""
_TO_END = -1
"""FILE_WRITE_TO_END_OF_FILE as a signed offset."""
_WRITING = n.FILE_WRITE_DATA | n.FILE_APPEND_DATA


def _service(function: Callable[..., Model]) -> Callable[..., Model]:
    """A failure raised on the way is the service's status."""

    @wraps(function)
    def service(k: Kernel, thread: KThread, **arguments: Any) -> Model:
        try:
            return (yield from function(k, thread, **arguments))
        except StatusError as error:
            return error.status, {}

    return service


def file_of(thread: KThread, handle: int, access: int = 0) -> FileObject:
    """The file object of a handle of the thread's process.

    Raises:
        StatusError: no such handle, another type, or `access` was not granted (any bit of it will do).
    """
    entry = thread.process.handles.get(handle)
    if entry.object.type != FILE_TYPE:
        raise StatusError(STATUS_OBJECT_TYPE_MISMATCH)
    if access and not entry.access & access:
        raise StatusError(STATUS_ACCESS_DENIED)
    found: FileObject = entry.object.body
    return found


@_service
def create_file(
    k: Kernel,
    thread: KThread,
    *,
    path: str,
    access: int,
    share: int,
    disposition: int,
    options: int,
    attributes: int,
) -> Model:
    """NtCreateFile: handle, information."""
    name = path if path.startswith("\\") else f"\\??\\{path}"
    volume, inside = file_io.split_device_path(k, name)
    create = file_io.Create(volume, inside, access, share, disposition, options, attributes)
    status, information, file = yield from file_io.open_file(k, create)
    if file is None:
        return status, {"information": information}
    handle = thread.process.handles.insert(HandleEntry(file.object, file.access))
    file.change_flags(add=n.FO_HANDLE_CREATED)
    k.objects.dereference(file.object)  # the handle keeps it now
    if thread.terminating:
        yield from _close(k, thread, handle)
    return status, {"handle": handle, "information": information}


@_service
def read_file(k: Kernel, thread: KThread, *, handle: int, offset: int | None, length: int) -> Model:
    """NtReadFile: data."""
    file = file_of(thread, handle, n.FILE_READ_DATA)
    if not 0 <= length <= TRANSFER_BYTES_MAXIMUM:
        raise StatusError(STATUS_INVALID_PARAMETER)
    start = _offset(file, offset)
    if start < 0:
        raise StatusError(STATUS_INVALID_PARAMETER)
    k.objects.reference(file.object)
    buffer = file_io.lend(k, thread.process, length)
    status, information = yield from file_io.transfer(
        k, file, major=n.IRP_MJ_READ, offset=start, length=length, buffer=buffer
    )
    data = k.memory.read(buffer, min(information, length)) if nt_success(status) else b""
    file_io.take_back(k, buffer, length)
    yield from drop_reference(k, file)
    return status, {"data": data}


@_service
def write_file(k: Kernel, thread: KThread, *, handle: int, offset: int | None, data: bytes) -> Model:
    """NtWriteFile: written."""
    file = file_of(thread, handle, _WRITING)
    if len(data) > TRANSFER_BYTES_MAXIMUM:
        raise StatusError(STATUS_INVALID_PARAMETER)
    start = _offset(file, offset)
    if start < _TO_END:
        raise StatusError(STATUS_INVALID_PARAMETER)
    k.objects.reference(file.object)
    buffer = file_io.lend(k, thread.process, len(data), data)
    status, information = yield from file_io.transfer(
        k, file, major=n.IRP_MJ_WRITE, offset=start, length=len(data), buffer=buffer
    )
    file_io.take_back(k, buffer, len(data))
    yield from drop_reference(k, file)
    return status, {"written": information if nt_success(status) else 0}


def _offset(file: FileObject, offset: int | None) -> int:
    if offset is None or offset == _AT_POSITION:
        if not file.synchronous:
            raise StatusError(STATUS_INVALID_PARAMETER)
        return file.position
    return offset


@_service
def query_information(k: Kernel, thread: KThread, *, handle: int, length: int, **rest: Any) -> Model:
    """NtQueryInformationFile: data. The class is the argument `class`."""
    kind = int(rest["class"])
    file = file_of(thread, handle, n.FILE_READ_ATTRIBUTES if kind in _READ_ATTRIBUTES else 0)
    if not 0 <= length <= TRANSFER_BYTES_MAXIMUM:
        raise StatusError(STATUS_INVALID_PARAMETER)
    k.objects.reference(file.object)
    status, data = yield from file_io.query_information(k, file, kind, length)
    yield from drop_reference(k, file)
    return status, {"data": data}


@_service
def set_information(k: Kernel, thread: KThread, *, handle: int, data: bytes, **rest: Any) -> Model:
    """NtSetInformationFile. The class is the argument `class`."""
    kind = int(rest["class"])
    least = SET_CLASSES.get(kind)
    if least is None:
        raise StatusError(STATUS_INVALID_INFO_CLASS)
    if len(data) < least:
        raise StatusError(STATUS_INFO_LENGTH_MISMATCH)
    file = file_of(thread, handle, _ACCESS_TO_SET.get(kind, 0))
    k.objects.reference(file.object)
    if kind in file_io.RENAMES_AND_LINKS:
        status = yield from _rename_or_link(k, thread, file, kind, data)
    else:
        status = yield from file_io.set_information(k, file, kind, data)
    yield from drop_reference(k, file)
    return status, {}


def _rename_or_link(k: Kernel, thread: KThread, file: FileObject, kind: int, data: bytes) -> Model:
    _, root, length = struct.unpack_from("<QQI", data)
    if length % 2 or not length or 0x14 + length > len(data):
        return STATUS_INVALID_PARAMETER
    name = data[0x14 : 0x14 + length].decode("utf-16-le", "surrogatepass")
    try:
        directory = file_of(thread, root) if root else None
        if directory is None and not name.startswith("\\"):
            return (yield from file_io.set_information(k, file, kind, data))
        return (yield from file_io.rename_or_link(k, file, kind, data, name, root=directory))
    except StatusError as error:
        return error.status


@_service
def query_directory(k: Kernel, thread: KThread, *, handle: int, pattern: str | None, restart: bool) -> Model:
    """NtQueryDirectoryFile with FileIdBothDirectoryInformation: entries."""
    file = file_of(thread, handle, n.FILE_READ_DATA)
    k.objects.reference(file.object)
    name = 0
    if pattern:
        raw = pattern.encode("utf-16-le", "surrogatepass")
        name = k.pool.allocate(0x10 + len(raw), "IoQd", owner="nt")
        k.memory.write(name, struct.pack("<HH4xQ", len(raw), len(raw), name + 0x10) + raw)
    buffer = file_io.lend(k, thread.process, DIRECTORY_BUFFER_BYTES)
    parameters = struct.pack(
        "<I4xQI4xQQ", DIRECTORY_BUFFER_BYTES, name, n.FileIdBothDirectoryInformation, 0, buffer
    )
    status, information = yield from file_io.simple(
        k,
        file,
        n.IRP_MJ_DIRECTORY_CONTROL,
        parameters,
        minor=n.IRP_MN_QUERY_DIRECTORY,
        operation_flags=n.SL_RESTART_SCAN if restart else 0,
        system_buffer=False,
    )
    data = k.memory.read(buffer, information) if nt_success(status) else b""
    file_io.take_back(k, buffer, DIRECTORY_BUFFER_BYTES)
    if name:
        k.pool.free(name)
    yield from drop_reference(k, file)
    return status, {"entries": _entries(data)}


def _entries(data: bytes) -> list[tuple[str, int, int, int]]:
    """(name, attributes, size, file id) of each FILE_ID_BOTH_DIR_INFORMATION."""
    found = []
    start = 0
    while data:
        following = int.from_bytes(data[start : start + 4], "little")
        size, attributes, length = struct.unpack_from("<q8xII", data, start + 40)
        file_id = int.from_bytes(data[start + 96 : start + 104], "little")
        name = data[start + 104 : start + 104 + length].decode("utf-16-le", "surrogatepass")
        found.append((name, attributes, size, file_id))
        if not following:
            break
        start += following
    return found


@_service
def flush(k: Kernel, thread: KThread, *, handle: int) -> Model:
    """NtFlushBuffersFile."""
    file = file_of(thread, handle, _WRITING)
    k.objects.reference(file.object)
    status, _ = yield from file_io.simple(k, file, n.IRP_MJ_FLUSH_BUFFERS, b"", system_buffer=False)
    yield from drop_reference(k, file)
    return status, {}


@_service
def set_security(k: Kernel, thread: KThread, *, handle: int, information: int, descriptor: bytes) -> Model:
    """NtSetSecurityObject on a file."""
    needed = (n.WRITE_DAC if information & 4 else 0) | (n.WRITE_OWNER if information & 3 else 0)
    file = file_of(thread, handle)
    granted = thread.process.handles.get(handle).access
    if granted & needed != needed:
        raise StatusError(STATUS_ACCESS_DENIED)
    if len(descriptor) < 20:
        raise StatusError(STATUS_INVALID_PARAMETER)
    k.objects.reference(file.object)
    buffer = k.pool.allocate(len(descriptor), "SeSd", owner="nt", paged=True)
    k.memory.write(buffer, descriptor)
    parameters = struct.pack("<I4xQ", information, buffer)
    status, _ = yield from file_io.simple(k, file, n.IRP_MJ_SET_SECURITY, parameters)
    k.pool.free(buffer)
    yield from drop_reference(k, file)
    return status, {}


@_service
def query_security(k: Kernel, thread: KThread, *, handle: int, information: int) -> Model:
    """NtQuerySecurityObject on a file: descriptor."""
    file = file_of(thread, handle, n.READ_CONTROL)
    k.objects.reference(file.object)
    length = 0x400
    while True:
        buffer = file_io.lend(k, thread.process, length)
        parameters = struct.pack("<I4xI4xQ", information, length, buffer)
        status, size = yield from file_io.simple(
            k, file, n.IRP_MJ_QUERY_SECURITY, parameters, system_buffer=False
        )
        data = k.memory.read(buffer, min(size, length)) if status == STATUS_SUCCESS else b""
        file_io.take_back(k, buffer, length)
        if status != STATUS_BUFFER_OVERFLOW or size <= length:
            break
        length = size
    yield from drop_reference(k, file)
    return status, {"descriptor": data}


@_service
def close(k: Kernel, thread: KThread, *, handle: int) -> Model:
    """NtClose of a handle of any type."""
    yield from _close(k, thread, handle)
    return STATUS_SUCCESS, {}


def _close(k: Kernel, thread: KThread, handle: int) -> Model:
    work = k.objects.close(thread.process.handles, handle)
    if work is not None:
        yield from work


@_service
def duplicate(k: Kernel, thread: KThread, *, handle: int) -> Model:
    """NtDuplicateObject within the process, with the same access: handle."""
    entry = thread.process.handles.get(handle)
    copy = thread.process.handles.insert(HandleEntry(entry.object, entry.access))
    return STATUS_SUCCESS, {"handle": copy}
    yield  # it never blocks, but every service is a generator


_READ_ATTRIBUTES = frozenset(
    (
        n.FileBasicInformation,
        n.FileAllInformation,
        n.FileNetworkOpenInformation,
        n.FileAttributeTagInformation,
        n.FileStatInformation,
    )
)
_ACCESS_TO_SET = {
    n.FileBasicInformation: n.FILE_WRITE_ATTRIBUTES,
    n.FileRenameInformation: n.DELETE,
    n.FileRenameInformationEx: n.DELETE,
    n.FileDispositionInformation: n.DELETE,
    n.FileDispositionInformationEx: n.DELETE,
    n.FileEndOfFileInformation: n.FILE_WRITE_DATA,
    n.FileAllocationInformation: n.FILE_WRITE_DATA,
    n.FileValidDataLengthInformation: n.FILE_WRITE_DATA,
}
SERVICES: dict[str, Callable[..., Model]] = {
    "create_file": create_file,
    "read_file": read_file,
    "write_file": write_file,
    "set_information": set_information,
    "query_information": query_information,
    "query_directory": query_directory,
    "flush": flush,
    "set_security": set_security,
    "query_security": query_security,
}
"""Services by name. `close` and `duplicate` work on every kind of handle and may serve for ports, too."""
