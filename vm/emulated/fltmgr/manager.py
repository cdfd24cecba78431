"""The Filter Manager: filters and their life, references on them, and what belongs to all rooms of fltmgr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vm.emulated.fltmgr.model import FILTER_TYPE, Filter, Instance, Registration, Volume
from vm.emulated.fltmgr.ports import PortPolicy, Ports, ReadRequest
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import STATUS_FLT_DELETING_OBJECT, STATUS_OBJECT_NAME_NOT_FOUND
from vm.emulated.kernel.threads import TIMED_OUT, Block, KThread, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel
    from vm.emulated.kernel.loader import LoadedDriver

SERVICES = r"HKLM\SYSTEM\CurrentControlSet\Services"
UNLOAD_PATIENCE = 50_000_000
"""Units of 100 ns that an unload may wait for something a driver can still let go of; then it counts as hung (5 s)."""
_SERVICE = "fltmgr"


class FilterManager:
    """State of the Filter Manager of one kernel."""

    def __init__(self, kernel: Kernel, policy: PortPolicy | None = None) -> None:
        self.kernel = kernel
        self.filters: list[Filter] = []
        self.volumes: list[Volume] = []
        self.ports = Ports(kernel, policy)
        self.operations: dict[int, ReadRequest] = {}
        """Overlapped requests of users that nobody has collected yet, by operation number."""
        self.attaching: list[Instance] = []
        """Instances whose InstanceSetup has not returned: name and altitude are taken already."""
        self.tearing: dict[int, list[KThread]] = {}
        """Instances being torn down, by address, and the threads that wait for the end of it."""
        kernel.services[_SERVICE] = self

    def find(self, name: str) -> Filter | None:
        """The registered filter of a name, without regard to case."""
        return next((f for f in self.filters if f.name.lower() == name.lower()), None)

    def filter_at(self, address: int) -> Filter:
        """The filter behind a PFLT_FILTER; anything else bugchecks."""
        found: Filter = self.kernel.objects.get(address, FILTER_TYPE).body
        return found

    def register(self, driver: LoadedDriver, registration: Registration) -> Filter:
        """FltRegisterFilter.

        Raises:
            StatusError: the service has no instances (fact L6).
        """
        name = driver.registry_path.rpartition("\\")[2] or driver.name
        altitude = self.default_altitude(name)
        item = self.kernel.objects.create(FILTER_TYPE, None)
        found = Filter(item, name, driver, registration, altitude)
        item.body = found
        self.filters.append(found)
        return found

    def instances_key(self, service: str) -> str:
        """The key with the instances of a service: `Parameters\\Instances` (24H2 and later), else `Instances` (I4).

        Raises:
            StatusError: STATUS_OBJECT_NAME_NOT_FOUND.
        """
        registry = self.kernel.registry
        for key in (rf"{SERVICES}\{service}\Parameters\Instances", rf"{SERVICES}\{service}\Instances"):
            if registry.exists(key):
                return key
        raise StatusError(STATUS_OBJECT_NAME_NOT_FOUND)

    def default_altitude(self, service: str) -> str:
        """Altitude of a service's default instance."""
        key = self.instances_key(service)
        try:
            default = self.kernel.registry.get_string(key, "DefaultInstance")
            return self.kernel.registry.get_string(rf"{key}\{default}", "Altitude")
        except KeyError as error:
            raise StatusError(STATUS_OBJECT_NAME_NOT_FOUND) from error

    # References that FltUnregisterFilter waits for (facts P11, X12)

    def acquire_rundown(self, owner: Filter, what: str) -> None:
        """Take a reference.

        Raises:
            StatusError: STATUS_FLT_DELETING_OBJECT while the filter is being torn down.
        """
        if owner.draining:
            raise StatusError(STATUS_FLT_DELETING_OBJECT)
        self.hold(owner, what)

    def hold(self, owner: Filter, what: str) -> None:
        """A reference of the Filter Manager itself, taken also while the filter is being torn down."""
        owner.rundown += 1
        owner.rundown_owners.append(what)

    def release_rundown(self, owner: Filter, what: str) -> None:
        """Drop a reference; wakes FltUnregisterFilter when it was the last one."""
        if what not in owner.rundown_owners:
            raise Bugcheck(
                bc.REFERENCE_BY_POINTER,
                0,
                owner.address,
                rule=f"a reference on the filter '{owner.name}' was dropped that nobody holds ({what})",
            )
        owner.rundown_owners.remove(what)
        owner.rundown -= 1
        if not owner.rundown:
            for thread in owner.drained:
                self.kernel.scheduler.wake(thread, None)
            owner.drained.clear()

    def wait_for_rundown(self, owner: Filter) -> Model:
        """Block until nobody holds a reference. An open server port is said at once (X5), the rest when it lasts."""
        if owner.server_ports:
            self._unload_blocked(owner)
        complained = bool(owner.server_ports)
        thread = self.kernel.current
        while owner.rundown:
            owner.drained.append(thread)
            outcome = yield Block(
                f"FltUnregisterFilter of '{owner.name}', held by " + "; ".join(_held(owner)),
                timeout=None if complained else UNLOAD_PATIENCE,
                on_cancel=lambda: owner.drained.remove(thread),
            )
            if outcome is TIMED_OUT:
                self._unload_blocked(owner)
                complained = True

    def _unload_blocked(self, owner: Filter) -> None:
        self.kernel.violate(
            "unload-blocked",
            f"FltUnregisterFilter waits for {owner.rundown} reference(s) on the filter '{owner.name}': "
            + "; ".join(_held(owner)),
            owner.driver.name,
        )

    def forget(self, owner: Filter) -> None:
        """The filter is gone."""
        self.filters.remove(owner)
        self.kernel.objects.dereference(owner.object)


def _held(owner: Filter) -> list[str]:
    return sorted(set(owner.rundown_owners))


def manager_of(k: Kernel) -> FilterManager:
    """The Filter Manager of a kernel."""
    manager: Any = k.services[_SERVICE]
    assert isinstance(manager, FilterManager)
    return manager
