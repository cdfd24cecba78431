"""Rules about what is installed where: decorated sections, both families of Windows, files and their directories."""

from __future__ import annotations

from collections.abc import Iterator

from harness.inf.findings import Broken, Rule, Severity, Subject
from vm.inf.document import Entry
from vm.inf.install import (
    STORE_BUILD,
    Family,
    copied_files,
    for_architecture,
    installs,
    services_section,
)

_PRIMITIVE = "Windows driver documentation, Creating a new primitive driver"
_MINIFILTER = "Windows driver documentation, Creating an INF file for a minifilter driver"
_FILES = "Windows driver documentation, INF SourceDisksFiles section"


def _decorated(subject: Subject) -> Iterator[Broken]:
    for install in installs(subject.inf):
        if not install.architecture:
            yield Broken(install.section.line, f"the section '{install.section.name}' names no architecture")
    manufacturer = subject.inf.section("Manufacturer")
    if manufacturer is not None:
        yield Broken(
            manufacturer.line,
            "a minifilter serves no device, and the INF has a section [Manufacturer]",
            hint="remove it and its models",
        )
    if not for_architecture(subject.inf, subject.architecture):
        yield Broken(0, f"there is no section [DefaultInstall.NT{subject.architecture}]")


def _families(subject: Subject) -> Iterator[Broken]:
    found = {install.family for install in for_architecture(subject.inf, subject.architecture)}
    if not found:
        return
    if Family.STORE not in found:
        yield Broken(
            0,
            f"there is no install section for {Family.STORE.value}",
            hint=f"add [DefaultInstall.NT{subject.architecture}.10.0...{STORE_BUILD}]",
        )
    if Family.DRIVERS not in found:
        yield Broken(
            0,
            f"there is no install section for {Family.DRIVERS.value}",
            hint=f"add [DefaultInstall.NT{subject.architecture}]",
        )


def _install_services(subject: Subject) -> Iterator[Broken]:
    for install in for_architecture(subject.inf, subject.architecture):
        section = services_section(subject.inf, install)
        if section is None or not section.all("AddService"):
            yield Broken(
                install.section.line,
                f"the section '{install.section.name}' has no '.Services' that adds a service",
            )


def _uninstall(subject: Subject) -> Iterator[Broken]:
    for install in installs(subject.inf):
        if install.uninstall and install.section.text("LegacyUninstall") != "1":
            yield Broken(
                install.section.line, f"the section '{install.section.name}' does not say LegacyUninstall=1"
            )


def _directories(subject: Subject) -> Iterator[Broken]:
    for install in for_architecture(subject.inf, subject.architecture):
        wanted = install.family.directory
        files = copied_files(subject.inf, install)
        if not files:
            yield Broken(install.section.line, f"the section '{install.section.name}' copies no file")
        for name, directory, entry in files:
            if directory != wanted:
                found = f"to the directory {directory}" if directory else "nowhere"
                yield Broken(
                    entry.line,
                    f"'{name}' goes {found}, and for {install.family.value} it must go to {wanted}",
                    hint=f"let [DestinationDirs] send it to {wanted}",
                )


def _sources(subject: Subject) -> Iterator[Broken]:
    inf = subject.inf
    disks = {
        entry.name
        for suffix in ("", f".{subject.architecture}")
        if (section := inf.section(f"SourceDisksNames{suffix}"))
        for entry in section.entries
    }
    listed: dict[str, Entry] = {}
    for suffix in ("", f".{subject.architecture}"):
        section = inf.section(f"SourceDisksFiles{suffix}")
        for entry in section.entries if section else ():
            listed[entry.name] = entry
            if entry.text(0) not in disks:
                yield Broken(
                    entry.line,
                    f"'{entry.name}' lies on the disk '{entry.text(0)}', which [SourceDisksNames] does not know",
                )
    copied: dict[str, Entry] = {}
    for install in for_architecture(inf, subject.architecture):
        for name, _, entry in copied_files(inf, install):
            copied.setdefault(name, entry)
    for name, entry in copied.items():
        if name not in listed:
            yield Broken(entry.line, f"'{name}' is copied, and [SourceDisksFiles] does not list it")
    for name, entry in listed.items():
        if name not in copied:
            yield Broken(
                entry.line,
                f"[SourceDisksFiles] lists '{name}', which nothing copies",
                hint="remove it",
                severity=Severity.WARNING,
            )


RULES = (
    Rule(
        "decorated",
        Severity.ERROR,
        "Only [DefaultInstall] sections that name the architecture, and no [Manufacturer].",
        "write [DefaultInstall.NTamd64] or [DefaultInstall.NTarm64]",
        _PRIMITIVE,
        _decorated,
    ),
    Rule(
        "families",
        Severity.ERROR,
        "There is an install section for Windows from build 25952 on, and one for Windows before it.",
        "add the section",
        _MINIFILTER,
        _families,
    ),
    Rule(
        "install-services",
        Severity.ERROR,
        "Every install section has a '.Services' section that adds the service.",
        "add AddService there",
        _MINIFILTER,
        _install_services,
    ),
    Rule(
        "legacy-uninstall",
        Severity.ERROR,
        "A [DefaultUninstall] section is for old Windows only and says so.",
        "write LegacyUninstall = 1, or remove the section: new Windows uninstalls with pnputil",
        f"{_PRIMITIVE}; InfVerif 1422",
        _uninstall,
    ),
    Rule(
        "directories",
        Severity.ERROR,
        "Files go to the driver store (13) from build 25952 on, and to the drivers (12) before it.",
        "correct [DestinationDirs]",
        _MINIFILTER,
        _directories,
    ),
    Rule(
        "source-files",
        Severity.ERROR,
        "Every file that is copied is in [SourceDisksFiles], on a disk of [SourceDisksNames].",
        "list it there",
        _FILES,
        _sources,
    ),
)
