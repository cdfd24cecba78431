"""What drivers import to ask about volumes and the instances on them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import FLTMGR, NTSTATUS, PUNICODE_STRING, PVOID, ULONG, export
from vm.emulated.fltmgr import references
from vm.emulated.fltmgr.answers import answers
from vm.emulated.fltmgr.file_objects import file_at
from vm.emulated.fltmgr.model import FILTER_TYPE, INSTANCE_TYPE, VOLUME_TYPE, Instance, Volume
from vm.emulated.fltmgr.numbers import FILE_DEVICE_DISK_FILE_SYSTEM
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_BUFFER_OVERFLOW,
    STATUS_BUFFER_TOO_SMALL,
    STATUS_INVALID_PARAMETER,
    STATUS_NO_MORE_ENTRIES,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, PASSIVE_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_PROPERTIES_SIZE = 0x48


def _volume(k: Kernel, address: int) -> Volume:
    found: Volume = k.objects.get(address, VOLUME_TYPE).body
    return found


def _volume_of(k: Kernel, address: int) -> Volume:
    """The volume of an FltObject: a volume itself, or an instance."""
    body = k.objects.get(address).body
    if isinstance(body, Volume):
        return body
    if isinstance(body, Instance):
        return body.volume
    raise StatusError(STATUS_INVALID_PARAMETER)


def _give_string(k: Kernel, text: str, string: int, needed: int) -> int:
    """Fill a caller's UNICODE_STRING; STATUS_BUFFER_TOO_SMALL with the size when it does not fit or is NULL."""
    raw = text.encode("utf-16-le")
    if needed:
        k.memory.put32(needed, len(raw))
    if not string or k.memory.u16(string + 2) < len(raw):
        return STATUS_BUFFER_TOO_SMALL
    k.memory.write(k.memory.u64(string + 8), raw)
    k.memory.put16(string, len(raw))
    return STATUS_SUCCESS


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltGetVolumeName(
    k: Kernel, Volume: PVOID, VolumeName: PUNICODE_STRING, BufferSizeNeeded: PVOID
) -> NTSTATUS:
    return _give_string(k, _volume(k, Volume).device_name, VolumeName, BufferSizeNeeded)


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltGetVolumeGuidName(
    k: Kernel, Volume: PVOID, VolumeGuidName: PUNICODE_STRING, BufferSizeNeeded: PVOID
) -> NTSTATUS:
    """ "\\??\\Volume{...}", made from the volume's serial number."""
    serial = _volume(k, Volume).file_system.serial
    name = f"\\??\\Volume{{{serial >> 32:08x}-{serial >> 16 & 0xFFFF:04x}-{serial & 0xFFFF:04x}-8000-0000d0c0ffee}}"
    return _give_string(k, name, VolumeGuidName, BufferSizeNeeded)


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltGetVolumeProperties(
    k: Kernel, Volume: PVOID, VolumeProperties: PVOID, VolumePropertiesLength: ULONG, LengthReturned: PVOID
) -> NTSTATUS:
    """FLT_VOLUME_PROPERTIES, followed by the three names."""
    volume = _volume(k, Volume)
    names = [text.encode("utf-16-le") for text in ("\\FileSystem\\Ntfs", "\\Ntfs", volume.device_name)]
    total = _PROPERTIES_SIZE + sum(map(len, names))
    k.memory.put32(LengthReturned, total)
    if VolumePropertiesLength < _PROPERTIES_SIZE or not VolumeProperties:
        return STATUS_BUFFER_TOO_SMALL
    fits = VolumePropertiesLength >= total
    data = struct.pack(
        "<IIIIHH4x", FILE_DEVICE_DISK_FILE_SYSTEM, volume.characteristics, 0x10, 0, volume.sector_size, 0
    )
    cursor = VolumeProperties + _PROPERTIES_SIZE
    for raw in names:
        data += struct.pack("<HH4xQ", len(raw), len(raw), cursor) if fits else bytes(16)
        cursor += len(raw)
    k.memory.write(VolumeProperties, data + (b"".join(names) if fits else b""))
    return STATUS_SUCCESS if fits else STATUS_BUFFER_OVERFLOW


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltIsVolumeWritable(k: Kernel, FltObject: PVOID, IsWritable: PVOID) -> NTSTATUS:
    k.memory.put8(IsWritable, not _volume_of(k, FltObject).file_system.read_only)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltIsVolumeSnapshot(k: Kernel, FltObject: PVOID, IsSnapshotVolume: PVOID) -> NTSTATUS:
    _volume_of(k, FltObject)
    k.memory.put8(IsSnapshotVolume, 0)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetFileSystemType(k: Kernel, FltObject: PVOID, FileSystemType: PVOID) -> NTSTATUS:
    k.memory.put32(FileSystemType, _volume_of(k, FltObject).file_system_type)
    return STATUS_SUCCESS


def _device(k: Kernel, volume: int, out: int) -> int:
    address = _volume(k, volume).device_object
    k.objects.reference(k.objects.get(address, "Device"))
    k.memory.put64(out, address)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
def FltGetDiskDeviceObject(k: Kernel, Volume: PVOID, DiskDeviceObject: PVOID) -> NTSTATUS:
    """Referenced: the caller drops it with ObDereferenceObject."""
    return _device(k, Volume, DiskDeviceObject)


@export(FLTMGR, irql=APC_LEVEL)
def FltGetDeviceObject(k: Kernel, Volume: PVOID, DeviceObject: PVOID) -> NTSTATUS:
    """Referenced: the caller drops it with ObDereferenceObject."""
    return _device(k, Volume, DeviceObject)


@export(FLTMGR, irql=APC_LEVEL)
def FltGetVolumeFromFileObject(k: Kernel, Filter: PVOID, FileObject: PVOID, RetVolume: PVOID) -> NTSTATUS:
    k.objects.get(Filter, FILTER_TYPE)
    volume = file_at(k, FileObject, "FltGetVolumeFromFileObject").volume
    return references.hand_out(k, volume.address, RetVolume)


def _give_instance(k: Kernel, instance: Instance | None, out: int) -> int:
    if instance is None:
        raise StatusError(STATUS_NO_MORE_ENTRIES)
    return references.hand_out(k, instance.address, out)


def _neighbour(k: Kernel, address: int, step: int) -> Instance | None:
    instance: Instance = k.objects.get(address, INSTANCE_TYPE).body
    position = instance.volume.instances.index(instance) + step
    return instance.volume.instances[position] if 0 <= position < len(instance.volume.instances) else None


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetTopInstance(k: Kernel, Volume: PVOID, Instance: PVOID) -> NTSTATUS:
    return _give_instance(k, next(iter(_volume(k, Volume).instances), None), Instance)


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetBottomInstance(k: Kernel, Volume: PVOID, Instance: PVOID) -> NTSTATUS:
    return _give_instance(k, next(reversed(_volume(k, Volume).instances), None), Instance)


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetUpperInstance(k: Kernel, CurrentInstance: PVOID, UpperInstance: PVOID) -> NTSTATUS:
    return _give_instance(k, _neighbour(k, CurrentInstance, -1), UpperInstance)


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetLowerInstance(k: Kernel, CurrentInstance: PVOID, LowerInstance: PVOID) -> NTSTATUS:
    return _give_instance(k, _neighbour(k, CurrentInstance, 1), LowerInstance)
