"""The install sections of a minifilter's INF, followed to the services and registry values that they make."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass

from vm.inf.document import Entry, Inf, Section

STORE_BUILD = 25952
"""From this build on (Windows 11 24H2) images stay in the driver store and instances lie under `Parameters`."""

DIRID_DRIVERS = "12"
DIRID_STORE = "13"

_NAME = re.compile(r"^default(install|uninstall)(?:\.(.*?))?(\.services)?$", re.IGNORECASE)
_DECORATION = re.compile(r"^nt([a-z0-9]*)(?:\.(.*))?$", re.IGNORECASE)


class Family(enum.Enum):
    """Which Windows an install section is for."""

    STORE = "Windows 11 24H2 and later"
    DRIVERS = "Windows before 11 24H2"

    @property
    def directory(self) -> str:
        """The directory number that its image lives in."""
        return DIRID_STORE if self is Family.STORE else DIRID_DRIVERS

    @property
    def instances(self) -> str:
        """The key of the instances below the service's key."""
        return "Parameters\\Instances" if self is Family.STORE else "Instances"


@dataclass(frozen=True, slots=True)
class Install:
    """One `[DefaultInstall…]` or `[DefaultUninstall…]` section.

    Args:
        section: the section.
        uninstall: whether it is the latter.
        architecture: of its decoration in lower case ("amd64"), empty if it has none.
        build: lowest build of its decoration, 0 if it names none.
        version: lowest (major, minor) version of its decoration, (0, 0) if it names none.
    """

    section: Section
    uninstall: bool
    architecture: str
    build: int
    version: tuple[int, int] = (0, 0)

    @property
    def family(self) -> Family:
        return Family.STORE if self.build >= STORE_BUILD else Family.DRIVERS


@dataclass(frozen=True, slots=True)
class Service:
    """One AddService directive that leads to a section."""

    entry: Entry
    name: str
    section: Section


@dataclass(frozen=True, slots=True)
class RegistryValue:
    """One line of an AddReg section: root, key, name, type flags (0 = string) and data, tokens replaced."""

    entry: Entry
    root: str
    key: str
    name: str
    flags: int | None
    """None if what is there is no number."""
    data: str

    @property
    def number(self) -> int | None:
        """The data as a number, None if it is none."""
        return number(self.data)


def number(text: str) -> int | None:
    """A number as INFs write it, decimal or with 0x; None if it is none."""
    try:
        return int(text, 16) if text.lower().startswith("0x") else int(text)
    except ValueError:
        return None


def catalog_file(inf: Inf, architecture: str) -> str:
    """Name of the catalog that `[Version]` names for an architecture ("amd64"), empty if it names none."""
    version = inf.section("Version")
    if version is None:
        return ""
    keys = (f"CatalogFile.NT{architecture}", "CatalogFile.NT", "CatalogFile")
    return next((name for key in keys if (name := version.text(key))), "")


def installs(inf: Inf) -> list[Install]:
    """All install and uninstall sections, without their `.Services`."""
    found = []
    for section in inf.sections.values():
        match = _NAME.match(section.name)
        if match is None or match[3]:
            continue
        decoration = _DECORATION.match(match[2] or "")
        version = (decoration[2] or "").split(".") if decoration else []
        # NTarch.major.minor.type.suite.build
        build = number(version[4]) if len(version) > 4 else 0
        found.append(
            Install(
                section,
                match[1].lower() == "uninstall",
                decoration[1].lower() if decoration else "",
                build or 0,
                (_part(version, 0), _part(version, 1)),
            )
        )
    return found


def _part(version: list[str], index: int) -> int:
    return (number(version[index]) or 0) if len(version) > index and version[index] else 0


def for_architecture(inf: Inf, architecture: str) -> list[Install]:
    """The install sections (not uninstall) that Windows of this architecture may choose from."""
    return [found for found in installs(inf) if not found.uninstall and found.architecture == architecture]


def services_section(inf: Inf, install: Install) -> Section | None:
    """The `.Services` section that belongs to an install section."""
    return inf.section(f"{install.section.name}.Services")


def services(inf: Inf, install: Install) -> list[Service]:
    """The services that an install section adds and whose sections exist."""
    section = services_section(inf, install)
    added = []
    for entry in section.all("AddService") if section else []:
        target = inf.section(entry.text(2))
        if target is not None:
            added.append(Service(entry, entry.text(0), target))
    return added


def referenced(inf: Inf, section: Section, directive: str) -> Iterator[Section]:
    """The sections that a directive such as AddReg names; those that do not exist are left out."""
    for entry in section.all(directive):
        for field in entry.fields:
            target = inf.section(field.text)
            if target is not None:
                yield target


def registry(inf: Inf, service: Service) -> list[RegistryValue]:
    """The registry values that a service's AddReg sections write."""
    values = []
    for section in referenced(inf, service.section, "AddReg"):
        for entry in section.entries:
            values.append(
                RegistryValue(
                    entry,
                    entry.text(0).upper(),
                    entry.text(1).strip("\\"),
                    entry.text(2),
                    number(entry.text(3)) if entry.text(3) else 0,
                    entry.text(4),
                )
            )
    return values


def copied_files(inf: Inf, install: Install) -> list[tuple[str, str, Entry]]:
    """What an install section copies: name of the file in lower case, directory number, and the line that says so."""
    files = []
    for entry in install.section.all("CopyFiles"):
        for field in entry.fields:
            if field.text.startswith("@"):
                files.append((field.text[1:].lower(), _directory(inf, "DefaultDestDir"), entry))
                continue
            section = inf.section(field.text)
            for copied in section.entries if section else ():
                # file, source file if its name differs, …
                name = copied.text(1) or copied.text(0)
                files.append((name.lower(), _directory(inf, field.text), copied))
    return files


def _directory(inf: Inf, name: str) -> str:
    section = inf.section("DestinationDirs")
    if section is None:
        return ""
    return section.text(name) or section.text("DefaultDestDir")
