"""What a check found: the one form in which hosts, toolchains, machines and guests report their health. A leaf."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad a finding is; doctor's exit status follows the worst one."""

    OK = "ok"
    NOTE = "note"
    """Recorded because it changes what results mean (other filters, HVCI, Defender); nothing to mend."""
    WARNING = "warning"
    """A run works, but not as well as it could, or proves less."""
    ERROR = "error"
    """A run would fail."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    `check` is a stable identifier ("guest.testsigning"); `found` and `wanted` are short phrases for people; `mend` is
    the command or the one thing to do, empty when nothing is wrong. `fix` names a harmless repair that `doctor --fix`
    may carry out by itself ("guest.set-clock"), empty when there is none.
    """

    check: str
    severity: Severity
    found: str
    wanted: str = ""
    mend: str = ""
    fix: str = ""
