"""What drivers import from ntoskrnl.exe and hal.dll (and the lock routines of FLTMGR.SYS), one module per area.

Whatever must be known beyond one call lives in the kernel object (`state.state_of`), never in these modules.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vm.emulated.exports.declare import Export

AREAS = (
    "crt",
    "debug",
    "irql",
    "lists",
    "mdl",
    "memory",
    "mutexes",
    "names",
    "objects",
    "pool",
    "registry",
    "resources",
    "rundown",
    "security",
    "spinlocks",
    "strings",
    "synchronization",
    "tables",
    "threads",
    "time",
)


def ntoskrnl_exports() -> dict[tuple[str, str], Export]:
    """All exports declared here, by (lower-case dll, name): what `Kernel` is made with."""
    from vm.emulated.exports.declare import collect

    return collect(import_module(f"{__name__}.{area}") for area in AREAS)
