"""What one symptom is. A leaf: the tables beside it are data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Place(Enum):
    """Where a symptom shows, in the order in which a run meets it; the value is the heading of the document."""

    DOCTOR = "Before a run: the doctor"
    BUILD = "Building with the WDK"
    INF = "INF and catalog"
    HYPERV = "Hyper-V"
    WINRM = "Reaching the guest: WinRM"
    FILES = "Files: SFTP and WinRM"
    PNPUTIL = "Installing: pnputil and services"
    LOAD = "Loading the driver"
    UNLOAD = "Unloading the driver"
    CONNECT = "Connecting to the port"
    RUN = "While the suites run"


@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that people see, why it is so and what mends it.

    `id` is stable ("load-577") and the anchor in the document. `code` is the number that is shown, unsigned: an HRESULT,
    an NTSTATUS, a fault of WinRM or an exit code of the program that `seen` names. `pattern` is a regular expression
    that finds the symptom in a text. `seen` is what a person reads; `cause` reads after a colon, `cure` as an
    imperative. Both are what the harness prints.
    """

    id: str
    place: Place
    seen: str
    cause: str
    cure: str
    code: int | None = None
    pattern: str = ""

    def fits(self, text: str) -> bool:
        """True if the pattern is found in what was printed."""
        return bool(self.pattern) and re.search(self.pattern, text, re.IGNORECASE) is not None
