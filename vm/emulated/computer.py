"""The two doors into the emulated machine: `Computer` for its operating-system face, `UserServices` for processes.

Both may be called from any host thread; they hand the work to the processor thread and wait for its end.
Implemented by `vm.emulated.system`; `vm/emulated/guest` and `vm/emulated/usermode` know only this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vm.machine import Condition

NTSTATUS = int
"""An NTSTATUS as an unsigned 32-bit integer."""


@dataclass(frozen=True, slots=True)
class FilterInformation:
    """One loaded filter, as `FilterFindFirst` with FilterAggregateStandardInformation tells."""

    name: str
    altitude: str
    instances: int
    frame: int = 0


@dataclass(frozen=True, slots=True)
class InstanceInformation:
    """One instance, as `FilterInstanceFindFirst` tells."""

    instance: str
    filter: str
    volume: str
    """Dos name if the volume has one ("D:"), else the device name."""
    altitude: str
    frame: int = 0


@dataclass(frozen=True, slots=True)
class VolumeInformation:
    """One volume, as `FilterVolumeFindFirst` tells."""

    dos_name: str | None
    device_name: str
    file_system: str


class Computer(Protocol):
    """The running system as the inbox commands see it. A restart ends one `Computer` and begins another."""

    @property
    def boot_id(self) -> str:
        """Identity of this boot, a GUID; another one after every restart."""
        ...

    @property
    def boot_time(self) -> float:
        """When this boot began, seconds since the Unix epoch."""
        ...

    def load_filter(self, name: str) -> NTSTATUS:
        """FilterLoad (also `sc start`): read the service key, map the image, run DriverEntry."""
        ...

    def unload_filter(self, name: str) -> NTSTATUS:
        """FilterUnload: non-mandatory, so the driver may refuse with STATUS_FLT_DO_NOT_DETACH."""
        ...

    def stop_service(self, name: str) -> NTSTATUS:
        """ControlService(STOP) on a filter: mandatory unload (facts X10, X11)."""
        ...

    def attach(
        self, filter_name: str, volume: str, instance: str | None, altitude: str | None
    ) -> NTSTATUS: ...

    def detach(self, filter_name: str, volume: str, instance: str | None) -> NTSTATUS: ...

    def filters(self) -> list[FilterInformation]: ...

    def instances(self) -> list[InstanceInformation]: ...

    def volumes(self) -> list[VolumeInformation]: ...

    def debug_output(self) -> list[str]:
        """Lines that drivers wrote with DbgPrint since the boot."""
        ...

    def condition(self) -> Condition:
        """Crashes and violations of this boot."""
        ...


@dataclass(frozen=True, slots=True)
class ServiceResult:
    """What a user-mode service returns: an NTSTATUS and the values that docs/architecture.md lists for it."""

    status: NTSTATUS
    values: Mapping[str, Any]


class UserServices(Protocol):
    """What a client process can ask of the kernel."""

    def begin_process(self, process_id: int, image: str) -> int:
        """A process has connected; returns its key. `process_id` is the host's, as the process states it."""
        ...

    def end_process(self, key: int) -> None:
        """The process is gone, however it ended: cancel its requests, close its handles, run the callbacks."""
        ...

    def call(self, key: int, thread_id: int, service: str, arguments: Mapping[str, Any]) -> ServiceResult:
        """Run one service in the emulated thread (`key`, `thread_id`); blocks until it is done.

        Raises:
            KeyError: no such service.
            MachineStoppedError: the machine crashed or was stopped while the service ran.
        """
        ...

    def end_thread(self, key: int, thread_id: int) -> None:
        """The thread's connection closed: what it left pending is cancelled, as at a thread's exit."""
        ...


class MachineStoppedError(Exception):
    """The kernel is no longer there: it has crashed, restarts or was stopped."""
