"""Locks of the kernel through their export stubs: who may hold them, at which IRQL, and what misuse is called."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vm.kernel_bench import Bench
from vm.emulated.kernel.threads import Call, Model

FLTMGR = "fltmgr.sys"


@pytest.fixture
def bench() -> Bench:
    return Bench.make()


@pytest.fixture
def lock(bench: Bench) -> int:
    address = bench.room(16)
    bench.run("KeInitializeSpinLock", address)
    return address


def test_a_spin_lock_raises_to_dispatch_and_restores(bench: Bench, lock: int) -> None:
    def use() -> Model:
        old = yield bench.call("KeAcquireSpinLockRaiseToDpc", lock)
        during, word = bench.kernel.engine.irql, bench.kernel.memory.u64(lock)
        yield bench.call("KeReleaseSpinLock", lock, old)
        return old, during, word != 0, bench.kernel.engine.irql, bench.kernel.memory.u64(lock)

    assert bench.model(use()) == (0, 2, True, 0, 0)


def test_a_spin_lock_acquired_twice_by_one_thread_is_a_bugcheck(bench: Bench, lock: int) -> None:
    report = bench.crash_of(*[bench.call("KeAcquireSpinLockRaiseToDpc", lock)] * 2)
    assert report.name == "SPIN_LOCK_ALREADY_OWNED"
    assert "holds already" in report.rule


def test_a_spin_lock_that_nobody_holds_cannot_be_released(bench: Bench, lock: int) -> None:
    report = bench.crash_of(
        bench.call("KeRaiseIrqlToDpcLevel"), bench.call("KeReleaseSpinLockFromDpcLevel", lock)
    )
    assert report.name == "SPIN_LOCK_NOT_OWNED"
    assert "nobody holds it" in report.rule


def test_an_uninitialised_spin_lock_is_a_bugcheck(bench: Bench) -> None:
    garbage = bench.put(b"\xbd" * 8)
    report = bench.crash_of(bench.call("KeAcquireSpinLockRaiseToDpc", garbage))
    assert report.name == "SPIN_LOCK_INIT_FAILURE"
    assert "KeInitializeSpinLock" in report.rule


def test_a_spin_lock_released_to_another_irql_than_it_was_acquired_at_is_a_bugcheck(
    bench: Bench, lock: int
) -> None:
    report = bench.crash_of(
        bench.call("KeAcquireSpinLockRaiseToDpc", lock), bench.call("KeReleaseSpinLock", lock, 1)
    )
    assert report.name == "DRIVER_VERIFIER_DETECTED_VIOLATION"
    assert "restores IRQL 1" in report.rule


def test_lowering_the_irql_with_another_spin_lock_held_is_a_bugcheck(bench: Bench, lock: int) -> None:
    outer = bench.room(8)
    report = bench.crash_of(
        bench.call("KeAcquireSpinLockRaiseToDpc", outer),
        bench.call("KeAcquireSpinLockRaiseToDpc", lock),
        bench.call("KeReleaseSpinLock", outer, 0),
    )
    assert report.parameters[0] == 0x31
    assert "still held" in report.rule


def test_at_dpc_level_acquisition_needs_dispatch_level(bench: Bench, lock: int) -> None:
    report = bench.crash_of(bench.call("KeAcquireSpinLockAtDpcLevel", lock))
    assert "KeAcquireSpinLockAtDpcLevel was called at IRQL 0" in report.rule


def test_a_thread_that_meets_a_held_spin_lock_waits_for_its_release(bench: Bench, lock: int) -> None:
    order: list[str] = []
    kernel = bench.kernel

    def second() -> Model:
        old = yield bench.call("KeAcquireSpinLockRaiseToDpc", lock)
        order.append("second")
        yield bench.call("KeReleaseSpinLock", lock, old)

    def first() -> Model:
        old = yield bench.call("KeAcquireSpinLockRaiseToDpc", lock)
        kernel.start_system_thread(second(), "second")
        for _ in range(200):
            yield bench.call("KeQueryTimeIncrement")
        order.append("first")
        yield bench.call("KeReleaseSpinLock", lock, old)

    bench.model(first())
    kernel.run_until_idle()
    assert order == ["first", "second"]


def test_a_thread_that_ends_with_a_spin_lock_held_is_a_bugcheck(bench: Bench, lock: int) -> None:
    def forget() -> Model:
        yield bench.call("KeAcquireSpinLockRaiseToDpc", lock)

    bench.kernel.start_system_thread(forget(), "forgetful")
    bench.kernel.scheduler.run_until_idle()
    report = bench.kernel.crash_report
    assert (
        report is not None and "'forgetful' leaves the kernel while it still holds a spin lock" in report.rule
    )


def test_freeing_memory_with_a_held_spin_lock_is_a_bugcheck(bench: Bench) -> None:
    def free() -> Model:
        block = yield bench.call("ExAllocatePool2", 0x40, 64, 0x74736554)
        yield bench.call("KeAcquireSpinLockRaiseToDpc", block)
        yield bench.call("ExFreePoolWithTag", block, 0)

    report = bench.crash(free())
    assert "holds the spin lock" in report.rule


def test_an_in_stack_queued_spin_lock_keeps_the_irql_in_its_handle(bench: Bench, lock: int) -> None:
    handle = bench.room(0x18)

    def use() -> Model:
        yield bench.call("KeAcquireInStackQueuedSpinLock", lock, handle)
        during = bench.kernel.engine.irql
        yield bench.call("KeReleaseInStackQueuedSpinLock", handle)
        return during, bench.kernel.engine.irql

    assert bench.model(use()) == (2, 0)


def test_readers_share_a_reader_writer_spin_lock_and_a_writer_waits_for_them(bench: Bench, lock: int) -> None:
    kernel, order = bench.kernel, []

    def writer() -> Model:
        old = yield bench.call("ExAcquireSpinLockExclusive", lock)
        order.append("writer")
        yield bench.call("ExReleaseSpinLockExclusive", lock, old)

    def reader(name: str, others: Callable[[], None]) -> Model:
        old = yield bench.call("ExAcquireSpinLockShared", lock)
        order.append(f"{name} in")
        others()
        for _ in range(200):
            yield bench.call("KeQueryTimeIncrement")
        order.append(f"{name} out")
        yield bench.call("ExReleaseSpinLockShared", lock, old)

    def begin() -> None:
        kernel.start_system_thread(reader("b", lambda: None), "b")
        kernel.start_system_thread(writer(), "w")

    bench.model(reader("a", begin))
    kernel.run_until_idle()
    assert order.index("b in") < order.index("a out") or order.index("writer") < order.index("b in")
    assert order.index("a out") < order.index("writer")


def test_a_fast_mutex_runs_its_owner_at_apc_level(bench: Bench) -> None:
    mutex = bench.room(0x38)

    def use() -> Model:
        yield bench.call("ExInitializeFastMutex", mutex)
        yield bench.call("ExAcquireFastMutex", mutex)
        during = bench.kernel.engine.irql
        tried = yield bench.call("ExTryToAcquireFastMutex", mutex)
        yield bench.call("ExReleaseFastMutex", mutex)
        return during, tried, bench.kernel.engine.irql, bench.kernel.memory.u32(mutex)

    assert bench.model(use()) == (1, 0, 0, 1)


def test_a_fast_mutex_acquired_twice_is_a_bugcheck(bench: Bench) -> None:
    mutex = bench.room(0x38)
    report = bench.crash_of(
        bench.call("ExInitializeFastMutex", mutex), *[bench.call("ExAcquireFastMutex", mutex)] * 2
    )
    assert report.name == "MUTEX_ALREADY_OWNED"


def test_a_fast_mutex_that_was_never_initialised_is_a_bugcheck(bench: Bench) -> None:
    report = bench.crash_of(bench.call("ExAcquireFastMutex", bench.room(0x38)))
    assert "not initialised" in report.rule


def test_a_fast_mutex_cannot_be_acquired_at_dispatch_level(bench: Bench) -> None:
    mutex = bench.room(0x38)
    report = bench.crash_of(
        bench.call("ExInitializeFastMutex", mutex),
        bench.call("KeRaiseIrqlToDpcLevel"),
        bench.call("ExAcquireFastMutex", mutex),
    )
    assert "ExAcquireFastMutex was called at IRQL 2" in report.rule


def test_a_guarded_mutex_disables_all_apcs(bench: Bench) -> None:
    mutex = bench.room(0x38)

    def use() -> Model:
        yield bench.call("KeInitializeGuardedMutex", mutex)
        yield bench.call("KeAcquireGuardedMutex", mutex)
        inside = yield bench.call("KeAreAllApcsDisabled")
        yield bench.call("KeReleaseGuardedMutex", mutex)
        return inside, (yield bench.call("KeAreAllApcsDisabled"))

    assert bench.model(use()) == (1, 0)


def test_a_resource_is_shared_by_readers_and_recursive_for_its_owner(bench: Bench) -> None:
    resource = bench.room(0x68)

    def use() -> Model:
        yield bench.call("ExInitializeResourceLite", resource)
        yield bench.call("KeEnterCriticalRegion")
        yield bench.call("ExAcquireResourceExclusiveLite", resource, 1)
        yield bench.call("ExAcquireResourceSharedLite", resource, 1)
        counts = [(yield bench.call("ExIsResourceAcquiredSharedLite", resource))]
        yield bench.call("ExReleaseResourceLite", resource)
        counts.append((yield bench.call("ExIsResourceAcquiredExclusiveLite", resource)))
        yield bench.call("ExReleaseResourceLite", resource)
        counts.append((yield bench.call("ExIsResourceAcquiredSharedLite", resource)))
        yield bench.call("KeLeaveCriticalRegion")
        counts.append((yield bench.call("ExDeleteResourceLite", resource)))
        return counts

    assert bench.model(use()) == [2, 1, 0, 0]


def test_freeing_a_resource_that_was_not_deleted_is_a_bugcheck(bench: Bench) -> None:
    def free() -> Model:
        block = yield bench.call("ExAllocatePool2", 0x40, 0x68, 0x74736554)
        yield bench.call("ExInitializeResourceLite", block)
        yield bench.call("ExFreePoolWithTag", block, 0)

    report = bench.crash(free())
    assert report.parameters[0] == 0xD2


def test_waiting_to_own_a_resource_that_one_holds_shared_is_a_bugcheck(bench: Bench) -> None:
    resource = bench.room(0x68)
    report = bench.crash_of(
        bench.call("ExInitializeResourceLite", resource),
        bench.call("ExAcquireResourceSharedLite", resource, 1),
        bench.call("ExAcquireResourceExclusiveLite", resource, 1),
    )
    assert "would wait for ever" in report.rule


def test_a_push_lock_needs_a_critical_region(bench: Bench) -> None:
    lock = bench.room(8)
    report = bench.crash_of(
        bench.call("ExInitializePushLock", lock), bench.call("ExAcquirePushLockExclusiveEx", lock, 0)
    )
    assert report.parameters[0] == 0xEA
    assert "KeEnterCriticalRegion" in report.rule


def test_the_filter_manager_s_push_locks_enter_the_region_themselves(bench: Bench) -> None:
    lock = bench.room(8)

    def flt(name: str) -> Call:
        return Call(bench.kernel.resolve_import(FLTMGR, name), (lock,), name)

    def use() -> Model:
        yield flt("FltInitializePushLock")
        yield flt("FltAcquirePushLockExclusive")
        inside = bench.kernel.current.critical_region, bench.kernel.memory.u64(lock)
        yield flt("FltReleasePushLock")
        return inside, bench.kernel.current.critical_region, bench.kernel.memory.u64(lock)

    assert bench.model(use()) == ((1, 1), 0, 0)


def test_rundown_waits_for_the_last_release_and_then_refuses(bench: Bench) -> None:
    reference = bench.room(8)
    order: list[str] = []

    def waiter() -> Model:
        yield bench.call("ExWaitForRundownProtectionRelease", reference)
        order.append("waited")

    def main() -> Model:
        yield bench.call("ExInitializeRundownProtection", reference)
        taken = yield bench.call("ExAcquireRundownProtection", reference)
        yield bench.call("ExAcquireRundownProtection", reference)
        bench.kernel.start_system_thread(waiter(), "waiter")
        refused = 1
        while refused:
            refused = yield bench.call("ExAcquireRundownProtection", reference)
            if refused:
                yield bench.call("ExReleaseRundownProtection", reference)
        yield bench.call("ExReleaseRundownProtection", reference)
        for _ in range(200):  # time for the waiter to be woken too early
            yield bench.call("KeQueryTimeIncrement")
        order.append("released")
        yield bench.call("ExReleaseRundownProtection", reference)
        return taken, refused

    assert bench.model(main()) == (1, 0)
    bench.kernel.run_until_idle()
    assert order == ["released", "waited"]
    assert bench.kernel.memory.u64(reference) == 1
    bench.run("ExReInitializeRundownProtection", reference)
    assert bench.run("ExAcquireRundownProtection", reference) == 1


def test_rundown_protection_released_too_often_is_a_bugcheck(bench: Bench) -> None:
    reference = bench.room(8)
    report = bench.crash_of(
        bench.call("ExInitializeRundownProtection", reference),
        bench.call("ExReleaseRundownProtection", reference),
    )
    assert "more often than it was acquired" in report.rule


def test_rundown_protection_re_initialised_while_in_use_is_a_bugcheck(bench: Bench) -> None:
    reference = bench.room(8)
    report = bench.crash_of(bench.call("ExReInitializeRundownProtection", reference))
    assert "rundown is not complete" in report.rule


def test_lowering_the_irql_by_a_raise_is_a_bugcheck(bench: Bench) -> None:
    report = bench.crash_of(bench.call("KeRaiseIrqlToDpcLevel"), bench.call("KfRaiseIrql", 1))
    assert report.parameters[0] == 0x30


def test_leaving_a_critical_region_once_too_often_is_a_bugcheck(bench: Bench) -> None:
    report = bench.crash_of(bench.call("KeLeaveCriticalRegion"))
    assert report.parameters[0] == 0x3E


def test_interlocked_lists_keep_their_order(bench: Bench, lock: int) -> None:
    head = bench.room(16)
    bench.kernel.memory.put64(head, head)
    bench.kernel.memory.put64(head + 8, head)
    entries = [bench.room(16) for _ in range(3)]

    def use() -> Model:
        previous = []
        for entry in entries:
            previous.append((yield bench.call("ExInterlockedInsertTailList", head, entry, lock)))
        removed = []
        for _ in range(4):
            removed.append((yield bench.call("ExInterlockedRemoveHeadList", head, lock)))
        return previous, removed

    assert bench.model(use()) == ([0, entries[0], entries[1]], [*entries, 0])


def test_a_damaged_list_is_found_at_the_next_operation(bench: Bench, lock: int) -> None:
    head, entry = bench.room(16), bench.room(16)
    bench.kernel.memory.put64(head, head)
    bench.kernel.memory.put64(head + 8, entry)
    report = bench.crash_of(bench.call("ExInterlockedInsertHeadList", head, entry, lock))
    assert report.name == "KERNEL_SECURITY_CHECK_FAILURE"


def test_an_s_list_is_last_in_first_out_and_counts(bench: Bench) -> None:
    head, first, second = bench.room(16), bench.room(16), bench.room(16)

    def use() -> Model:
        yield bench.call("InitializeSListHead", head)
        yield bench.call("ExpInterlockedPushEntrySList", head, first)
        yield bench.call("ExpInterlockedPushEntrySList", head, second)
        depth = yield bench.call("ExQueryDepthSList", head)
        popped = yield bench.call("ExpInterlockedPopEntrySList", head)
        flushed = yield bench.call("ExpInterlockedFlushSList", head)
        return depth, popped, flushed, (yield bench.call("ExpInterlockedPopEntrySList", head))

    assert bench.model(use()) == (2, second, first, 0)
