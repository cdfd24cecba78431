"""What a deployment needs to know, and what it leaves behind. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PureWindowsPath

from harness.config import DriverConfig
from vm.errors import GuestError

GUEST_ROOT = PureWindowsPath(r"C:\Downlink")
PACKAGE_DIRECTORY = GUEST_ROOT / "package"
DRIVERS_DIRECTORY = PureWindowsPath(r"C:\Windows\System32\drivers")


@dataclass(frozen=True, slots=True)
class Plan:
    """Under which names the driver is installed, and how long an unload may take before it counts as hung."""

    service: str
    instance: str
    altitude: str
    load_order_group: str
    unload_seconds: float = 30

    @classmethod
    def of(cls, driver: DriverConfig) -> Plan:
        """The plan for a driver of `harness.toml`."""
        return cls(driver.service, driver.instance, driver.altitude, driver.load_order_group)

    @property
    def service_key(self) -> str:
        """The service key in the form that `reg` wants."""
        return rf"HKLM\SYSTEM\CurrentControlSet\Services\{self.service}"


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step that was carried out: what it did, and whether it had to change anything."""

    name: str
    detail: str
    changed: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Deployment:
    """A driver that is loaded and attached."""

    service: str
    volumes: tuple[str, ...]
    """Volumes that the filter is attached to, as fltmc names them."""
    steps: tuple[StepResult, ...]


class UnloadError(GuestError):
    """An older driver could not be unloaded: the machine must be restored before it is used again."""
