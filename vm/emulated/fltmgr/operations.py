"""What the file system does with a request once it has passed all filters: one function per major function.

The parameters are read from the callback data, so that changes made by filters count.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from vm.emulated.fltmgr import file_links, file_security, information
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_nodes import Node, Open
from vm.emulated.fltmgr.file_objects import FileObject, bind, update_block
from vm.emulated.fltmgr.filesystem import OpenRequest
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.fltmgr.requests import Request
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_BUFFER_OVERFLOW,
    STATUS_EAS_NOT_SUPPORTED,
    STATUS_FILE_CLOSED,
    STATUS_FILE_DELETED,
    STATUS_INFO_LENGTH_MISMATCH,
    STATUS_INVALID_DEVICE_REQUEST,
    STATUS_INVALID_INFO_CLASS,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_A_REPARSE_POINT,
    STATUS_NOT_SUPPORTED,
    STATUS_OBJECT_NAME_INVALID,
    STATUS_SUCCESS,
)

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

STATUS_NO_EAS_ON_FILE = 0xC000_0052
FSCTL_IS_VOLUME_MOUNTED = 0x0009_0028
FSCTL_GET_REPARSE_POINT = 0x0009_00A8
WRITE_TO_END = -1
_MDL_HAS_SYSTEM_ADDRESS = 0x1 | 0x4
"""MDL_MAPPED_TO_SYSTEM_VA, MDL_SOURCE_IS_NONPAGED_POOL."""

Result = tuple[int, int]
"""(NTSTATUS, IoStatus.Information)."""


def perform(k: Kernel, request: Request) -> Result:
    """Do what the request asks for; every failure becomes its status."""
    handler = _HANDLERS.get(request.major)
    if handler is None:
        return STATUS_INVALID_DEVICE_REQUEST, 0
    file = request.file
    if file is None:
        address = k.memory.u64(request.iopb + 8)
        raise Bugcheck(
            bc.REFERENCE_BY_POINTER,
            0,
            address,
            rule=f"{n.operation_name(request.major)} reached the file system with the target {address:#x}, "
            "which is not a file object (any more)",
        )
    try:
        return handler(k, request, file)
    except StatusError as error:
        return error.status, 0


def _opened(file: FileObject, *, after_cleanup: bool = False) -> Open:
    if file.opened is None:
        raise StatusError(STATUS_INVALID_DEVICE_REQUEST)
    if file.cleaned_up and not after_cleanup:
        raise StatusError(STATUS_FILE_CLOSED)
    return file.opened


# Create, cleanup, close


def _create(k: Kernel, request: Request, file: FileObject) -> Result:
    security = request.parameter(0)
    access = k.memory.u32(security + 0x10)
    combined = request.parameter32(0x08)
    options = combined & n.FILE_VALID_OPTION_FLAGS
    memory = k.memory
    file_id = None
    name = ""
    if options & n.FILE_OPEN_BY_FILE_ID:
        raw = memory.read(memory.u64(file.address + 0x60), memory.u16(file.address + 0x58))
        if len(raw) not in (8, 16):
            raise StatusError(STATUS_INVALID_PARAMETER)
        file_id = int.from_bytes(raw, "little")
    else:
        name = file.name()
    if file.related is not None and file.related.opened is None:
        raise StatusError(STATUS_INVALID_PARAMETER)
    opened, result = request.volume.file_system.open(
        OpenRequest(
            path=name,
            access=access,
            share=memory.u16(request.iopb + 0x18 + 0x12),
            disposition=combined >> 24,
            options=options,
            attributes=memory.u16(request.iopb + 0x18 + 0x10),
            allocation=memory.i64(request.iopb + 0x18 + 0x28),
            related=file.related.opened if file.related is not None and file_id is None else None,
            file_id=file_id,
            target_directory=bool(request.operation_flags & n.SL_OPEN_TARGET_DIRECTORY),
        )
    )
    file.volume = request.volume
    file.path = name
    bind(k, file, opened)
    return STATUS_SUCCESS, result


def _cleanup(k: Kernel, request: Request, file: FileObject) -> Result:
    opened = _opened(file, after_cleanup=True)
    if file.volume.file_system.cleanup(opened):
        file.written = False  # what is deleted is not written
    return STATUS_SUCCESS, 0


def _close(k: Kernel, request: Request, file: FileObject) -> Result:
    return STATUS_SUCCESS, 0


# Data


def _data_buffer(k: Kernel, request: Request) -> int:
    """Address of the data: the MDL counts where there is one, as for every file system."""
    mdl = request.parameter(0x20)
    if not mdl:
        return request.parameter(0x18)
    memory = k.memory
    if memory.u16(mdl + 0x0A) & _MDL_HAS_SYSTEM_ADDRESS:
        return memory.u64(mdl + 0x18)
    return memory.u64(mdl + 0x20) + memory.u32(mdl + 0x2C)


def _check_alignment(request: Request, file: FileObject, offset: int, length: int) -> None:
    if not request.irp_flags & n.IRP_NOCACHE or request.irp_flags & n.IRP_PAGING_IO:
        return
    sector = file.volume.sector_size
    if length % sector or (offset >= 0 and offset % sector):
        raise StatusError(STATUS_INVALID_PARAMETER)


def _read(k: Kernel, request: Request, file: FileObject) -> Result:
    opened = _opened(file)
    length = request.parameter32(0)
    offset = k.memory.i64(request.iopb + 0x18 + 0x10)
    _check_alignment(request, file, offset, length)
    data = file.volume.file_system.read(opened, offset, length)
    request.write_buffer(_data_buffer(k, request), data, "ReadBuffer")
    if file.synchronous and not request.irp_flags & n.IRP_PAGING_IO:
        file.position = offset + len(data)
    return STATUS_SUCCESS, len(data)


def _write(k: Kernel, request: Request, file: FileObject) -> Result:
    length = request.parameter32(0)
    offset = k.memory.i64(request.iopb + 0x18 + 0x10)
    data = request.read_buffer(_data_buffer(k, request), length, "WriteBuffer")
    if request.irp_flags & n.IRP_PAGING_IO:
        # The pages hold what the cached write has put into the file already.
        _opened(file, after_cleanup=True)
        return STATUS_SUCCESS, length
    opened = _opened(file)
    _check_alignment(request, file, offset, length)
    used = file.volume.file_system.write(opened, offset, data)
    if length:
        file.change_flags(add=n.FO_FILE_MODIFIED | n.FO_FILE_SIZE_CHANGED)
        if not request.irp_flags & n.IRP_NOCACHE:
            file.written = True
    if file.synchronous:
        file.position = used + length
    _sizes_changed(k, file)
    return STATUS_SUCCESS, length


def _sizes_changed(k: Kernel, file: FileObject) -> None:
    if file.block is not None and file.opened is not None:
        update_block(k, file.block, file.opened.stream)


def _flush(k: Kernel, request: Request, file: FileObject) -> Result:
    _opened(file)
    return STATUS_SUCCESS, 0


# Information


def _query_information(k: Kernel, request: Request, file: FileObject) -> Result:
    opened = _opened(file, after_cleanup=True)
    file_is_gone = not opened.node.links and opened.link is not None
    stream_is_gone = opened.node.stream(opened.stream.name) is not opened.stream
    if opened.cleaned_up and (file_is_gone or stream_is_gone):
        # How a filter learns in its post-cleanup callback that the file, or this stream of it, is gone.
        raise StatusError(STATUS_FILE_DELETED)
    status, data = information.query(file, opened, request.parameter32(0x08), request.parameter32(0))
    request.write_buffer(request.parameter(0x10), data, "InfoBuffer")
    return status, len(data)


def _set_information(k: Kernel, request: Request, file: FileObject) -> Result:
    opened = _opened(file)
    length, kind = request.parameter32(0), request.parameter32(0x08)
    least = SET_CLASSES.get(kind)
    if least is None:
        raise StatusError(STATUS_INVALID_INFO_CLASS)
    if length < least:
        raise StatusError(STATUS_INFO_LENGTH_MISMATCH)
    data = request.read_buffer(request.parameter(0x20), length, "InfoBuffer")
    fs = file.volume.file_system
    match kind:
        case n.FileBasicInformation:
            creation, access, write, change, attributes = struct.unpack_from("<qqqqI", data)
            fs.set_basic(opened, (creation, access, write, change), attributes)
        case n.FileEndOfFileInformation:
            size = int.from_bytes(data[:8], "little", signed=True)
            if k.memory.u8(
                request.iopb + 0x18 + 0x19
            ):  # AdvanceOnly: the cache manager moves the valid length
                return STATUS_SUCCESS, 0
            fs.set_end_of_file(opened, size)
            file.change_flags(add=n.FO_FILE_SIZE_CHANGED)
        case n.FileAllocationInformation:
            fs.set_allocation(opened, int.from_bytes(data[:8], "little", signed=True))
        case n.FileValidDataLengthInformation:
            if int.from_bytes(data[:8], "little", signed=True) > opened.stream.size:
                raise StatusError(STATUS_INVALID_PARAMETER)
        case n.FilePositionInformation:
            file.position = int.from_bytes(data[:8], "little", signed=True)
        case n.FileDispositionInformation:
            _dispose(k, file, opened, n.FILE_DISPOSITION_DELETE if data[0] else 0)
        case n.FileDispositionInformationEx:
            _dispose(k, file, opened, int.from_bytes(data[:4], "little"))
        case _:
            _set_name(k, request, file, opened, kind, data)
    _sizes_changed(k, file)
    return STATUS_SUCCESS, 0


def _dispose(k: Kernel, file: FileObject, opened: Open, flags: int) -> None:
    file.volume.file_system.set_delete(opened, flags)
    k.memory.put8(file.address + 0x49, bool(flags & n.FILE_DISPOSITION_DELETE))


def _set_name(k: Kernel, request: Request, file: FileObject, opened: Open, kind: int, data: bytes) -> None:
    length = int.from_bytes(data[0x10:0x14], "little")
    if 0x14 + length > len(data) or length % 2 or not length:
        raise StatusError(STATUS_INVALID_PARAMETER)
    name = data[0x14 : 0x14 + length].decode("utf-16-le", "surrogatepass")
    if kind in (n.FileRenameInformationEx, n.FileLinkInformationEx):
        flags = int.from_bytes(data[:4], "little")
    else:
        flags = n.FILE_RENAME_REPLACE_IF_EXISTS if data[0] else 0
    target = io_state(k).files.get(request.parameter(0x10))
    parent = _target_directory(opened, target, name)
    final = name.rpartition("\\")[2] if not name.startswith(":") else name
    change = (
        file_links.rename
        if kind in (n.FileRenameInformation, n.FileRenameInformationEx)
        else file_links.hard_link
    )
    change(file.volume.file_system, opened, parent, final, flags)


def _target_directory(opened: Open, target: FileObject | None, name: str) -> Node:
    """Where a rename or link goes: the directory the I/O manager has opened, else the one the file is in."""
    if target is not None and target.opened is not None:
        return target.opened.node
    if "\\" in name:
        raise StatusError(STATUS_OBJECT_NAME_INVALID)
    if opened.link is None:
        raise StatusError(STATUS_INVALID_PARAMETER)
    return opened.link.parent


SET_CLASSES: dict[int, int] = {
    n.FileBasicInformation: 0x28,
    n.FileRenameInformation: 0x18,
    n.FileRenameInformationEx: 0x18,
    n.FileLinkInformation: 0x18,
    n.FileLinkInformationEx: 0x18,
    n.FileDispositionInformation: 1,
    n.FileDispositionInformationEx: 4,
    n.FilePositionInformation: 8,
    n.FileAllocationInformation: 8,
    n.FileEndOfFileInformation: 8,
    n.FileValidDataLengthInformation: 8,
}
"""Classes that can be set -> least length in bytes."""


def _query_volume(k: Kernel, request: Request, file: FileObject) -> Result:
    volume = file.volume
    status, data = information.query_volume(
        volume.file_system, volume.file_system_name, request.parameter32(0x08), request.parameter32(0)
    )
    request.write_buffer(request.parameter(0x10), data, "VolumeBuffer")
    return status, len(data)


# Directories


def _directory_control(k: Kernel, request: Request, file: FileObject) -> Result:
    if request.minor != n.IRP_MN_QUERY_DIRECTORY:
        raise StatusError(STATUS_NOT_SUPPORTED)
    opened = _opened(file)
    fs = file.volume.file_system
    length, kind = request.parameter32(0), request.parameter32(0x10)
    name = request.parameter(0x08)
    pattern = k.memory.unicode_string(name) if name else None
    flags = request.operation_flags
    single = bool(flags & n.SL_RETURN_SINGLE_ENTRY)
    before = opened.pattern, opened.position
    entries = fs.query_directory(
        opened, pattern, restart=bool(flags & n.SL_RESTART_SCAN), most=1 if single else length // 12 + 1
    )
    buffer = bytearray()
    last_start, last = 0, None
    for entry in entries:
        body = information.directory_entry(entry, kind)
        start = len(buffer) + (-len(buffer) % 8)
        if start + 4 + len(body) > length:
            break
        buffer.extend(bytes(start - len(buffer)))
        if last is not None:
            struct.pack_into("<I", buffer, last_start, start - last_start)
        buffer += bytes(4) + body
        last_start, last = start, entry
    if last is None:
        opened.pattern, opened.position = before
        return STATUS_BUFFER_OVERFLOW, 0
    fs.continue_after(opened, last)
    request.write_buffer(request.parameter(0x20), bytes(buffer), "DirectoryBuffer")
    return STATUS_SUCCESS, len(buffer)


# Security, extended attributes, control


def _query_security(k: Kernel, request: Request, file: FileObject) -> Result:
    opened = _opened(file)
    data = file_security.select(opened.node.security, request.parameter32(0))
    if len(data) > request.parameter32(0x08):
        return STATUS_BUFFER_OVERFLOW, len(data)
    request.write_buffer(request.parameter(0x10), data, "SecurityBuffer")
    return STATUS_SUCCESS, len(data)


def _set_security(k: Kernel, request: Request, file: FileObject) -> Result:
    opened = _opened(file)
    file.volume.file_system.check_writable()
    address = request.parameter(0x08)
    size = _descriptor_size(request, address)
    new = request.read_buffer(address, size, "SecurityDescriptor")
    if request.parameter32(0) & file_security.OWNER_SECURITY_INFORMATION:
        file_security.check_owner(new, k.token_of(k.current))
    opened.node.security = file_security.replace(opened.node.security, request.parameter32(0), new)
    opened.node.times.change = file.volume.file_system.now()
    return STATUS_SUCCESS, 0


def _descriptor_size(request: Request, address: int) -> int:
    """Bytes of the self-relative security descriptor at `address`."""
    offsets = struct.unpack("<4I", request.read_buffer(address + 4, 16, "SecurityDescriptor"))
    size = 20
    for position, offset in enumerate(offsets):
        if offset:
            head = request.read_buffer(address + offset, 4, "SecurityDescriptor")
            part = int.from_bytes(head[2:4], "little") if position >= 2 else 8 + 4 * head[1]
            size = max(size, offset + part)
    return size


def _query_ea(k: Kernel, request: Request, file: FileObject) -> Result:
    _opened(file)
    return STATUS_NO_EAS_ON_FILE, 0


def _set_ea(k: Kernel, request: Request, file: FileObject) -> Result:
    return STATUS_EAS_NOT_SUPPORTED, 0


def _file_system_control(k: Kernel, request: Request, file: FileObject) -> Result:
    code = request.parameter32(0x10)
    if code == FSCTL_GET_REPARSE_POINT:
        return STATUS_NOT_A_REPARSE_POINT, 0
    if code == FSCTL_IS_VOLUME_MOUNTED:
        return STATUS_SUCCESS, 0
    return STATUS_INVALID_DEVICE_REQUEST, 0


def _lock_control(k: Kernel, request: Request, file: FileObject) -> Result:
    """Byte-range locks are granted and not enforced: no filter can tell, and no client library takes them."""
    _opened(file)
    return STATUS_SUCCESS, 0


_HANDLERS: dict[int, Callable[[Kernel, Request, FileObject], Result]] = {
    n.IRP_MJ_CREATE: _create,
    n.IRP_MJ_CLEANUP: _cleanup,
    n.IRP_MJ_CLOSE: _close,
    n.IRP_MJ_READ: _read,
    n.IRP_MJ_WRITE: _write,
    n.IRP_MJ_FLUSH_BUFFERS: _flush,
    n.IRP_MJ_QUERY_INFORMATION: _query_information,
    n.IRP_MJ_SET_INFORMATION: _set_information,
    n.IRP_MJ_QUERY_VOLUME_INFORMATION: _query_volume,
    n.IRP_MJ_DIRECTORY_CONTROL: _directory_control,
    n.IRP_MJ_QUERY_SECURITY: _query_security,
    n.IRP_MJ_SET_SECURITY: _set_security,
    n.IRP_MJ_QUERY_EA: _query_ea,
    n.IRP_MJ_SET_EA: _set_ea,
    n.IRP_MJ_FILE_SYSTEM_CONTROL: _file_system_control,
    n.IRP_MJ_LOCK_CONTROL: _lock_control,
}
