"""Time: system and interrupt time, performance counter, ticks, calendar."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import LARGE_INTEGER, NTOSKRNL, PVOID, ULONG, ULONGLONG, alias, export
from vm.emulated.exports.irql import HAL
from vm.emulated.kernel.clock import UNITS_PER_SECOND, UNIX_EPOCH
from vm.emulated.kernel.status import STATUS_NOT_SUPPORTED
from vm.emulated.kernel.threads import HIGH_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

TIME_INCREMENT = 156_250
"""100 ns units per clock tick (15.625 ms), the same as in KUSER_SHARED_DATA's tick count."""
_FREQUENCY = 10_000_000
"""Performance counts per second, as current Windows versions report it."""
_EPOCH = datetime.datetime(1601, 1, 1)
_DAY = 86_400 * UNITS_PER_SECOND


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQuerySystemTimePrecise(k: Kernel, CurrentTime: PVOID) -> None:
    k.memory.put64(CurrentTime, k.clock.system_time)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQuerySystemTime(k: Kernel, CurrentTime: PVOID) -> None:
    """Inline on x64; an export for those that call it. Moves with the clock interrupt."""
    k.memory.put64(CurrentTime, k.clock.system_time // TIME_INCREMENT * TIME_INCREMENT)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQueryInterruptTime(k: Kernel) -> int:
    return k.clock.interrupt_time


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQueryInterruptTimePrecise(k: Kernel, QpcTimeStamp: PVOID) -> int:
    now = k.clock.interrupt_time
    k.memory.put64(QpcTimeStamp, now)
    return now


KeQueryUnbiasedInterruptTime = alias(KeQueryInterruptTime, "KeQueryUnbiasedInterruptTime")


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQueryUnbiasedInterruptTimePrecise(k: Kernel, QpcTimeStamp: PVOID) -> int:
    result: int = KeQueryInterruptTimePrecise(k, QpcTimeStamp)
    return result


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQueryPerformanceCounter(k: Kernel, PerformanceFrequency: PVOID) -> int:
    if PerformanceFrequency:
        k.memory.put64(PerformanceFrequency, _FREQUENCY)
    return k.clock.interrupt_time


HalKeQueryPerformanceCounter = alias(KeQueryPerformanceCounter, "KeQueryPerformanceCounter", dll=HAL)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQueryTickCount(k: Kernel, TickCount: PVOID) -> None:
    k.memory.put64(TickCount, k.clock.interrupt_time // TIME_INCREMENT)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQueryTimeIncrement(k: Kernel) -> int:
    return TIME_INCREMENT


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeStallExecutionProcessor(k: Kernel, MicroSeconds: ULONG) -> None:
    k.clock.advance(MicroSeconds * 10)


HalKeStallExecutionProcessor = alias(KeStallExecutionProcessor, "KeStallExecutionProcessor", dll=HAL)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExQueryTimerResolution(k: Kernel, MaximumTime: PVOID, MinimumTime: PVOID, CurrentTime: PVOID) -> None:
    k.memory.put32(MaximumTime, TIME_INCREMENT)
    k.memory.put32(MinimumTime, 5000)
    k.memory.put32(CurrentTime, TIME_INCREMENT)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExSetTimerResolution(k: Kernel, DesiredTime: ULONG, SetResolution: ULONG) -> int:
    return TIME_INCREMENT


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExSystemTimeToLocalTime(k: Kernel, SystemTime: PVOID, LocalTime: PVOID) -> None:
    """The machine's time zone is UTC."""
    k.memory.put64(LocalTime, k.memory.u64(SystemTime))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExLocalTimeToSystemTime(k: Kernel, LocalTime: PVOID, SystemTime: PVOID) -> None:
    k.memory.put64(SystemTime, k.memory.u64(LocalTime))


# TIME_FIELDS: Year, Month, Day, Hour, Minute, Second, Milliseconds, Weekday, each a CSHORT.


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlTimeToTimeFields(k: Kernel, Time: PVOID, TimeFields: PVOID) -> None:
    value = k.memory.i64(Time)
    days, rest = divmod(value, _DAY)
    milliseconds = rest // 10_000
    date = (_EPOCH + datetime.timedelta(days=days)).date()
    fields = (
        date.year,
        date.month,
        date.day,
        milliseconds // 3_600_000,
        milliseconds // 60_000 % 60,
        milliseconds // 1000 % 60,
        milliseconds % 1000,
        (days + 1) % 7,  # 1601-01-01 was a Monday, Sunday is 0
    )
    k.memory.write(TimeFields, b"".join(field.to_bytes(2, "little") for field in fields))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlTimeFieldsToTime(k: Kernel, TimeFields: PVOID, Time: PVOID) -> bool:
    raw = k.memory.read(TimeFields, 14)
    year, month, day, hour, minute, second, millisecond = (
        int.from_bytes(raw[i : i + 2], "little", signed=True) for i in range(0, 14, 2)
    )
    if year < 1601 or not 0 <= millisecond < 1000:
        return False
    try:
        moment = datetime.datetime(year, month, day, hour, minute, second)
    except ValueError:
        return False
    delta = moment - _EPOCH
    units = (delta.days * 86_400 + delta.seconds) * UNITS_PER_SECOND + millisecond * 10_000
    k.memory.put64(Time, units)
    return True


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlTimeToSecondsSince1970(k: Kernel, Time: PVOID, ElapsedSeconds: PVOID) -> bool:
    seconds = (k.memory.i64(Time) - UNIX_EPOCH) // UNITS_PER_SECOND
    if not 0 <= seconds <= 0xFFFF_FFFF:
        return False
    k.memory.put32(ElapsedSeconds, seconds)
    return True


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlSecondsSince1970ToTime(k: Kernel, ElapsedSeconds: ULONG, Time: PVOID) -> None:
    k.memory.put64(Time, UNIX_EPOCH + ElapsedSeconds * UNITS_PER_SECOND)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlExtendedLargeIntegerDivide(
    k: Kernel, Dividend: LARGE_INTEGER, Divisor: ULONG, Remainder: PVOID
) -> int:
    quotient, rest = divmod(abs(Dividend), Divisor)
    if Remainder:
        k.memory.put32(Remainder, rest)
    return quotient if Dividend >= 0 else -quotient


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQueryAuxiliaryCounterFrequency(k: Kernel, AuxiliaryCounterFrequency: ULONGLONG) -> int:
    return STATUS_NOT_SUPPORTED
