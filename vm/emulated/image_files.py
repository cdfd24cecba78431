"""How the loader finds driver files on C:, checks their signature as Windows does, and brings their symbols."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from vm.emulated.fltmgr.loading import ImageFile
from vm.emulated.guest import boot
from vm.emulated.guest.drive import Drive, WindowsPathError
from vm.emulated.image.authenticode import verify_embedded
from vm.emulated.image.catalog import verify_catalog
from vm.emulated.image.pdb.reader import read_symbols
from vm.emulated.image.pdb.symbols import Symbols
from vm.emulated.image.signed_data import UnsignedError
from vm.emulated.kernel.loader import prepare
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import STATUS_INVALID_IMAGE_HASH, STATUS_OBJECT_NAME_NOT_FOUND
from vm.emulated.registry import Registry
from vm.errors import PackageError

log = logging.getLogger(__name__)

SYMBOL_DIRECTORIES = (r"C:\Downlink\package", r"C:\Symbols")
"""Where symbols are looked for beside the image's own directory."""

CATALOG_DIRECTORY = "Windows/System32/CatRoot/{F750E6C3-38EE-11D1-85E5-00C04FC295EE}"
"""Where the catalogs of installed packages are, below the root of C:. The number is that of driver catalogs."""


class ImageFiles:
    """Driver files of one machine.

    Args:
        drive: the C: drive.
        registry: tells whether this boot has test signing on.
        rules: what drivers have declared of themselves, by service name in lower case.
    """

    def __init__(self, drive: Drive, registry: Registry, rules: Mapping[str, Mapping[str, str]]) -> None:
        self._drive = drive
        self._registry = registry
        self._rules = {service.lower(): dict(promised) for service, promised in rules.items()}

    def open(self, image_path: str) -> ImageFile:
        """The file of a service's ImagePath.

        Raises:
            StatusError: not found; not signed, damaged, or only test-signed without test signing
                (STATUS_INVALID_IMAGE_HASH, which tools show as 577).
        """
        path = windows_path(image_path)
        try:
            host = self._drive.existing(path)
            data = host.read_bytes()
        except (WindowsPathError, OSError) as error:
            raise StatusError(STATUS_OBJECT_NAME_NOT_FOUND) from error
        self._check_signature(data, host.name)
        stem = host.stem.lower()
        return ImageFile(host.name, data, self._symbols(data, host), tuple(self._rules.get(stem, {}).items()))

    def _check_signature(self, data: bytes, name: str) -> None:
        """A kernel load needs a signature that fits; under test signing any certificate will do (windows-lab C.5).

        An image without a signature of its own is looked up in the catalogs of installed packages.
        """
        try:
            verify_embedded(data, name)
        except PackageError as error:
            if isinstance(error, UnsignedError) and self._is_in_a_catalog(data, name):
                self._check_test_signing(name)
                return
            log.warning("'%s' is refused: %s", name, error.message)
            raise StatusError(STATUS_INVALID_IMAGE_HASH) from error
        self._check_test_signing(name)

    def _check_test_signing(self, name: str) -> None:
        if not boot.testsigning_in_effect(self._registry):
            log.warning("'%s' is refused: it is test-signed and test signing is off", name)
            raise StatusError(STATUS_INVALID_IMAGE_HASH)

    def _is_in_a_catalog(self, data: bytes, name: str) -> bool:
        for path in sorted((self._drive.root / CATALOG_DIRECTORY).glob("*.cat")):
            try:
                if verify_catalog(path.read_bytes(), path.name).member_for(data, name) is not None:
                    return True
            except (PackageError, OSError) as error:
                log.warning("the catalog '%s' is not used: %s", path.name, error)
        return False

    def _symbols(self, data: bytes, host: Path) -> Symbols | None:
        try:
            image, _ = prepare(data, host.name)
        except PackageError:
            return None
        if image.debug is None:
            return None
        name = image.debug.pdb_path.replace("\\", "/").rpartition("/")[2]
        places = [host.parent / name]
        for directory in SYMBOL_DIRECTORIES:
            try:
                places.append(self._drive.host_path(rf"{directory}\{name}"))
            except WindowsPathError:
                continue
        for place in places:
            if place.is_file():
                try:
                    return read_symbols(place, image=image, name=name)
                except PackageError as error:
                    log.warning("'%s' is not used: %s", place.name, error.message)
        return None


def windows_path(image_path: str) -> str:
    r"""An ImagePath as a path on C:.

    The service control manager knows `\SystemRoot\...`, `\??\C:\...`, `system32\...` and plain paths.
    """
    path = image_path.strip().strip('"').replace("/", "\\")
    lower = path.lower()
    for prefix, replacement in (
        ("\\systemroot\\", "C:\\Windows\\"),
        ("%systemroot%\\", "C:\\Windows\\"),
        ("\\??\\", ""),
        ("system32\\", "C:\\Windows\\System32\\"),
    ):
        if lower.startswith(prefix):
            return replacement + path[len(prefix) :]
    return path
