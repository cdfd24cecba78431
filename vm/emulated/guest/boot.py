"""What a boot leaves in the registry: the boot configuration, the options in effect, the boot counter.

`bcdedit` changes the configuration; it takes effect here, at the next boot.
"""

from __future__ import annotations

from vm.emulated.guest import verifier
from vm.emulated.registry import (
    REG_BINARY,
    SERVICES,
    MissingKeyError,
    MissingValueError,
    Registry,
    RegistryValue,
    ValueTypeError,
)

WINDOWS_VERSION = "10.0.26100.1742"
"""The version that the emulated guest states: Windows Server 2025."""
PRODUCT_NAME = "Windows Server 2025 Standard Evaluation"

_CURRENT_VERSION = "HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion"
CONTROL = "HKLM\\SYSTEM\\CurrentControlSet\\Control"
BOOT_COUNTER_KEY = f"{CONTROL}\\Session Manager\\Memory Management\\PrefetchParameters"
BOOT_COUNTER_VALUE = "BootId"
"""A number that Windows raises at every boot: the boot identity that `reg query` can read in any language."""

BOOT_ENTRY = "{5189b25c-5558-4bf2-bca4-289b11bd29e2}"
_ELEMENTS = f"HKLM\\BCD00000000\\Objects\\{BOOT_ENTRY}\\Elements"
_TESTSIGNING = f"{_ELEMENTS}\\16000049"


def prepare(registry: Registry, *, testsigning: bool, secure_boot: bool = False) -> None:
    """Give a registry that has never booted its boot configuration and version; one that has is left alone."""
    if registry.exists(_ELEMENTS):
        return
    registry.create_key(_ELEMENTS)
    if testsigning and not secure_boot:
        set_testsigning(registry, on=True)
    registry.set_dword(f"{CONTROL}\\SecureBoot\\State", "UEFISecureBootEnabled", int(secure_boot))
    version, build, revision = WINDOWS_VERSION.rsplit(".", 2)
    registry.set_string(_CURRENT_VERSION, "ProductName", PRODUCT_NAME)
    registry.set_string(_CURRENT_VERSION, "CurrentBuild", build)
    registry.set_string(_CURRENT_VERSION, "CurrentBuildNumber", build)
    registry.set_dword(_CURRENT_VERSION, "CurrentMajorVersionNumber", int(version.split(".")[0]))
    registry.set_dword(_CURRENT_VERSION, "UBR", int(revision))


def begin(registry: Registry) -> None:
    """The registry's part of a boot: options take effect, the counter rises, deleted services are gone."""
    options = [" TESTSIGNING"] if testsigning_configured(registry) else []
    registry.set_string(CONTROL, "SystemStartOptions", " ".join([*options, " NOEXECUTE=OPTIN"]))
    verifier.begin_boot(registry)
    try:
        count = registry.get_dword(BOOT_COUNTER_KEY, BOOT_COUNTER_VALUE)
    except (MissingKeyError, MissingValueError, ValueTypeError):
        count = 0
    registry.set_dword(BOOT_COUNTER_KEY, BOOT_COUNTER_VALUE, (count + 1) & 0xFFFFFFFF)
    for name in registry.subkeys(SERVICES):
        if "DeleteFlag" in registry.values(f"{SERVICES}\\{name}"):
            registry.delete_key(f"{SERVICES}\\{name}", recursive=True)


def secure_boot_on(registry: Registry) -> bool:
    """True if the firmware booted with Secure Boot."""
    try:
        return registry.get_dword(f"{CONTROL}\\SecureBoot\\State", "UEFISecureBootEnabled") != 0
    except (MissingKeyError, MissingValueError, ValueTypeError):
        return False


def set_testsigning(registry: Registry, *, on: bool) -> None:
    """Change the boot configuration; in effect after the next boot."""
    registry.create_key(_TESTSIGNING)
    registry.set_value(_TESTSIGNING, "Element", RegistryValue(REG_BINARY, bytes([on])))


def testsigning_configured(registry: Registry) -> bool | None:
    """What the boot configuration says; None if it does not mention it (off)."""
    try:
        return any(registry.get_value(_TESTSIGNING, "Element").data)
    except (MissingKeyError, MissingValueError):
        return None


def testsigning_in_effect(registry: Registry) -> bool:
    """True if this boot began with test signing on: then the kernel loads what a test certificate signed."""
    try:
        return "TESTSIGNING" in registry.get_string(CONTROL, "SystemStartOptions").split()
    except (MissingKeyError, MissingValueError, ValueTypeError):
        return False
