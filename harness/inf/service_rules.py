"""Rules about the service that loads the filter: image, types, dependencies, load order group."""

from __future__ import annotations

from collections.abc import Iterator

from harness.inf.filters import GROUPS
from harness.inf.findings import Broken, Rule, Severity, Subject
from vm.inf.document import Section
from vm.inf.install import (
    Install,
    Service,
    copied_files,
    for_architecture,
    number,
    registry,
    services,
)

_ADD_SERVICE = "Windows driver documentation, INF AddService directive"
_MINIFILTER = "Windows driver documentation, Creating an INF file for a minifilter driver"

_FILE_SYSTEM_DRIVER = 2
_BOOT, _DISABLED = 0, 4
_ERROR_CONTROL = range(4)
_ASSOCIATED = 0x2


def each_service(subject: Subject) -> Iterator[tuple[Install, Service]]:
    """Every service of the architecture, with the install section that adds it."""
    for install in for_architecture(subject.inf, subject.architecture):
        for service in services(subject.inf, install):
            yield install, service


def _line(section: Section, key: str) -> int:
    entry = section.first(key)
    return entry.line if entry else section.line


def _binary(subject: Subject) -> Iterator[Broken]:
    for install, service in each_service(subject):
        binary = service.section.text("ServiceBinary")
        prefix = f"%{install.family.directory}%\\"
        line = _line(service.section, "ServiceBinary")
        if not binary.startswith(prefix):
            yield Broken(
                line,
                f"ServiceBinary is '{binary}', and for {install.family.value} it must begin with '{prefix}'",
            )
        elif binary[len(prefix) :].lower() not in {name for name, _, _ in copied_files(subject.inf, install)}:
            yield Broken(
                line, f"'{install.section.name}' does not copy the image '{binary}'", hint="correct the name"
            )


def _types(subject: Subject) -> Iterator[Broken]:
    for _, service in each_service(subject):
        section = service.section
        kind = number(section.text("ServiceType"))
        if kind != _FILE_SYSTEM_DRIVER:
            yield Broken(
                _line(section, "ServiceType"),
                f"ServiceType is '{section.text('ServiceType')}'",
                hint="write 2, SERVICE_FILE_SYSTEM_DRIVER",
            )
        start = number(section.text("StartType"))
        if start is None or not _BOOT <= start <= _DISABLED:
            yield Broken(
                _line(section, "StartType"),
                f"StartType is '{section.text('StartType')}'",
                hint="write 3, SERVICE_DEMAND_START, or 0 to 4",
            )
        control = number(section.text("ErrorControl"))
        if control not in _ERROR_CONTROL:
            yield Broken(
                _line(section, "ErrorControl"),
                f"ErrorControl is '{section.text('ErrorControl')}'",
                hint="write 1, SERVICE_ERROR_NORMAL, or 0 to 3",
            )


def _dependencies(subject: Subject) -> Iterator[Broken]:
    for _, service in each_service(subject):
        entry = service.section.first("Dependencies")
        if entry is None or "fltmgr" not in {field.text.lower() for field in entry.fields}:
            yield Broken(
                _line(service.section, "Dependencies"),
                f"the service '{service.name}' does not depend on 'FltMgr'",
            )


def _group(subject: Subject) -> Iterator[Broken]:
    version = subject.inf.section("Version")
    setup_class = version.text("Class") if version else ""
    for _, service in each_service(subject):
        name = service.section.text("LoadOrderGroup")
        line = _line(service.section, "LoadOrderGroup")
        group = GROUPS.get(name.lower())
        if group is None:
            yield Broken(line, f"'{name}' is no load order group of file system filters")
        elif setup_class and group.setup_class.lower() != setup_class.lower():
            yield Broken(
                line,
                f"the load order group '{group.name}' belongs to the class '{group.setup_class}', and [Version] says"
                f" '{setup_class}'",
            )


def _flags(subject: Subject) -> Iterator[Broken]:
    for _, service in each_service(subject):
        flags = number(service.entry.text(1)) if service.entry.text(1) else 0
        if flags is None:
            yield Broken(
                service.entry.line, f"the flags of AddService are '{service.entry.text(1)}', no number"
            )
        elif flags & _ASSOCIATED:
            yield Broken(
                service.entry.line, "AddService calls the service the function driver of a device (flag 0x2)"
            )


def _same_service(subject: Subject) -> Iterator[Broken]:
    names = {service.name.lower(): service for _, service in each_service(subject)}
    if len(names) > 1:
        service = list(names.values())[-1]
        found = ", ".join(f"'{known.name}'" for known in names.values())
        yield Broken(service.entry.line, f"the install sections add services of different names: {found}")


def _roots(subject: Subject) -> Iterator[Broken]:
    seen: set[int] = set()
    for _, service in each_service(subject):
        for value in registry(subject.inf, service):
            if value.root != "HKR" and value.entry.line not in seen:
                seen.add(value.entry.line)
                yield Broken(value.entry.line, f"the registry root is '{value.root}'")


RULES = (
    Rule(
        "service-binary",
        Severity.ERROR,
        "ServiceBinary is the image that was copied, in the directory of its family of Windows.",
        "write %13%\\name.sys from build 25952 on and %12%\\name.sys before it",
        _MINIFILTER,
        _binary,
    ),
    Rule(
        "service-types",
        Severity.ERROR,
        "The service is a file system driver with a start type and an error control that exist.",
        "correct the number",
        _ADD_SERVICE,
        _types,
    ),
    Rule(
        "service-dependencies",
        Severity.ERROR,
        "The service depends on the Filter Manager.",
        'write Dependencies = "FltMgr"',
        _MINIFILTER,
        _dependencies,
    ),
    Rule(
        "service-group",
        Severity.ERROR,
        "LoadOrderGroup is a group of file system filters, the one of the class.",
        "take class and group from the same line of the list of classes",
        _MINIFILTER,
        _group,
    ),
    Rule(
        "service-flags",
        Severity.ERROR,
        "AddService does not associate the service with a device: a minifilter has none.",
        "leave the flags out",
        _ADD_SERVICE,
        _flags,
    ),
    Rule(
        "service-name",
        Severity.ERROR,
        "The service has the same name on every Windows.",
        "use one %string% for it",
        _ADD_SERVICE,
        _same_service,
    ),
    Rule(
        "registry-root",
        Severity.ERROR,
        "Registry values are written below the service's own key.",
        "write HKR: anything else breaks the isolation of the driver package",
        "Windows driver documentation, Driver package isolation; InfVerif /w",
        _roots,
    ),
)
