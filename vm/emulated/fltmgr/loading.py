"""Loading and unloading filter drivers: service key, image, signature, DriverEntry, FilterUnloadCallback."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vm.emulated.fltmgr.instances import TEARDOWN_FILTER_UNLOAD, TEARDOWN_MANDATORY_FILTER_UNLOAD
from vm.emulated.fltmgr.manager import SERVICES, manager_of
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.loader import DRIVER_OBJECT_SIZE, LoadedDriver, discard
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_DRIVER_ENTRYPOINT_NOT_FOUND,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_DO_NOT_DETACH,
    STATUS_FLT_FILTER_NOT_FOUND,
    STATUS_IMAGE_ALREADY_LOADED,
    STATUS_INVALID_IMAGE_FORMAT,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_SUCCESS,
    nt_success,
    status_name,
)
from vm.emulated.kernel.threads import Call, Model
from vm.errors import PackageError

FLTFL_FILTER_UNLOAD_MANDATORY = 0x1
FLTFL_REGISTRATION_DO_NOT_SUPPORT_SERVICE_STOP = 0x1
IO_TYPE_DRIVER = 4


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A driver image as the loader found it."""

    name: str
    """File name, for messages ("downlink.sys")."""
    data: bytes
    symbols: Any = None
    """`vm.emulated.image.pdb.Symbols` that match it, or None."""
    rules: tuple[tuple[str, str], ...] = ()
    """What the driver has declared of itself, e.g. ("io_path_waits", "forbid")."""


def load_filter(k: Kernel, service: str, open_image: Callable[[str], ImageFile]) -> Model:
    """FilterLoad: returns the NTSTATUS.

    Args:
        open_image: reads the file of an ImagePath; raises `StatusError` (not there, signature not acceptable).
    """
    key = rf"{SERVICES}\{service}"
    if not k.registry.exists(key):
        return STATUS_OBJECT_NAME_NOT_FOUND
    if driver_of(k, service) is not None:
        return STATUS_IMAGE_ALREADY_LOADED
    try:
        path = k.registry.get_string(key, "ImagePath")
    except KeyError:
        path = rf"\SystemRoot\System32\drivers\{service}.sys"
    try:
        image = open_image(path)
    except StatusError as error:
        return error.status
    return (yield from load_image(k, service, image))


def load_image(k: Kernel, service: str, image: ImageFile) -> Model:
    """Map an image for a service and run its DriverEntry; returns the NTSTATUS."""
    try:
        driver = k.load_driver(image.data, image.name, symbols=image.symbols)
    except PackageError as error:
        k.debug_print(f"nt: '{image.name}' cannot be loaded: {error.message}")
        return (
            STATUS_DRIVER_ENTRYPOINT_NOT_FOUND if "imports" in error.message else STATUS_INVALID_IMAGE_FORMAT
        )
    driver.rules = dict(image.rules)
    driver.registry_path = rf"\Registry\Machine\SYSTEM\ControlSet001\Services\{service}"
    registry_path = _make_driver_object(k, driver)
    status: int = yield Call(
        driver.base + driver.image.entry_rva,
        (driver.driver_object, registry_path),
        f"DriverEntry of '{service}'",
    )
    status &= 0xFFFF_FFFF
    k.pool.free(registry_path)
    if nt_success(status):
        discard(k, driver)
        return STATUS_SUCCESS
    k.debug_print(f"nt: DriverEntry of '{service}' failed with {status_name(status)}")
    yield from _release(k, driver, after="a failed DriverEntry")
    return status


def unload_filter(k: Kernel, service: str, *, mandatory: bool) -> Model:
    """FilterUnload, or the stop of the service (mandatory); returns the NTSTATUS. Facts X5 to X11, L3."""
    manager = manager_of(k)
    owner = manager.find(service)
    driver = driver_of(k, service)
    if owner is None or driver is None:
        return STATUS_FLT_FILTER_NOT_FOUND
    if owner.unloading or owner.draining:
        return STATUS_FLT_DELETING_OBJECT
    registration = owner.registration
    if not registration.unload:
        return STATUS_FLT_DO_NOT_DETACH
    if mandatory and registration.flags & FLTFL_REGISTRATION_DO_NOT_SUPPORT_SERVICE_STOP:
        return STATUS_FLT_DO_NOT_DETACH
    owner.unloading = True
    reasons = k.services.setdefault("unload_reason", {})
    reasons[owner.name.lower()] = TEARDOWN_MANDATORY_FILTER_UNLOAD if mandatory else TEARDOWN_FILTER_UNLOAD
    status: int = yield Call(
        registration.unload, (FLTFL_FILTER_UNLOAD_MANDATORY if mandatory else 0,), "FilterUnloadCallback"
    )
    status &= 0xFFFF_FFFF
    if not nt_success(status) and not mandatory:
        if owner.draining:
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x2_0053,
                owner.address,
                rule=f"FilterUnloadCallback refused with {status_name(status)} after it had called FltUnregisterFilter",
            )
        owner.unloading = False
        del reasons[owner.name.lower()]
        return STATUS_FLT_DO_NOT_DETACH
    yield from _release(k, driver, after="FilterUnloadCallback")
    return STATUS_SUCCESS


def driver_of(k: Kernel, service: str) -> LoadedDriver | None:
    """The loaded driver of a service."""
    wanted = service.lower()
    return next(
        (d for d in k.drivers if not d.unloaded and d.registry_path.rpartition("\\")[2].lower() == wanted),
        None,
    )


def _release(k: Kernel, driver: LoadedDriver, *, after: str) -> Model:
    """The image goes: nothing of the driver may be left."""
    manager = manager_of(k)
    for owner in list(manager.filters):
        if owner.driver is driver:
            raise Bugcheck(
                bc.DRIVER_UNLOADED_WITHOUT_CANCELLING_PENDING_OPERATIONS,
                driver.base,
                0,
                owner.address,
                rule=f"the filter '{owner.name}' is still registered after {after}: FltUnregisterFilter was not called",
            )
    k.unload_image(driver)
    k.pool.free(driver.driver_object)
    return
    yield  # a generator, as every step of a load is


def _make_driver_object(k: Kernel, driver: LoadedDriver) -> int:
    """Write the DRIVER_OBJECT (layout A.1) and the registry path; returns the address of the path."""
    name = f"\\FileSystem\\{driver.registry_path.rpartition(chr(92))[2]}".encode("utf-16-le")
    address = k.pool.allocate(DRIVER_OBJECT_SIZE + len(name) + 2, "Driv", owner="nt")
    memory = k.memory
    memory.write(address, struct.pack("<HH", IO_TYPE_DRIVER, DRIVER_OBJECT_SIZE))
    memory.put64(address + 0x18, driver.base)
    memory.put32(address + 0x20, driver.image.size)
    memory.write(
        address + 0x38, struct.pack("<HH4xQ", len(name), len(name) + 2, address + DRIVER_OBJECT_SIZE)
    )
    memory.put64(address + 0x58, driver.base + driver.image.entry_rva)
    memory.write(address + DRIVER_OBJECT_SIZE, name)
    driver.driver_object = address
    path = driver.registry_path.encode("utf-16-le")
    block = k.pool.allocate(16 + len(path) + 2, "Regp", owner="nt")
    memory.write(block, struct.pack("<HH4xQ", len(path), len(path) + 2, block + 16) + path)
    return block
