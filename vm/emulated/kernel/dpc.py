"""Deferred procedure calls: KDPC objects and how they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.kernel.threads import DISPATCH_LEVEL, PASSIVE_LEVEL, Call, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

ROUTINE, CONTEXT, ARGUMENT1, ARGUMENT2, QUEUED = 0x18, 0x20, 0x28, 0x30, 0x38
"""Offsets in KDPC (x64): DeferredRoutine, DeferredContext, SystemArgument1, SystemArgument2, DpcData."""


def run_dpc(k: Kernel, address: int) -> Model:
    """Run the routine of a KDPC at DISPATCH_LEVEL."""
    memory = k.memory
    memory.put64(address + QUEUED, 0)
    k.engine.irql = DISPATCH_LEVEL
    yield Call(
        memory.u64(address + ROUTINE),
        (
            address,
            memory.u64(address + CONTEXT),
            memory.u64(address + ARGUMENT1),
            memory.u64(address + ARGUMENT2),
        ),
        "DPC routine",
    )
    k.engine.irql = PASSIVE_LEVEL
