"""`pnputil` in the guest: which packages of our driver are in its store, adding one, removing one.

Its output is localised; what is read of it are our own names and `oemNN.inf`. Exit codes: windows-lab C.3. When it
fails, the last section of setupapi.dev.log says why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.deployment.plan import Plan
from harness.remote.channels import CommandResult, shown_code
from harness.remote.guest import Guest
from harness.symptoms import by_code, driver
from harness.symptoms.installing import PNPUTIL
from vm.deadline import Deadline
from vm.errors import DownlinkError, GuestError

NOTHING_NEWER = 259
RESTART_BEGUN = 1641
RESTART_NEEDED = 3010
NOT_IN_THE_STORE = 0xE000023C
IN_USE = 0xE000023D

LOG = r"C:\Windows\INF\setupapi.dev.log"
_LOG_BYTES = 256 * 1024
_LOG_LINES = 60

_OEM = re.compile(r"\boem\d+\.inf\b", re.IGNORECASE)
_VALUE = re.compile(r"[:\uFF1A]\s*(.*?)\s*$")
"""What follows the label's colon, which is a full-width one in some languages."""

_KNOWN = by_code((*PNPUTIL, *driver.UNLOAD))


@dataclass(frozen=True, slots=True)
class Added:
    """A package that pnputil has taken.

    Attributes:
        published: its name in the store, such as "oem3.inf"; empty if pnputil did not say.
        nothing_newer: it found the same or a newer one installed.
        restart_needed: it asks for a restart.
    """

    published: str
    nothing_newer: bool
    restart_needed: bool


def stored(guest: Guest, plan: Plan, deadline: Deadline) -> list[str]:
    """Published names of the packages of our driver, by the name of the INF and its provider."""
    if not plan.inf:
        return []
    result = guest.run(["pnputil", "/enum-drivers"], deadline=deadline, check=False)
    if result.exit_code not in (0, NOTHING_NEWER):
        raise GuestError(
            f"the guest does not list its driver packages (pnputil returned {shown_code(result.exit_code)})",
            exit_code=result.exit_code,
            hint="pnputil /enum-drivers needs Windows 10 1607 or later and an administrator",
            machine=guest.machine,
        )
    return find_packages(result.stdout, plan.inf, plan.provider)


def find_packages(listing: str, inf: str, provider: str | None) -> list[str]:
    """The published names in what `/enum-drivers` printed, of packages with that INF and provider."""
    found = []
    for block in _blocks(listing):
        values = {value.casefold() for value in block[1:]}
        if inf.casefold() in values and (provider is None or provider.casefold() in values):
            found.append(block[0].lower())
    return found


def add(guest: Guest, inf: str, deadline: Deadline) -> Added:
    """Put a package into the store and install it.

    Raises:
        GuestError: it was refused, and why; the causes hold the section of the guest's log. Or it restarts the guest.
    """
    before = guest.size(LOG, deadline) or 0
    result = guest.run(["pnputil", "/add-driver", inf, "/install"], deadline=deadline, check=False)
    if result.exit_code == RESTART_BEGUN:
        raise _restarts(guest, result)
    if result.exit_code not in (0, NOTHING_NEWER, RESTART_NEEDED):
        raise _failed(guest, result, f"the package '{inf}' was not installed", before, deadline)
    published = _OEM.search(result.stdout)
    return Added(
        published[0].lower() if published else "",
        result.exit_code == NOTHING_NEWER,
        result.exit_code == RESTART_NEEDED,
    )


def delete(guest: Guest, published: str, deadline: Deadline) -> bool:
    """Uninstall a package and take it out of the store; True if a restart of the guest has to finish it.

    `/force` is given only when pnputil asks for it. One that is not in the store any more is fine.

    Raises:
        GuestError: as `add`.
    """
    before = guest.size(LOG, deadline) or 0
    command = ["pnputil", "/delete-driver", published, "/uninstall"]
    result = guest.run(command, deadline=deadline, check=False)
    if _same(result.exit_code, IN_USE):
        result = guest.run([*command, "/force"], deadline=deadline, check=False)
    if result.exit_code == RESTART_BEGUN:
        raise _restarts(guest, result)
    if result.exit_code not in (0, RESTART_NEEDED) and not _same(result.exit_code, NOT_IN_THE_STORE):
        raise _failed(guest, result, f"the package '{published}' was not removed", before, deadline)
    return result.exit_code == RESTART_NEEDED


def log_section(guest: Guest, begin: int, deadline: Deadline) -> str:
    """The last section of the guest's log that was begun behind the byte `begin`; empty if there is none."""
    size = guest.size(LOG, deadline) or 0
    # A log that has become shorter was begun anew meanwhile.
    start = max(begin if begin <= size else 0, size - _LOG_BYTES)
    content = guest.read_bytes(LOG, deadline, offset=start, limit=_LOG_BYTES) or b""
    return last_section(content.decode("utf-8", errors="replace"))


def last_section(text: str) -> str:
    """The last section between the markers `>>>` and `<<<`, or its beginning and end if it is long."""
    lines = text.splitlines()
    begins = [
        index
        for index, line in enumerate(lines)
        if line.startswith(">>>") and not (index and lines[index - 1].startswith(">>>"))
    ]
    if not begins:
        return ""
    section = lines[begins[-1] :]
    ends = [index for index, line in enumerate(section) if line.startswith("<<<")]
    if ends:
        section = section[: ends[-1] + 1]
    if len(section) > _LOG_LINES:
        half = _LOG_LINES // 2
        section = [*section[:half], f"({len(section) - 2 * half} lines)", *section[-half:]]
    return "\n".join(line.rstrip() for line in section)


def _blocks(listing: str) -> list[list[str]]:
    """The values of each package, its published name first. A block begins at a value that is such a name."""
    blocks: list[list[str]] = []
    for line in listing.splitlines():
        match = _VALUE.search(line)
        if match is None:
            continue
        if _OEM.fullmatch(match[1]):
            blocks.append([])
        if blocks:
            blocks[-1].append(match[1])
    return blocks


def _failed(guest: Guest, result: CommandResult, what: str, log_begin: int, deadline: Deadline) -> GuestError:
    code = result.exit_code
    known = next((row for each, row in _KNOWN.items() if _same(code, each)), None)
    said = result.output.strip().splitlines()
    reason = known.cause if known else (said[-1].strip() if said else "")
    return GuestError(
        f"{what}{f': {reason}' if reason else ''} (pnputil returned {shown_code(code)})",
        exit_code=code,
        hint=known.cure if known else f"see the end of {LOG} in the guest",
        machine=guest.machine,
        causes=_logged(guest, log_begin, deadline),
    )


def _logged(guest: Guest, begin: int, deadline: Deadline) -> list[BaseException]:
    try:
        section = log_section(guest, begin, deadline)
    except DownlinkError as error:
        return [error]
    return [GuestError(f"setupapi.dev.log:\n{section}", machine=guest.machine)] if section else []


def _restarts(guest: Guest, result: CommandResult) -> GuestError:
    return GuestError(
        "pnputil has begun to restart the guest",
        exit_code=result.exit_code,
        hint=_KNOWN[RESTART_BEGUN].cure,
        machine=guest.machine,
    )


def _same(code: int, known: int) -> bool:
    """Whether an exit code is a known one; SetupAPI's own codes may come as an HRESULT of its facility."""
    if code == known:
        return True
    return known >> 16 == 0xE000 and code == 0x800F0000 | (known & 0xFFFF)
