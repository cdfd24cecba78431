"""Instances: attaching filters to volumes and tearing them down, with the driver's setup and teardown callbacks."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vm.emulated.fltmgr.manager import manager_of
from vm.emulated.fltmgr.model import INSTANCE_TYPE, Filter, Instance, Volume
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_DO_NOT_ATTACH,
    STATUS_FLT_DO_NOT_DETACH,
    STATUS_FLT_FILTER_NOT_READY,
    STATUS_FLT_INSTANCE_ALTITUDE_COLLISION,
    STATUS_FLT_INSTANCE_NAME_COLLISION,
    STATUS_FLT_INSTANCE_NOT_FOUND,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_SUCCESS,
    nt_success,
)
from vm.emulated.kernel.threads import Block, Call, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

SETUP_AUTOMATIC = 0x1
SETUP_MANUAL = 0x2
TEARDOWN_MANUAL = 0x1
TEARDOWN_FILTER_UNLOAD = 0x2
TEARDOWN_MANDATORY_FILTER_UNLOAD = 0x4
"""FLTFL_INSTANCE_SETUP_* and FLTFL_INSTANCE_TEARDOWN_*."""
SUPPRESS_AUTOMATIC = 0x1
SUPPRESS_MANUAL = 0x2
"""Bits of an instance's Flags value in the registry (fact L9)."""
FILE_DEVICE_DISK_FILE_SYSTEM = 0x8
RELATED_OBJECTS_SIZE = 0x30


def related_objects(k: Kernel, instance: Instance, file_object: int = 0) -> int:
    """A FLT_RELATED_OBJECTS in kernel memory; the caller frees it with `k.pool.free`."""
    block = k.pool.allocate(RELATED_OBJECTS_SIZE, "FMro", owner="fltmgr")
    k.memory.write(
        block,
        struct.pack(
            "<HH4xQQQQQ",
            RELATED_OBJECTS_SIZE,
            0,
            instance.filter.address,
            instance.volume.address,
            instance.address,
            file_object,
            0,
        ),
    )
    return block


def attach_automatically(k: Kernel, owner: Filter, volume: Volume) -> Model:
    """Attach every instance of the registry that does not suppress it; a refusal is no failure."""
    manager = manager_of(k)
    key = manager.instances_key(owner.name)
    for name in k.registry.subkeys(key):
        try:
            altitude, flags = _settings(k, key, name)
        except KeyError:
            continue
        if not flags & SUPPRESS_AUTOMATIC:
            yield from attach(k, owner, volume, name, altitude, SETUP_AUTOMATIC)


def attach_by_name(k: Kernel, owner: Filter, volume: Volume, name: str | None, altitude: str | None) -> Model:
    """FilterAttach and FltAttachVolume(AtAltitude); returns (status, instance name)."""
    manager = manager_of(k)
    try:
        key = manager.instances_key(owner.name)
        name = name or k.registry.get_string(key, "DefaultInstance")
        if altitude is None:
            altitude, flags = _settings(k, key, name)
            if flags & SUPPRESS_MANUAL:
                return STATUS_FLT_DO_NOT_ATTACH, None
    except (KeyError, StatusError):
        return STATUS_OBJECT_NAME_NOT_FOUND, None
    status = yield from attach(k, owner, volume, name, altitude, SETUP_MANUAL)
    return status, name if nt_success(status) else None


def _settings(k: Kernel, key: str, name: str) -> tuple[str, int]:
    path = rf"{key}\{name}"
    altitude = k.registry.get_string(path, "Altitude")
    try:
        flags = k.registry.get_dword(path, "Flags")
    except KeyError:
        flags = 0
    return altitude, flags


def attach(k: Kernel, owner: Filter, volume: Volume, name: str, altitude: str, flags: int) -> Model:
    """Attach one instance: collision checks, InstanceSetup, then it filters. Returns the NTSTATUS."""
    if owner.draining:
        return STATUS_FLT_DELETING_OBJECT
    if not owner.filtering:
        return STATUS_FLT_FILTER_NOT_READY
    if any(i.filter is owner and i.name.lower() == name.lower() for i in volume.instances):
        return STATUS_FLT_INSTANCE_NAME_COLLISION
    item = k.objects.create(INSTANCE_TYPE, None)
    instance = Instance(item, owner, volume, name, altitude)
    item.body = instance
    if any(i.order == instance.order for i in volume.instances):
        k.objects.dereference(item)
        return STATUS_FLT_INSTANCE_ALTITUDE_COLLISION
    setup = owner.registration.instance_setup
    if setup:
        block = related_objects(k, instance)
        status = yield Call(
            setup,
            (block, flags, FILE_DEVICE_DISK_FILE_SYSTEM, volume.file_system_type),
            f"InstanceSetup of '{name}' on {volume.dos_name or volume.device_name}",
        )
        k.pool.free(block)
        if not nt_success(status & 0xFFFF_FFFF) or owner.draining:
            yield from _drop_contexts(k, instance)
            k.objects.dereference(item)
            return STATUS_FLT_DO_NOT_ATTACH
    owner.instances.append(instance)
    volume.insert(instance)
    return STATUS_SUCCESS


def detach_by_name(k: Kernel, owner: Filter, volume: Volume, name: str | None) -> Model:
    """FilterDetach and FltDetachVolume: asks InstanceQueryTeardown first. Returns the NTSTATUS."""
    found = [
        i for i in owner.instances if i.volume is volume and (name is None or i.name.lower() == name.lower())
    ]
    if not found:
        return STATUS_FLT_INSTANCE_NOT_FOUND
    instance = found[0]
    query = owner.registration.instance_query_teardown
    if not query:
        return STATUS_FLT_DO_NOT_DETACH
    block = related_objects(k, instance)
    status = yield Call(query, (block, 0), "InstanceQueryTeardown")
    k.pool.free(block)
    if not nt_success(status & 0xFFFF_FFFF):
        return STATUS_FLT_DO_NOT_DETACH
    yield from tear_down(k, instance, TEARDOWN_MANUAL)
    return STATUS_SUCCESS


def tear_down(k: Kernel, instance: Instance, reason: int) -> Model:
    """Stop new callbacks, wait for the running ones, call the teardown callbacks, let go of the contexts."""
    if instance.tearing_down:
        return
    instance.tearing_down = True
    registration = instance.filter.registration
    block = related_objects(k, instance)
    if registration.instance_teardown_start:
        yield Call(registration.instance_teardown_start, (block, reason), "InstanceTeardownStart")
    if instance in instance.volume.instances:
        instance.volume.instances.remove(instance)
    while instance.callbacks_running:
        instance.waiting.append(k.current)
        yield Block(
            f"the teardown of instance '{instance.name}' ({instance.callbacks_running} callbacks still run)"
        )
    if registration.instance_teardown_complete:
        yield Call(registration.instance_teardown_complete, (block, reason), "InstanceTeardownComplete")
    k.pool.free(block)
    yield from _drop_contexts(k, instance)
    instance.filter.instances.remove(instance)
    k.objects.dereference(instance.object)


def _drop_contexts(k: Kernel, instance: Instance) -> Model:
    hook = k.services.get("drop_instance_contexts")
    if hook is not None:
        yield from hook(k, instance)
