"""What Windows does when it installs a package without a device: the section it chooses, and what that section makes.

Sources: Windows driver documentation, "INF DefaultInstall section", "INF AddService directive", "INF AddReg directive",
"INF DestinationDirs section" and "Combining platform extensions with operating system versions".
"""

from __future__ import annotations

from dataclasses import dataclass

from vm.inf.document import Entry, Inf, Section
from vm.inf.install import Family, Install, Service, for_architecture, number, referenced, registry, services

REG_SZ = 1
REG_EXPAND_SZ = 2
REG_BINARY = 3
REG_DWORD = 4
REG_MULTI_SZ = 7
REG_NONE = 0

FLG_ADDREG_BINVALUETYPE = 0x1
FLG_ADDREG_NOCLOBBER = 0x2
FLG_ADDREG_DELVAL = 0x4
FLG_ADDREG_APPEND = 0x8
FLG_ADDREG_KEYONLY = 0x10
FLG_ADDREG_OVERWRITEONLY = 0x20

_TYPES = {
    0x00000: REG_SZ,
    0x10000: REG_MULTI_SZ,
    0x20000: REG_EXPAND_SZ,
    0x00001: REG_BINARY,
    0x10001: REG_DWORD,
    0x20001: REG_NONE,
}
_TYPE_MASK = 0xFFFF0001
_UNSUPPORTED = FLG_ADDREG_DELVAL | FLG_ADDREG_APPEND | FLG_ADDREG_OVERWRITEONLY

Data = str | int | bytes | tuple[str, ...]


class InstallError(ValueError):
    """The INF asks for something that cannot be done; the text is one sentence with its line."""


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file that is copied: its name in the package, its name where it goes, and where that is."""

    source: str
    name: str
    directory: str
    """Directory number, such as "12" or "13"."""
    subdirectory: str


@dataclass(frozen=True, slots=True)
class RegistryWrite:
    """A value that is written below the service's key.

    Attributes:
        key: below the service's key, empty for that key itself.
        name: of the value, empty for the key's default value.
        type: value type of winnt.h.
        data: text for REG_SZ and REG_EXPAND_SZ, texts for REG_MULTI_SZ, a number for REG_DWORD, else bytes;
            None if only the key is made.
        keeps: whether a value that is there already stays (FLG_ADDREG_NOCLOBBER).
    """

    key: str
    name: str
    type: int
    data: Data | None
    keeps: bool


@dataclass(frozen=True, slots=True)
class ServiceInstall:
    """A service that is made. `binary` may begin with a directory number between percent signs ("%13%")."""

    name: str
    display_name: str
    description: str
    type: int
    start: int
    error_control: int
    binary: str
    group: str
    dependencies: tuple[str, ...]
    writes: tuple[RegistryWrite, ...]


@dataclass(frozen=True, slots=True)
class Installation:
    """All that one install section does."""

    section: str
    family: Family
    files: tuple[CopiedFile, ...]
    services: tuple[ServiceInstall, ...]


def choose(inf: Inf, architecture: str, version: tuple[int, int], build: int) -> Install | None:
    """The `[DefaultInstall…]` section that a Windows takes: the one for the highest version that is not above its own.

    Args:
        architecture: as INFs call it ("amd64").
        version: major and minor version of the Windows, such as (10, 0).
        build: its build, such as 26100.

    Returns:
        None if no section is for this architecture and version.
    """
    fitting = [
        install
        for install in for_architecture(inf, architecture)
        if (install.version, install.build) <= (version, build)
    ]
    return max(fitting, key=lambda install: (install.version, install.build), default=None)


def installation(inf: Inf, install: Install) -> Installation:
    """What a chosen section does.

    Raises:
        InstallError: it asks for something that cannot be done, such as a service without an image.
    """
    return Installation(
        section=install.section.name,
        family=install.family,
        files=tuple(_files(inf, install)),
        services=tuple(_service(inf, service) for service in services(inf, install)),
    )


def source_files(inf: Inf, architecture: str) -> tuple[str, ...]:
    """Names of the files that `[SourceDisksFiles]` lists for an architecture: what belongs to the package."""
    names: dict[str, str] = {}
    for section_name in ("SourceDisksFiles", f"SourceDisksFiles.{architecture}"):
        section = inf.section(section_name)
        for entry in section.entries if section else ():
            if entry.key is not None and entry.key.text:
                names.setdefault(entry.name, entry.key.text)
    return tuple(names.values())


def _files(inf: Inf, install: Install) -> list[CopiedFile]:
    files: list[CopiedFile] = []
    for entry in install.section.all("CopyFiles"):
        for field in entry.fields:
            if field.text.startswith("@"):
                name = field.text[1:]
                files.append(CopiedFile(name, name, *_destination(inf, "DefaultDestDir", entry)))
                continue
            section = inf.section(field.text)
            if section is None:
                raise InstallError(f"line {entry.line}: there is no section '{field.text}'")
            where = _destination(inf, field.text, entry)
            for copied in section.entries:
                name = copied.text(0)
                files.append(CopiedFile(copied.text(1) or name, name, *where))
    return files


def _destination(inf: Inf, name: str, entry: Entry) -> tuple[str, str]:
    section = inf.section("DestinationDirs")
    found = (section.first(name) or section.first("DefaultDestDir")) if section else None
    if found is None or not found.text(0):
        raise InstallError(f"line {entry.line}: [DestinationDirs] does not say where '{name}' goes")
    return found.text(0), found.text(1).strip("\\")


def _service(inf: Inf, service: Service) -> ServiceInstall:
    section = service.section
    binary = section.text("ServiceBinary")
    if not binary:
        raise InstallError(f"line {section.line}: the service '{service.name}' has no ServiceBinary")
    dependencies = section.first("Dependencies")
    return ServiceInstall(
        name=service.name,
        display_name=section.text("DisplayName"),
        description=section.text("Description"),
        type=_number(section, "ServiceType"),
        start=_number(section, "StartType"),
        error_control=_number(section, "ErrorControl"),
        binary=binary,
        group=section.text("LoadOrderGroup"),
        dependencies=tuple(field.text for field in dependencies.fields) if dependencies else (),
        writes=tuple(_writes(inf, service)),
    )


def _number(section: Section, key: str) -> int:
    value = number(section.text(key))
    if value is None or value < 0:
        raise InstallError(
            f"line {section.line}: '{key}' of '{section.name}' is '{section.text(key)}', no number"
        )
    return value


def _writes(inf: Inf, service: Service) -> list[RegistryWrite]:
    for entry in service.section.all("AddReg"):
        for field in entry.fields:
            if inf.section(field.text) is None:
                raise InstallError(f"line {entry.line}: there is no section '{field.text}'")
    for section in referenced(inf, service.section, "DelReg"):
        raise InstallError(f"line {section.line}: DelReg of a service is not supported")
    writes = []
    for value in registry(inf, service):
        line = value.entry.line
        if value.root != "HKR":
            raise InstallError(f"line {line}: '{value.root}' is not the service's own key (HKR)")
        if value.flags is None or value.flags & _UNSUPPORTED or value.flags & _TYPE_MASK not in _TYPES:
            raise InstallError(f"line {line}: the flags '{value.entry.text(3)}' are not supported")
        kind = _TYPES[value.flags & _TYPE_MASK]
        only_key = bool(value.flags & FLG_ADDREG_KEYONLY)
        data = None if only_key else _data(kind, [field.text for field in value.entry.fields[4:]], line)
        keeps = bool(value.flags & FLG_ADDREG_NOCLOBBER)
        writes.append(RegistryWrite(value.key, value.name, kind, data, keeps))
    return writes


def _data(kind: int, fields: list[str], line: int) -> Data:
    if kind in (REG_SZ, REG_EXPAND_SZ):
        return fields[0] if fields else ""
    if kind == REG_MULTI_SZ:
        return tuple(fields)
    if kind == REG_DWORD and len(fields) <= 1:
        value = number(fields[0]) if fields and fields[0] else 0
        if value is None or not -(1 << 31) <= value < 1 << 32:
            raise InstallError(f"line {line}: '{fields[0]}' is no 32-bit number")
        return value & 0xFFFF_FFFF
    try:
        data = bytes(int(field, 16) for field in fields if field)
    except ValueError as error:
        raise InstallError(f"line {line}: the data is no list of bytes in hexadecimal") from error
    if kind != REG_DWORD:
        return data
    if len(data) != 4:
        raise InstallError(f"line {line}: a REG_DWORD of {len(data)} bytes")
    return int.from_bytes(data, "little")
