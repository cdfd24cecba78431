"""What filters import from ntoskrnl.exe around files: object names, wildcards, the generic mapping of file rights."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import BOOLEAN, NTOSKRNL, NTSTATUS, PUNICODE_STRING, PVOID, ULONG, export
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_names import has_wildcards, matches
from vm.emulated.fltmgr.file_objects import FileObject, file_at
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.status import (
    STATUS_BUFFER_OVERFLOW,
    STATUS_INFO_LENGTH_MISMATCH,
    STATUS_INVALID_PARAMETER,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, PASSIVE_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_STRING_SIZE = 0x10


def _path(file: FileObject) -> str:
    return file.opened.path() if file.opened is not None and not file.is_volume_open else file.full_path()


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ObQueryNameString(
    k: Kernel, Object: PVOID, ObjectNameInfo: PVOID, Length: ULONG, ReturnLength: PVOID
) -> NTSTATUS:
    """OBJECT_NAME_INFORMATION: a UNICODE_STRING and its buffer; an object without a name gives an empty one."""
    item = k.objects.get(Object)
    if isinstance(item.body, FileObject):
        text = item.body.volume.device_name + _path(item.body)
    else:
        text = item.name or ""
    raw = text.encode("utf-16-le", "surrogatepass")
    needed = _STRING_SIZE + (len(raw) + 2 if raw else 0)
    k.memory.put32(ReturnLength, needed)
    if Length < needed:
        return STATUS_INFO_LENGTH_MISMATCH if Length < _STRING_SIZE or not raw else STATUS_BUFFER_OVERFLOW
    buffer = ObjectNameInfo + _STRING_SIZE if raw else 0
    head = struct.pack("<HH4xQ", len(raw), len(raw) + 2 if raw else 0, buffer)
    k.memory.write(ObjectNameInfo, head + (raw + b"\0\0" if raw else b""))
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def IoQueryFileDosDeviceName(k: Kernel, FileObject: PVOID, ObjectNameInformation: PVOID) -> NTSTATUS:
    """ "D:\\dir\\name" in paged pool that the caller frees with ExFreePool."""
    file = file_at(k, FileObject, "IoQueryFileDosDeviceName")
    if file.volume.dos_name is None:
        return STATUS_INVALID_PARAMETER
    raw = (file.volume.dos_name + _path(file)).encode("utf-16-le", "surrogatepass")
    driver, site = k.caller()
    block = k.pool.allocate(_STRING_SIZE + len(raw) + 2, "IoNm", owner=driver, site=site, paged=True)
    k.memory.write(block, struct.pack("<HH4xQ", len(raw), len(raw) + 2, block + _STRING_SIZE) + raw + b"\0\0")
    k.memory.put64(ObjectNameInformation, block)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoGetFileObjectGenericMapping(k: Kernel) -> PVOID:
    """A constant GENERIC_MAPPING."""
    address: int | None = k.services.get("file_generic_mapping")
    if address is None:
        address = k.services["file_generic_mapping"] = k.pool.allocate(16, "IoGm", owner="nt")
        rights = (n.FILE_GENERIC_READ, n.FILE_GENERIC_WRITE, n.FILE_GENERIC_EXECUTE, n.FILE_ALL_ACCESS)
        k.memory.write(address, struct.pack("<4I", *rights))
    return address


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoGetRelatedDeviceObject(k: Kernel, FileObject: PVOID) -> PVOID:
    return file_at(k, FileObject, "IoGetRelatedDeviceObject").volume.device_object


@export(NTOSKRNL, irql=APC_LEVEL)
def FsRtlIsPagingFile(k: Kernel, FileObject: PVOID) -> BOOLEAN:
    file_at(k, FileObject, "FsRtlIsPagingFile")
    return False


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def FsRtlDoesNameContainWildCards(k: Kernel, Name: PUNICODE_STRING) -> BOOLEAN:
    return has_wildcards(k.memory.unicode_string(Name))


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def FsRtlIsNameInExpression(
    k: Kernel, Expression: PUNICODE_STRING, Name: PUNICODE_STRING, IgnoreCase: BOOLEAN, UpcaseTable: PVOID
) -> BOOLEAN:
    """With `IgnoreCase` the expression must be upper case already."""
    expression = k.memory.unicode_string(Expression)
    if IgnoreCase and expression != expression.upper():
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0080,
            Expression,
            rule=f"FsRtlIsNameInExpression needs an upper-case expression to ignore case, but got '{expression}'",
        )
    return matches(expression, k.memory.unicode_string(Name), ignore_case=bool(IgnoreCase))
