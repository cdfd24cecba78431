"""File I/O of a filter's own: FltCreateFile, FltReadFile and the rest, seen only by the instances below."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import (
    ACCESS_MASK,
    BOOLEAN,
    FLTMGR,
    HANDLE,
    NTSTATUS,
    POBJECT_ATTRIBUTES,
    PVOID,
    ULONG,
    export,
)
from vm.emulated.fltmgr import file_io
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.answers import answers
from vm.emulated.fltmgr.file_objects import FILE_TYPE, FileObject, file_at
from vm.emulated.fltmgr.io import send
from vm.emulated.fltmgr.model import FILTER_TYPE, INSTANCE_TYPE, Instance
from vm.emulated.fltmgr.requests import make_request
from vm.emulated.kernel.objects import KERNEL_HANDLE_BIT, HandleEntry, HandleTable, StatusError
from vm.emulated.kernel.status import (
    STATUS_BUFFER_OVERFLOW,
    STATUS_BUFFER_TOO_SMALL,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_TYPE_MISMATCH,
    STATUS_PENDING,
    STATUS_SUCCESS,
    nt_success,
)
from vm.emulated.kernel.threads import KERNEL_MODE, PASSIVE_LEVEL, Call, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

PIO_STATUS_BLOCK = PVOID
OBJ_KERNEL_HANDLE = 0x200
NON_CACHED, PAGING, DO_NOT_UPDATE_BYTE_OFFSET = 1, 2, 4
"""FLTFL_IO_OPERATION_*."""


def _instance(k: Kernel, address: int) -> Instance:
    instance: Instance = k.objects.get(address, INSTANCE_TYPE).body
    if instance.tearing_down:
        raise StatusError(STATUS_FLT_DELETING_OBJECT)
    return instance


# Opening and closing


def _create(k: Kernel, arguments: _CreateArguments) -> Model:
    memory = k.memory
    k.objects.get(arguments.filter, FILTER_TYPE)
    top = _instance(k, arguments.instance) if arguments.instance else None
    _, root, name_address, attributes = struct.unpack("<QQQI", memory.read(arguments.attributes, 28))
    name = memory.unicode_string(name_address) if name_address else ""
    related: FileObject | None = None
    if root:
        item = _table(k, root).get(root).object
        if item.type != FILE_TYPE:
            raise StatusError(STATUS_OBJECT_TYPE_MISMATCH)
        related = item.body
        volume, path = item.body.volume, name
    elif arguments.options & n.FILE_OPEN_BY_FILE_ID and top is not None and not name.startswith("\\"):
        volume, path = top.volume, name
    else:
        volume, path = file_io.split_device_path(k, name)
    if top is not None and volume is not top.volume:
        raise StatusError(STATUS_INVALID_PARAMETER)
    status, information, file = yield from file_io.open_file(
        k,
        file_io.Create(
            volume,
            path,
            arguments.access,
            arguments.share,
            arguments.disposition,
            arguments.options,
            arguments.file_attributes,
            memory.i64(arguments.allocation) if arguments.allocation else 0,
            related,
            top,
            KERNEL_MODE,
        ),
    )
    memory.write(arguments.io_status, struct.pack("<I4xQ", status, information))
    memory.put64(arguments.handle, 0)
    if arguments.file_object:
        memory.put64(arguments.file_object, 0)
    if file is None:
        return status
    table = k.system.handles if attributes & OBJ_KERNEL_HANDLE else k.current.process.handles
    memory.put64(arguments.handle, table.insert(HandleEntry(file.object, file.access)))
    file.change_flags(add=n.FO_HANDLE_CREATED)
    if arguments.file_object:
        memory.put64(arguments.file_object, file.address)  # with the reference that the create has made
    else:
        k.objects.dereference(file.object)
    return status


class _CreateArguments:
    """Arguments of FltCreateFile(Ex(2)); addresses where the prototype has pointers."""

    __slots__ = (
        "access",
        "allocation",
        "attributes",
        "disposition",
        "file_attributes",
        "file_object",
        "filter",
        "handle",
        "instance",
        "io_status",
        "options",
        "share",
    )

    def __init__(self, filter_: int, instance: int, handle: int, file_object: int, *rest: int) -> None:
        self.filter, self.instance, self.handle, self.file_object = filter_, instance, handle, file_object
        (
            self.access,
            self.attributes,
            self.io_status,
            self.allocation,
            self.file_attributes,
            self.share,
            self.disposition,
            self.options,
        ) = rest


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltCreateFile(
    k: Kernel,
    Filter: PVOID,
    Instance: PVOID,
    FileHandle: PVOID,
    DesiredAccess: ACCESS_MASK,
    ObjectAttributes: POBJECT_ATTRIBUTES,
    IoStatusBlock: PIO_STATUS_BLOCK,
    AllocationSize: PVOID,
    FileAttributes: ULONG,
    ShareAccess: ULONG,
    CreateDisposition: ULONG,
    CreateOptions: ULONG,
    EaBuffer: PVOID,
    EaLength: ULONG,
    Flags: ULONG,
) -> Model:
    rest = (
        DesiredAccess,
        ObjectAttributes,
        IoStatusBlock,
        AllocationSize,
        FileAttributes,
        ShareAccess,
        CreateDisposition,
        CreateOptions,
    )
    return (yield from _create(k, _CreateArguments(Filter, Instance, FileHandle, 0, *rest)))


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltCreateFileEx(
    k: Kernel,
    Filter: PVOID,
    Instance: PVOID,
    FileHandle: PVOID,
    FileObject: PVOID,
    DesiredAccess: ACCESS_MASK,
    ObjectAttributes: POBJECT_ATTRIBUTES,
    IoStatusBlock: PIO_STATUS_BLOCK,
    AllocationSize: PVOID,
    FileAttributes: ULONG,
    ShareAccess: ULONG,
    CreateDisposition: ULONG,
    CreateOptions: ULONG,
    EaBuffer: PVOID,
    EaLength: ULONG,
    Flags: ULONG,
) -> Model:
    rest = (
        DesiredAccess,
        ObjectAttributes,
        IoStatusBlock,
        AllocationSize,
        FileAttributes,
        ShareAccess,
        CreateDisposition,
        CreateOptions,
    )
    return (yield from _create(k, _CreateArguments(Filter, Instance, FileHandle, FileObject, *rest)))


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltCreateFileEx2(
    k: Kernel,
    Filter: PVOID,
    Instance: PVOID,
    FileHandle: PVOID,
    FileObject: PVOID,
    DesiredAccess: ACCESS_MASK,
    ObjectAttributes: POBJECT_ATTRIBUTES,
    IoStatusBlock: PIO_STATUS_BLOCK,
    AllocationSize: PVOID,
    FileAttributes: ULONG,
    ShareAccess: ULONG,
    CreateDisposition: ULONG,
    CreateOptions: ULONG,
    EaBuffer: PVOID,
    EaLength: ULONG,
    Flags: ULONG,
    DriverContext: PVOID,
) -> Model:
    rest = (
        DesiredAccess,
        ObjectAttributes,
        IoStatusBlock,
        AllocationSize,
        FileAttributes,
        ShareAccess,
        CreateDisposition,
        CreateOptions,
    )
    return (yield from _create(k, _CreateArguments(Filter, Instance, FileHandle, FileObject, *rest)))


def _table(k: Kernel, handle: int) -> HandleTable:
    is_kernel = handle & KERNEL_HANDLE_BIT == KERNEL_HANDLE_BIT
    return k.system.handles if is_kernel else k.current.process.handles


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltClose(k: Kernel, FileHandle: HANDLE) -> Model:
    work = k.objects.close(_table(k, FileHandle), FileHandle)
    if work is not None:
        yield from work
    return STATUS_SUCCESS


# Data


def _transfer(
    k: Kernel,
    major: int,
    instance: int,
    file_address: int,
    offset: int,
    length: int,
    buffer: int,
    flags: int,
    done: int,
    callback: int,
    context: int,
) -> Model:
    top = _instance(k, instance)
    file = file_at(k, file_address, "FltReadFile" if major == n.IRP_MJ_READ else "FltWriteFile")
    start = k.memory.i64(offset) if offset else file.position
    irp_flags = (n.IRP_NOCACHE if flags & (NON_CACHED | PAGING) else 0) | (
        n.IRP_PAGING_IO if flags & PAGING else 0
    )
    if callback:
        work = _asynchronous(k, major, top, file, start, length, buffer, irp_flags, callback, context)
        k.start_system_thread(work, "asynchronous I/O of a filter")
        return STATUS_PENDING
    before = file.position
    status, information = yield from file_io.transfer(
        k,
        file,
        major=major,
        offset=start,
        length=length,
        buffer=buffer,
        mode=KERNEL_MODE,
        top=top,
        irp_flags=irp_flags,
    )
    if flags & DO_NOT_UPDATE_BYTE_OFFSET:
        file.position = before
    if done:
        k.memory.put32(done, information if nt_success(status) else 0)
    return status


def _asynchronous(
    k: Kernel,
    major: int,
    top: Instance,
    file: FileObject,
    offset: int,
    length: int,
    buffer: int,
    irp_flags: int,
    callback: int,
    context: int,
) -> Model:
    """The request in a thread of its own; the callback gets its callback data, which is freed afterwards."""
    from vm.emulated.fltmgr.requests import release_request

    request = make_request(
        k,
        major=major,
        volume=file.volume,
        file_object=file.address,
        thread=k.current,
        parameters=struct.pack("<I4xI4xqQQ8x", length, 0, offset, buffer, 0),
        irp_flags=irp_flags,
        top=top,
        data_flags=n.FLTFL_CALLBACK_DATA_GENERATED_IO,
    )
    yield from send(k, request, keep=True)
    yield Call(callback, (request.data, context), "completion of asynchronous I/O")
    release_request(k, request)


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltReadFile(
    k: Kernel,
    InitiatingInstance: PVOID,
    FileObject: PVOID,
    ByteOffset: PVOID,
    Length: ULONG,
    Buffer: PVOID,
    Flags: ULONG,
    BytesRead: PVOID,
    CallbackRoutine: PVOID,
    CallbackContext: PVOID,
) -> Model:
    """With a callback routine it returns STATUS_PENDING, and the routine is called in every case."""
    return (
        yield from _transfer(
            k,
            n.IRP_MJ_READ,
            InitiatingInstance,
            FileObject,
            ByteOffset,
            Length,
            Buffer,
            Flags,
            BytesRead,
            CallbackRoutine,
            CallbackContext,
        )
    )


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltWriteFile(
    k: Kernel,
    InitiatingInstance: PVOID,
    FileObject: PVOID,
    ByteOffset: PVOID,
    Length: ULONG,
    Buffer: PVOID,
    Flags: ULONG,
    BytesWritten: PVOID,
    CallbackRoutine: PVOID,
    CallbackContext: PVOID,
) -> Model:
    """With a callback routine it returns STATUS_PENDING, and the routine is called in every case."""
    return (
        yield from _transfer(
            k,
            n.IRP_MJ_WRITE,
            InitiatingInstance,
            FileObject,
            ByteOffset,
            Length,
            Buffer,
            Flags,
            BytesWritten,
            CallbackRoutine,
            CallbackContext,
        )
    )


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltFlushBuffers(k: Kernel, Instance: PVOID, FileObject: PVOID) -> Model:
    file = file_at(k, FileObject, "FltFlushBuffers")
    status, _ = yield from file_io.simple(
        k,
        file,
        n.IRP_MJ_FLUSH_BUFFERS,
        b"",
        mode=KERNEL_MODE,
        top=_instance(k, Instance),
        system_buffer=False,
    )
    return status


# Information


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltQueryInformationFile(
    k: Kernel,
    Instance: PVOID,
    FileObject: PVOID,
    FileInformation: PVOID,
    Length: ULONG,
    FileInformationClass: ULONG,
    LengthReturned: PVOID,
) -> Model:
    file = file_at(k, FileObject, "FltQueryInformationFile")
    status, data = yield from file_io.query_information(
        k, file, FileInformationClass, Length, mode=KERNEL_MODE, top=_instance(k, Instance)
    )
    k.memory.write(FileInformation, data)
    if LengthReturned:
        k.memory.put32(LengthReturned, len(data))
    return status


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltSetInformationFile(
    k: Kernel,
    Instance: PVOID,
    FileObject: PVOID,
    FileInformation: PVOID,
    Length: ULONG,
    FileInformationClass: ULONG,
) -> Model:
    top = _instance(k, Instance)
    file = file_at(k, FileObject, "FltSetInformationFile")
    data = k.memory.read(FileInformation, Length)
    if FileInformationClass in file_io.RENAMES_AND_LINKS and Length >= 0x14:
        _, root, size = struct.unpack_from("<QQI", data)
        name = data[0x14 : 0x14 + size].decode("utf-16-le", "surrogatepass")
        directory = _table(k, root).get(root).object.body if root else None
        if directory is not None or name.startswith("\\"):
            return (
                yield from file_io.rename_or_link(
                    k, file, FileInformationClass, data, name, root=directory, mode=KERNEL_MODE, top=top
                )
            )
    return (
        yield from file_io.set_information(k, file, FileInformationClass, data, mode=KERNEL_MODE, top=top)
    )


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltIsDirectory(k: Kernel, FileObject: PVOID, Instance: PVOID, IsDirectory: PVOID) -> Model:
    file = file_at(k, FileObject, "FltIsDirectory")
    status, data = yield from file_io.query_information(
        k, file, n.FileStandardInformation, 0x18, mode=KERNEL_MODE, top=_instance(k, Instance)
    )
    if nt_success(status):
        k.memory.put8(IsDirectory, data[0x15])
    return status


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltQueryVolumeInformation(
    k: Kernel,
    Instance: PVOID,
    Iosb: PIO_STATUS_BLOCK,
    FsInformation: PVOID,
    Length: ULONG,
    FsInformationClass: ULONG,
) -> NTSTATUS:
    """Asked of the volume itself: no file object is involved, so no filter below can see it."""
    from vm.emulated.fltmgr.information import query_volume

    volume = _instance(k, Instance).volume
    try:
        status, data = query_volume(volume.file_system, volume.file_system_name, FsInformationClass, Length)
    except StatusError as error:
        status, data = error.status, b""
    k.memory.write(FsInformation, data)
    k.memory.write(Iosb, struct.pack("<I4xQ", status, len(data)))
    return status


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltQuerySecurityObject(
    k: Kernel,
    Instance: PVOID,
    FileObject: PVOID,
    SecurityInformation: ULONG,
    SecurityDescriptor: PVOID,
    Length: ULONG,
    LengthNeeded: PVOID,
) -> Model:
    file = file_at(k, FileObject, "FltQuerySecurityObject")
    parameters = struct.pack("<I4xI4xQ", SecurityInformation, Length, SecurityDescriptor)
    status, size = yield from file_io.simple(
        k, file, n.IRP_MJ_QUERY_SECURITY, parameters, mode=KERNEL_MODE, top=_instance(k, Instance)
    )
    if LengthNeeded:
        k.memory.put32(LengthNeeded, size)
    return STATUS_BUFFER_TOO_SMALL if status == STATUS_BUFFER_OVERFLOW else status


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltSetSecurityObject(
    k: Kernel, Instance: PVOID, FileObject: PVOID, SecurityInformation: ULONG, SecurityDescriptor: PVOID
) -> Model:
    file = file_at(k, FileObject, "FltSetSecurityObject")
    parameters = struct.pack("<I4xQ", SecurityInformation, SecurityDescriptor)
    status, _ = yield from file_io.simple(
        k, file, n.IRP_MJ_SET_SECURITY, parameters, mode=KERNEL_MODE, top=_instance(k, Instance)
    )
    return status


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltQueryDirectoryFile(
    k: Kernel,
    Instance: PVOID,
    FileObject: PVOID,
    FileInformation: PVOID,
    Length: ULONG,
    FileInformationClass: ULONG,
    ReturnSingleEntry: BOOLEAN,
    FileName: PVOID,
    RestartScan: BOOLEAN,
    LengthReturned: PVOID,
) -> Model:
    file = file_at(k, FileObject, "FltQueryDirectoryFile")
    parameters = struct.pack("<I4xQI4xQQ", Length, FileName, FileInformationClass, 0, FileInformation)
    flags = (n.SL_RETURN_SINGLE_ENTRY if ReturnSingleEntry else 0) | (n.SL_RESTART_SCAN if RestartScan else 0)
    status, size = yield from file_io.simple(
        k,
        file,
        n.IRP_MJ_DIRECTORY_CONTROL,
        parameters,
        minor=n.IRP_MN_QUERY_DIRECTORY,
        operation_flags=flags,
        mode=KERNEL_MODE,
        top=_instance(k, Instance),
        system_buffer=False,
    )
    if LengthReturned:
        k.memory.put32(LengthReturned, size)
    return status


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltQueryEaFile(
    k: Kernel,
    Instance: PVOID,
    FileObject: PVOID,
    ReturnedEaData: PVOID,
    Length: ULONG,
    ReturnSingleEntry: BOOLEAN,
    EaList: PVOID,
    EaListLength: ULONG,
    EaIndex: PVOID,
    RestartScan: BOOLEAN,
    LengthReturned: PVOID,
) -> Model:
    file = file_at(k, FileObject, "FltQueryEaFile")
    parameters = struct.pack("<I4xQI4xI4xQ", Length, EaList, EaListLength, 0, ReturnedEaData)
    status, size = yield from file_io.simple(
        k, file, n.IRP_MJ_QUERY_EA, parameters, mode=KERNEL_MODE, top=_instance(k, Instance)
    )
    if LengthReturned:
        k.memory.put32(LengthReturned, size)
    return status


@export(FLTMGR, irql=PASSIVE_LEVEL)
@answers
def FltFsControlFile(
    k: Kernel,
    Instance: PVOID,
    FileObject: PVOID,
    FsControlCode: ULONG,
    InputBuffer: PVOID,
    InputBufferLength: ULONG,
    OutputBuffer: PVOID,
    OutputBufferLength: ULONG,
    LengthReturned: PVOID,
) -> Model:
    file = file_at(k, FileObject, "FltFsControlFile")
    parameters = struct.pack(
        "<I4xI4xI4xQQ", OutputBufferLength, InputBufferLength, FsControlCode, InputBuffer, OutputBuffer
    )
    status, size = yield from file_io.simple(
        k, file, n.IRP_MJ_FILE_SYSTEM_CONTROL, parameters, mode=KERNEL_MODE, top=_instance(k, Instance)
    )
    if LengthReturned:
        k.memory.put32(LengthReturned, size)
    return status
