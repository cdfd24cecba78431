"""An INF as data: sections, their entries, and the strings that its `%tokens%` stand for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_TOKEN = re.compile(r"%([^%]*)%")


@dataclass(frozen=True, slots=True)
class Field:
    """One value of an entry.

    Args:
        raw: as it is written, without the quotation marks that enclose it or a part of it.
        text: with its tokens replaced; a token without a string, and a directory number such as `%13%`, stays.
    """

    raw: str
    text: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names between percent signs that must be strings: directory numbers and `%%` are none."""
        return tuple(name for name in _TOKEN.findall(self.raw) if name and not name.isdigit())


@dataclass(frozen=True, slots=True)
class Entry:
    """One logical line of a section: `key = fields`, or only fields. `line` counts from 1, where the line begins."""

    line: int
    key: Field | None
    fields: tuple[Field, ...]

    @property
    def name(self) -> str:
        """The key in lower case, empty for a line without one."""
        return self.key.text.lower() if self.key else ""

    def text(self, index: int) -> str:
        """The field at that place, empty if there is none: INFs leave trailing fields out."""
        return self.fields[index].text if index < len(self.fields) else ""


@dataclass(frozen=True, slots=True)
class Section:
    """All lines of one name; Windows merges sections that occur more than once, and so does the parser."""

    name: str
    line: int
    entries: tuple[Entry, ...]

    def all(self, key: str) -> list[Entry]:
        """The entries with that key, in any case."""
        return [entry for entry in self.entries if entry.name == key.lower()]

    def first(self, key: str) -> Entry | None:
        """The first entry with that key."""
        return next(iter(self.all(key)), None)

    def text(self, key: str) -> str:
        """The first field of the first entry with that key, empty if there is none."""
        entry = self.first(key)
        return entry.text(0) if entry else ""


@dataclass(frozen=True, slots=True)
class SyntaxProblem:
    """Something that is no INF syntax: where, and one sentence."""

    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Inf:
    """A parsed INF. Names of sections and strings are compared without regard to case."""

    sections: Mapping[str, Section]
    """By name in lower case, in the order of their first lines."""
    strings: Mapping[str, str]
    """Of `[Strings]`, by name in lower case."""
    problems: Sequence[SyntaxProblem] = ()

    def section(self, name: str) -> Section | None:
        """The section of that name."""
        return self.sections.get(name.lower())

    def entries(self) -> Iterator[tuple[Section, Entry]]:
        """Every line of the file with its section."""
        for section in self.sections.values():
            for entry in section.entries:
                yield section, entry


def expand(raw: str, strings: Mapping[str, str]) -> str:
    """Replace `%token%` by its string; `%%` is one percent sign, what is no string stays as it is."""

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if not name:
            return "%"
        return strings.get(name.lower(), match[0])

    return _TOKEN.sub(replace, raw)
