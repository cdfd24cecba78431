"""Service keys of the registry as the service controller and the filter tools understand them."""

from __future__ import annotations

from dataclasses import dataclass

from vm.emulated.guest.commands.session import Guest
from vm.emulated.registry import SERVICES, MissingValueError, Registry, ValueTypeError

FILE_SYSTEM_DRIVER = 2
KERNEL_DRIVER = 1

START_NAMES = {0: "BOOT_START", 1: "SYSTEM_START", 2: "AUTO_START", 3: "DEMAND_START", 4: "DISABLED"}
TYPE_NAMES = {1: "KERNEL_DRIVER", 2: "FILE_SYSTEM_DRIVER", 16: "WIN32_OWN_PROCESS", 32: "WIN32_SHARE_PROCESS"}
ERROR_NAMES = {0: "IGNORE", 1: "NORMAL", 2: "SEVERE", 3: "CRITICAL"}


@dataclass(frozen=True, slots=True)
class Service:
    """One service key, read."""

    name: str
    display_name: str
    type: int
    start: int
    error_control: int
    image_path: str
    group: str
    dependencies: tuple[str, ...]
    marked_for_deletion: bool


def key_of(name: str) -> str:
    """Path of a service's key; RegistryPathError for a name that cannot be one."""
    return f"{SERVICES}\\{name}"


def read(registry: Registry, name: str) -> Service | None:
    """The service of that name; None if there is none (no key, or a key without Type)."""
    key = key_of(name)
    if not name or "\\" in name or not registry.exists(key):
        return None
    kind = _dword(registry, key, "Type")
    if kind is None:
        return None
    spelled = registry.canonical(key).rpartition("\\")[2]
    return Service(
        name=spelled,
        display_name=_string(registry, key, "DisplayName") or spelled,
        type=kind,
        start=_dword(registry, key, "Start") or 0,
        error_control=_dword(registry, key, "ErrorControl") or 0,
        image_path=_string(registry, key, "ImagePath"),
        group=_string(registry, key, "Group"),
        dependencies=_strings(registry, key, "DependOnService"),
        marked_for_deletion=bool(_dword(registry, key, "DeleteFlag")),
    )


def all_services(registry: Registry) -> list[Service]:
    """Every service, by name."""
    return [service for name in registry.subkeys(SERVICES) if (service := read(registry, name)) is not None]


def is_running(guest: Guest, name: str) -> bool:
    """True if a filter of that name is loaded."""
    return name.casefold() in {loaded.name.casefold() for loaded in guest.computer().filters()}


def forget_if_marked(guest: Guest, name: str) -> None:
    """A service that was deleted while it ran goes for good once it has stopped."""
    service = read(guest.registry, name)
    if service is None or not service.marked_for_deletion or is_running(guest, name):
        return
    if not guest.chaos.keeps_deleted(name):
        guest.registry.delete_key(key_of(name), recursive=True)


def sweep(guest: Guest) -> None:
    """Services that are marked for deletion and that nothing holds any more go."""
    for service in all_services(guest.registry):
        forget_if_marked(guest, service.name)


def _dword(registry: Registry, key: str, name: str) -> int | None:
    try:
        return registry.get_dword(key, name)
    except (MissingValueError, ValueTypeError):
        return None


def _string(registry: Registry, key: str, name: str) -> str:
    try:
        return registry.get_string(key, name)
    except (MissingValueError, ValueTypeError):
        return ""


def _strings(registry: Registry, key: str, name: str) -> tuple[str, ...]:
    try:
        return tuple(registry.get_multi_string(key, name))
    except (MissingValueError, ValueTypeError):
        return ()
