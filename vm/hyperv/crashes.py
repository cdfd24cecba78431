"""What a Hyper-V host tells of a guest's bugcheck."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vm.machine import CrashReport

_HEXADECIMAL = re.compile(r"^0x[0-9a-fA-F]{1,16}$")


def of_events(events: Sequence[Mapping[str, Any]]) -> tuple[CrashReport, ...]:
    """The crashes in what Get-MachineEvents answered.

    An event of the worker process (18590) carries, after the machine's name and id, the bugcheck's code and its four
    parameters as hexadecimal numbers; where they stand among the other values is not relied upon.
    """
    return tuple(_crash(event["values"]) for event in events)


def _crash(values: Sequence[str]) -> CrashReport:
    numbers = [int(value, 16) for value in values if _HEXADECIMAL.match(str(value))]
    code, *rest = [*numbers, 0, 0, 0, 0, 0][:5]
    first, second, third, fourth = rest
    name = f"BUGCHECK_{code:X}" if numbers else "UNKNOWN_BUGCHECK"
    return CrashReport(code=code, name=name, parameters=(first, second, third, fourth))
