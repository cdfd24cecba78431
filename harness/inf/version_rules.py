"""Rules about `[Version]`: what Windows wants to know of a package before it looks at its content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from harness.inf.filters import CLASSES
from harness.inf.findings import Broken, Rule, Severity, Subject
from vm.inf.document import Entry

_VERSION = "Windows driver documentation, INF Version section"
_PRIMITIVE = "Windows driver documentation, Creating a new primitive driver"
_MINIFILTER = "Windows driver documentation, Creating an INF file for a minifilter driver"
_DRIVERVER = "Windows driver documentation, INF DriverVer directive; Inf2Cat error 22.9.7"

_KEYS = ("Signature", "Class", "ClassGuid", "Provider", "DriverVer", "CatalogFile", "PnpLockdown")
_LARGEST_PART = 65535


def _line(subject: Subject) -> int:
    section = subject.inf.section("Version")
    return section.line if section else 0


def _entry(subject: Subject, key: str) -> Entry | None:
    """The entry of `[Version]` with that key; a catalog may be named for one architecture."""
    section = subject.inf.section("Version")
    if section is None:
        return None
    found = section.first(key)
    if found is None and key == "CatalogFile":
        found = section.first(f"CatalogFile.NT{subject.architecture}") or section.first("CatalogFile.NT")
    return found


def _keys(subject: Subject) -> Iterator[Broken]:
    if subject.inf.section("Version") is None:
        yield Broken(0, "there is no section [Version]")
        return
    for key in _KEYS:
        entry = _entry(subject, key)
        if entry is None or not entry.text(0):
            line = entry.line if entry else _line(subject)
            yield Broken(line, f"[Version] does not say '{key}'")


def _signature(subject: Subject) -> Iterator[Broken]:
    entry = _entry(subject, "Signature")
    if entry and entry.text(0) and entry.text(0).lower() != "$windows nt$":
        yield Broken(entry.line, f"the signature is '{entry.text(0)}'")


def _class(subject: Subject) -> Iterator[Broken]:
    name, guid = _entry(subject, "Class"), _entry(subject, "ClassGuid")
    if not name or not guid:
        return
    known = CLASSES.get(name.text(0).lower())
    written = guid.text(0).strip("{}").lower()
    if known is None:
        yield Broken(name.line, f"the class '{name.text(0)}' is no class of file system filters")
    elif written != known.class_guid:
        yield Broken(
            guid.line,
            f"the class '{known.setup_class}' does not have the GUID {guid.text(0)}",
            hint=f"write {{{known.class_guid}}}",
        )


def _lockdown(subject: Subject) -> Iterator[Broken]:
    entry = _entry(subject, "PnpLockdown")
    if entry and entry.text(0) and entry.text(0) != "1":
        yield Broken(entry.line, f"PnpLockdown is '{entry.text(0)}'")


def _catalog(subject: Subject) -> Iterator[Broken]:
    entry = _entry(subject, "CatalogFile")
    if entry and entry.text(0) and not re.fullmatch(r"[\w.\-]+\.cat", entry.text(0), re.IGNORECASE):
        yield Broken(entry.line, f"'{entry.text(0)}' is no name of a catalog")


def _driver_version(subject: Subject) -> Iterator[Broken]:
    entry = _entry(subject, "DriverVer")
    if entry is None or not entry.text(0):
        return
    match = re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})", entry.text(0))
    try:
        day = date(int(match[3]), int(match[1]), int(match[2])) if match else None
    except ValueError:
        day = None
    if day is None:
        yield Broken(entry.line, f"DriverVer begins with '{entry.text(0)}', which is no date mm/dd/yyyy")
    elif day > subject.today:
        yield Broken(
            entry.line,
            f"DriverVer is of {day.isoformat()}, and today is {subject.today.isoformat()} in UTC: Inf2Cat refuses it"
            " with 22.9.7",
            hint="stamp the date in UTC, not the local one, or run Inf2Cat with /uselocaltime",
        )
    parts = entry.text(1).split(".")
    numeric = all(part.isdigit() and int(part) <= _LARGEST_PART for part in parts)
    if not numeric or len(parts) != 4:
        yield Broken(
            entry.line,
            f"the version '{entry.text(1)}' in DriverVer is not four numbers up to {_LARGEST_PART}",
            hint="stamp it: './inv build' takes date and numbers from the version header",
        )


RULES = (
    Rule(
        "version-keys",
        Severity.ERROR,
        "[Version] names " + ", ".join(_KEYS) + ".",
        "add it: a primitive driver must say it",
        _PRIMITIVE,
        _keys,
    ),
    Rule(
        "version-signature",
        Severity.ERROR,
        "The signature is '$Windows NT$'.",
        'write Signature = "$Windows NT$"',
        _VERSION,
        _signature,
    ),
    Rule(
        "version-class",
        Severity.ERROR,
        "Class and ClassGuid are those of one class of file system filters.",
        "take both from the list of file system filter driver classes",
        "Windows driver documentation, File system filter driver classes and class GUIDs",
        _class,
    ),
    Rule(
        "version-lockdown",
        Severity.ERROR,
        "PnpLockdown is 1: nobody replaces the driver's files behind Windows' back.",
        "write PnpLockdown = 1",
        _MINIFILTER,
        _lockdown,
    ),
    Rule(
        "version-catalog",
        Severity.ERROR,
        "CatalogFile is the plain name of a .cat file beside the INF.",
        "write the name of the driver with the extension .cat",
        _VERSION,
        _catalog,
    ),
    Rule(
        "driverver",
        Severity.ERROR,
        "DriverVer has a date, mm/dd/yyyy and not in the future in UTC, and four numbers.",
        "write DriverVer = mm/dd/yyyy,w.x.y.z",
        _DRIVERVER,
        _driver_version,
    ),
)
