"""IRQL, critical and guarded regions, and what can be asked about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.exports.declare import KIRQL, NTOSKRNL, PVOID, ULONG, alias, export
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, HIGH_LEVEL, PASSIVE_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

HAL = "hal.dll"


def raise_irql(k: Kernel, new: int) -> int:
    """Raise the IRQL of the running thread; the previous one. Lowering by a raise is a bugcheck."""
    old = k.engine.irql
    if new < old:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x30,
            old,
            new,
            rule=f"KeRaiseIrql was called to go from IRQL {old} to the lower IRQL {new}",
        )
    k.engine.irql = new
    return old


def lower_irql(k: Kernel, new: int) -> None:
    """Lower the IRQL of the running thread. Raising by a lower, or lowering below a lock's IRQL, is a bugcheck."""
    old = k.engine.irql
    if new > old:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x31,
            old,
            new,
            rule=f"KeLowerIrql was called to go from IRQL {old} to the higher IRQL {new}",
        )
    needed = held_irql(k)
    if new < needed:
        kind, address = next(
            held for held in reversed(k.current.owned) if _LEVEL.get(held[0], PASSIVE_LEVEL) > new
        )
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x31,
            new,
            address,
            rule=f"the IRQL was lowered to {new} while the thread holds the {kind} at {address:#x}",
        )
    k.engine.irql = new


_LEVEL = {"spin lock": DISPATCH_LEVEL, "shared spin lock": DISPATCH_LEVEL, "fast mutex": APC_LEVEL}


def held_irql(k: Kernel) -> int:
    """The lowest IRQL that the locks held by the running thread allow."""
    level = PASSIVE_LEVEL
    for kind, _ in k.current.owned:
        level = max(level, _LEVEL.get(kind, PASSIVE_LEVEL))
    return level


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeGetCurrentIrql(k: Kernel) -> int:
    return k.engine.irql


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KfRaiseIrql(k: Kernel, NewIrql: KIRQL) -> int:
    return raise_irql(k, NewIrql)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeRaiseIrql(k: Kernel, NewIrql: KIRQL, OldIrql: PVOID) -> None:
    k.memory.put8(OldIrql, raise_irql(k, NewIrql))


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeRaiseIrqlToDpcLevel(k: Kernel) -> int:
    return raise_irql(k, DISPATCH_LEVEL)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeLowerIrql(k: Kernel, NewIrql: KIRQL) -> None:
    lower_irql(k, NewIrql)


KfLowerIrql = alias(KeLowerIrql, "KfLowerIrql")
HalKeGetCurrentIrql = alias(KeGetCurrentIrql, "KeGetCurrentIrql", dll=HAL)
HalKfRaiseIrql = alias(KfRaiseIrql, "KfRaiseIrql", dll=HAL)
HalKeRaiseIrqlToDpcLevel = alias(KeRaiseIrqlToDpcLevel, "KeRaiseIrqlToDpcLevel", dll=HAL)
HalKfLowerIrql = alias(KeLowerIrql, "KfLowerIrql", dll=HAL)


def enter_critical_region(k: Kernel) -> None:
    """Disable normal kernel APCs for the running thread."""
    k.current.critical_region += 1


def leave_critical_region(k: Kernel) -> None:
    """Undo one `enter_critical_region`; one too many is a bugcheck."""
    thread = k.current
    if thread.critical_region == 0:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x3E,
            rule="KeLeaveCriticalRegion was called outside of a critical region",
        )
    thread.critical_region -= 1


@export(NTOSKRNL, irql=APC_LEVEL)
def KeEnterCriticalRegion(k: Kernel) -> None:
    enter_critical_region(k)


@export(NTOSKRNL, irql=APC_LEVEL)
def KeLeaveCriticalRegion(k: Kernel) -> None:
    leave_critical_region(k)


@export(NTOSKRNL, irql=APC_LEVEL)
def KeEnterGuardedRegion(k: Kernel) -> None:
    k.current.guarded_region += 1


@export(NTOSKRNL, irql=APC_LEVEL)
def KeLeaveGuardedRegion(k: Kernel) -> None:
    thread = k.current
    if thread.guarded_region == 0:
        raise Bugcheck(
            bc.APC_INDEX_MISMATCH,
            thread.address,
            rule="KeLeaveGuardedRegion was called outside of a guarded region",
        )
    thread.guarded_region -= 1


def apcs_disabled(k: Kernel) -> bool:
    """True if no normal kernel APC can run on this thread."""
    thread = k.current
    return bool(thread.critical_region or thread.guarded_region) or k.engine.irql >= APC_LEVEL


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeAreApcsDisabled(k: Kernel) -> bool:
    """Documented to look at the regions only, not at the IRQL."""
    thread = k.current
    return bool(thread.critical_region or thread.guarded_region)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeAreAllApcsDisabled(k: Kernel) -> bool:
    return bool(k.current.guarded_region) or k.engine.irql >= APC_LEVEL


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def FsRtlIsTotalDeviceFailure(k: Kernel, Status: ULONG) -> bool:
    """TRUE for errors that mean the device itself is gone; the handful that is not."""
    return bool(Status & 0x8000_0000) and Status not in (0xC000_009C, 0xC000_0032, 0xC000_003E, 0xC000_0011)
