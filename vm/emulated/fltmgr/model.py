"""What the Filter Manager knows: filters, their registrations, instances, volumes. Data and small queries only."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vm.emulated.kernel.loader import LoadedDriver
    from vm.emulated.kernel.objects import KObject

FILTER_TYPE = "Filter"
INSTANCE_TYPE = "FilterInstance"
VOLUME_TYPE = "FilterVolume"
SERVER_PORT_TYPE = "FilterConnectionPort"
CLIENT_PORT_TYPE = "FilterCommunicationPort"
"""Object types; those of the ports are fact P7."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of a filter's operation registration."""

    major: int
    flags: int
    pre: int
    post: int


@dataclass(frozen=True, slots=True)
class ContextRegistration:
    """One entry of a filter's context registration (FLT_CONTEXT_REGISTRATION); addresses are 0 when absent."""

    type: int
    flags: int
    cleanup: int
    size: int
    """Bytes, or FLT_VARIABLE_SIZED_CONTEXTS (all ones)."""
    tag: str
    allocate: int
    free: int


@dataclass(frozen=True, slots=True)
class Registration:
    """A filter's FLT_REGISTRATION, read once; callback addresses are 0 when absent."""

    version: int
    flags: int
    contexts: tuple[ContextRegistration, ...]
    operations: dict[int, Operation]
    unload: int
    instance_setup: int
    instance_query_teardown: int
    instance_teardown_start: int
    instance_teardown_complete: int
    generate_file_name: int
    normalize_name_component: int
    normalize_context_cleanup: int


@dataclass(slots=True, eq=False)
class Filter:
    """One registered minifilter. `object.address` is the PFLT_FILTER that the driver holds."""

    object: KObject
    name: str
    driver: LoadedDriver
    registration: Registration
    altitude: str
    instances: list[Instance] = field(default_factory=list)
    filtering: bool = False
    """FltStartFiltering has been called."""
    draining: bool = False
    """FltUnregisterFilter has begun, or the filter is being unloaded."""
    unloading: bool = False
    rundown: int = 0
    """References that FltUnregisterFilter waits for: FltObjectReference, work items, server ports (P11, X12)."""
    rundown_owners: list[str] = field(default_factory=list)
    """What each of these references is, for messages."""
    drained: list[Any] = field(default_factory=list)
    """Threads parked in FltUnregisterFilter until `rundown` is zero."""
    server_ports: list[Any] = field(default_factory=list)
    client_ports: list[Any] = field(default_factory=list)

    @property
    def address(self) -> int:
        return self.object.address


@dataclass(slots=True, eq=False)
class Instance:
    """One attachment of a filter to a volume. `object.address` is the PFLT_INSTANCE."""

    object: KObject
    filter: Filter
    volume: Volume
    name: str
    altitude: str
    contexts: dict[int, Any] = field(default_factory=dict)
    """Context of this instance by type (FLT_INSTANCE_CONTEXT)."""
    tearing_down: bool = False
    callbacks_running: int = 0
    """Operation callbacks in progress; teardown waits for them."""
    waiting: list[Any] = field(default_factory=list)
    """Threads parked until `callbacks_running` is zero."""

    @property
    def address(self) -> int:
        return self.object.address

    @property
    def order(self) -> Decimal:
        """Altitude as the number that it is compared as (fact A1)."""
        return Decimal(self.altitude)


@dataclass(slots=True, eq=False)
class Volume:
    """One mounted volume. `object.address` is the PFLT_VOLUME; `file_system` is vm.emulated.fltmgr.filesystem's."""

    object: KObject
    device_name: str
    dos_name: str | None
    file_system_type: int
    """FLT_FSTYPE_*."""
    file_system_name: str
    """"NTFS" as the tools show it."""
    file_system: Any
    instances: list[Instance] = field(default_factory=list)
    """Highest altitude first."""
    contexts: dict[int, dict[int, Any]] = field(default_factory=dict)
    """Volume contexts by filter address."""
    sector_size: int = 512
    device_object: int = 0
    characteristics: int = 0x20
    """Of the disk's device: FILE_DEVICE_IS_MOUNTED; FILE_REMOVABLE_MEDIA (1) for a stick."""

    @property
    def address(self) -> int:
        return self.object.address

    def insert(self, instance: Instance) -> None:
        """Attach an instance at its altitude."""
        position = 0
        while position < len(self.instances) and self.instances[position].order > instance.order:
            position += 1
        self.instances.insert(position, instance)
