"""Loading a driver image: map, relocate, bind imports to the model's exports, patch what the engine cannot run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vm.emulated.cpu.engine import GENERAL
from vm.emulated.cpu.memory import PAGE_SIZE, Access
from vm.emulated.image.patches import Site, SiteKind, find_sites
from vm.emulated.image.pe import Image, parse_image
from vm.errors import PackageError

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

IMAGE_BASE = 0xFFFF_F801_0000_E000
IMAGE_STRIDE = 0x1000_0000
DRIVER_OBJECT_SIZE = 0x150


@dataclass(slots=True, eq=False)
class LoadedDriver:
    """A driver image in the kernel's address space."""

    name: str
    image: Image
    base: int
    symbols: Any = None
    """`vm.emulated.image.pdb.Symbols` or None."""
    driver_object: int = 0
    registry_path: str = ""
    unloaded: bool = False
    discarded: list[tuple[int, int]] = field(default_factory=list)
    rules: dict[str, str] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.base + self.image.size


@lru_cache(maxsize=64)
def prepare(data: bytes, name: str) -> tuple[Image, tuple[Site, ...]]:
    """Parse an image and find its patch sites once; machines made later from the same bytes share the result."""
    image = parse_image(data, name)
    return image, find_sites(image)


def missing_imports(image: Image, known: set[tuple[str, str]]) -> list[str]:
    """Imports that nobody models, as 'dll!name', sorted."""
    return sorted(f"{i.dll}!{i.symbol}" for i in image.imports if (i.dll, i.symbol) not in known)


def check_imports(image: Image, known: set[tuple[str, str]]) -> None:
    """Refuse an image that imports what is not modelled, all names at once.

    Raises:
        PackageError: with every missing name.
    """
    missing = missing_imports(image, known)
    if missing:
        names = ", ".join(f"'{name}'" for name in missing)
        raise PackageError(
            f"'{image.name}' imports {len(missing)} function{'s' if len(missing) > 1 else ''} that the emulated machine does not "
            f"model: {names}",
            hint="run it on a Windows machine (--machine), or declare the missing exports in vm/emulated/exports",
        )


def map_image(kernel: Kernel, data: bytes, name: str, *, symbols: Any = None) -> LoadedDriver:
    """Map an image and bind its imports; nothing of it has run yet.

    Raises:
        PackageError: not a driver image, or it imports what is not modelled.
    """
    image, sites = prepare(data, name)
    check_imports(image, kernel.known_exports())
    base = IMAGE_BASE + len(kernel.drivers) * IMAGE_STRIDE
    contents = image.layout(
        base, kernel.resolve_import, security_cookie=0x2B99_2DDF_A232_0000 + len(kernel.drivers)
    )
    memory = kernel.memory
    memory.map(base, image.size, Access.READ)
    memory.poke(base, contents)
    for section in image.sections:
        access = Access.READ if section.readable else Access.NONE
        if section.writable:
            access |= Access.WRITE
        if section.executable:
            access |= Access.EXECUTE
        size = (section.virtual_size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
        memory.protect(base + section.rva, size, int(access))
    driver = LoadedDriver(name.removesuffix(".sys"), image, base, symbols)
    for site in sites:
        _patch(kernel, base + site.rva, site)
    return driver


def _patch(kernel: Kernel, address: int, site: Site) -> None:
    engine = kernel.engine
    if site.kind in (SiteKind.READ_CR8, SiteKind.WRITE_CR8):
        assert site.register is not None
        engine.patch_cr8(address, write=site.kind is SiteKind.WRITE_CR8, register=GENERAL[site.register])
    elif site.kind is SiteKind.RDTSC:
        engine.patch_time(address)
    elif site.kind is SiteKind.HLT:
        engine.halts = engine.halts | {address}


def discard(kernel: Kernel, driver: LoadedDriver) -> None:
    """Give back the sections that are only needed by DriverEntry (INIT), as the kernel does once it has returned."""
    for section in driver.image.sections:
        if section.discardable and section.executable:
            size = (section.virtual_size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
            start = driver.base + section.rva
            kernel.memory.unmap(start, size)
            driver.discarded.append((start, start + size))


def unmap_image(kernel: Kernel, driver: LoadedDriver) -> None:
    """Take an unloaded driver out of the address space: whatever still runs or points there faults."""
    gone = {page for start, end in driver.discarded for page in range(start, end, PAGE_SIZE)}
    for page in range(driver.base, driver.end, PAGE_SIZE):
        if page not in gone:
            kernel.memory.unmap(page, PAGE_SIZE)
    driver.unloaded = True
