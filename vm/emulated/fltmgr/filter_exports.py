"""What drivers import to be a filter: registration, start, references, instances and volumes."""

from __future__ import annotations

import struct

from vm.emulated.exports.declare import (
    BOOLEAN,
    FLTMGR,
    LONG,
    NTSTATUS,
    PUNICODE_STRING,
    PVOID,
    ULONG,
    VOID,
    export,
)
from vm.emulated.fltmgr import instances, model, references
from vm.emulated.fltmgr.manager import manager_of
from vm.emulated.fltmgr.model import FILTER_TYPE, INSTANCE_TYPE, VOLUME_TYPE
from vm.emulated.fltmgr.registration import read_registration
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_BUFFER_TOO_SMALL,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_FILTER_NOT_FOUND,
    STATUS_FLT_INSTANCE_ALTITUDE_COLLISION,
    STATUS_FLT_INSTANCE_NOT_FOUND,
    STATUS_FLT_VOLUME_NOT_FOUND,
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, PASSIVE_LEVEL, Model

PFLT_FILTER = PVOID
PFLT_INSTANCE = PVOID
PFLT_VOLUME = PVOID


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltRegisterFilter(k: Kernel, Driver: PVOID, Registration: PVOID, RetFilter: PVOID) -> NTSTATUS:
    """Fact L6."""
    driver = next((d for d in k.drivers if d.driver_object == Driver and not d.unloaded), None)
    if driver is None:
        raise Bugcheck(
            bc.REFERENCE_BY_POINTER,
            0,
            Driver,
            rule=f"FltRegisterFilter was given {Driver:#x}, which is no driver object",
        )
    try:
        registration = read_registration(k.memory, Registration)
        found = manager_of(k).register(driver, registration)
    except StatusError as error:
        return error.status
    k.memory.put64(RetFilter, found.address)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
def FltStartFiltering(k: Kernel, Filter: PFLT_FILTER) -> Model:
    """Fact L7: instance setup may run before it returns; a second call is refused."""
    manager = manager_of(k)
    owner = manager.filter_at(Filter)
    if owner.draining:
        return STATUS_FLT_DELETING_OBJECT
    if owner.filtering:
        return STATUS_INVALID_PARAMETER
    owner.filtering = True
    for volume in manager.volumes:
        yield from instances.attach_automatically(k, owner, volume)
    return STATUS_SUCCESS


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltUnregisterFilter(k: Kernel, Filter: PFLT_FILTER) -> Model:
    """Facts X5 to X8, X12, D9: drain, tear down instances, wait for references, end what is left of the connections."""
    manager = manager_of(k)
    owner = manager.filter_at(Filter)
    if owner.draining:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0052,
            Filter,
            rule=f"FltUnregisterFilter was called twice for the filter '{owner.name}'",
        )
    owner.draining = True
    reason = k.services.get("unload_reason", {}).get(owner.name.lower(), instances.TEARDOWN_FILTER_UNLOAD)
    for instance in list(owner.instances):
        yield from instances.tear_down(k, instance, reason)
    hook = k.services.get("drop_volume_contexts")
    if hook is not None:
        yield from hook(k, owner)
    yield from manager.wait_for_rundown(owner)
    yield from manager.ports.terminate_all(owner)
    manager.forget(owner)
    return None


@export(FLTMGR, irql=APC_LEVEL)
def FltObjectReference(k: Kernel, FltObject: PVOID) -> NTSTATUS:
    """Fact X12: a rundown reference on a filter, an instance or a volume."""
    try:
        references.reference(k, FltObject)
    except StatusError as error:
        return error.status
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
def FltObjectDereference(k: Kernel, FltObject: PVOID) -> VOID:
    references.dereference(k, FltObject)


def _referenced(k: Kernel, address: int, out: int) -> int:
    try:
        return references.hand_out(k, address, out)
    except StatusError as error:
        return error.status


@export(FLTMGR, irql=APC_LEVEL)
def FltGetFilterFromName(k: Kernel, FilterName: PUNICODE_STRING, RetFilter: PVOID) -> NTSTATUS:
    found = manager_of(k).find(k.memory.unicode_string(FilterName))
    return _referenced(k, found.address, RetFilter) if found else STATUS_FLT_FILTER_NOT_FOUND


@export(FLTMGR, irql=APC_LEVEL)
def FltGetFilterFromInstance(k: Kernel, Instance: PFLT_INSTANCE, RetFilter: PVOID) -> NTSTATUS:
    return _referenced(k, k.objects.get(Instance, INSTANCE_TYPE).body.filter.address, RetFilter)


@export(FLTMGR, irql=APC_LEVEL)
def FltGetVolumeFromInstance(k: Kernel, Instance: PFLT_INSTANCE, RetVolume: PVOID) -> NTSTATUS:
    return _referenced(k, k.objects.get(Instance, INSTANCE_TYPE).body.volume.address, RetVolume)


@export(FLTMGR, irql=APC_LEVEL)
def FltGetVolumeFromName(
    k: Kernel, Filter: PFLT_FILTER, VolumeName: PUNICODE_STRING, RetVolume: PVOID
) -> NTSTATUS:
    k.objects.get(Filter, FILTER_TYPE)
    found = find_volume(k, k.memory.unicode_string(VolumeName))
    return _referenced(k, found.address, RetVolume) if found else STATUS_FLT_VOLUME_NOT_FOUND


@export(FLTMGR, irql=APC_LEVEL)
def FltGetVolumeInstanceFromName(
    k: Kernel, Filter: PFLT_FILTER, Volume: PFLT_VOLUME, InstanceName: PUNICODE_STRING, RetInstance: PVOID
) -> NTSTATUS:
    volume = k.objects.get(Volume, VOLUME_TYPE).body
    owner = manager_of(k).filter_at(Filter) if Filter else None
    name = k.memory.unicode_string(InstanceName).lower() if InstanceName else None
    for instance in volume.instances:
        if (owner is None or instance.filter is owner) and (name is None or instance.name.lower() == name):
            return _referenced(k, instance.address, RetInstance)
    return STATUS_FLT_INSTANCE_NOT_FOUND


def _list(k: Kernel, found: list[int], array: int, size: int, returned: int) -> int:
    k.memory.put32(returned, len(found))
    if len(found) > size:
        return STATUS_BUFFER_TOO_SMALL
    for position, address in enumerate(found):
        status = _referenced(k, address, array + 8 * position)
        if status != STATUS_SUCCESS:
            for taken in found[:position]:
                references.dereference(k, taken)
            return status
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
def FltEnumerateFilters(k: Kernel, FilterList: PVOID, Size: ULONG, NumberFiltersReturned: PVOID) -> NTSTATUS:
    return _list(k, [f.address for f in manager_of(k).filters], FilterList, Size, NumberFiltersReturned)


@export(FLTMGR, irql=APC_LEVEL)
def FltEnumerateVolumes(
    k: Kernel, Filter: PFLT_FILTER, VolumeList: PVOID, Size: ULONG, NumberVolumesReturned: PVOID
) -> NTSTATUS:
    return _list(k, [v.address for v in manager_of(k).volumes], VolumeList, Size, NumberVolumesReturned)


@export(FLTMGR, irql=APC_LEVEL)
def FltEnumerateInstances(
    k: Kernel,
    Volume: PFLT_VOLUME,
    Filter: PFLT_FILTER,
    InstanceList: PVOID,
    Size: ULONG,
    NumberInstancesReturned: PVOID,
) -> NTSTATUS:
    found = [
        i.address
        for v in manager_of(k).volumes
        for i in v.instances
        if (not Volume or v.address == Volume) and (not Filter or i.filter.address == Filter)
    ]
    return _list(k, found, InstanceList, Size, NumberInstancesReturned)


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltAttachVolume(
    k: Kernel, Filter: PFLT_FILTER, Volume: PFLT_VOLUME, InstanceName: PUNICODE_STRING, RetInstance: PVOID
) -> Model:
    return (yield from _attach(k, Filter, Volume, InstanceName, None, RetInstance))


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltAttachVolumeAtAltitude(
    k: Kernel,
    Filter: PFLT_FILTER,
    Volume: PFLT_VOLUME,
    Altitude: PUNICODE_STRING,
    InstanceName: PUNICODE_STRING,
    RetInstance: PVOID,
) -> Model:
    return (
        yield from _attach(k, Filter, Volume, InstanceName, k.memory.unicode_string(Altitude), RetInstance)
    )


def _attach(k: Kernel, owner: int, volume: int, name: int, altitude: str | None, out: int) -> Model:
    target: model.Volume = k.objects.get(volume, VOLUME_TYPE).body
    wanted = k.memory.unicode_string(name) if name else None
    found = manager_of(k).filter_at(owner)
    status, attached = yield from instances.attach_by_name(k, found, target, wanted, altitude)
    if status == STATUS_FLT_INSTANCE_ALTITUDE_COLLISION and altitude is None:
        return STATUS_OBJECT_NAME_COLLISION  # fact L8: the two functions differ in this
    if attached is not None and out:
        instance = next(i for i in target.instances if i.filter is found and i.name == attached)
        _referenced(k, instance.address, out)
    return status


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltDetachVolume(
    k: Kernel, Filter: PFLT_FILTER, Volume: PFLT_VOLUME, InstanceName: PUNICODE_STRING
) -> Model:
    target: model.Volume = k.objects.get(Volume, VOLUME_TYPE).body
    name = k.memory.unicode_string(InstanceName) if InstanceName else None
    return (yield from instances.detach_by_name(k, manager_of(k).filter_at(Filter), target, name))


@export(FLTMGR, irql=APC_LEVEL)
def FltGetFilterInformation(
    k: Kernel,
    Filter: PFLT_FILTER,
    InformationClass: ULONG,
    Buffer: PVOID,
    BufferSize: ULONG,
    BytesReturned: PVOID,
) -> NTSTATUS:
    """FilterFullInformation (0) only; the layout is FILTER_FULL_INFORMATION."""
    if InformationClass != 0:
        return STATUS_INVALID_PARAMETER
    owner = manager_of(k).filter_at(Filter)
    name = owner.name.encode("utf-16-le")
    data = struct.pack("<IIIH", 0, 0, len(owner.instances), len(name)) + name
    k.memory.put32(BytesReturned, len(data))
    if len(data) > BufferSize:
        return STATUS_BUFFER_TOO_SMALL
    k.memory.write(Buffer, data)
    return STATUS_SUCCESS


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltCompareInstanceAltitudes(k: Kernel, Instance1: PFLT_INSTANCE, Instance2: PFLT_INSTANCE) -> LONG:
    one: model.Instance = k.objects.get(Instance1, INSTANCE_TYPE).body
    two: model.Instance = k.objects.get(Instance2, INSTANCE_TYPE).body
    return (one.order > two.order) - (one.order < two.order)


@export(FLTMGR, irql=APC_LEVEL)
def FltIsFltMgrVolumeDeviceObject(k: Kernel, DeviceObject: PVOID) -> BOOLEAN:
    return any(v.device_object == DeviceObject for v in manager_of(k).volumes)


@export(FLTMGR, irql=APC_LEVEL)
def FltGetRoutineAddress(k: Kernel, FltMgrRoutineName: PVOID) -> PVOID:
    """The address of an FLTMGR export by its ANSI name, 0 if there is none."""
    return k.routine(FLTMGR, k.memory.c_string(FltMgrRoutineName).decode("ascii", "replace")) or 0


def find_volume(k: Kernel, name: str) -> model.Volume | None:
    """A volume by its device name, or by a DOS name with or without a trailing backslash."""
    wanted = name.rstrip("\\").upper()
    for prefix in ("\\??\\", "\\DOSDEVICES\\", "\\GLOBAL??\\", "\\\\.\\", "\\\\?\\"):
        wanted = wanted.removeprefix(prefix)
    for volume in manager_of(k).volumes:
        if wanted in (volume.device_name.upper(), (volume.dos_name or "").upper()):
            return volume
    return None
