"""A hint out of the table for an error that came without one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from harness.symptoms import Place, Symptom, matching
from vm.errors import BuildError, DownlinkError

_PROGRAMS: Mapping[Place, str] = MappingProxyType(
    {
        Place.PNPUTIL: r"pnputil",
        Place.LOAD: r"fltmc|sc start",
        Place.UNLOAD: r"fltmc|\bsc\b",
        Place.CONNECT: r"Filter[A-Z]\w+",
        Place.RUN: r"bugcheck",
    }
)
"""Numbers mean something only beside the program that printed them: 259 of pnputil is not 259 of anything else."""


def look_up(text: str) -> Symptom | None:
    """The one symptom that a text shows; None if there is none, or if it could be several."""
    found = [
        row
        for row in matching(text)
        if row.place not in _PROGRAMS or re.search(_PROGRAMS[row.place], text) is not None
    ]
    return found[0] if len({row.cure for row in found}) == 1 else None


def advise(error: DownlinkError) -> None:
    """Give an error that has no hint the cure of the symptom that it, its output or one of its causes shows."""
    if error.hint is not None:
        return
    output = error.output if isinstance(error, BuildError) else ""
    for text in (error.message, output, *(str(cause) for cause in error.causes)):
        if (row := look_up(text)) is not None:
            error.hint = row.cure
            return
