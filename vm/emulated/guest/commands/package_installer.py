"""Installing a package of the driver store without a device: what its INF says for this Windows, done and undone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from vm.emulated.guest.commands import services
from vm.emulated.guest.commands.driver_store import (
    ARCHITECTURE,
    ERROR_FILE_NOT_FOUND,
    ERROR_GENERAL_SYNTAX,
    DriverStore,
    StorePackage,
    discard,
)
from vm.emulated.guest.commands.session import Guest
from vm.emulated.guest.commands.setup_log import SetupFailure, SetupLog
from vm.emulated.registry import REG_DWORD, MissingValueError, Registry, RegistryValue, ValueTypeError
from vm.inf import read
from vm.inf.actions import (
    CopiedFile,
    Installation,
    InstallError,
    RegistryWrite,
    ServiceInstall,
    choose,
    installation,
)

ERROR_SERVICE_MARKED_FOR_DELETE = 1072

_CURRENT_VERSION = "HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion"
_DIRECTORIES: Mapping[str, str] = MappingProxyType(
    {"10": "C:\\Windows", "11": "C:\\Windows\\System32", "12": "C:\\Windows\\System32\\drivers"}
)
"""Directory numbers of INFs; 13 is the package's own directory in the store."""


class PackageInstaller:
    """Installs and uninstalls the packages of one guest's store."""

    def __init__(self, guest: Guest, store: DriverStore, log: SetupLog) -> None:
        self._guest = guest
        self._store = store
        self._registry = guest.registry
        self._drive = guest.drive
        self._log = log

    def installed(self, package: StorePackage) -> list[str]:
        """Names of the services that were made by this package and are not being deleted."""
        return [
            service.name
            for service in services.all_services(self._registry)
            if not service.marked_for_deletion and package.published in _owners(self._registry, service.name)
        ]

    def install(self, package: StorePackage) -> bool | None:
        """Do what the package's INF says for this Windows.

        Returns:
            whether the system has to be restarted for it; None if there is nothing to install: no section for this
            Windows, or this or a newer package of the same INF is installed already.

        Raises:
            SetupFailure: the INF asks for something that cannot be done, or a service is being deleted.
        """
        done = self._installation(package)
        if done is None:
            self._log.note("inf", "There is no install section for this version of Windows.")
            return None
        if newer := self._installed_already(package, done):
            self._log.note("dvi", f"'{newer}' is installed already and not older.")
            return None
        self._log.note("inf", f"Install section = {done.section}")
        restart = False
        for service in done.services:
            existing = services.read(self._registry, service.name)
            if existing is not None and existing.marked_for_deletion:
                raise SetupFailure(
                    ERROR_SERVICE_MARKED_FOR_DELETE, f"The service '{service.name}' is being deleted."
                )
            restart = restart or services.is_running(self._guest, service.name)
        for file in done.files:
            self._install_file(package, file)
        for service in done.services:
            self._install_service(package, service)
            self._log.note("dvi", f"Service '{service.name}' = {_image_path(service.binary, package)}")
        return restart

    def uninstall(self, package: StorePackage) -> bool:
        """Undo what the package installed; True if a restart has to finish it.

        A service that runs is stopped first. One that cannot be stopped is marked for deletion, and its files stay
        until the next boot (windows-lab C.3 and G.10: 3010 is expected, not measured).
        """
        restart = False
        done = self._installation(package)
        for name in self.installed(package):
            if services.is_running(self._guest, name) and self._guest.computer().stop_service(name) != 0:
                self._log.note("dvi", f"Service '{name}' could not be stopped.")
                restart = True
            self._registry.set_dword(services.key_of(name), "DeleteFlag", 1)
            services.forget_if_marked(self._guest, name)
        for file in done.files if done is not None else ():
            place = self._destination(file)
            if place is not None:
                discard(self._guest, place, later=restart)
        return restart

    def _installation(self, package: StorePackage) -> Installation | None:
        inf = read((self._store.host_directory(package.directory) / package.original).read_bytes())
        major, minor = (10, 0)
        build = int(self._registry.get_string(_CURRENT_VERSION, "CurrentBuildNumber"))
        chosen = choose(inf, ARCHITECTURE, (major, minor), build)
        try:
            return installation(inf, chosen) if chosen is not None else None
        except InstallError as error:
            raise SetupFailure(ERROR_GENERAL_SYNTAX, f"{package.original}, {error}.") from error

    def _installed_already(self, package: StorePackage, done: Installation) -> str | None:
        """Published name of a package of the same INF that owns all services and is not older, else None."""
        for other in self._store.packages():
            if other.original != package.original or other.provider != package.provider:
                continue
            owned = {name.casefold() for name in self.installed(other)}
            if not owned or not owned >= {service.name.casefold() for service in done.services}:
                continue
            if other == package or _age(other) > _age(package):
                return other.published
        return None

    def _install_file(self, package: StorePackage, file: CopiedFile) -> None:
        source = self._store.host_directory(package.directory) / file.source
        if not source.is_file():
            raise SetupFailure(ERROR_FILE_NOT_FOUND, f"'{file.source}' is not in the package.")
        place = self._destination(file)
        if place is None:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        data = source.read_bytes()
        self._drive.charge(len(data))
        place.write_bytes(data)
        self._log.note("cpy", f"Copied '{file.source}' to '{self._drive.windows_path(place)}'.")

    def _destination(self, file: CopiedFile) -> Path | None:
        """Host path where a file of an INF goes; None for the package's own directory in the store."""
        if file.directory == "13":
            return None
        directory = _DIRECTORIES.get(file.directory)
        if directory is None:
            raise SetupFailure(
                ERROR_GENERAL_SYNTAX,
                f"'{file.name}' goes to the directory {file.directory}, which is not known.",
            )
        below = "\\".join(part for part in (directory, file.subdirectory, file.name) if part)
        relative = self._drive.absolute(below)[3:].split("\\")
        return self._drive.root.joinpath(*relative)

    def _install_service(self, package: StorePackage, service: ServiceInstall) -> None:
        registry, key = self._registry, services.key_of(service.name)
        registry.create_key(key)
        registry.set_dword(key, "Type", service.type)
        registry.set_dword(key, "Start", service.start)
        registry.set_dword(key, "ErrorControl", service.error_control)
        image = _image_path(service.binary, package)
        registry.set_value(key, "ImagePath", RegistryValue.string(image, expand=True))
        for name, text in (
            ("DisplayName", service.display_name or service.name),
            ("Description", service.description),
            ("Group", service.group),
        ):
            if text:
                registry.set_string(key, name, text)
        if service.dependencies:
            registry.set_multi_string(key, "DependOnService", list(service.dependencies))
        registry.set_multi_string(key, "Owners", [package.published])
        for write in service.writes:
            self._write(key, write)

    def _write(self, service_key: str, write: RegistryWrite) -> None:
        key = f"{service_key}\\{write.key}" if write.key else service_key
        self._registry.create_key(key)
        if write.data is None or (write.keeps and self._has(key, write.name)):
            return
        if isinstance(write.data, tuple):
            value = RegistryValue.multi_string(write.data)
        elif isinstance(write.data, str):
            value = RegistryValue(write.type, RegistryValue.string(write.data).data)
        elif isinstance(write.data, int):
            value = RegistryValue(REG_DWORD, write.data.to_bytes(4, "little"))
        else:
            value = RegistryValue(write.type, write.data)
        self._registry.set_value(key, write.name, value)

    def _has(self, key: str, name: str) -> bool:
        try:
            self._registry.get_value(key, name)
        except MissingValueError:
            return False
        return True


def _image_path(binary: str, package: StorePackage) -> str:
    """ServiceBinary as the service controller gets it for a driver: below `\\SystemRoot`."""
    match = re.match(r"%(\d+)%\\(.*)", binary)
    if match is None:
        return binary
    directory = package.path if match[1] == "13" else _DIRECTORIES.get(match[1])
    if directory is None:
        raise SetupFailure(ERROR_GENERAL_SYNTAX, f"'{binary}' is in a directory that is not known.")
    return f"\\SystemRoot{directory.removeprefix('C:' + chr(92) + 'Windows')}\\{match[2]}"


def _age(package: StorePackage) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Date and version of DriverVer, comparable; what cannot be read is the oldest."""
    day, _, version = package.driver_version.partition(",")
    parts = day.split("/")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        return ((), ())
    month, date, year = (int(part) for part in parts)
    numbers = tuple(int(part) for part in version.strip().split(".") if part.isdigit())
    return ((year, month, date), numbers)


def _owners(registry: Registry, service: str) -> list[str]:
    try:
        return registry.get_multi_string(services.key_of(service), "Owners")
    except (MissingValueError, ValueTypeError):
        return []
