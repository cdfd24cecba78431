"""Driver Verifier's settings: in the registry where Windows keeps them, in effect from the next boot on.

The model is as strict as Verifier always; what is kept here is what tools and people see (windows-lab.md D.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vm.emulated.registry import MissingKeyError, MissingValueError, Registry, ValueTypeError

MEMORY_MANAGEMENT = "HKLM\\SYSTEM\\CurrentControlSet\\Control\\Session Manager\\Memory Management"
# Below HARDWARE, which Windows makes anew at every boot.
_IN_EFFECT = "HKLM\\HARDWARE\\DESCRIPTION\\System\\DriverVerifier"

STANDARD_FLAGS = 0x209BB
"""The classic standard set (windows-lab.md D.3)."""
FLAGS: tuple[tuple[int, str, bool], ...] = (
    (0x00000001, "Special pool", True),
    (0x00000002, "Force IRQL checking", True),
    (0x00000008, "Pool tracking", True),
    (0x00000010, "I/O verification", True),
    (0x00000020, "Deadlock detection", True),
    (0x00000080, "DMA checking", True),
    (0x00000100, "Security checks", True),
    (0x00000800, "Miscellaneous checks", True),
    (0x00020000, "DDI compliance checking", True),
    (0x00000004, "Randomized low resources simulation", False),
    (0x00000200, "Force pending I/O requests", False),
    (0x00000400, "IRP logging", False),
    (0x00002000, "Invariant MDL checking for stack", False),
    (0x00004000, "Invariant MDL checking for driver", False),
    (0x00008000, "Power framework delay fuzzing", False),
    (0x00010000, "Port/miniport interface checking", False),
    (0x00040000, "Systematic low resources simulation", False),
    (0x00080000, "DDI compliance checking (additional)", False),
    (0x00200000, "NDIS/WIFI verification", False),
    (0x00800000, "Kernel synchronization delay fuzzing", False),
    (0x01000000, "VM switch verification", False),
    (0x02000000, "Code integrity checks", False),
)
"""Bit, name, and whether it is among the standard ones."""

RULE_CLASS_FLAGS = {
    1: 0x1, 2: 0x2, 3: 0x4, 4: 0x8, 5: 0x10, 6: 0x20, 8: 0x80, 9: 0x100, 10: 0x200, 11: 0x400, 12: 0x800,
    14: 0x2000, 15: 0x4000, 16: 0x8000, 17: 0x10000, 18: 0x20000, 19: 0x40000, 20: 0x80000, 22: 0x200000,
    24: 0x800000, 25: 0x1000000, 26: 0x2000000, 33: 0, 34: 0, 36: 0, 37: 0,
}  # fmt: skip
"""Rule classes of `/ruleclasses` and the flags they are; those above 32 have none."""
STANDARD_CLASSES = (1, 2, 4, 5, 6, 8, 9, 12, 18, 34, 37)
"""37 is the filter verifier, a part of /standard on Windows 11; it needs 5 (windows-lab.md D.3)."""


class BootMode(Enum):
    """What becomes of the settings after a boot."""

    PERSISTENT = "persistent"
    ONE_BOOT = "oneboot"
    RESET_ON_BOOT_FAIL = "resetonbootfail"
    RESET_ON_UNUSUAL_SHUTDOWN = "resetonunusualshutdown"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is to be verified how; without drivers nothing is."""

    flags: int = 0
    classes: tuple[int, ...] = ()
    drivers: tuple[str, ...] = ()
    """Images such as "downlink.sys"; "*" for all."""
    mode: BootMode = BootMode.PERSISTENT

    def covers(self, image: str) -> bool:
        """True if that image is verified."""
        return "*" in self.drivers or image.casefold() in {driver.casefold() for driver in self.drivers}


def configured(registry: Registry) -> Settings:
    """What the next boot will have."""
    return _read(registry, MEMORY_MANAGEMENT)


def in_effect(registry: Registry) -> Settings:
    """What this boot began with."""
    return _read(registry, _IN_EFFECT)


def configure(registry: Registry, settings: Settings) -> None:
    """Set what the next boot will have."""
    _write(registry, MEMORY_MANAGEMENT, settings)


def begin_boot(registry: Registry) -> None:
    """The settings take effect; those for one boot are gone from the configuration."""
    settings = configured(registry)
    active = settings if settings.mode is not BootMode.DISABLED else Settings()
    _write(registry, _IN_EFFECT, active)
    if settings.mode is BootMode.ONE_BOOT:
        configure(registry, Settings())


def _read(registry: Registry, key: str) -> Settings:
    try:
        drivers = tuple(registry.get_string(key, "VerifyDrivers").split())
        classes = tuple(int(word) for word in registry.get_string(key, "VerifierRuleClasses").split())
        mode = BootMode(registry.get_string(key, "VerifierBootMode"))
        return Settings(registry.get_dword(key, "VerifyDriverLevel"), classes, drivers, mode)
    except (MissingKeyError, MissingValueError, ValueTypeError, ValueError):
        return Settings()


def _write(registry: Registry, key: str, settings: Settings) -> None:
    registry.create_key(key)
    names = ("VerifyDrivers", "VerifyDriverLevel", "VerifierRuleClasses", "VerifierBootMode")
    if settings == Settings():
        for name in set(names) & set(registry.values(key)):
            registry.delete_value(key, name)
        return
    registry.set_string(key, names[0], " ".join(settings.drivers))
    registry.set_dword(key, names[1], settings.flags)
    registry.set_string(key, names[2], " ".join(map(str, settings.classes)))
    registry.set_string(key, names[3], settings.mode.value)
