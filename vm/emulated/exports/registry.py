"""The registry as drivers see it: Zw...Key over handles, and the Rtl helpers over paths."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import ACCESS_MASK, HANDLE, NTOSKRNL, PVOID, ULONG, alias, export
from vm.emulated.exports.objects import ObjectAttributes, entry_of, insert_handle
from vm.emulated.exports.pool import allocate
from vm.emulated.exports.strings import put_counted, units
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_BUFFER_OVERFLOW,
    STATUS_BUFFER_TOO_SMALL,
    STATUS_CANNOT_DELETE,
    STATUS_INVALID_PARAMETER,
    STATUS_KEY_DELETED,
    STATUS_NO_MORE_ENTRIES,
    STATUS_OBJECT_NAME_INVALID,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_OBJECT_PATH_SYNTAX_BAD,
    STATUS_OBJECT_TYPE_MISMATCH,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import PASSIVE_LEVEL, Call, Model
from vm.emulated.registry import (
    REG_DWORD,
    REG_EXPAND_SZ,
    REG_MULTI_SZ,
    REG_NONE,
    REG_SZ,
    SERVICES,
    KeyHasSubkeysError,
    MissingKeyError,
    MissingValueError,
    RegistryPathError,
    RegistryValue,
)

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

KEY = "Key"
KEY_QUERY_VALUE, KEY_SET_VALUE, KEY_CREATE_SUB_KEY, KEY_ENUMERATE, DELETE = 1, 2, 4, 8, 0x1_0000
_GENERIC_READ, _GENERIC_WRITE, _GENERIC_ALL, _MAXIMUM_ALLOWED = (
    0x8000_0000,
    0x4000_0000,
    0x1000_0000,
    0x0200_0000,
)
KEY_ALL_ACCESS = 0xF003F
REG_CREATED_NEW_KEY, REG_OPENED_EXISTING_KEY = 1, 2


@dataclass(slots=True)
class OpenKey:
    """Body of a key object."""

    path: str


def _granted(desired: int) -> int:
    access = desired & 0x01FF_FFFF
    if desired & (_GENERIC_ALL | _MAXIMUM_ALLOWED):
        access |= KEY_ALL_ACCESS
    if desired & _GENERIC_READ:
        access |= 0x20019
    if desired & _GENERIC_WRITE:
        access |= 0x20006
    return access


def _path(k: Kernel, attributes: ObjectAttributes) -> str:
    name = attributes.name or ""
    if not attributes.root:
        if not name.startswith("\\"):
            raise StatusError(STATUS_OBJECT_PATH_SYNTAX_BAD)
        return name
    if name.startswith("\\"):
        raise StatusError(STATUS_OBJECT_PATH_SYNTAX_BAD)
    parent = _key(k, attributes.root, 0)
    return f"{parent}\\{name}" if name else parent


def _key(k: Kernel, handle: int, access: int) -> str:
    """Path of an open key.

    Raises:
        StatusError: no such handle, no key, not opened for `access`, or deleted since.
    """
    entry = entry_of(k, handle)
    if entry.object.type != KEY:
        raise StatusError(STATUS_OBJECT_TYPE_MISMATCH)
    if access & ~entry.access:
        raise StatusError(STATUS_ACCESS_DENIED)
    path: str = entry.object.body.path
    if not k.registry.exists(path):
        raise StatusError(STATUS_KEY_DELETED)
    return path


def _guard(work: Callable[[], int]) -> int:
    """Run registry code; its errors as statuses."""
    try:
        return work()
    except StatusError as error:
        return error.status
    except (MissingKeyError, MissingValueError):
        return STATUS_OBJECT_NAME_NOT_FOUND
    except RegistryPathError:
        return STATUS_OBJECT_NAME_INVALID
    except KeyHasSubkeysError:
        return STATUS_CANNOT_DELETE


def _open(k: Kernel, handle: int, path: str, access: int, flags: int) -> int:
    item = k.objects.create(KEY, OpenKey(path))
    k.memory.put64(handle, insert_handle(k, item, _granted(access), flags))
    k.objects.dereference(item)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwOpenKey(k: Kernel, KeyHandle: PVOID, DesiredAccess: ACCESS_MASK, Attributes: PVOID) -> int:
    def work() -> int:
        attributes = ObjectAttributes(k, Attributes)
        path = _path(k, attributes)
        if not k.registry.exists(path):
            return STATUS_OBJECT_NAME_NOT_FOUND
        return _open(k, KeyHandle, path, DesiredAccess, attributes.flags)

    return _guard(work)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwOpenKeyEx(
    k: Kernel, KeyHandle: PVOID, DesiredAccess: ACCESS_MASK, Attributes: PVOID, OpenOptions: ULONG
) -> int:
    result: int = ZwOpenKey(k, KeyHandle, DesiredAccess, Attributes)
    return result


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwCreateKey(
    k: Kernel,
    KeyHandle: PVOID,
    DesiredAccess: ACCESS_MASK,
    Attributes: PVOID,
    TitleIndex: ULONG,
    Class: PVOID,
    CreateOptions: ULONG,
    Disposition: PVOID,
) -> int:
    """The parent must exist: only the last component is created (docs)."""

    def work() -> int:
        attributes = ObjectAttributes(k, Attributes)
        path = _path(k, attributes).rstrip("\\")
        parent = path.rpartition("\\")[0]
        if not k.registry.exists(parent):
            return STATUS_OBJECT_NAME_NOT_FOUND
        created = k.registry.create_key(path)
        if Disposition:
            k.memory.put32(Disposition, REG_CREATED_NEW_KEY if created else REG_OPENED_EXISTING_KEY)
        return _open(k, KeyHandle, path, DesiredAccess, attributes.flags)

    return _guard(work)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwDeleteKey(k: Kernel, KeyHandle: HANDLE) -> int:
    def work() -> int:
        k.registry.delete_key(_key(k, KeyHandle, DELETE))
        return STATUS_SUCCESS

    return _guard(work)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwFlushKey(k: Kernel, KeyHandle: HANDLE) -> int:
    def work() -> int:
        _key(k, KeyHandle, 0)
        return STATUS_SUCCESS

    return _guard(work)


# Values


def _answer(k: Kernel, buffer: int, length: int, result_length: int, fixed: int, data: bytes) -> int:
    """Hand out an information structure: too small for the fixed part is an error, for the rest a warning."""
    k.memory.put32(result_length, len(data))
    if length < fixed:
        return STATUS_BUFFER_TOO_SMALL
    k.memory.write(buffer, data[:length])
    return STATUS_SUCCESS if length >= len(data) else STATUS_BUFFER_OVERFLOW


def _value_information(kind: int, name: str, value: RegistryValue) -> tuple[int, bytes]:
    """(size of the fixed part, KEY_VALUE_*_INFORMATION).

    Raises:
        StatusError: no such class.
    """
    raw = units(name)
    match kind:
        case 0:  # KeyValueBasicInformation
            return 12, struct.pack("<III", 0, value.type, len(raw)) + raw
        case 1 | 3:  # KeyValueFullInformation, ...Align64
            offset = (20 + len(raw) + 7) & ~7
            head = struct.pack("<IIIII", 0, value.type, offset, len(value.data), len(raw)) + raw
            return 20, head.ljust(offset, b"\0") + value.data
        case 2:  # KeyValuePartialInformation
            return 12, struct.pack("<III", 0, value.type, len(value.data)) + value.data
        case 4:  # KeyValuePartialInformationAlign64
            return 8, struct.pack("<II", value.type, len(value.data)) + value.data
    raise StatusError(STATUS_INVALID_PARAMETER)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwQueryValueKey(
    k: Kernel,
    KeyHandle: HANDLE,
    ValueName: PVOID,
    KeyValueInformationClass: ULONG,
    KeyValueInformation: PVOID,
    Length: ULONG,
    ResultLength: PVOID,
) -> int:
    def work() -> int:
        path = _key(k, KeyHandle, KEY_QUERY_VALUE)
        name = k.memory.unicode_string(ValueName)
        value = k.registry.get_value(path, name)
        fixed, data = _value_information(KeyValueInformationClass, name, value)
        return _answer(k, KeyValueInformation, Length, ResultLength, fixed, data)

    return _guard(work)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwEnumerateValueKey(
    k: Kernel,
    KeyHandle: HANDLE,
    Index: ULONG,
    KeyValueInformationClass: ULONG,
    KeyValueInformation: PVOID,
    Length: ULONG,
    ResultLength: PVOID,
) -> int:
    def work() -> int:
        values = list(k.registry.values(_key(k, KeyHandle, KEY_QUERY_VALUE)).items())
        if Index >= len(values):
            return STATUS_NO_MORE_ENTRIES
        fixed, data = _value_information(KeyValueInformationClass, *values[Index])
        return _answer(k, KeyValueInformation, Length, ResultLength, fixed, data)

    return _guard(work)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwSetValueKey(
    k: Kernel,
    KeyHandle: HANDLE,
    ValueName: PVOID,
    TitleIndex: ULONG,
    Type: ULONG,
    Data: PVOID,
    DataSize: ULONG,
) -> int:
    def work() -> int:
        path = _key(k, KeyHandle, KEY_SET_VALUE)
        data = k.memory.read(Data, DataSize)
        k.registry.set_value(path, k.memory.unicode_string(ValueName), RegistryValue(Type, data))
        return STATUS_SUCCESS

    return _guard(work)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwDeleteValueKey(k: Kernel, KeyHandle: HANDLE, ValueName: PVOID) -> int:
    def work() -> int:
        k.registry.delete_value(_key(k, KeyHandle, KEY_SET_VALUE), k.memory.unicode_string(ValueName))
        return STATUS_SUCCESS

    return _guard(work)


# Keys


def _key_information(k: Kernel, kind: int, path: str) -> tuple[int, bytes]:
    name = units(path.rpartition("\\")[2])
    now = k.clock.system_time
    subkeys, values = k.registry.subkeys(path), k.registry.values(path)
    longest_key = max((len(units(n)) for n in subkeys), default=0)
    longest_name = max((len(units(n)) for n in values), default=0)
    longest_data = max((len(v.data) for v in values.values()), default=0)
    match kind:
        case 0:  # KeyBasicInformation
            return 16, struct.pack("<QII", now, 0, len(name)) + name
        case 1:  # KeyNodeInformation
            return 24, struct.pack("<QIIII", now, 0, 0xFFFF_FFFF, 0, len(name)) + name
        case 2:  # KeyFullInformation
            return 44, struct.pack(
                "<QIIIIIIIII",
                now,
                0,
                0xFFFF_FFFF,
                0,
                len(subkeys),
                longest_key,
                0,
                len(values),
                longest_name,
                longest_data,
            )
        case 3:  # KeyNameInformation
            full = units(_full_name(path))
            return 4, struct.pack("<I", len(full)) + full
        case 4:  # KeyCachedInformation
            return 36, struct.pack(
                "<QIIIIIII",
                now,
                0,
                len(subkeys),
                longest_key,
                len(values),
                longest_name,
                longest_data,
                len(name),
            )
    raise StatusError(STATUS_INVALID_PARAMETER)


def _full_name(path: str) -> str:
    """The path as the object manager spells it."""
    for short, full in (("HKLM", "\\REGISTRY\\MACHINE"), ("HKU", "\\REGISTRY\\USER")):
        if path.upper() == short or path.upper().startswith(short + "\\"):
            return full + path[len(short) :]
    for full in ("\\REGISTRY\\MACHINE", "\\REGISTRY\\USER"):
        if path.upper().startswith(full):
            return full + path[len(full) :]
    return path


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwQueryKey(
    k: Kernel,
    KeyHandle: HANDLE,
    KeyInformationClass: ULONG,
    KeyInformation: PVOID,
    Length: ULONG,
    ResultLength: PVOID,
) -> int:
    def work() -> int:
        access = 0 if KeyInformationClass == 3 else KEY_QUERY_VALUE
        fixed, data = _key_information(k, KeyInformationClass, _key(k, KeyHandle, access))
        return _answer(k, KeyInformation, Length, ResultLength, fixed, data)

    return _guard(work)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwEnumerateKey(
    k: Kernel,
    KeyHandle: HANDLE,
    Index: ULONG,
    KeyInformationClass: ULONG,
    KeyInformation: PVOID,
    Length: ULONG,
    ResultLength: PVOID,
) -> int:
    def work() -> int:
        path = _key(k, KeyHandle, KEY_ENUMERATE)
        names = k.registry.subkeys(path)
        if Index >= len(names):
            return STATUS_NO_MORE_ENTRIES
        fixed, data = _key_information(k, KeyInformationClass, f"{path}\\{names[Index]}")
        return _answer(k, KeyInformation, Length, ResultLength, fixed, data)

    return _guard(work)


# Helpers over paths

_RELATIVE = (
    "",
    "\\Registry\\Machine\\System\\CurrentControlSet\\Services\\",
    "\\Registry\\Machine\\System\\CurrentControlSet\\Control\\",
    "\\Registry\\Machine\\Software\\Microsoft\\Windows NT\\CurrentVersion\\",
    "\\Registry\\Machine\\Hardware\\DeviceMap\\",
    "\\Registry\\User\\S-1-5-18\\",
)
_RTL_REGISTRY_HANDLE = 0x4000_0000
_RTL_REGISTRY_OPTIONAL = 0x8000_0000


def _relative(k: Kernel, relative_to: int, path: int) -> str:
    if relative_to & _RTL_REGISTRY_HANDLE:
        return _key(k, path, 0)
    base = relative_to & 0xFFFF
    if base >= len(_RELATIVE):
        raise StatusError(STATUS_INVALID_PARAMETER)
    text = k.memory.wide_string(path) if path else ""
    return (_RELATIVE[base] + text).rstrip("\\")


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlCheckRegistryKey(k: Kernel, RelativeTo: ULONG, Path: PVOID) -> int:
    return _guard(
        lambda: (
            STATUS_SUCCESS
            if k.registry.exists(_relative(k, RelativeTo, Path))
            else STATUS_OBJECT_NAME_NOT_FOUND
        )
    )


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlCreateRegistryKey(k: Kernel, RelativeTo: ULONG, Path: PVOID) -> int:
    def work() -> int:
        k.registry.create_key(_relative(k, RelativeTo, Path))
        return STATUS_SUCCESS

    return _guard(work)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlWriteRegistryValue(
    k: Kernel,
    RelativeTo: ULONG,
    Path: PVOID,
    ValueName: PVOID,
    ValueType: ULONG,
    ValueData: PVOID,
    ValueLength: ULONG,
) -> int:
    def work() -> int:
        path = _relative(k, RelativeTo, Path)
        k.registry.create_key(path)
        name = k.memory.wide_string(ValueName) if ValueName else ""
        value = RegistryValue(ValueType, k.memory.read(ValueData, ValueLength))
        k.registry.set_value(path, name, value)
        return STATUS_SUCCESS

    return _guard(work)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlDeleteRegistryValue(k: Kernel, RelativeTo: ULONG, Path: PVOID, ValueName: PVOID) -> int:
    def work() -> int:
        k.registry.delete_value(_relative(k, RelativeTo, Path), k.memory.wide_string(ValueName))
        return STATUS_SUCCESS

    return _guard(work)


# RTL_QUERY_REGISTRY_TABLE (0x38): QueryRoutine 0x00, Flags 0x08, Name 0x10, EntryContext 0x18, DefaultType 0x20,
# DefaultData 0x28, DefaultLength 0x30.
_TABLE_SIZE = 0x38
_SUBKEY, _TOPKEY, _REQUIRED, _NOVALUE, _NOEXPAND, _DIRECT, _DELETE, _TYPECHECK = (
    0x1,
    0x2,
    0x4,
    0x8,
    0x10,
    0x20,
    0x40,
    0x100,
)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlQueryRegistryValues(
    k: Kernel, RelativeTo: ULONG, Path: PVOID, QueryTable: PVOID, Context: PVOID, Environment: PVOID
) -> Model:
    try:
        top = _relative(k, RelativeTo, Path)
    except StatusError as error:
        return error.status
    if not k.registry.exists(top):
        if RelativeTo & _RTL_REGISTRY_OPTIONAL:
            return STATUS_SUCCESS
        return STATUS_OBJECT_NAME_NOT_FOUND
    current = top
    entry = QueryTable
    while True:
        row = _Row(k, entry)
        if not row.routine and not row.flags & (_SUBKEY | _DIRECT):
            return STATUS_SUCCESS
        entry += _TABLE_SIZE
        if row.flags & (_TOPKEY | _SUBKEY):
            current = top
        if row.flags & _SUBKEY:
            if not row.name:
                return STATUS_INVALID_PARAMETER
            current = f"{top}\\{row.name}"
            if not k.registry.exists(current):
                if row.flags & _REQUIRED:
                    return STATUS_OBJECT_NAME_NOT_FOUND
                current = top
                continue
            if not row.routine:
                continue
            status = yield from _all_values(k, row, current, Context)
        elif row.flags & _NOVALUE:
            status = yield Call(
                row.routine, (0, REG_NONE, 0, 0, Context, row.context), "registry query routine"
            )
        elif not row.name:
            status = yield from _all_values(k, row, current, Context)
        else:
            status = yield from _one_value(k, row, current, Context)
        if status & 0x8000_0000:
            return status & 0xFFFF_FFFF


RtlQueryRegistryValuesEx = alias(RtlQueryRegistryValues, "RtlQueryRegistryValuesEx")


class _Row:
    """One entry of a query table."""

    __slots__ = ("context", "data", "flags", "name", "name_address", "routine", "size", "type")

    def __init__(self, k: Kernel, address: int) -> None:
        memory = k.memory
        self.routine = memory.u64(address)
        self.flags = memory.u32(address + 0x08)
        self.name_address = memory.u64(address + 0x10)
        self.name = memory.wide_string(self.name_address) if self.name_address else ""
        self.context = memory.u64(address + 0x18)
        self.type = memory.u32(address + 0x20)
        self.data = memory.u64(address + 0x28)
        self.size = memory.u32(address + 0x30)


def _all_values(k: Kernel, row: _Row, path: str, context: int) -> Model:
    found = list(k.registry.values(path).items())
    if not found and row.flags & _REQUIRED:
        return STATUS_OBJECT_NAME_NOT_FOUND
    for name, value in found:
        status = yield from _deliver(k, row, name, value, context)
        if status & 0x8000_0000:
            return status
    return STATUS_SUCCESS


def _one_value(k: Kernel, row: _Row, path: str, context: int) -> Model:
    try:
        value = k.registry.get_value(path, row.name)
    except MissingValueError:
        if row.flags & _REQUIRED:
            return STATUS_OBJECT_NAME_NOT_FOUND
        kind = row.type & 0xFF_FFFF
        if kind == REG_NONE:
            return STATUS_SUCCESS
        value = RegistryValue(kind, _default_data(k, row, kind))
        return (yield from _deliver(k, row, row.name, value, context))
    if row.flags & _TYPECHECK and row.flags & _DIRECT and value.type != row.type >> 24:
        return STATUS_OBJECT_TYPE_MISMATCH
    status = yield from _deliver(k, row, row.name, value, context)
    if row.flags & _DELETE and not status & 0x8000_0000:
        k.registry.delete_value(path, row.name)
    return status


def _default_data(k: Kernel, row: _Row, kind: int) -> bytes:
    """The default's data; a length of zero means a terminated string (docs)."""
    if row.size or not row.data:
        return k.memory.read(row.data, row.size) if row.data else b""
    if kind in (REG_SZ, REG_EXPAND_SZ):
        return units(k.memory.wide_string(row.data)) + b"\0\0"
    return k.memory.read(row.data, 4) if kind == REG_DWORD else b""


def _deliver(k: Kernel, row: _Row, name: str, value: RegistryValue, context: int) -> Model:
    kind, data = value.type, value.data
    if kind == REG_MULTI_SZ and not row.flags & (_NOEXPAND | _DIRECT):
        for text in value.as_multi_string():
            piece = RegistryValue.string(text)
            status = yield from _call(k, row, name, piece.type, piece.data, context)
            if status & 0x8000_0000:
                return status
        return STATUS_SUCCESS
    if kind == REG_EXPAND_SZ and not row.flags & _NOEXPAND:
        kind = REG_SZ
    if row.flags & _DIRECT:
        return _store(k, row, kind, data)
    return (yield from _call(k, row, name, kind, data, context))


def _store(k: Kernel, row: _Row, kind: int, data: bytes) -> int:
    """RTL_QUERY_REGISTRY_DIRECT: strings into a UNICODE_STRING, a DWORD at once, the rest with its size (docs)."""
    memory = k.memory
    target = row.context
    if kind in (REG_SZ, REG_EXPAND_SZ, REG_MULTI_SZ):
        length = len(data) - 2 if data.endswith(b"\0\0") else len(data)
        if not memory.u64(target + 8):
            buffer = allocate(k, length + 2, int.from_bytes(b"RegS", "little"), paged=True, zero=True)
            put_counted(memory, target, 0, length + 2, buffer)
        elif memory.u16(target + 2) < length + 2:
            return STATUS_BUFFER_TOO_SMALL
        memory.write(memory.u64(target + 8), data[:length] + b"\0\0")
        memory.put16(target, length)
        return STATUS_SUCCESS
    if len(data) <= 4:
        memory.write(target, data)
        return STATUS_SUCCESS
    size = memory.i32(target)
    if size < 0:  # the caller gave the length of its buffer, negated
        if len(data) > -size:
            return STATUS_BUFFER_TOO_SMALL
        memory.write(target, data)
    else:
        if len(data) > size:
            return STATUS_BUFFER_TOO_SMALL
        memory.write(target, struct.pack("<II", len(data), kind) + data)
    return STATUS_SUCCESS


def _call(k: Kernel, row: _Row, name: str, kind: int, data: bytes, context: int) -> Model:
    text = units(name) + b"\0\0"
    buffer = k.pool.allocate(len(text) + len(data) + 16, "RegQ", owner="nt")
    k.memory.write(buffer, text)
    where = buffer + ((len(text) + 7) & ~7)
    k.memory.write(where, data)
    status = yield Call(
        row.routine, (buffer, kind, where, len(data), context, row.context), "registry query routine"
    )
    k.pool.free(buffer, "RegQ")
    return status & 0xFFFF_FFFF


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def IoOpenDriverRegistryKey(
    k: Kernel,
    DriverObject: PVOID,
    RegKeyType: ULONG,
    DesiredAccess: ACCESS_MASK,
    Flags: ULONG,
    DriverRegKey: PVOID,
) -> int:
    """DriverRegKeyParameters (0) is the service's Parameters key, DriverRegKeyPersistentState (1) its state key."""
    driver = next((d for d in k.drivers if d.driver_object == DriverObject), None)
    if driver is None or Flags or RegKeyType > 1:
        return STATUS_INVALID_PARAMETER
    service = driver.registry_path or f"{SERVICES}\\{driver.name}"
    path = f"{service}\\{'Parameters' if RegKeyType == 0 else 'State'}"

    def work() -> int:
        k.registry.create_key(path)
        return _open(k, DriverRegKey, path, DesiredAccess, 0x200)

    return _guard(work)
