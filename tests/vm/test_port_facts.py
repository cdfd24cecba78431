"""Every fact about ports and filters that the model can express is cited by a test here; the others say why not."""

from __future__ import annotations

import re
from pathlib import Path

FACTS = {
    "P": (*range(1, 14), *range(20, 26)),
    "C": range(1, 16),
    "M": range(1, 5),
    "D": range(1, 11),
    "X": range(1, 14),
    "S": range(1, 28),
    "G": (*range(1, 6), *range(10, 24)),
    "R": range(1, 6),
    "U": range(1, 7),
    "L": (1, 3, 4, 6, 7, 8, 9),
}
"""The facts of filter-ports, sections 1 to 7 and 10, by letter."""
NOT_OF_THE_KERNEL = {
    "P13": "an internal slot that no header shows",
    "C15": "clients reach the model through services, not through a raw NtCreateFile",
    "G5": "inheritance is decided when a process is created, which real processes do on the host",
    "G11": "events and completion ports belong to the client's side",
    "G19": "completion ports belong to the client's side",
    "G21": "what three applications choose, not what Windows does",
}
_MARK = re.compile(r"pytest\.mark\.fact\(([^)]*)\)")


def test_every_fact_is_cited_or_explained() -> None:
    cited: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for arguments in _MARK.findall(path.read_text(encoding="utf-8")):
            cited |= set(re.findall(r'"(\w+)"', arguments))
    wanted = {f"{letter}{number}" for letter, numbers in FACTS.items() for number in numbers}
    assert wanted - cited - NOT_OF_THE_KERNEL.keys() == set()
    assert cited & NOT_OF_THE_KERNEL.keys() == set()
