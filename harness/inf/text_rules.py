"""Rules about the file itself: syntax, strings, sections that are named and do not exist or exist and are not named."""

from __future__ import annotations

from collections.abc import Iterator

from harness.inf.findings import Broken, Rule, Severity, Subject
from vm.inf.document import Section
from vm.inf.install import installs

_SYNTAX = "Windows driver documentation, General syntax rules for INF files"
_STRINGS = "Windows driver documentation, INF Strings section"

_REFERRING = ("addreg", "delreg", "copyfiles", "delfiles", "renfiles", "addservice", "addeventlog")
_WELL_KNOWN = {
    "version",
    "strings",
    "sourcedisksnames",
    "sourcedisksfiles",
    "destinationdirs",
    "manufacturer",
}
_ONCE = ("servicetype", "starttype", "errorcontrol", "servicebinary", "loadordergroup", "displayname")


def _syntax(subject: Subject) -> Iterator[Broken]:
    for problem in subject.inf.problems:
        yield Broken(problem.line, problem.message)


def _undefined_strings(subject: Subject) -> Iterator[Broken]:
    for _, entry in subject.inf.entries():
        for field in (*([entry.key] if entry.key else []), *entry.fields):
            for token in field.tokens:
                if token.lower() not in subject.inf.strings:
                    yield Broken(entry.line, f"the string '%{token}%' is used and not defined")


def _unused_strings(subject: Subject) -> Iterator[Broken]:
    used = {
        token.lower()
        for _, entry in subject.inf.entries()
        for field in (*([entry.key] if entry.key else []), *entry.fields)
        for token in field.tokens
    }
    section = subject.inf.section("Strings")
    for entry in section.entries if section else ():
        if entry.key and entry.name not in used:
            yield Broken(entry.line, f"the string '{entry.key.text}' is defined and not used")


def _repeated(subject: Subject) -> Iterator[Broken]:
    for section in subject.inf.sections.values():
        seen: set[str] = set()
        for entry in section.entries:
            if not entry.key or not _is_single(section, entry.name):
                continue
            if entry.name in seen:
                yield Broken(
                    entry.line, f"'{entry.key.text}' stands a second time in the section '{section.name}'"
                )
            seen.add(entry.name)


def _is_single(section: Section, key: str) -> bool:
    return section.name.lower() in ("version", "strings") or key in _ONCE


def _references(subject: Subject) -> Iterator[tuple[int, str, str]]:
    """Line, directive and name of every reference to a section."""
    for _, entry in subject.inf.entries():
        if entry.name not in _REFERRING or entry.key is None:
            continue
        fields = entry.fields[2:] if entry.name == "addservice" else entry.fields
        for field in fields:
            if field.text and not field.text.startswith("@"):
                yield entry.line, entry.key.text, field.text


def _missing_sections(subject: Subject) -> Iterator[Broken]:
    for line, directive, name in _references(subject):
        if subject.inf.section(name) is None:
            yield Broken(line, f"{directive} names the section '{name}', which does not exist")


def _unreferenced_sections(subject: Subject) -> Iterator[Broken]:
    known = {name.lower() for _, _, name in _references(subject)} | _WELL_KNOWN
    known |= {
        f"{install.section.name.lower()}{suffix}"
        for install in installs(subject.inf)
        for suffix in ("", ".services")
    }
    for name, section in subject.inf.sections.items():
        if name not in known and not name.startswith(("strings.", "sourcedisksnames.", "sourcedisksfiles.")):
            yield Broken(section.line, f"nothing refers to the section '{section.name}'")


RULES = (
    Rule(
        "syntax",
        Severity.ERROR,
        "An INF is ASCII, or UTF-16 with a byte order mark, and every line belongs to a section.",
        "save what is not ASCII as UTF-16 with a byte order mark; close brackets and quotation marks",
        _SYNTAX,
        _syntax,
    ),
    Rule(
        "string-undefined",
        Severity.ERROR,
        "Every %string% is defined in [Strings].",
        "define it in [Strings], or write %% for a percent sign",
        _STRINGS,
        _undefined_strings,
    ),
    Rule(
        "string-unused",
        Severity.WARNING,
        "Every string of [Strings] is used.",
        "remove it",
        _STRINGS,
        _unused_strings,
    ),
    Rule(
        "repeated",
        Severity.ERROR,
        "What can have one value only is said once.",
        "remove one of them: which one counts is not documented",
        _SYNTAX,
        _repeated,
    ),
    Rule(
        "section-missing",
        Severity.ERROR,
        "Every section that a directive names exists.",
        "correct the name or write the section",
        _SYNTAX,
        _missing_sections,
    ),
    Rule(
        "section-unreferenced",
        Severity.WARNING,
        "Every section is one that Windows looks for or that a directive names.",
        "remove it, or refer to it",
        _SYNTAX,
        _unreferenced_sections,
    ),
)
