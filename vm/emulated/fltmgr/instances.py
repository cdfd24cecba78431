"""Instances: attaching filters to volumes and tearing them down, with the driver's setup and teardown callbacks."""

from __future__ import annotations

import re
import struct
from decimal import Decimal
from typing import TYPE_CHECKING

from vm.emulated.fltmgr.manager import UNLOAD_PATIENCE, manager_of
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
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_SUCCESS,
    nt_success,
)
from vm.emulated.kernel.threads import TIMED_OUT, Block, Call, Model

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
_ALTITUDE = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")
"""Fact A1: digits with at most one point."""


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
    if _ALTITUDE.fullmatch(altitude) is None:
        return STATUS_INVALID_PARAMETER
    manager = manager_of(k)
    taken = [*volume.instances, *(i for i in manager.attaching if i.volume is volume)]
    if any(i.filter is owner and i.name.lower() == name.lower() for i in taken):
        return STATUS_FLT_INSTANCE_NAME_COLLISION
    if any(i.order == Decimal(altitude) for i in taken):
        return STATUS_FLT_INSTANCE_ALTITUDE_COLLISION
    item = k.objects.create(INSTANCE_TYPE, None)
    instance = Instance(item, owner, volume, name, altitude)
    item.body = instance
    what = f"the attachment of instance '{name}' in progress"
    manager.acquire_rundown(owner, what)
    manager.attaching.append(instance)
    status = yield from _set_up(k, instance, flags)
    manager.attaching.remove(instance)
    if nt_success(status):
        owner.instances.append(instance)
        volume.insert(instance)
        if owner.draining:
            # FltUnregisterFilter has looked at the instances before this one was there.
            yield from tear_down(k, instance, TEARDOWN_FILTER_UNLOAD)
            status = STATUS_FLT_DELETING_OBJECT
    else:
        yield from _drop_contexts(k, instance)
        k.objects.dereference(item)
    manager.release_rundown(owner, what)
    return status


def _set_up(k: Kernel, instance: Instance, flags: int) -> Model:
    """InstanceSetup, if the filter has one; any failure means that it does not want the volume."""
    setup = instance.filter.registration.instance_setup
    if not setup:
        return STATUS_SUCCESS
    volume = instance.volume
    block = related_objects(k, instance)
    status = yield Call(
        setup,
        (block, flags, FILE_DEVICE_DISK_FILE_SYSTEM, volume.file_system_type),
        f"InstanceSetup of '{instance.name}' on {volume.dos_name or volume.device_name}",
    )
    k.pool.free(block)
    return STATUS_SUCCESS if nt_success(status & 0xFFFF_FFFF) else STATUS_FLT_DO_NOT_ATTACH


def detach_by_name(k: Kernel, owner: Filter, volume: Volume, name: str | None) -> Model:
    """FilterDetach and FltDetachVolume: asks InstanceQueryTeardown first. Returns the NTSTATUS."""
    found = [
        i for i in owner.instances if i.volume is volume and (name is None or i.name.lower() == name.lower())
    ]
    if not found:
        return STATUS_FLT_INSTANCE_NOT_FOUND
    query = owner.registration.instance_query_teardown
    if not query:
        return STATUS_FLT_DO_NOT_DETACH
    manager = manager_of(k)
    what = f"the detachment of instance '{found[0].name}' in progress"
    try:
        manager.acquire_rundown(owner, what)
    except StatusError as error:
        return error.status
    status = yield from _detach(k, found[0], query)
    manager.release_rundown(owner, what)
    return status


def _detach(k: Kernel, instance: Instance, query: int) -> Model:
    if instance.tearing_down:
        return STATUS_FLT_DELETING_OBJECT
    block = related_objects(k, instance)
    status = yield Call(query, (block, 0), "InstanceQueryTeardown")
    k.pool.free(block)
    if not nt_success(status & 0xFFFF_FFFF):
        return STATUS_FLT_DO_NOT_DETACH
    if instance.tearing_down:
        return STATUS_FLT_DELETING_OBJECT
    yield from tear_down(k, instance, TEARDOWN_MANUAL)
    return STATUS_SUCCESS


def tear_down(k: Kernel, instance: Instance, reason: int) -> Model:
    """Stop new callbacks, wait for the running ones, call the teardown callbacks, let go of the contexts.

    Whoever comes second waits until the first is through.
    """
    tearing = manager_of(k).tearing
    if instance.tearing_down:
        while instance.address in tearing:
            tearing[instance.address].append(k.current)
            yield Block(f"the end of the teardown of instance '{instance.name}'")
        return
    instance.tearing_down = True
    tearing[instance.address] = []
    registration = instance.filter.registration
    block = related_objects(k, instance)
    if registration.instance_teardown_start:
        yield Call(registration.instance_teardown_start, (block, reason), "InstanceTeardownStart")
    if instance in instance.volume.instances:
        instance.volume.instances.remove(instance)
    drain = k.services.get("drain_instance")
    if drain is not None:
        yield from drain(k, instance)
    yield from _wait_for_callbacks(k, instance)
    if registration.instance_teardown_complete:
        yield Call(registration.instance_teardown_complete, (block, reason), "InstanceTeardownComplete")
    k.pool.free(block)
    yield from _drop_contexts(k, instance)
    instance.filter.instances.remove(instance)
    for thread in tearing.pop(instance.address):
        k.scheduler.wake(thread, None)
    k.objects.dereference(instance.object)


def _wait_for_callbacks(k: Kernel, instance: Instance) -> Model:
    """Block until no operation callback of the instance runs; says so when that lasts (X8)."""
    thread = k.current
    complained = False
    while instance.callbacks_running:
        instance.waiting.append(thread)
        outcome = yield Block(
            f"the teardown of instance '{instance.name}' ({instance.callbacks_running} callbacks still run)",
            timeout=None if complained else UNLOAD_PATIENCE,
            on_cancel=lambda: instance.waiting.remove(thread),
        )
        if outcome is TIMED_OUT:
            complained = True
            stuck = [
                f"thread '{t.name}' is in {t.io_callbacks[-1]}"
                + (f", in {t.block.reason}" if t.block else "")
                for t in k.threads.values()
                if t.io_callbacks
            ]
            k.violate(
                "unload-blocked",
                f"the teardown of instance '{instance.name}' of '{instance.filter.name}' waits for "
                f"{instance.callbacks_running} callback(s) that do not return"
                + "".join(f"; {line}" for line in stuck),
                instance.filter.driver.name,
            )


def _drop_contexts(k: Kernel, instance: Instance) -> Model:
    hook = k.services.get("drop_instance_contexts")
    if hook is not None:
        yield from hook(k, instance)
