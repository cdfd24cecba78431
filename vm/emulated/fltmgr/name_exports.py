"""What drivers import to ask for file names: FltGetFileNameInformation and its family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.exports.declare import (
    FLTMGR,
    HANDLE,
    NTSTATUS,
    PUNICODE_STRING,
    PVOID,
    ULONG,
    USHORT,
    export,
)
from vm.emulated.fltmgr import names
from vm.emulated.fltmgr.answers import answers
from vm.emulated.fltmgr.file_io import split_device_path
from vm.emulated.fltmgr.file_objects import FILE_TYPE, FileObject, file_at
from vm.emulated.fltmgr.model import INSTANCE_TYPE
from vm.emulated.fltmgr.requests import request_at
from vm.emulated.kernel.objects import KERNEL_HANDLE_BIT, StatusError
from vm.emulated.kernel.status import (
    STATUS_BUFFER_TOO_SMALL,
    STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_SAME_DEVICE,
    STATUS_OBJECT_TYPE_MISMATCH,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetFileNameInformation(
    k: Kernel, CallbackData: PVOID, NameOptions: ULONG, FileNameInformation: PVOID
) -> NTSTATUS:
    """STATUS_FLT_INVALID_NAME_REQUEST in the paging path, with a top-level IRP, after a close (DDI page)."""
    k.memory.put64(FileNameInformation, 0)
    request = request_at(k, CallbackData, "FltGetFileNameInformation")
    kind, method = names.check_options(NameOptions)
    file = request.file
    if file is None:
        return STATUS_INVALID_PARAMETER
    text = names.find_name(k, file, kind, method, names.unsafe_reason(k, request, kind))
    k.memory.put64(FileNameInformation, names.hand_out(k, text, file.volume, kind))
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetFileNameInformationUnsafe(
    k: Kernel, FileObject: PVOID, Instance: PVOID, NameOptions: ULONG, FileNameInformation: PVOID
) -> NTSTATUS:
    k.memory.put64(FileNameInformation, 0)
    file = file_at(k, FileObject, "FltGetFileNameInformationUnsafe")
    kind, method = names.check_options(NameOptions)
    if Instance:
        k.objects.get(Instance, INSTANCE_TYPE)
    unsafe = "a top-level IRP" if k.current.top_level_irp else None
    text = names.find_name(k, file, kind, method, unsafe)
    k.memory.put64(FileNameInformation, names.hand_out(k, text, file.volume, kind))
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
def FltReleaseFileNameInformation(k: Kernel, FileNameInformation: PVOID) -> None:
    names.release(k, names.name_at(k, FileNameInformation, "FltReleaseFileNameInformation"))


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltReferenceFileNameInformation(k: Kernel, FileNameInformation: PVOID) -> None:
    names.name_at(k, FileNameInformation, "FltReferenceFileNameInformation").references += 1


@export(FLTMGR, irql=APC_LEVEL)
def FltParseFileNameInformation(k: Kernel, FileNameInformation: PVOID) -> NTSTATUS:
    found = names.name_at(k, FileNameInformation, "FltParseFileNameInformation")
    address, buffer = found.address, found.address + names.SIZE
    parts = names.split(found.text, found.volume_length)
    fields = [
        (names.EXTENSION, parts.extension),
        (names.STREAM, parts.stream),
        (names.FINAL_COMPONENT, parts.final),
    ]
    parsed = names.PARSED_EXTENSION | names.PARSED_STREAM | names.PARSED_FINAL_COMPONENT
    if found.format != names.SHORT:
        fields.append((names.PARENT_DIR, parts.parent))
        parsed |= names.PARSED_PARENT_DIR
    for offset, (start, length) in fields:
        begin = _bytes(found.text[:start])
        names.put_string(k, address + offset, buffer + begin, _bytes(found.text[start : start + length]))
    k.memory.put16(address + names.NAMES_PARSED, parsed)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
def FltParseFileName(
    k: Kernel,
    FileName: PUNICODE_STRING,
    Extension: PUNICODE_STRING,
    Stream: PUNICODE_STRING,
    FinalComponent: PUNICODE_STRING,
) -> NTSTATUS:
    """Each result points into the buffer of `FileName`."""
    text = k.memory.unicode_string(FileName)
    buffer = k.memory.u64(FileName + 8)
    parts = names.split(text, 0)
    for out, (start, length) in (
        (Extension, parts.extension),
        (Stream, parts.stream),
        (FinalComponent, parts.final),
    ):
        if out:
            names.put_string(k, out, buffer + _bytes(text[:start]), _bytes(text[start : start + length]))
    return STATUS_SUCCESS


def _bytes(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass"))


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetDestinationFileNameInformation(
    k: Kernel,
    Instance: PVOID,
    FileObject: PVOID,
    RootDirectory: HANDLE,
    FileName: PVOID,
    FileNameLength: ULONG,
    NameOptions: ULONG,
    RetFileNameInformation: PVOID,
) -> NTSTATUS:
    """The name that a rename or link will give; the file itself is not touched."""
    k.memory.put64(RetFileNameInformation, 0)
    k.objects.get(Instance, INSTANCE_TYPE)
    file = file_at(k, FileObject, "FltGetDestinationFileNameInformation")
    kind, _ = names.check_options(NameOptions)
    if kind == names.SHORT or FileNameLength % 2 or not FileNameLength:
        raise StatusError(STATUS_INVALID_PARAMETER)
    name = k.memory.read(FileName, FileNameLength).decode("utf-16-le", "surrogatepass")
    path = _destination(k, file, RootDirectory, name)
    if kind == names.NORMALIZED:
        path = names.normalize(file.volume, path)
        # The final component is what the caller wants it to be, whatever has that name now; a stream has none.
        if not name.startswith(":"):
            path = path[: path.rfind("\\") + 1] + name.rpartition("\\")[2]
    text = file.volume.device_name + path
    k.memory.put64(RetFileNameInformation, names.hand_out(k, text, file.volume, kind))
    return STATUS_SUCCESS


def _destination(k: Kernel, file: FileObject, root: int, name: str) -> str:
    if root:
        table = (
            k.system.handles if root & KERNEL_HANDLE_BIT == KERNEL_HANDLE_BIT else k.current.process.handles
        )
        item = table.get(root).object
        if item.type != FILE_TYPE:
            raise StatusError(STATUS_OBJECT_TYPE_MISMATCH)
        directory: FileObject = item.body
        base = directory.opened.path() if directory.opened is not None else directory.full_path()
        return f"{base.rstrip(chr(92))}\\{name}"
    if name.startswith("\\"):
        volume, path = split_device_path(k, name)
        if volume is not file.volume:
            raise StatusError(STATUS_NOT_SAME_DEVICE)
        return path
    own = file.opened.path() if file.opened is not None else file.full_path()
    if name.startswith(":"):
        return own.partition(":")[0] + name
    return own[: own.rfind("\\") + 1] + name


@export(FLTMGR, irql=APC_LEVEL)
def FltGetTunneledName(
    k: Kernel, CallbackData: PVOID, FileNameInformation: PVOID, RetTunneledFileNameInformation: PVOID
) -> NTSTATUS:
    """The volume makes no short names, so no name is ever tunnelled: NULL."""
    request_at(k, CallbackData, "FltGetTunneledName")
    names.name_at(k, FileNameInformation, "FltGetTunneledName")
    k.memory.put64(RetTunneledFileNameInformation, 0)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
def FltPurgeFileNameInformationCache(k: Kernel, Instance: PVOID, FileObject: PVOID) -> NTSTATUS:
    k.objects.get(Instance, INSTANCE_TYPE)
    names.forget_cached(k, file_at(k, FileObject, "FltPurgeFileNameInformationCache") if FileObject else None)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
def FltCheckAndGrowNameControl(k: Kernel, NameCtrl: PVOID, NewSize: USHORT) -> NTSTATUS:
    """The UNICODE_STRING of a FLT_NAME_CONTROL gets a buffer of at least `NewSize` bytes."""
    memory = k.memory
    if memory.u16(NameCtrl + 2) >= NewSize:
        return STATUS_SUCCESS
    if NewSize > 0xFFFE:
        return STATUS_BUFFER_TOO_SMALL
    try:
        buffer = k.pool.allocate(NewSize, "FMnc", owner="fltmgr", paged=True)
    except MemoryError:
        return STATUS_INSUFFICIENT_RESOURCES
    old, length = memory.u64(NameCtrl + 8), memory.u16(NameCtrl)
    if length:
        memory.write(buffer, memory.read(old, length))
    if old and old in k.pool.live:
        k.pool.free(old)
    memory.put16(NameCtrl + 2, NewSize)
    memory.put64(NameCtrl + 8, buffer)
    return STATUS_SUCCESS
