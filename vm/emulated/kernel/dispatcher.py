"""Dispatcher objects and waits: events, semaphores, mutants, timers, threads.

The state of an object lies in the driver's memory (DISPATCHER_HEADER: Type at 0, SignalState at 4), where drivers and
inlined macros read it; who waits is known here only.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING

from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.status import (
    STATUS_MUTANT_LIMIT_EXCEEDED,
    STATUS_SEMAPHORE_LIMIT_EXCEEDED,
    STATUS_TIMEOUT,
    STATUS_USER_APC,
)
from vm.emulated.kernel.threads import DISPATCH_LEVEL, USER_MODE, KThread, ThreadState, Wait

if TYPE_CHECKING:
    from vm.emulated.kernel.clock import Timer
    from vm.emulated.kernel.kernel import Kernel


class ObjectType(IntEnum):
    """Type of a dispatcher object (KOBJECTS in wdm.h)."""

    NOTIFICATION_EVENT = 0
    SYNCHRONIZATION_EVENT = 1
    MUTANT = 2
    PROCESS = 3
    QUEUE = 4
    SEMAPHORE = 5
    THREAD = 6
    NOTIFICATION_TIMER = 8
    SYNCHRONIZATION_TIMER = 9


_LAST_EVENT = int(ObjectType.SYNCHRONIZATION_EVENT)
_KNOWN = frozenset(int(t) for t in ObjectType)

SEMAPHORE_LIMIT = 0x18
"""Offset of KSEMAPHORE.Limit."""


class Dispatcher:
    """Waits on and signals of dispatcher objects of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._waiters: dict[int, deque[KThread]] = {}
        self._mutants: dict[int, tuple[KThread, int]] = {}
        self._waits: dict[KThread, Wait] = {}
        self._timers: dict[int, Timer] = {}

    # Objects

    def initialize(self, address: int, kind: int, state: int, size: int = 0x18) -> None:
        """Write a dispatcher header; the wait list head points to itself, as the kernel's does."""
        if self._waiters.get(address):
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x2_0000,
                address,
                rule=f"a dispatcher object at {address:#x} was initialised while a thread waits for it",
            )
        memory = self.kernel.memory
        memory.write(address, bytes((kind, 0, size // 4, 0)) + (state & 0xFFFF_FFFF).to_bytes(4, "little"))
        memory.put64(address + 8, address + 8)
        memory.put64(address + 16, address + 8)

    def kind(self, address: int) -> int:
        """Type byte of the object; bugchecks when it is none."""
        memory = self.kernel.memory
        kind = memory.u64(address) & 0x7F
        # Zeroed memory looks like an event, but its wait list leads nowhere: Windows would follow the NULL pointer.
        if kind not in _KNOWN or not memory.u64(address + 8):
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x2_0001,
                address,
                kind,
                rule=f"a wait or signal on {address:#x}, which is not an initialised dispatcher object",
            )
        return kind

    def has_waiters(self, address: int) -> bool:
        """True if a thread waits for the object."""
        return bool(self._waiters.get(address))

    def waited_in(self, begin: int, end: int) -> int | None:
        """Address of an object in [begin, end) that a thread waits for: memory that must not be freed."""
        for address, queue in self._waiters.items():
            if queue and begin <= address < end:
                return address
        return None

    # Signals; each returns the previous state

    def set_event(self, address: int) -> int:
        u64 = self.kernel.memory.u64
        header = u64(address)
        if header & 0x7F > _LAST_EVENT or not u64(address + 8):
            self._refuse_event(address)
        previous = ((header >> 32) ^ 0x8000_0000) - 0x8000_0000
        if not previous:
            self.kernel.memory.put32(address + 4, 1)
            self._release(address)
        return previous

    def _refuse_event(self, address: int) -> None:
        kind = self.kind(address)
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0001,
            address,
            kind,
            rule=f"KeSetEvent was called for {address:#x}, which is no event but a dispatcher object of type {kind}",
        )

    def reset_event(self, address: int) -> int:
        memory = self.kernel.memory
        self.kind(address)
        previous = memory.i32(address + 4)
        memory.put32(address + 4, 0)
        return previous

    def pulse_event(self, address: int) -> int:
        previous = self.set_event(address)
        self.kernel.memory.put32(address + 4, 0)
        return previous

    def release_semaphore(self, address: int, adjustment: int) -> int:
        memory = self.kernel.memory
        previous = memory.i32(address + 4)
        if adjustment <= 0 or previous + adjustment > memory.i32(address + SEMAPHORE_LIMIT):
            from vm.emulated.kernel.bugcheck import GuestException

            raise GuestException(STATUS_SEMAPHORE_LIMIT_EXCEEDED)
        memory.put32(address + 4, previous + adjustment)
        self._release(address)
        return previous

    def release_mutant(self, address: int, thread: KThread) -> int:
        owner = self._mutants.get(address)
        if owner is None or owner[0] is not thread:
            raise Bugcheck(
                bc.THREAD_NOT_MUTEX_OWNER,
                thread.address,
                address,
                rule="a mutex was released by a thread that does not own it",
            )
        memory = self.kernel.memory
        previous = memory.i32(address + 4)
        memory.put32(address + 4, previous + 1)
        if owner[1] == 1:
            del self._mutants[address]
            thread.owned = [held for held in thread.owned if held != ("mutex", address)]
            self._release(address)
        else:
            self._mutants[address] = (thread, owner[1] - 1)
        return previous

    def signal_forever(self, address: int) -> None:
        """A thread or process has ended: its object stays signalled."""
        self.kernel.memory.put32(address + 4, 1)
        self._release(address)

    # Timers

    def set_timer(self, address: int, due: int, period_ms: int, dpc: int) -> bool:
        """KeSetTimerEx; True if the timer was already pending."""
        pending = self.cancel_timer(address)
        self.kernel.memory.put32(address + 4, 0)
        clock = self.kernel.clock

        def expired() -> None:
            self._timers.pop(address, None)
            self.kernel.memory.put32(address + 4, 1)
            self._release(address)
            if dpc:
                self.kernel.queue_dpc(dpc)
            if period_ms:
                self._timers[address] = clock.at(clock.interrupt_time + period_ms * 10_000, expired)

        self._timers[address] = clock.at(clock.due_of(due), expired)
        return pending

    def cancel_timer(self, address: int) -> bool:
        """KeCancelTimer; True if the timer was pending."""
        timer = self._timers.pop(address, None)
        if timer is None:
            return False
        self.kernel.clock.cancel(timer)
        return True

    def timer_in(self, begin: int, end: int) -> int | None:
        """Address of a pending timer in [begin, end)."""
        return next((a for a in self._timers if begin <= a < end), None)

    # Waits

    def begin_wait(self, thread: KThread, wait: Wait) -> None:
        """Start a wait for the running thread: it goes on at once, or is parked."""
        frame = thread.frames[-1]
        irql = self.kernel.engine.irql
        if irql > DISPATCH_LEVEL or (irql == DISPATCH_LEVEL and wait.timeout != 0):
            raise Bugcheck(
                bc.ATTEMPTED_SWITCH_FROM_DPC,
                thread.address,
                irql,
                rule=f"thread '{thread.name}' waits at IRQL {irql}; a wait that may block needs IRQL <= APC_LEVEL (1)",
            )
        for address in wait.objects:
            self.kind(address)
        status = self._try(thread, wait)
        if status is not None:
            frame.value = status  # type: ignore[union-attr]  # only frames of the model wait
            return
        if wait.timeout == 0:
            frame.value = STATUS_TIMEOUT  # type: ignore[union-attr]
            return
        if wait.mode == USER_MODE and thread.terminating:
            frame.value = STATUS_USER_APC  # type: ignore[union-attr]
            return
        thread.state = ThreadState.WAITING
        thread.wait_objects = tuple(wait.objects)
        self._waits[thread] = wait
        for address in wait.objects:
            self._waiters.setdefault(address, deque()).append(thread)
        if wait.timeout is not None:
            clock = self.kernel.clock

            def expired() -> None:
                thread.timer = None
                self._end(thread, STATUS_TIMEOUT)

            thread.timer = clock.at(clock.due_of(wait.timeout), expired)

    def interrupt(self, thread: KThread) -> None:
        """The thread is being terminated: a user-mode wait ends with STATUS_USER_APC, a kernel-mode wait goes on."""
        wait = self._waits.get(thread)
        if wait is not None and wait.mode == USER_MODE:
            self._end(thread, STATUS_USER_APC)

    def _end(self, thread: KThread, status: int) -> None:
        wait = self._waits.pop(thread)
        for address in set(wait.objects):
            queue = self._waiters.get(address)
            if queue is not None:
                while thread in queue:
                    queue.remove(thread)
                if not queue:
                    del self._waiters[address]
        if thread.timer is not None:
            self.kernel.clock.cancel(thread.timer)
            thread.timer = None
        thread.wait_objects = ()
        thread.frames[-1].value = status  # type: ignore[union-attr]  # only frames of the model wait
        self.kernel.scheduler.make_ready(thread)

    def _release(self, address: int) -> None:
        """Wake those whose wait the object's state now satisfies, first come first served."""
        queue = self._waiters.get(address)
        if not queue:
            return
        for thread in list(queue):
            wait = self._waits.get(thread)
            if wait is None:
                continue
            status = self._try(thread, wait)
            if status is not None:
                self._end(thread, status)

    def _try(self, thread: KThread, wait: Wait) -> int | None:
        """Satisfy the wait if it can be; the status to return, or None."""
        if wait.wait_all:
            if all(self._signalled(thread, a) for a in wait.objects):
                for address in wait.objects:
                    self._consume(thread, address)
                return 0
            return None
        for index, address in enumerate(wait.objects):
            if self._signalled(thread, address):
                self._consume(thread, address)
                return index
        return None

    def _signalled(self, thread: KThread, address: int) -> bool:
        if self.kind(address) == ObjectType.MUTANT:
            owner = self._mutants.get(address)
            return owner is None or owner[0] is thread
        return self.kernel.memory.i32(address + 4) > 0

    def _consume(self, thread: KThread, address: int) -> None:
        kind = self.kind(address)
        memory = self.kernel.memory
        if kind in (ObjectType.SYNCHRONIZATION_EVENT, ObjectType.SYNCHRONIZATION_TIMER):
            memory.put32(address + 4, 0)
        elif kind == ObjectType.SEMAPHORE:
            memory.put32(address + 4, memory.i32(address + 4) - 1)
        elif kind == ObjectType.MUTANT:
            owner = self._mutants.get(address)
            count = owner[1] if owner else 0
            if count >= 0x7FFF_FFFF:
                from vm.emulated.kernel.bugcheck import GuestException

                raise GuestException(STATUS_MUTANT_LIMIT_EXCEEDED)
            self._mutants[address] = (thread, count + 1)
            memory.put32(address + 4, memory.i32(address + 4) - 1)
            if count == 0:
                thread.owned.append(("mutex", address))
