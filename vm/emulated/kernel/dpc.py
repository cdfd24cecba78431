"""Deferred procedure calls: KDPC objects and how they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.threads import DISPATCH_LEVEL, PASSIVE_LEVEL, Call, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

OBJECT_TYPE = 0x13
"""KDPC.Type of an ordinary DPC."""
ROUTINE, CONTEXT, ARGUMENT1, ARGUMENT2, QUEUED = 0x18, 0x20, 0x28, 0x30, 0x38
"""Offsets in KDPC (x64): DeferredRoutine, DeferredContext, SystemArgument1, SystemArgument2, DpcData."""


def queue(k: Kernel, address: int, argument1: int | None, argument2: int | None) -> bool:
    """Queue the KDPC; False if it is queued already."""
    memory = k.memory
    if memory.u8(address) != OBJECT_TYPE:
        raise Bugcheck(
            bc.TIMER_OR_DPC_INVALID,
            1,
            address,
            rule=f"{address:#x} was queued as a DPC, but was not initialised with KeInitializeDpc",
        )
    if memory.u64(address + QUEUED):
        return False
    if argument1 is not None and argument2 is not None:
        memory.put64(address + ARGUMENT1, argument1)
        memory.put64(address + ARGUMENT2, argument2)
    thread = k.start_system_thread(_run(k, address), "DPC")
    memory.put64(address + QUEUED, thread.address)
    k.dpc_threads[thread.address] = address
    return True


def remove(k: Kernel, address: int) -> bool:
    """Take a KDPC that has not begun to run out of the queue; False if it was not in it."""
    queued = k.memory.u64(address + QUEUED)
    if not queued:
        return False
    k.memory.put64(address + QUEUED, 0)
    k.dpc_threads[queued] = 0
    return True


def queued_in(k: Kernel, begin: int, end: int) -> int | None:
    """Address of a queued KDPC in memory that is about to be freed."""
    return next((a for a in k.dpc_threads.values() if begin <= a < end and k.memory.u64(a + QUEUED)), None)


def _run(k: Kernel, address: int) -> Model:
    memory = k.memory
    me = k.current.address
    try:
        if k.dpc_threads[me] != address:
            return  # removed from the queue
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
    finally:
        del k.dpc_threads[me]
