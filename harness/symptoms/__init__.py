"""One table of what goes wrong: what is seen, why, and what mends it.

The hints that the harness prints and `docs/troubleshooting.md` come from the same rows. Rooms that have their own codes
keep their rows as plain data (`harness.remote.faults`, `harness.toolchain.wdk.messages`); they are taken in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType

from harness.symptoms import driver, installing, preflight, system
from harness.symptoms.symptom import Place, Symptom

__all__ = ["Place", "Symptom", "all_symptoms", "by_code", "by_id", "matching"]


@cache
def all_symptoms() -> tuple[Symptom, ...]:
    """Every row, in the order of the places; identifiers are unique."""
    from harness.symptoms import elsewhere

    rows = (
        *preflight.PREFLIGHT,
        *elsewhere.build_messages(),
        *system.INF,
        *elsewhere.inf_rules(),
        *system.HYPERV,
        *system.WINRM,
        *elsewhere.faults(),
        *system.FILES,
        *installing.PNPUTIL,
        *driver.LOAD,
        *driver.ENTRY,
        *driver.UNLOAD,
        *driver.CONNECT,
        *driver.RUN,
    )
    order = list(Place)
    return tuple(sorted(rows, key=lambda row: order.index(row.place)))


def by_code(rows: Iterable[Symptom]) -> Mapping[int, Symptom]:
    """Rows by their number; the first one wins."""
    found: dict[int, Symptom] = {}
    for row in rows:
        if row.code is not None:
            found.setdefault(row.code, row)
    return MappingProxyType(found)


def by_id(identifier: str) -> Symptom:
    """The row of that identifier; KeyError if there is none."""
    return _by_id()[identifier]


def matching(text: str, place: Place | None = None) -> tuple[Symptom, ...]:
    """Rows whose pattern is found in what was printed, of one place or of all."""
    return tuple(row for row in all_symptoms() if place in (None, row.place) and row.fits(text))


@cache
def _by_id() -> Mapping[str, Symptom]:
    return MappingProxyType({row.id: row for row in all_symptoms()})
