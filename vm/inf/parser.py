"""Reads an INF: encodings, sections, quotation marks, comments, continued lines.

Source: Windows driver documentation, "General syntax rules for INF files" and "INF Strings section". Nothing is refused
here: what is no INF syntax becomes a `SyntaxProblem`, so that a lint can tell all of it at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field

from vm.inf.document import Entry, Field, Inf, Section, SyntaxProblem, expand


@dataclass(slots=True)
class _RawEntry:
    line: int
    key: str | None
    fields: list[str]


@dataclass(slots=True)
class _RawSection:
    name: str
    line: int
    entries: list[_RawEntry] = field(default_factory=list)


def decode(data: bytes) -> tuple[str, list[SyntaxProblem]]:
    """The text of an INF file. Windows reads UTF-16 if there is a byte order mark, else the system's 8-bit code page.

    Without a mark only ASCII means the same on every machine: anything else is a problem, as is a UTF-8 mark, which
    the documentation of INF files does not know.
    """
    for mark, name in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(name), []
            except UnicodeDecodeError as error:
                text = data[len(mark) :].decode(name, errors="replace")
                return text, [SyntaxProblem(1, f"the file is not {name.upper()}: {error.reason}")]
    problems = []
    if data.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8) :]
        problems.append(SyntaxProblem(1, "the file begins with a UTF-8 byte order mark"))
    for number, line in enumerate(data.split(b"\n"), 1):
        at = next((index for index, byte in enumerate(line) if byte > 0x7F), None)
        if at is not None:
            problems.append(
                SyntaxProblem(
                    number, f"the byte 0x{line[at]:02X} is not ASCII and the file has no UTF-16 mark"
                )
            )
    return data.decode("utf-8", errors="replace"), problems


def read(data: bytes, architecture: str = "") -> Inf:
    """Decode and parse the content of an INF file; what is wrong with either is in `Inf.problems`.

    Args:
        architecture: as INFs call it ("amd64"); stands in for `$ARCH$`, as it does when the INF is stamped.
    """
    text, problems = decode(data)
    parsed = parse(text.replace("$ARCH$", architecture) if architecture else text)
    return Inf(parsed.sections, parsed.strings, (*problems, *parsed.problems))


def parse(text: str) -> Inf:
    """Parse the text of an INF file; never fails, see `Inf.problems`."""
    problems: list[SyntaxProblem] = []
    raw: dict[str, _RawSection] = {}
    current: _RawSection | None = None
    for number, line in _logical_lines(text, problems):
        if line.startswith("["):
            end = line.find("]")
            name = line[1:end].strip().strip('"') if end > 0 else ""
            if not name or line[end + 1 :].strip():
                problems.append(SyntaxProblem(number, f"'{line}' is no section name in brackets"))
                current = None
                continue
            current = raw.setdefault(name.lower(), _RawSection(name, number))
        elif current is None:
            problems.append(SyntaxProblem(number, f"'{line}' stands outside of any section"))
        else:
            current.entries.append(_entry(number, line))
    strings = _strings(raw.get("strings"))
    sections = {
        name: Section(
            section.name,
            section.line,
            tuple(
                _resolved(entry, {} if name.startswith("strings") else strings) for entry in section.entries
            ),
        )
        for name, section in raw.items()
    }
    return Inf(sections, strings, tuple(sorted(problems, key=lambda problem: problem.line)))


def _logical_lines(text: str, problems: list[SyntaxProblem]) -> list[tuple[int, str]]:
    """Lines without comments, with their continuations joined and without empty ones; numbers count from 1."""
    lines: list[tuple[int, str]] = []
    begun: tuple[int, str] | None = None
    for number, physical in enumerate(text.splitlines(), 1):
        content, quoted = _without_comment(physical)
        if quoted:
            problems.append(SyntaxProblem(number, "a quotation mark is not closed before the line ends"))
        start, before = begun or (number, "")
        joined = before + content.strip()
        if joined.endswith("\\") and not quoted:
            begun = (start, joined[:-1].rstrip() + " " if joined[:-1].strip() else "")
            continue
        begun = None
        if joined.strip():
            lines.append((start, joined.strip()))
    if begun is not None:
        problems.append(SyntaxProblem(begun[0], "the last line is continued, but the file ends"))
        if begun[1].strip():
            lines.append((begun[0], begun[1].strip()))
    return lines


def _without_comment(line: str) -> tuple[str, bool]:
    """The line up to a semicolon outside quotation marks, and whether a quotation mark is left open."""
    quoted = False
    for index, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        elif character == ";" and not quoted:
            return line[:index], False
    return line, quoted


def _entry(number: int, line: str) -> _RawEntry:
    parts, key = _split(line)
    return _RawEntry(number, key, parts)


def _split(line: str) -> tuple[list[str], str | None]:
    """Fields and key. The first equals sign outside quotation marks, before any comma, ends the key."""
    key: str | None = None
    fields: list[str] = []
    current: list[str] = []
    quoted = False
    index = 0
    while index < len(line):
        character = line[index]
        if character == '"':
            if quoted and line[index + 1 : index + 2] == '"':
                current.append('"')
                index += 1
            else:
                quoted = not quoted
                # Marks the edge of what is quoted: blanks inside it belong to the value.
                current.append("\0")
        elif not quoted and character == ",":
            fields.append(_finished(current))
            current = []
        elif not quoted and character == "=" and key is None and not fields:
            key = _finished(current)
            current = []
        else:
            current.append(character)
        index += 1
    last = _finished(current)
    if last or fields or "\0" in current:
        fields.append(last)
    return fields, key


def _finished(characters: list[str]) -> str:
    """A field without the blanks around it; those inside quotation marks stay."""
    return "".join(characters).strip().replace("\0", "")


def _strings(section: _RawSection | None) -> dict[str, str]:
    if section is None:
        return {}
    # The first definition counts; a second one is for a lint to tell.
    strings: dict[str, str] = {}
    for entry in section.entries:
        if entry.key is not None:
            strings.setdefault(entry.key.lower(), ",".join(entry.fields))
    return strings


def _resolved(entry: _RawEntry, strings: Mapping[str, str]) -> Entry:
    def resolve(raw: str) -> Field:
        return Field(raw, expand(raw, strings))

    return Entry(
        entry.line,
        resolve(entry.key) if entry.key is not None else None,
        tuple(resolve(raw) for raw in entry.fields),
    )
