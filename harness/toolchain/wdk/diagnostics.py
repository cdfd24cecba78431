"""What MSBuild and the tools below it complain about: one object per complaint, counted by code, and as SARIF."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]

# "origin(line,column): [subcategory] severity code: text [project]", the form that MSBuild itself recognises.
_LINE = re.compile(
    r"^\s*(?:\d+>)?\s*(?P<origin>[^\r\n]*?)\s*:\s*(?:[\w-]+ )?(?P<severity>error|warning)\s+"
    r"(?P<code>[A-Z]{1,6}\d{1,5})\s*:\s*(?P<text>.*?)\s*(?:\[(?P<project>[^\[\]]+proj)\])?\s*$",
    re.IGNORECASE,
)
_PLACE = re.compile(r"^(?P<file>.*?)\((?P<line>\d+)(?:,(?P<column>\d+))?[^)]*\)$")
# Warnings of /analyze: C6xxx and C28xxx of PREfast, C26xxx of the Core Guidelines, C30xxx of drivers.dll.
_ANALYSIS = re.compile(r"C(6\d{3}|(26|28|30)\d{3})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One complaint. `file` is as the tool wrote it ("LINK" for the linker); `line` and `column` are 0 if it named none."""

    severity: Severity
    code: str
    text: str
    file: str
    line: int = 0
    column: int = 0

    @property
    def of_analysis(self) -> bool:
        """Whether code analysis found it, rather than the compiler or the linker."""
        return _ANALYSIS.fullmatch(self.code) is not None

    def render(self) -> str:
        """One line, in the form that editors follow."""
        place = f"{self.file}({self.line})" if self.line else self.file
        return f"{place}: {self.severity} {self.code}: {self.text}"


def parse(output: str) -> tuple[Diagnostic, ...]:
    """All complaints of a log in their order; one that is repeated, as in MSBuild's summary, counts once."""
    found: dict[Diagnostic, None] = {}
    for line in output.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        place = _PLACE.match(match["origin"])
        found.setdefault(
            Diagnostic(
                "error" if match["severity"].lower() == "error" else "warning",
                match["code"].upper(),
                match["text"],
                place["file"] if place else match["origin"],
                int(place["line"]) if place else 0,
                int(place["column"] or 0) if place else 0,
            )
        )
    return tuple(found)


def summary(diagnostics: Iterable[Diagnostic]) -> str:
    """How many of each code, the most frequent first: "C28182 (3), C6011"."""
    counted = Counter(diagnostic.code for diagnostic in diagnostics)
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{code} ({count})" if count > 1 else code for code, count in ordered)


def sarif(diagnostics: Sequence[Diagnostic], tool: str, version: str) -> str:
    """The complaints as a SARIF 2.1.0 log, which code hosts and editors read."""
    rules = sorted({diagnostic.code for diagnostic in diagnostics})
    return json.dumps(
        {
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [
                {
                    "tool": {
                        "driver": {
                            "name": tool,
                            "version": version,
                            "rules": [{"id": rule} for rule in rules],
                        }
                    },
                    "results": [_result(diagnostic) for diagnostic in diagnostics],
                }
            ],
        },
        indent=1,
    )


def _result(diagnostic: Diagnostic) -> dict[str, object]:
    region = {"startLine": max(1, diagnostic.line)}
    if diagnostic.column:
        region["startColumn"] = diagnostic.column
    uri = diagnostic.file.replace("\\", "/")
    return {
        "ruleId": diagnostic.code,
        "level": diagnostic.severity,
        "message": {"text": diagnostic.text},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": f"file:///{uri}" if re.match(r"[A-Za-z]:/", uri) else uri},
                    "region": region,
                }
            }
        ],
    }
