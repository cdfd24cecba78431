"""Why a driver did not load or unload, in words: HRESULTs as fltmc prints them and the statuses behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.client import hresult, ntstatus
from harness.symptoms import Symptom, by_code, driver

_HRESULT = re.compile(r"0x(8[0-9a-fA-F]{7})\b")
_NTSTATUS = re.compile(r"0x([Cc][0-9a-fA-F]{7})\b")

_AT_LOAD: Mapping[int, Symptom] = by_code((*driver.LOAD, *driver.UNLOAD))
_FROM_ENTRY: Mapping[int, Symptom] = by_code(driver.ENTRY)

_STATUSES = (
    *(
        ntstatus.INSUFFICIENT_RESOURCES,
        ntstatus.INVALID_PARAMETER,
        ntstatus.NOT_SUPPORTED,
        ntstatus.ACCESS_DENIED,
    ),
    *(ntstatus.OBJECT_NAME_NOT_FOUND, ntstatus.OBJECT_NAME_COLLISION, ntstatus.INVALID_DEVICE_REQUEST),
    *(ntstatus.NOT_FOUND, ntstatus.REVISION_MISMATCH, ntstatus.DELETE_PENDING, 0xC0000001, 0xC0000002),
    *(0xC000007B, 0xC0000139, 0xC000026C, 0xC0000365, 0xC000038E, 0xC0000428),
)
"""Statuses that DriverEntry and the loader return in practice."""


def find_hresult(output: str) -> int | None:
    """The HRESULT in what fltmc printed ("Load failed with error: 0x80070002"), None when there is none."""
    match = _HRESULT.search(output)
    return int(match[1], 16) if match else None


def find_status(output: str) -> int | None:
    """An NTSTATUS that was printed beside it, None when there is none."""
    match = _NTSTATUS.search(output)
    return int(match[1], 16) if match else None


def explain(code: int, output: str = "") -> str:
    """What a failure of fltmc means: the meaning, the HRESULT, and the status behind it as far as it can be told."""
    status = find_status(output)
    if status is not None:
        names = [ntstatus.name(status)]
    else:
        names = [ntstatus.name(known) for known in _STATUSES if hresult.from_ntstatus(known) == code]
        names = [name for name in names if name.startswith("STATUS_")]
    if code not in _AT_LOAD:
        return f"DriverEntry failed with {_named(code, names)} (0x{code:08X})"
    behind = f", from {' or '.join(names)}" if names else ""
    return f"{_AT_LOAD[code].cause} (0x{code:08X}{behind})"


def advise(code: int) -> str | None:
    """What to do about a failure of fltmc, None when nothing useful is known."""
    known = _AT_LOAD.get(code) or _FROM_ENTRY.get(code)
    return (known.cure if known else hresult.describe(code).advice) or None


def _named(code: int, names: list[str]) -> str:
    return " or ".join(names) if names else hresult.describe(code).name
