"""The volumes of a machine: mounting them, and their device objects."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.contexts import drop_instance_contexts, drop_volume_contexts
from vm.emulated.fltmgr.filesystem import FileSystem
from vm.emulated.fltmgr.io import drain_instance
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.fltmgr.model import VOLUME_TYPE, Volume
from vm.emulated.kernel import security

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

DEVICE_OBJECT_SIZE = 0x150
IO_TYPE_DEVICE = 3
DEVICE_FLAGS, DEVICE_TYPE, DEVICE_STACK_SIZE = 0x30, 0x48, 0x4C
DO_DIRECT_IO = 0x10
DEFAULT_VOLUMES = (("D:", r"\Device\HarddiskVolume2", "Data"), ("E:", r"\Device\HarddiskVolume3", "Scratch"))
_FILE_ALL_ACCESS = n.FILE_ALL_ACCESS


def default_security() -> bytes:
    """Descriptor of new files: full control for SYSTEM, Administrators and authenticated users."""
    return security.encode(
        security.SecurityDescriptor(
            tuple(
                security.Ace(security.ACCESS_ALLOWED_ACE_TYPE, _FILE_ALL_ACCESS, sid)
                for sid in (security.SYSTEM, security.ADMINISTRATORS, security.AUTHENTICATED_USERS)
            ),
            owner=security.ADMINISTRATORS,
            group=security.ADMINISTRATORS,
        )
    )


def mount(
    k: Kernel, device_name: str, dos_name: str | None, *, label: str = "Data", capacity_bytes: int = 1 << 30
) -> Volume:
    """Mount a new, empty NTFS volume; filters do not hear of it before they enumerate or are started."""
    state = io_state(k)
    file_system = FileSystem(
        lambda: k.clock.system_time,
        capacity_bytes=capacity_bytes,
        label=label,
        serial=0x4411_2026_0000_0000 | (len(state.volumes) + 1),
        security=default_security(),
    )
    device = k.pool.allocate(DEVICE_OBJECT_SIZE, "Devi", owner="nt")
    k.memory.write(device, struct.pack("<HHi", IO_TYPE_DEVICE, DEVICE_OBJECT_SIZE, 1))
    k.memory.put32(device + DEVICE_FLAGS, DO_DIRECT_IO)
    k.memory.put32(device + DEVICE_TYPE, n.FILE_DEVICE_DISK_FILE_SYSTEM)
    k.memory.put8(device + DEVICE_STACK_SIZE, 10)
    item = k.objects.create(VOLUME_TYPE, None)
    volume = Volume(item, device_name, dos_name, n.FLT_FSTYPE_NTFS, "NTFS", file_system, device_object=device)
    item.body = volume
    k.objects.create("Device", volume, name=device_name, address=device)
    if dos_name is not None:
        k.objects.create("SymbolicLink", device_name, name=f"\\GLOBAL??\\{dos_name}")
    state.volumes.append(volume)
    k.services.setdefault("drop_instance_contexts", drop_instance_contexts)
    k.services.setdefault("drop_volume_contexts", drop_volume_contexts)
    k.services.setdefault("drain_instance", drain_instance)
    return volume


def mount_default_volumes(k: Kernel) -> list[Volume]:
    """D: (\\Device\\HarddiskVolume2) and E: (\\Device\\HarddiskVolume3), both NTFS and empty."""
    return [mount(k, device, dos, label=label) for dos, device, label in DEFAULT_VOLUMES]
