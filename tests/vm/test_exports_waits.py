"""Dispatcher objects, timers, DPCs, threads, objects and handles through their export stubs."""

from __future__ import annotations

import struct

import pytest

from tests.vm.kernel_bench import EXPORTS, NTOSKRNL, Bench
from vm.emulated.exports.declare import PVOID, export
from vm.emulated.exports.threads import notify_process
from vm.emulated.kernel import dpc as dpcs
from vm.emulated.kernel.bugcheck import GuestException
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.objects import KERNEL_HANDLE_BIT
from vm.emulated.kernel.status import (
    STATUS_INVALID_HANDLE,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_TYPE_MISMATCH,
    STATUS_SEMAPHORE_LIMIT_EXCEEDED,
    STATUS_TIMEOUT,
    STATUS_USER_APC,
)
from vm.emulated.kernel.threads import Model

MILLISECOND = 10_000
NOTIFICATION, SYNCHRONIZATION = 0, 1


@pytest.fixture
def bench() -> Bench:
    return Bench.make()


def relative(bench: Bench, milliseconds: int) -> int:
    """Address of a relative timeout."""
    return bench.put(struct.pack("<q", -milliseconds * MILLISECOND))


def event(bench: Bench, kind: int = NOTIFICATION, state: int = 0) -> int:
    address = bench.room(0x18)
    bench.run("KeInitializeEvent", address, kind, state)
    return address


def test_a_synchronisation_event_releases_one_waiter_and_resets(bench: Bench) -> None:
    signal, woken = event(bench, SYNCHRONIZATION), []

    def waiter(name: str) -> Model:
        yield bench.call("KeWaitForSingleObject", signal, 0, 0, 0, 0)
        woken.append(name)

    for name in "ab":
        bench.kernel.start_system_thread(waiter(name), name)
    bench.kernel.run_until_idle()
    assert woken == []
    bench.run("KeSetEvent", signal, 0, 0)
    bench.kernel.run_until_idle()
    assert len(woken) == 1
    assert bench.run("KeReadStateEvent", signal) == 0
    bench.run("KeSetEvent", signal, 0, 0)
    bench.kernel.run_until_idle()
    assert sorted(woken) == ["a", "b"]


def test_a_notification_event_releases_all_and_stays(bench: Bench) -> None:
    signal = event(bench)
    assert bench.run("KeSetEvent", signal, 0, 0) == 0
    assert bench.run("KeSetEvent", signal, 0, 0) == 1
    assert bench.run("KeWaitForSingleObject", signal, 0, 0, 0, 0) == 0
    assert bench.run("KeResetEvent", signal) == 1


def test_a_wait_times_out_exactly_when_it_said(bench: Bench) -> None:
    before = bench.kernel.clock.interrupt_time
    assert bench.run("KeWaitForSingleObject", event(bench), 0, 0, 0, relative(bench, 250)) == STATUS_TIMEOUT
    assert bench.kernel.clock.interrupt_time - before == 250 * MILLISECOND


def test_a_wait_with_a_zero_timeout_is_allowed_at_dispatch_level_and_one_that_blocks_is_not(
    bench: Bench,
) -> None:
    signal = event(bench)

    def look() -> Model:
        yield bench.call("KeRaiseIrqlToDpcLevel")
        status = yield bench.call("KeWaitForSingleObject", signal, 0, 0, 0, bench.room(8))
        yield bench.call("KeLowerIrql", 0)
        return status

    assert bench.model(look()) == STATUS_TIMEOUT
    report = bench.crash_of(
        bench.call("KeRaiseIrqlToDpcLevel"), bench.call("KeWaitForSingleObject", signal, 0, 0, 0, 0)
    )
    assert report.name == "ATTEMPTED_SWITCH_FROM_DPC"


@pytest.mark.parametrize(("mode", "ends"), [(1, True), (0, False)])
def test_termination_ends_a_user_mode_wait_only(bench: Bench, mode: int, ends: bool) -> None:
    signal, statuses = event(bench), []
    kernel = bench.kernel

    def waiter() -> Model:
        statuses.append((yield bench.call("KeWaitForSingleObject", signal, 0, mode, 0, 0)))

    thread = kernel.start_system_thread(waiter(), "waiter")
    kernel.run_until_idle()
    kernel.scheduler.terminate(thread)
    kernel.run_until_idle()
    assert statuses == ([STATUS_USER_APC] if ends else [])


def test_waiting_for_any_returns_the_index_and_for_all_takes_all(bench: Bench) -> None:
    first, second = event(bench, SYNCHRONIZATION), event(bench, SYNCHRONIZATION, 1)
    objects = bench.put(struct.pack("<QQ", first, second))
    assert bench.run("KeWaitForMultipleObjects", 2, objects, 1, 0, 0, 0, 0, 0) == 1
    bench.run("KeSetEvent", first, 0, 0)
    timeout = relative(bench, 1)
    assert bench.run("KeWaitForMultipleObjects", 2, objects, 0, 0, 0, 0, timeout, 0) == STATUS_TIMEOUT
    assert bench.run("KeReadStateEvent", first) == 1
    bench.run("KeSetEvent", second, 0, 0)
    assert bench.run("KeWaitForMultipleObjects", 2, objects, 0, 0, 0, 0, timeout, 0) == 0
    assert bench.run("KeReadStateEvent", first) == 0


def test_more_than_three_objects_need_a_wait_block_array(bench: Bench) -> None:
    objects = bench.put(struct.pack("<4Q", *(event(bench) for _ in range(4))))
    report = bench.crash_of(bench.call("KeWaitForMultipleObjects", 4, objects, 1, 0, 0, 0, 0, 0))
    assert report.name == "MAXIMUM_WAIT_OBJECTS_EXCEEDED"


def test_a_mutex_is_recursive_and_only_its_owner_releases_it(bench: Bench) -> None:
    mutex = bench.room(0x38)

    def use() -> Model:
        yield bench.call("KeInitializeMutex", mutex, 0)
        for _ in range(2):
            yield bench.call("KeWaitForMutexObject", mutex, 0, 0, 0, 0)
        first = yield bench.call("KeReleaseMutex", mutex, 0)
        second = yield bench.call("KeReleaseMutex", mutex, 0)
        return first - (1 << 64) if first >> 63 else first, second

    assert bench.model(use()) == (-1, 0)
    assert bench.crash_of(bench.call("KeReleaseMutex", mutex, 0)).name == "THREAD_NOT_MUTEX_OWNER"


def test_a_semaphore_counts_and_has_a_limit(bench: Bench) -> None:
    semaphore = bench.room(0x20)

    def use() -> Model:
        yield bench.call("KeInitializeSemaphore", semaphore, 1, 2)
        yield bench.call("KeWaitForSingleObject", semaphore, 0, 0, 0, 0)
        yield bench.call("KeReleaseSemaphore", semaphore, 0, 2, 0)
        return (yield bench.call("KeReadStateSemaphore", semaphore))

    assert bench.model(use()) == 2
    with pytest.raises(GuestException) as caught:
        bench.kernel.dispatcher.release_semaphore(semaphore, 1)
    assert caught.value.status == STATUS_SEMAPHORE_LIMIT_EXCEEDED


def test_a_dispatcher_object_that_was_never_initialised_is_a_bugcheck(bench: Bench) -> None:
    report = bench.crash_of(bench.call("KeSetEvent", bench.put(b"\xbd" * 0x18), 0, 0))
    assert "not an initialised dispatcher object" in report.rule


def test_setting_an_object_that_is_no_event_is_a_bugcheck(bench: Bench) -> None:
    semaphore = bench.room(0x20)
    bench.run("KeInitializeSemaphore", semaphore, 1, 5)
    report = bench.crash_of(bench.call("KeSetEvent", semaphore, 0, 0))
    assert "is no event but a dispatcher object of type 5" in report.rule


@pytest.mark.parametrize("call", ["KeSetEvent", "KeWaitForSingleObject"])
def test_zeroed_memory_is_no_event(bench: Bench, call: str) -> None:
    report = bench.crash_of(bench.call(call, bench.room(0x18), 0, 0, 0, 0))
    assert "not an initialised dispatcher object" in report.rule


def recorder(bench: Bench, calls: list[tuple[int, int, int]]) -> int:
    """Address of a DPC routine that notes its context, its first argument and the IRQL."""

    @export(NTOSKRNL, irql=2)
    def Routine(k: Kernel, Dpc: PVOID, Context: PVOID, Argument1: PVOID, Argument2: PVOID) -> None:  # noqa: N802, N803
        calls.append((Context, Argument1, k.engine.irql))

    return bench.kernel.python_function(Routine)


def test_a_dpc_runs_once_at_dispatch_level_with_the_first_arguments(bench: Bench) -> None:
    calls: list[tuple[int, int, int]] = []
    dpc = bench.room(0x40)

    def queue() -> Model:
        yield bench.call("KeInitializeDpc", dpc, recorder(bench, calls), 77)
        yield bench.call("KeRaiseIrqlToDpcLevel")
        first = yield bench.call("KeInsertQueueDpc", dpc, 1, 2)
        second = yield bench.call("KeInsertQueueDpc", dpc, 3, 4)
        yield bench.call("KeLowerIrql", 0)
        yield bench.call("KeFlushQueuedDpcs")
        return first, second

    first, second = bench.model(queue())
    assert first == 1
    assert calls[0] == (77, 1, 2)
    assert len(calls) == 1 + second


def test_a_removed_dpc_does_not_run(bench: Bench) -> None:
    calls: list[tuple[int, int, int]] = []
    dpc = bench.room(0x40)
    bench.run("KeInitializeDpc", dpc, recorder(bench, calls), 77)
    kernel = bench.kernel
    kernel.queue_dpc(dpc, 0, 0)
    assert bench.kernel.memory.u64(dpc + 0x38)
    assert dpcs.remove(kernel, dpc)
    kernel.run_until_idle()
    assert calls == []


def test_a_periodic_timer_queues_its_dpc_until_it_is_cancelled(bench: Bench) -> None:
    calls: list[tuple[int, int, int]] = []
    timer, dpc = bench.room(0x40), bench.room(0x40)

    def use() -> Model:
        yield bench.call("KeInitializeDpc", dpc, recorder(bench, calls), 5)
        yield bench.call("KeInitializeTimerEx", timer, SYNCHRONIZATION)
        yield bench.call("KeSetTimerEx", timer, -10 * MILLISECOND, 10, dpc)
        for _ in range(3):
            yield bench.call("KeWaitForSingleObject", timer, 0, 0, 0, 0)
        return (yield bench.call("KeCancelTimer", timer)), (yield bench.call("KeCancelTimer", timer))

    assert bench.model(use()) == (1, 0)
    bench.kernel.run_until_idle()
    assert len(calls) == 3


def test_freeing_memory_with_a_set_timer_is_a_bugcheck(bench: Bench) -> None:
    def free() -> Model:
        timer = yield bench.call("ExAllocatePool2", 0x40, 0x40, 0x74736554)
        yield bench.call("KeInitializeTimer", timer)
        yield bench.call("KeSetTimer", timer, -MILLISECOND, 0)
        yield bench.call("ExFreePoolWithTag", timer, 0)

    assert "active timer" in bench.crash(free()).rule


def test_a_system_thread_has_a_kernel_handle_and_can_be_joined(bench: Bench) -> None:
    ran: list[int] = []

    @export(NTOSKRNL, irql=0)
    def Worker(k: Kernel, Context: PVOID) -> Model:  # noqa: N802, N803
        ran.append(Context)
        yield bench.call("PsTerminateSystemThread", 0)
        ran.append(-1)

    handle_at, thread_at = bench.room(8), bench.room(8)
    memory = bench.kernel.memory

    def main() -> Model:
        start = bench.kernel.python_function(Worker)
        attributes = bench.attributes(flags=0x200)
        yield bench.call("PsCreateSystemThread", handle_at, 0x1FFFFF, attributes, 0, 0, start, 42)
        handle = memory.u64(handle_at)
        kind = memory.u64(bench.import_("PsThreadType"))
        wrong = memory.u64(bench.import_("PsProcessType"))
        mismatch = yield bench.call("ObReferenceObjectByHandle", handle, 0, wrong, 0, thread_at, 0)
        yield bench.call("ObReferenceObjectByHandle", handle, 0x100000, kind, 0, thread_at, 0)
        yield bench.call("ZwClose", handle)
        thread = memory.u64(thread_at)
        status = yield bench.call("KeWaitForSingleObject", thread, 0, 0, 0, 0)
        left = yield bench.call("ObfDereferenceObject", thread)
        return handle & KERNEL_HANDLE_BIT, mismatch, status, left, thread

    bit, mismatch, status, left, thread = bench.model(main())
    assert (bit, mismatch, status, left) == (KERNEL_HANDLE_BIT, STATUS_OBJECT_TYPE_MISMATCH, 0, 0)
    assert ran == [42]
    assert thread not in bench.kernel.objects.by_address


def test_a_kernel_handle_closed_twice_is_a_bugcheck(bench: Bench) -> None:
    handle_at = bench.room(8)

    def twice() -> Model:
        yield bench.call("ZwCreateEvent", handle_at, 0x1F0003, bench.attributes(flags=0x200), 0, 0)
        handle = bench.kernel.memory.u64(handle_at)
        yield bench.call("ZwClose", handle)
        yield bench.call("ZwClose", handle)

    assert bench.crash(twice()).name == "INVALID_KERNEL_HANDLE"


def test_a_user_handle_that_is_not_open_is_an_error_and_a_violation(bench: Bench) -> None:
    assert bench.run("ZwClose", 0x1234) == STATUS_INVALID_HANDLE
    assert [v.rule for v in bench.kernel.violations] == ["handle.invalid"]


def test_an_object_dereferenced_once_too_often_is_a_bugcheck(bench: Bench) -> None:
    handle_at, object_at = bench.room(8), bench.room(8)

    def too_often() -> Model:
        yield bench.call("ZwCreateEvent", handle_at, 0x1F0003, bench.attributes(flags=0x200), 0, 0)
        handle = bench.kernel.memory.u64(handle_at)
        yield bench.call("ObReferenceObjectByHandle", handle, 0, 0, 0, object_at, 0)
        for _ in range(2):
            yield bench.call("ObfDereferenceObject", bench.kernel.memory.u64(object_at))

    report = bench.crash(too_often())
    assert report.name == "REFERENCE_BY_POINTER"
    assert "only its 1 open handle kept it alive" in report.rule


def test_a_named_event_is_found_by_its_name_and_cannot_be_made_twice(bench: Bench) -> None:
    name = "\\BaseNamedObjects\\Bell"
    first, second = bench.room(8), bench.room(8)
    assert bench.run("ZwCreateEvent", first, 0x1F0003, bench.attributes(name, 0x240), 0, 0) == 0
    again = bench.run("ZwCreateEvent", second, 0x1F0003, bench.attributes(name, 0x240), 0, 0)
    assert again == STATUS_OBJECT_NAME_COLLISION
    assert bench.run("ZwOpenEvent", second, 2, bench.attributes(name.upper(), 0x240)) == 0
    bench.run("ZwSetEvent", bench.kernel.memory.u64(second), 0)
    assert bench.run("ZwWaitForSingleObject", bench.kernel.memory.u64(first), 0, bench.room(8)) == 0


def test_a_work_item_runs_in_the_system_process_at_passive_level(bench: Bench) -> None:
    seen: list[tuple[int, int, int]] = []

    @export(NTOSKRNL, irql=0)
    def Work(k: Kernel, Device: PVOID, Context: PVOID) -> None:  # noqa: N802, N803
        seen.append((Device, Context, k.current.process.id))

    routine = bench.kernel.python_function(Work)

    def use() -> Model:
        item = yield bench.call("IoAllocateWorkItem", 5)
        yield bench.call("IoQueueWorkItem", item, routine, 1, 6)
        return item

    item = bench.model(use())
    bench.kernel.run_until_idle()
    assert seen == [(5, 6, 4)]
    bench.run("IoFreeWorkItem", item)


def test_process_notify_routines_hear_of_client_processes_until_they_are_removed(bench: Bench) -> None:
    heard: list[tuple[int, int, int]] = []

    @export(NTOSKRNL, irql=0)
    def Notify(k: Kernel, Parent: PVOID, Process: PVOID, Create: PVOID) -> None:  # noqa: N802, N803
        heard.append((Parent, Process, Create & 0xFF))

    kernel = bench.kernel
    routine = kernel.python_function(Notify)
    assert bench.run("PsSetCreateProcessNotifyRoutine", routine, 0) == 0
    process = kernel.create_process(4711, "\\Device\\HarddiskVolume1\\a.exe", kernel.system.token)
    kernel.run(notify_process(kernel, process, 4, created=True))
    kernel.run(notify_process(kernel, process, 4, created=False))
    assert heard == [(4, 4711, 1), (4, 4711, 0)]
    assert bench.run("PsSetCreateProcessNotifyRoutine", routine, 1) == 0
    assert bench.run("PsSetCreateProcessNotifyRoutine", routine, 1) != 0


def test_a_process_is_looked_up_by_its_id_and_comes_referenced(bench: Bench) -> None:
    at = bench.room(8)
    assert bench.run("PsLookupProcessByProcessId", 4, at) == 0
    address = bench.kernel.memory.u64(at)
    assert bench.run("PsGetProcessId", address) == 4
    before = bench.kernel.objects.get(address).references
    assert bench.run("ObfDereferenceObject", address) == before - 1


def test_every_declared_export_can_be_bound_and_has_a_type_for_every_parameter() -> None:
    kernel = Kernel(EXPORTS, memory_bytes=8 << 20)
    for dll, name in EXPORTS:
        assert kernel.resolve_import(dll, name)
    assert len(EXPORTS) > 500
