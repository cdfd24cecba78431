"""What a deployment needs to know, and what it leaves behind. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PureWindowsPath

from harness.config import DriverConfig
from vm import inf
from vm.errors import GuestError
from vm.inf.actions import source_files
from vm.machine import DeploymentMode

GUEST_ROOT = PureWindowsPath(r"C:\Downlink")
PACKAGE_DIRECTORY = GUEST_ROOT / "package"
DRIVERS_DIRECTORY = PureWindowsPath(r"C:\Windows\System32\drivers")

TASK_PREFIX = "\\Downlink-"
"""What the names of our scheduled tasks begin with. In no folder of their own: schtasks cannot remove one."""

REMOVE_OLDER = "remove the older driver"
"""The step after which what is installed is of this deployment."""

RESTORE = "the machine has to be restored: ./inv vm.restore"
RESTART = (
    "the machine has no checkpoint: restart it (shutdown /r /t 0 there); the next command sees that it was"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Under which names the driver is installed, in which way, and how long things may take.

    Attributes:
        mode: how this deployment installs; what the other mode has left behind is removed all the same.
        inf: name of the driver's INF, by which the driver store knows its packages.
        provider: who provides it according to its INF; None = packages of any provider count.
        image: name of the driver's image according to its INF, empty if that is not known.
        mend: what helps a machine whose driver cannot be unloaded.
        unload_seconds: an unload that takes longer counts as hung.
        race_seconds: how long Windows may take to forget a service that was deleted or an image that was unloaded.
    """

    service: str
    instance: str
    altitude: str
    load_order_group: str
    unload_seconds: float = 30
    mode: DeploymentMode = DeploymentMode.SERVICE
    inf: str = ""
    provider: str | None = None
    race_seconds: float = 15
    image: str = ""
    mend: str = RESTORE

    @classmethod
    def of(cls, driver: DriverConfig, mode: DeploymentMode = DeploymentMode.SERVICE) -> Plan:
        """The plan for a driver of `harness.toml`, in the way in which a machine wants it installed."""
        provider, image = _known_from_inf(driver)
        return cls(
            driver.service,
            driver.instance,
            driver.altitude,
            driver.load_order_group,
            mode=mode,
            inf=driver.inf.name,
            provider=provider,
            image=image,
        )

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


def _known_from_inf(driver: DriverConfig) -> tuple[str | None, str]:
    """Provider and image of the driver as its INF in the checkout says; nothing if it cannot be read."""
    try:
        parsed = inf.read(driver.inf.read_bytes())
    except OSError:
        return None, ""
    version = parsed.section("Version")
    images = [name for name in source_files(parsed, "") if name.lower().endswith(".sys")]
    return (version.text("Provider") or None) if version else None, images[0] if images else ""
