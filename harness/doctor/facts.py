"""What a guest says of itself: one call of `Get-GuestFacts.ps1`, and the clocks compared."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from harness.remote.guest import Guest
from harness.remote.repeating import repeated
from harness.remote.scripts import SOURCES, GuestScripts
from vm.deadline import Deadline
from vm.powershell.script import Script

TICKS_PER_SECOND = 10_000_000
EPOCH_TICKS = 621_355_968_000_000_000
"""1970-01-01 in .NET ticks (100 ns since 0001-01-01)."""


def ticks(seconds: float) -> int:
    """.NET ticks of a time in seconds since the Unix epoch."""
    return EPOCH_TICKS + round(seconds * TICKS_PER_SECOND)


def moment(value: int) -> datetime:
    """The time that .NET ticks stand for."""
    return datetime(1, 1, 1, tzinfo=UTC) + timedelta(microseconds=value // 10)


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """The answer of the script, and how far the guest's clock is ahead of the host's.

    `ahead_seconds` is the smallest difference that the exchange allows: 0 where the guest's two times fit between the
    host's two, whatever the call took; negative for a guest that is behind.
    """

    values: Mapping[str, Any]
    ahead_seconds: float

    @classmethod
    def of(cls, values: Mapping[str, Any], before: float, after: float) -> Self:
        """Facts that were asked for at `before` and had arrived at `after` (seconds since the Unix epoch)."""
        least = (int(values["endTicks"]) - ticks(after)) / TICKS_PER_SECOND
        most = (int(values["utcTicks"]) - ticks(before)) / TICKS_PER_SECOND
        ahead = least if least > 0 else most if most < 0 else 0.0
        return cls(values, ahead)

    def part(self, name: str) -> Mapping[str, Any]:
        """A part of the answer; empty if the guest could not tell."""
        found = self.values.get(name)
        return found if isinstance(found, Mapping) else {}

    def items(self, name: str) -> list[Any]:
        """A list of the answer; empty if the guest could not tell."""
        found = self.values.get(name)
        return list(found) if isinstance(found, list) else []

    @property
    def now(self) -> datetime:
        """The time in the guest when it was asked."""
        return moment(int(self.values["utcTicks"]))


def ask(guest: Guest, service: str, inf: str, deadline: Deadline) -> GuestFacts:
    """Ask a running guest.

    Args:
        guest: the running guest.
        service: name of the driver's service.
        inf: name of its INF.

    Raises:
        ScriptError: the guest cannot run the script.
        GuestError: it could not be reached.
    """
    script = Script(SOURCES / "Get-GuestFacts.ps1")

    def once() -> GuestFacts:
        before = time.time()
        values = GuestScripts(guest).run(script, {"Service": service, "Inf": inf}, deadline)
        return GuestFacts.of(values, before, time.time())

    # The script only reads: when the connection is lost in it, it may run a second time.
    return repeated(guest, once)
