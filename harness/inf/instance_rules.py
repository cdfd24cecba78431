"""Rules about instances: where they lie in the registry, the default one, altitudes, flags, supported features."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from harness.inf.filters import GROUPS
from harness.inf.findings import Broken, Rule, Severity, Subject
from harness.inf.service_rules import each_service
from vm.inf.install import Family, Install, RegistryValue, Service, registry

_MINIFILTER = "Windows driver documentation, Creating an INF file for a minifilter driver"
_ALTITUDES = "Windows driver documentation, Load order groups and altitudes for minifilter drivers"
_REQUEST = "Windows driver documentation, Requesting altitudes for minifilter drivers"
_ADD_REG = "Windows driver documentation, INF AddReg directive"

_REG_SZ = 0x0
_REG_DWORD = 0x00010001
_FLAGS_MAXIMUM = 3
"""1: do not attach by itself; 2: do not attach by hand."""
_FEATURES = 0xF
"""Offload read 1, offload write 2, query open 4, bypass I/O 8 (SUPPORTED_FS_FEATURES_*)."""


@dataclass(slots=True)
class _Instance:
    altitude: RegistryValue | None = None
    flags: RegistryValue | None = None


@dataclass(slots=True)
class _Layout:
    """What one service section says of instances, under the key that its family reads."""

    install: Install
    service: Service
    line: int
    default: RegistryValue | None = None
    features: RegistryValue | None = None
    instances: dict[str, _Instance] = field(default_factory=dict)
    misplaced: list[RegistryValue] = field(default_factory=list)


def _layouts(subject: Subject) -> list[_Layout]:
    return [_layout(subject, install, service) for install, service in each_service(subject)]


def _layout(subject: Subject, install: Install, service: Service) -> _Layout:
    layout = _Layout(install, service, service.section.line)
    root = install.family.instances.lower()
    other = next(family for family in Family if family is not install.family).instances.lower()
    features = "parameters" if install.family is Family.STORE else ""
    for value in registry(subject.inf, service):
        key, name = value.key.lower(), value.name.lower()
        if name == "supportedfeatures":
            if key == features:
                layout.features = value
            else:
                layout.misplaced.append(value)
        elif key == root and name == "defaultinstance":
            layout.default = value
        elif key.startswith(root + "\\"):
            instance = layout.instances.setdefault(key[len(root) + 1 :], _Instance())
            if name == "altitude":
                instance.altitude = value
            elif name == "flags":
                instance.flags = value
        elif key == other or key.startswith(other + "\\"):
            layout.misplaced.append(value)
    return layout


def _places(subject: Subject) -> Iterator[Broken]:
    for layout in _layouts(subject):
        family = layout.install.family
        for value in layout.misplaced:
            yield Broken(
                value.entry.line,
                f"for {family.value} '{value.name}' does not belong to the key '{value.key or 'of the service'}'",
                hint=f"instances lie under '{family.instances}' there",
            )
        if not layout.instances:
            yield Broken(
                layout.line,
                f"the service '{layout.service.name}' has no instance for {family.value}: it will not load",
                hint=f'write HKR,"{family.instances}\\<name>","Altitude",0x0,"<altitude>"',
            )


def _default(subject: Subject) -> Iterator[Broken]:
    for layout in _layouts(subject):
        if not layout.instances:
            continue
        if layout.default is None:
            yield Broken(layout.line, f"no DefaultInstance is set for {layout.install.family.value}")
        elif layout.default.data.lower() not in layout.instances:
            yield Broken(
                layout.default.entry.line,
                f"DefaultInstance is '{layout.default.data}', and there is no instance of that name",
            )


def _altitudes(subject: Subject) -> Iterator[Broken]:
    for layout in _layouts(subject):
        group = GROUPS.get(layout.service.section.text("LoadOrderGroup").lower())
        taken: dict[Fraction, str] = {}
        for name, instance in layout.instances.items():
            value = instance.altitude
            if value is None:
                yield Broken(layout.line, f"the instance '{name}' has no altitude")
                continue
            altitude = _altitude(value)
            if altitude is None:
                yield Broken(
                    value.entry.line,
                    f"the altitude '{value.data}' is no decimal number with at most one point",
                )
                continue
            if group is not None and not group.holds(altitude):
                yield Broken(
                    value.entry.line,
                    f"the altitude {value.data} lies outside of the group '{group.name}'"
                    f" ({group.lowest}-{group.highest})",
                )
            if altitude in taken:
                yield Broken(
                    value.entry.line,
                    f"the instances '{taken[altitude]}' and '{name}' have the same altitude {value.data}",
                )
            taken[altitude] = name


def _altitude(value: RegistryValue) -> Fraction | None:
    if not re.fullmatch(r"\d+(\.\d+)?", value.data):
        return None
    return Fraction(value.data)


def _fractional(subject: Subject) -> Iterator[Broken]:
    seen: set[int] = set()
    for layout in _layouts(subject):
        for instance in layout.instances.values():
            value = instance.altitude
            altitude = _altitude(value) if value else None
            if value and altitude is not None and altitude.denominator == 1 and value.entry.line not in seen:
                seen.add(value.entry.line)
                yield Broken(
                    value.entry.line, f"the altitude {value.data} is an integer, which Microsoft assigns"
                )


def _instance_types(subject: Subject) -> Iterator[Broken]:
    for layout in _layouts(subject):
        strings = [layout.default, *(instance.altitude for instance in layout.instances.values())]
        for value in strings:
            if value is not None and value.flags != _REG_SZ:
                yield Broken(
                    value.entry.line,
                    f"'{value.name}' has the type '{value.entry.text(3)}', and it must be a string",
                    hint="write 0x00000000",
                )


def _flags(subject: Subject) -> Iterator[Broken]:
    for layout in _layouts(subject):
        for name, instance in layout.instances.items():
            value = instance.flags
            if value is None:
                yield Broken(layout.line, f"the instance '{name}' has no Flags")
            elif value.flags != _REG_DWORD or value.number is None or not 0 <= value.number <= _FLAGS_MAXIMUM:
                yield Broken(
                    value.entry.line,
                    f"the Flags of the instance '{name}' are '{value.data}', no DWORD from 0 to 3",
                )


def _features(subject: Subject) -> Iterator[Broken]:
    for layout in _layouts(subject):
        value = layout.features
        if value is None:
            yield Broken(
                layout.line,
                f"SupportedFeatures is not set for {layout.install.family.value}: the filter switches offloaded I/O off",
                severity=Severity.WARNING,
            )
        elif value.flags != _REG_DWORD or value.number is None or value.number & ~_FEATURES:
            yield Broken(
                value.entry.line, f"SupportedFeatures is '{value.data}', no DWORD of the known bits 0xF"
            )


def _agreement(subject: Subject) -> Iterator[Broken]:
    layouts = _layouts(subject)
    for layout in layouts[1:]:
        if _said(layout) != _said(layouts[0]):
            yield Broken(
                layout.line,
                f"for {layout.install.family.value} instances, altitudes, flags or features are others than for"
                f" {layouts[0].install.family.value}",
            )


def _said(layout: _Layout) -> tuple[object, ...]:
    return (
        layout.default.data.lower() if layout.default else None,
        layout.features.number if layout.features else None,
        {
            name: (
                _altitude(instance.altitude) if instance.altitude else None,
                instance.flags.number if instance.flags else None,
            )
            for name, instance in layout.instances.items()
        },
    )


RULES = (
    Rule(
        "instance-key",
        Severity.ERROR,
        "Instances lie under 'Parameters\\Instances' from build 25952 on, and under 'Instances' before it.",
        "move them",
        _MINIFILTER,
        _places,
    ),
    Rule(
        "default-instance",
        Severity.ERROR,
        "DefaultInstance names an instance that exists.",
        "use one %string% for both",
        _MINIFILTER,
        _default,
    ),
    Rule(
        "altitude",
        Severity.ERROR,
        "Every instance has an altitude of its own, a decimal number inside the load order group.",
        "choose one inside the group, with a fraction",
        _ALTITUDES,
        _altitudes,
    ),
    Rule(
        "altitude-assigned",
        Severity.WARNING,
        "Whole altitudes belong to those whom Microsoft assigned them to.",
        "use a fraction on test machines, and ask Microsoft for an altitude before the driver leaves them",
        _REQUEST,
        _fractional,
    ),
    Rule(
        "instance-types",
        Severity.ERROR,
        "DefaultInstance and Altitude are strings.",
        "write 0x00000000",
        _ADD_REG,
        _instance_types,
    ),
    Rule(
        "instance-flags",
        Severity.ERROR,
        "Every instance has Flags: a DWORD, 1 suppresses automatic attachment, 2 manual.",
        "write 0x00010001,0x0",
        _MINIFILTER,
        _flags,
    ),
    Rule(
        "supported-features",
        Severity.ERROR,
        "SupportedFeatures says which offloaded operations pass through the filter.",
        "write SupportedFeatures,0x00010001,0x3",
        _MINIFILTER,
        _features,
    ),
    Rule(
        "families-agree",
        Severity.ERROR,
        "Both families of Windows get the same instances.",
        "use the same %strings% in both sections",
        _MINIFILTER,
        _agreement,
    ),
)
