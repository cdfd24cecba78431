"""What a lint says: findings, and the rules that they break."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vm.inf.document import Inf


class Severity(enum.Enum):
    """An error stops the build; a warning is told."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule at one place.

    Args:
        rule: id of the rule.
        severity: of this finding.
        line: from 1; 0 if it concerns the file.
        message: one sentence.
        hint: what to write instead.
        source: where the rule comes from.
    """

    rule: str
    severity: Severity
    line: int
    message: str
    hint: str
    source: str

    def render(self, name: str) -> str:
        """`name(line): error rule: sentence`, the form that editors and CI find."""
        place = f"{name}({self.line})" if self.line else name
        return f"{place}: {self.severity.value} {self.rule}: {self.message} ({self.hint})"


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule's own word on one place, before it is a `Finding`; `hint` and `severity` override the rule's."""

    line: int
    message: str
    hint: str = ""
    severity: Severity | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What the rules look at: the INF, the architecture as INFs call it ("amd64"), and today's date in UTC."""

    inf: Inf
    architecture: str
    today: date


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: id, what it demands in a sentence, what to do, where it comes from, and its check."""

    id: str
    severity: Severity
    sentence: str
    hint: str
    source: str
    check: Callable[[Subject], Iterable[Broken]]

    def findings(self, subject: Subject) -> list[Finding]:
        """What breaks this rule, in the order of the file."""
        return [
            Finding(
                self.id,
                broken.severity or self.severity,
                broken.line,
                broken.message,
                broken.hint or self.hint,
                self.source,
            )
            for broken in sorted(self.check(subject), key=lambda broken: broken.line)
        ]
