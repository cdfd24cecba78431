"""The driver store of the guest: packages under FileRepository and their published names.

Its database is in the registry (HKLM\\SYSTEM\\DriverDatabase), its files are on C:. What is in use is removed by the
next boot, by way of PendingFileRenameOperations, as Windows does it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vm.emulated.guest.commands.package_trust import check_package
from vm.emulated.guest.commands.pending_files import delete_at_boot, keep_at_boot
from vm.emulated.guest.commands.session import Guest
from vm.emulated.guest.commands.setup_log import SetupFailure, SetupLog
from vm.emulated.guest.drive import WindowsPathError
from vm.emulated.image_files import CATALOG_DIRECTORY
from vm.emulated.registry import MissingKeyError, Registry, ValueTypeError
from vm.inf import Inf, read
from vm.inf.actions import source_files
from vm.inf.install import catalog_file

ARCHITECTURE = "amd64"
"""What INFs call the processor of the emulated machine."""
REPOSITORY = "C:\\Windows\\System32\\DriverStore\\FileRepository"

ERROR_FILE_NOT_FOUND = 2
ERROR_GENERAL_SYNTAX = 0xE0000003
ERROR_WRONG_INF_STYLE = 0xE0000100
ERROR_NO_CATALOG_FOR_OEM_INF = 0xE000022F

_DATABASE = "HKLM\\SYSTEM\\DriverDatabase"
_PACKAGES = f"{_DATABASE}\\DriverPackages"
_PUBLISHED = f"{_DATABASE}\\DriverInfFiles"


@dataclass(frozen=True, slots=True)
class StorePackage:
    """A package in the store, as `pnputil /enum-drivers` shows it."""

    published: str
    """Such as "oem0.inf"."""
    original: str
    provider: str
    class_name: str
    class_guid: str
    driver_version: str
    """Date and version as the INF writes them ("11/21/2026,0.1.0.0")."""
    signer: str
    directory: str
    """Name below FileRepository."""

    @property
    def path(self) -> str:
        return f"{REPOSITORY}\\{self.directory}"


class DriverStore:
    """The store of one guest."""

    def __init__(self, guest: Guest, log: SetupLog) -> None:
        self._guest = guest
        self._registry = guest.registry
        self._drive = guest.drive
        self._log = log

    def packages(self) -> list[StorePackage]:
        """All packages in the order of their published numbers."""
        found = [package for name in _subkeys(self._registry, _PACKAGES) if (package := self._read(name))]
        return sorted(found, key=lambda package: _number(package.published))

    def find(self, published: str) -> StorePackage | None:
        """The package with that published name."""
        wanted = published.casefold()
        return next((each for each in self.packages() if each.published.casefold() == wanted), None)

    def add(self, inf_path: str, directory: str) -> tuple[StorePackage, bool]:
        """Stage a package: check it, copy it into the store, publish it. True if it was there already.

        Args:
            inf_path: Windows path of the INF; the package's other files lie beside it.
            directory: the caller's current directory.

        Raises:
            SetupFailure: it is refused, and nothing is changed; or the disk is full.
        """
        host = self._host(inf_path, directory)
        files, inf, catalog = self._gather(host)
        signer = check_package(self._registry, files, catalog, self._guest.clock.now())
        self._log.note("sig", f"Signer = {signer.subject}, {len(files) - 1} files are in '{catalog}'.")
        version = inf.section("Version")
        assert version is not None
        name = f"{host.name.lower()}_{ARCHITECTURE}_{_digest(files)}"
        known = self._read(name)
        self._copy(name, files)
        if known is not None:
            self._log.note("sto", f"The package is in the store as '{known.published}'.")
            return known, True
        driver_version = version.first("DriverVer")
        package = StorePackage(
            published=self._free_name(),
            original=host.name.lower(),
            provider=version.text("Provider"),
            class_name=version.text("Class"),
            class_guid=version.text("ClassGuid").lower(),
            driver_version=",".join(field.text for field in driver_version.fields) if driver_version else "",
            signer=signer.subject.removeprefix("CN="),
            directory=name,
        )
        self._publish(package, files[host.name], files[catalog])
        self._log.note("sto", f"Published '{name}\\{host.name}' to '{package.published}'.")
        return package, False

    def remove(self, package: StorePackage, *, later: bool) -> None:
        """Take the package out of the store; its files go at the next boot if they are in use (`later`)."""
        root = self._drive.root
        stem = package.published.removesuffix(".inf")
        self._registry.delete_key(f"{_PUBLISHED}\\{package.published}", recursive=True)
        self._registry.delete_key(f"{_PACKAGES}\\{package.directory}", recursive=True)
        for path in (root / "Windows" / "INF" / package.published, root / CATALOG_DIRECTORY / f"{stem}.cat"):
            discard(self._guest, path, later=False)
        discard(self._guest, self.host_directory(package.directory), later=later)

    # Staging

    def _host(self, inf_path: str, directory: str) -> Path:
        try:
            host = self._drive.existing(inf_path, directory=directory)
        except WindowsPathError as error:
            raise SetupFailure(error.code, f"'{inf_path}' was not found.") from error
        if not host.is_file():
            raise SetupFailure(ERROR_FILE_NOT_FOUND, f"'{inf_path}' is no file.")
        return host

    def _gather(self, host: Path) -> tuple[dict[str, bytes], Inf, str]:
        """The package's files by name, its INF, and the name of its catalog."""
        content = host.read_bytes()
        inf = read(content)
        version = inf.section("Version")
        if version is None or version.text("Signature").lower() not in ("$windows nt$", "$chicago$"):
            raise SetupFailure(ERROR_WRONG_INF_STYLE, f"'{host.name}' has no [Version] of an INF.")
        if inf.problems:
            problem = inf.problems[0]
            raise SetupFailure(ERROR_GENERAL_SYNTAX, f"{host.name}({problem.line}): {problem.message}.")
        catalog = catalog_file(inf, ARCHITECTURE)
        if not catalog:
            raise SetupFailure(ERROR_NO_CATALOG_FOR_OEM_INF, f"'{host.name}' names no catalog.")
        files = {host.name: content}
        for name in (catalog, *source_files(inf, ARCHITECTURE)):
            found = _beside(host, name)
            if found is None:
                raise SetupFailure(ERROR_FILE_NOT_FOUND, f"'{name}' is not beside '{host.name}'.")
            files[name] = found.read_bytes()
        return files, inf, catalog

    def _copy(self, name: str, files: Mapping[str, bytes]) -> None:
        directory = self.host_directory(name)
        directory.mkdir(parents=True, exist_ok=True)
        keep_at_boot(self._registry, f"{REPOSITORY}\\{name}")
        for file, data in files.items():
            self._drive.charge(len(data))
            (directory / file).write_bytes(data)
            self._log.note("cpy", f"Copied '{file}' to '{REPOSITORY}\\{name}'.")

    def _publish(self, package: StorePackage, inf: bytes, catalog: bytes) -> None:
        root = self._drive.root
        stem = package.published.removesuffix(".inf")
        for path, data in (
            (root / "Windows" / "INF" / package.published, inf),
            (root / CATALOG_DIRECTORY / f"{stem}.cat", catalog),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._drive.charge(len(data))
            path.write_bytes(data)
        key = f"{_PACKAGES}\\{package.directory}"
        self._registry.create_key(key)
        for name, value in (
            ("", package.published),
            ("InfName", package.original),
            ("Provider", package.provider),
            ("Class", package.class_name),
            ("ClassGuid", package.class_guid),
            ("DriverVer", package.driver_version),
            ("SignerName", package.signer),
        ):
            self._registry.set_string(key, name, value)
        published = f"{_PUBLISHED}\\{package.published}"
        self._registry.create_key(published)
        self._registry.set_multi_string(published, "", [package.directory])

    def _read(self, directory: str) -> StorePackage | None:
        key = f"{_PACKAGES}\\{directory}"
        try:
            values = {name: value.as_string() for name, value in self._registry.values(key).items()}
            return StorePackage(
                published=values[""],
                original=values["InfName"],
                provider=values["Provider"],
                class_name=values["Class"],
                class_guid=values["ClassGuid"],
                driver_version=values["DriverVer"],
                signer=values["SignerName"],
                directory=directory,
            )
        except (KeyError, ValueTypeError):
            return None

    def _free_name(self) -> str:
        taken = {name.casefold() for name in _subkeys(self._registry, _PUBLISHED)}
        number = 0
        while f"oem{number}.inf" in taken:
            number += 1
        return f"oem{number}.inf"

    def host_directory(self, name: str) -> Path:
        """Where a package's directory lies on the host."""
        return self._drive.root / "Windows" / "System32" / "DriverStore" / "FileRepository" / name


def discard(guest: Guest, path: Path, *, later: bool) -> None:
    """Delete a file or a directory that may not exist; at the next boot if it is in use (`later`)."""
    if not path.exists():
        return
    if later:
        delete_at_boot(guest.registry, guest.drive.windows_path(path))
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _digest(files: Mapping[str, bytes]) -> str:
    """Sixteen digits that stand for the content of a package, as the names of directories in the store end."""
    digest = hashlib.sha256()
    for name in sorted(files, key=str.lower):
        digest.update(name.lower().encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()[:16]


def _number(published: str) -> int:
    match = re.fullmatch(r"oem(\d+)\.inf", published, re.IGNORECASE)
    return int(match[1]) if match else -1


def _subkeys(registry: Registry, key: str) -> list[str]:
    try:
        return registry.subkeys(key)
    except MissingKeyError:
        return []


def _beside(inf: Path, name: str) -> Path | None:
    wanted = name.casefold()
    return next(
        (each for each in inf.parent.iterdir() if each.name.casefold() == wanted and each.is_file()), None
    )
