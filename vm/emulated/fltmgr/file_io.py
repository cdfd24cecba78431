"""The I/O manager's side: what NtCreateFile and its kin do around a request, for services and for kernel callers.

Every function is a generator of the model and runs in the requestor's thread.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vm.emulated.cpu.memory import PAGE_SIZE, Access, pages
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.close import drop_reference, last_handle, last_reference
from vm.emulated.fltmgr.file_objects import FINAL_STATUS, RELATED, FileObject, make_file_object
from vm.emulated.fltmgr.io import send
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.fltmgr.model import Instance, Volume
from vm.emulated.fltmgr.requests import make_request
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_FLT_DISALLOW_FAST_IO,
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_NAME_INVALID,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_REPARSE,
    nt_success,
)
from vm.emulated.kernel.threads import KERNEL_MODE, USER_MODE, KThread, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel
    from vm.emulated.kernel.processes import KProcess

_REPARSES_MAXIMUM = 32
_SYNCHRONOUS = n.FILE_SYNCHRONOUS_IO_ALERT | n.FILE_SYNCHRONOUS_IO_NONALERT
_DIRECTORY_DISPOSITIONS = (n.FILE_OPEN, n.FILE_CREATE, n.FILE_OPEN_IF)


@dataclass(frozen=True, slots=True)
class Create:
    """Parameters of NtCreateFile after the name has been looked up."""

    volume: Volume
    path: str
    access: int
    share: int = 0
    disposition: int = n.FILE_OPEN
    options: int = 0
    attributes: int = 0
    allocation: int = 0
    related: FileObject | None = None
    top: Instance | None = None
    mode: int = USER_MODE
    target_directory: bool = False


def check_create(create: Create) -> None:
    """The parameter checks of NtCreateFile.

    Raises:
        StatusError: STATUS_INVALID_PARAMETER.
    """
    options, access = create.options, create.access
    wrong = (
        create.disposition > n.FILE_OVERWRITE_IF
        or bool(options & ~n.FILE_VALID_OPTION_FLAGS)
        or options & _SYNCHRONOUS == _SYNCHRONOUS
        or (options & _SYNCHRONOUS and not access & n.SYNCHRONIZE)
        or (options & n.FILE_DELETE_ON_CLOSE and not access & n.DELETE)
        or (options & n.FILE_DIRECTORY_FILE and create.disposition not in _DIRECTORY_DISPOSITIONS)
        or (options & n.FILE_DIRECTORY_FILE and options & n.FILE_NON_DIRECTORY_FILE)
        or (
            options & n.FILE_NO_INTERMEDIATE_BUFFERING
            and access & n.FILE_APPEND_DATA
            and not access & n.FILE_WRITE_DATA
        )
        or bool(create.share & ~7)
        or create.allocation < 0
    )
    if wrong:
        raise StatusError(STATUS_INVALID_PARAMETER)
    if len(create.path) > 0x7FFF:
        raise StatusError(STATUS_OBJECT_NAME_INVALID)


def open_file(k: Kernel, create: Create) -> Model:
    """Send IRP_MJ_CREATE; returns (status, information, file object or None).

    The file object has one reference, which the caller turns into a handle or drops with `drop_reference`.
    """
    create_now = create
    for _ in range(_REPARSES_MAXIMUM):
        status, information, file = yield from _open_once(k, create_now)
        if status != STATUS_REPARSE:
            return status, information, file if nt_success(status) else None
        name = file.name()
        discard(k, file)
        volume, path = split_device_path(k, name)
        create_now = Create(
            volume,
            path,
            create.access,
            create.share,
            create.disposition,
            create.options,
            create.attributes,
            create.allocation,
            None,
            create.top,
            create.mode,
            create.target_directory,
        )
    return STATUS_OBJECT_NAME_NOT_FOUND, 0, None


def _open_once(k: Kernel, create: Create) -> Model:
    check_create(create)
    thread = k.current
    access = n.map_generic(create.access)
    file = make_file_object(
        k,
        create.volume,
        create.path,
        related=create.related,
        options=create.options,
        access=access,
        share=create.share,
        top=create.top,
        on_last_handle=lambda found: last_handle(k, found),
        on_last_reference=lambda found: last_reference(k, found),
    )
    state, context = _security_context(k, access, create.options)
    parameters = struct.pack(
        "<QI4xHHIQQq",
        context,
        create.disposition << 24 | create.options,
        create.attributes & 0xFFFF,
        create.share,
        0,
        0,
        0,
        create.allocation,
    )
    request = make_request(
        k,
        major=n.IRP_MJ_CREATE,
        volume=create.volume,
        file_object=file.address,
        thread=thread,
        parameters=parameters,
        irp_flags=n.IRP_CREATE_OPERATION | n.IRP_SYNCHRONOUS_API,
        operation_flags=n.SL_OPEN_TARGET_DIRECTORY if create.target_directory else 0,
        mode=create.mode,
        top=create.top,
        data_flags=n.FLTFL_CALLBACK_DATA_GENERATED_IO if create.top is not None else 0,
    )
    request.owned += [state, context]
    if create.related is not None:
        k.objects.reference(create.related.object)
    status, information = yield from send(k, request)
    if create.related is not None:
        k.memory.put64(file.address + RELATED, 0)
        yield from drop_reference(k, create.related)
    k.memory.put32(file.address + FINAL_STATUS, status)
    if status == STATUS_REPARSE:
        return status, information, file
    if not nt_success(status):
        discard(k, file)
        return status, information, None
    file.change_flags(add=n.FO_FILE_OPEN)
    return status, information, file


def _security_context(k: Kernel, access: int, options: int) -> tuple[int, int]:
    """ACCESS_STATE and IO_SECURITY_CONTEXT of a create."""
    state = k.pool.allocate(0xA0, "IoAs", owner="nt")
    k.memory.write(state + 0x10, struct.pack("<III", 0, access, access))
    context = k.pool.allocate(0x18, "IoSc", owner="nt")
    k.memory.write(context, struct.pack("<QQII", 0, state, access, options))
    return state, context


def discard(k: Kernel, file: FileObject) -> None:
    """A file object whose create failed: nobody sends a cleanup or close for it."""
    file.closed = True
    k.objects.dereference(file.object)


def split_device_path(k: Kernel, name: str) -> tuple[Volume, str]:
    """Volume and path inside it of an NT name ("\\Device\\HarddiskVolume2\\x", "\\??\\D:\\x").

    Raises:
        StatusError: STATUS_OBJECT_NAME_INVALID, STATUS_OBJECT_NAME_NOT_FOUND.
    """
    text = name
    for prefix in ("\\??\\", "\\DosDevices\\", "\\GLOBAL??\\", "\\\\?\\", "\\\\.\\"):
        if text.upper().startswith(prefix.upper()):
            text = text[len(prefix) :]
            break
    for volume in io_state(k).volumes:
        for root in (volume.device_name, volume.dos_name or ""):
            if (
                root
                and text[: len(root)].upper() == root.upper()
                and text[len(root) : len(root) + 1] in ("", "\\")
            ):
                return volume, text[len(root) :]
    if not text or "\\" not in name:
        raise StatusError(STATUS_OBJECT_NAME_INVALID)
    raise StatusError(STATUS_OBJECT_NAME_NOT_FOUND)


def transfer(
    k: Kernel,
    file: FileObject,
    *,
    major: int,
    offset: int,
    length: int,
    buffer: int,
    mode: int = USER_MODE,
    top: Instance | None = None,
    irp_flags: int = 0,
    mdl: int = 0,
) -> Model:
    """IRP_MJ_READ or IRP_MJ_WRITE, as fast I/O first where the machine does so; returns (status, information)."""
    parameters = struct.pack("<I4xI4xqQQ8x", length, 0, offset, buffer, mdl)
    if file.options & n.FILE_NO_INTERMEDIATE_BUFFERING:
        irp_flags |= n.IRP_NOCACHE
    operation = n.IRP_READ_OPERATION if major == n.IRP_MJ_READ else n.IRP_WRITE_OPERATION
    cached = not irp_flags & n.IRP_NOCACHE
    thread = k.current
    if io_state(k).settings.fast_io and cached and file.synchronous and top is None:
        request = make_request(
            k,
            major=major,
            volume=file.volume,
            file_object=file.address,
            thread=thread,
            parameters=parameters,
            mode=mode,
            fast_io=True,
            top=file.top,
        )
        status, information = yield from send(k, request)
        if status != STATUS_FLT_DISALLOW_FAST_IO:
            return status, information
    request = make_request(
        k,
        major=major,
        volume=file.volume,
        file_object=file.address,
        thread=thread,
        parameters=parameters,
        irp_flags=irp_flags | operation | (n.IRP_SYNCHRONOUS_API if file.synchronous else 0),
        mode=mode,
        top=top or file.top,
        data_flags=n.FLTFL_CALLBACK_DATA_GENERATED_IO if top is not None else 0,
    )
    return (yield from send(k, request))


def simple(
    k: Kernel,
    file: FileObject,
    major: int,
    parameters: bytes,
    *,
    minor: int = 0,
    operation_flags: int = 0,
    mode: int = USER_MODE,
    top: Instance | None = None,
    system_buffer: bool = True,
) -> Model:
    """Any other request; returns (status, information). `parameters` is padded to the size of FLT_PARAMETERS."""
    flags = n.FLTFL_CALLBACK_DATA_SYSTEM_BUFFER if system_buffer else 0
    request = make_request(
        k,
        major=major,
        minor=minor,
        volume=file.volume,
        file_object=file.address,
        thread=k.current,
        parameters=parameters.ljust(48, b"\0"),
        operation_flags=operation_flags,
        irp_flags=n.IRP_SYNCHRONOUS_API if file.synchronous else 0,
        mode=mode,
        top=top or file.top,
        data_flags=flags | (n.FLTFL_CALLBACK_DATA_GENERATED_IO if top is not None else 0),
    )
    return (yield from send(k, request))


def query_information(
    k: Kernel, file: FileObject, kind: int, length: int, *, mode: int = USER_MODE, top: Instance | None = None
) -> Model:
    """IRP_MJ_QUERY_INFORMATION through a system buffer; returns (status, bytes)."""
    buffer = k.pool.allocate(max(length, 1), "IoSb", owner="nt")
    parameters = struct.pack("<I4xI4xQ", length, kind, buffer)
    status, information = yield from simple(
        k, file, n.IRP_MJ_QUERY_INFORMATION, parameters, mode=mode, top=top
    )
    data = k.memory.read(buffer, min(information, length)) if not _is_error(status) else b""
    k.pool.free(buffer)
    return status, data


def set_information(
    k: Kernel,
    file: FileObject,
    kind: int,
    data: bytes,
    *,
    mode: int = USER_MODE,
    top: Instance | None = None,
    target: FileObject | None = None,
) -> Model:
    """IRP_MJ_SET_INFORMATION through a system buffer; returns the status.

    Args:
        target: the directory that a rename or link goes to.
    """
    buffer = k.pool.allocate(max(len(data), 1), "IoSb", owner="nt")
    k.memory.write(buffer, data)
    replace = bool(data[:1] and data[0] & 1) if kind in RENAMES_AND_LINKS else False
    parameters = struct.pack(
        "<I4xI4xQBB6xQ", len(data), kind, target.address if target is not None else 0, replace, 0, buffer
    )
    status, _ = yield from simple(k, file, n.IRP_MJ_SET_INFORMATION, parameters, mode=mode, top=top)
    k.pool.free(buffer)
    return status


def rename_or_link(
    k: Kernel,
    file: FileObject,
    kind: int,
    data: bytes,
    name: str,
    *,
    root: FileObject | None = None,
    mode: int = USER_MODE,
    top: Instance | None = None,
) -> Model:
    """A rename or link whose target is a path: the I/O manager opens the target's directory first.

    Args:
        name: full NT path, or relative to `root`.

    Returns:
        The status.
    """
    from vm.emulated.kernel.status import STATUS_NOT_SAME_DEVICE

    if root is not None:
        volume, path = root.volume, name
    else:
        volume, path = split_device_path(k, name)
    if volume is not file.volume:
        return STATUS_NOT_SAME_DEVICE
    status, _, target = yield from open_file(
        k,
        Create(
            volume,
            path,
            n.FILE_WRITE_DATA | n.SYNCHRONIZE,
            share=7,
            options=n.FILE_OPEN_FOR_BACKUP_INTENT,
            related=root,
            top=top,
            mode=KERNEL_MODE,
            target_directory=True,
        ),
    )
    if target is None:
        return status
    status = yield from set_information(k, file, kind, data, mode=mode, top=top, target=target)
    yield from drop_reference(k, target)
    return status


RENAMES_AND_LINKS = frozenset(
    (n.FileRenameInformation, n.FileRenameInformationEx, n.FileLinkInformation, n.FileLinkInformationEx)
)


def _is_error(status: int) -> bool:
    """NT_ERROR: warnings such as STATUS_BUFFER_OVERFLOW come with data."""
    return status >= 0xC000_0000


# Buffers in the user half


def lend(k: Kernel, process: KProcess, size: int, data: bytes = b"") -> int:
    """Memory of the process for one request, as a client's own buffer would be; the process must be current."""
    count = pages(max(size, 1))
    base = process.user_next
    process.user_next += (count + 1) * PAGE_SIZE
    k.memory.map(base, count * PAGE_SIZE, Access.READ_WRITE)
    address = base + ((count * PAGE_SIZE - max(size, 1)) & ~0xF)
    k.memory.write(address, data)
    return address


def take_back(k: Kernel, address: int, size: int) -> None:
    """Unmap what `lend` gave; the process must be current."""
    base = address & ~(PAGE_SIZE - 1)
    k.memory.unmap(base, pages(max(size, 1)) * PAGE_SIZE)


def thread_of(k: Kernel) -> KThread:
    """The running thread."""
    return k.current
