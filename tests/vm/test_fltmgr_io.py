"""Requests of client threads and what the callbacks of filters see and do."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.filter_lab import READ_WRITE_DELETE, SYNCHRONOUS_FILE, Data, FilterLab, rename_data
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.instances import TEARDOWN_MANUAL, tear_down
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.kernel.kernel import MachineCrashedError
from vm.emulated.kernel.security import ADMINISTRATORS, EVERYONE, LAB_USER, SYSTEM, Impersonation, sid_bytes
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_FILE_DELETED,
    STATUS_FLT_NOT_SAFE_TO_POST_OPERATION,
    STATUS_INVALID_DEVICE_REQUEST,
    STATUS_INVALID_HANDLE,
    STATUS_INVALID_OWNER,
    STATUS_NOT_SAME_DEVICE,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_SHARING_VIOLATION,
)
from vm.emulated.kernel.threads import Model, Wait

MAJORS = (
    n.IRP_MJ_CREATE,
    n.IRP_MJ_CLOSE,
    n.IRP_MJ_READ,
    n.IRP_MJ_WRITE,
    n.IRP_MJ_QUERY_INFORMATION,
    n.IRP_MJ_SET_INFORMATION,
    n.IRP_MJ_DIRECTORY_CONTROL,
    n.IRP_MJ_FLUSH_BUFFERS,
    n.IRP_MJ_SET_SECURITY,
    n.IRP_MJ_CLEANUP,
)
WITH_CALLBACK, NO_CALLBACK, PENDING, DISALLOW_FASTIO, COMPLETE, SYNCHRONIZE = range(6)
MORE_PROCESSING = 1


@pytest.fixture
def lab() -> Iterator[FilterLab]:
    made = FilterLab()
    yield made
    made.kernel.close()


def recorder(lab: FilterLab, label: str = "") -> tuple[Any, Any]:
    """Callbacks that write down (label, pre/post, operation name, status)."""

    def pre(data: Data, context: int) -> int:
        lab.events.append((label + "pre", n.operation_name(data.major)[7:]))
        return WITH_CALLBACK

    def post(data: Data, context: int, flags: int) -> int:
        lab.events.append((label + "post", n.operation_name(data.major)[7:], data.status))
        return 0

    return pre, post


# The way of a request


def test_a_file_is_created_written_read_and_closed_with_one_request_each(lab: FilterLab) -> None:
    lab.filter(dict.fromkeys(MAJORS, recorder(lab)))
    handle = lab.open(r"D:\a.txt", disposition=n.FILE_CREATE)
    assert lab.write(handle, b"hello") == 0
    status, values = lab.service("read_file", handle=handle, offset=1, length=100)
    lab.close(handle)
    assert (status, values["data"]) == (0, b"ello")
    assert [event[1] for event in lab.events if event[0] == "pre"] == [
        "CREATE",
        "WRITE",
        "READ",
        "CLEANUP",
        "CLOSE",
    ]
    assert lab.leftovers() == []


def test_callbacks_run_from_the_highest_altitude_down_and_back_up(lab: FilterLab) -> None:
    lab.filter({n.IRP_MJ_CREATE: recorder(lab, "low ")}, name="low", altitude="145000")
    lab.filter({n.IRP_MJ_CREATE: recorder(lab, "high ")}, name="high", altitude="385100.5")
    lab.close(lab.open(r"D:\a.txt"))
    assert [event[0] for event in lab.events] == ["high pre", "low pre", "low post", "high post"]


def test_a_filter_sees_only_the_volume_it_is_attached_to(lab: FilterLab) -> None:
    lab.filter({n.IRP_MJ_CREATE: recorder(lab)})
    lab.close(lab.open(r"E:\a.txt"))
    assert lab.events == []


def test_a_failed_create_reaches_the_post_operation_callback_with_its_status(lab: FilterLab) -> None:
    lab.filter({n.IRP_MJ_CREATE: recorder(lab)})
    status, _ = lab.service(
        "create_file",
        path=r"D:\missing.txt",
        access=n.FILE_GENERIC_READ,
        share=7,
        disposition=n.FILE_OPEN,
        options=SYNCHRONOUS_FILE,
        attributes=0,
    )
    assert status == STATUS_OBJECT_NAME_NOT_FOUND
    assert lab.events[-1] == ("post", "CREATE", STATUS_OBJECT_NAME_NOT_FOUND)
    assert lab.leftovers() == []


def test_the_structures_of_a_create_are_laid_out_as_the_headers_say(lab: FilterLab) -> None:
    seen: dict[str, Any] = {}
    memory = lab.kernel.memory

    def pre(data: Data, context: int) -> int:
        security = data.parameter(0)
        seen.update(
            options=memory.u32(data.iopb + 0x20),
            attributes=memory.u16(data.iopb + 0x28),
            share=memory.u16(data.iopb + 0x2A),
            access=memory.u32(security + 0x10),
            name=memory.unicode_string(data.file_object + 0x58),
            type=memory.u16(data.file_object),
            size=memory.u16(data.file_object + 2),
            mode=memory.u8(data.address + 0x50),
            thread=memory.u64(data.address + 8),
            related=memory.read(data.related, 0x30),
            flags=data.flags,
            target=memory.u64(data.iopb + 0x10),
        )
        return NO_CALLBACK

    instance = lab.filter({n.IRP_MJ_CREATE: (pre, None)})
    handle = lab.open(
        r"D:\a.txt", disposition=n.FILE_OVERWRITE_IF, share=3, attributes=n.FILE_ATTRIBUTE_HIDDEN
    )
    assert seen["options"] == n.FILE_OVERWRITE_IF << 24 | SYNCHRONOUS_FILE
    assert (seen["attributes"], seen["share"]) == (n.FILE_ATTRIBUTE_HIDDEN, 3)
    assert seen["access"] == READ_WRITE_DELETE
    assert seen["name"] == r"\a.txt"
    assert (seen["type"], seen["size"], seen["mode"]) == (5, 0xD8, 1)
    assert seen["thread"] == lab.thread.address
    assert seen["related"] == struct.pack(
        "<HH4xQQQQQ",
        0x30,
        0,
        instance.filter.address,
        lab.d.address,
        instance.address,
        lab.file_object(handle).address,
        0,
    )
    assert seen["flags"] == n.FLTFL_CALLBACK_DATA_IRP_OPERATION
    assert seen["target"] == instance.address


def test_the_write_buffer_is_a_pointer_into_the_clients_address_space(lab: FilterLab) -> None:
    def pre(data: Data, context: int) -> int:
        length, buffer = data.parameter(0) & 0xFFFF_FFFF, data.parameter(0x18)
        lab.events.append((buffer < 1 << 47, data.kernel.memory.read(buffer, length)))
        return NO_CALLBACK

    lab.filter({n.IRP_MJ_WRITE: (pre, None)})
    assert lab.write(lab.open(r"D:\a.txt"), b"payload") == 0
    assert lab.events == [(True, b"payload")]


def test_the_name_of_the_running_callback_is_on_the_thread_while_it_runs(lab: FilterLab) -> None:
    def pre(data: Data, context: int) -> int:
        lab.events.append(list(lab.thread.io_callbacks))
        return NO_CALLBACK

    instance = lab.filter({n.IRP_MJ_CREATE: (pre, None)})
    lab.open(r"D:\a.txt")
    assert lab.events[0][0].endswith("of IRP_MJ_CREATE")
    assert lab.thread.io_callbacks == []
    assert instance.callbacks_running == 0


def test_skip_paging_io_hides_the_lazy_writer_and_nothing_else(lab: FilterLab) -> None:
    lab.settings.lazy_writer = True
    lab.filter({n.IRP_MJ_WRITE: recorder(lab, "all ")}, name="all")
    lab.filter({n.IRP_MJ_WRITE: recorder(lab, "skips ")}, name="skips", altitude="200000", flags=1)
    handle = lab.open(r"D:\a.txt")
    lab.write(handle, b"x")
    lab.close(handle)
    assert [event[0] for event in lab.events].count("all pre") == 2
    assert [event[0] for event in lab.events].count("skips pre") == 1
    assert lab.leftovers() == []


def test_the_lazy_writer_writes_whole_pages_from_a_system_thread_after_the_cleanup(lab: FilterLab) -> None:
    lab.settings.lazy_writer = True

    def pre(data: Data, context: int) -> int:
        if data.irp_flags & n.IRP_PAGING_IO:
            thread = lab.kernel.current
            memory = lab.kernel.memory
            lab.events.append(
                (thread.process.id, data.parameter(0) & 0xFFFF_FFFF, memory.read(data.parameter(0x18), 3))
            )
        return NO_CALLBACK

    lab.filter({n.IRP_MJ_WRITE: (pre, None)})
    handle = lab.open(r"D:\a.txt")
    lab.write(handle, b"abc")
    assert lab.events == []
    lab.close(handle)
    assert lab.events == [(4, 4096, b"abc")]
    assert lab.leftovers() == []


def test_a_file_deleted_at_its_cleanup_is_not_written_behind(lab: FilterLab) -> None:
    lab.settings.lazy_writer = True
    lab.filter({n.IRP_MJ_WRITE: recorder(lab)})
    handle = lab.open(r"D:\a.txt")
    lab.write(handle, b"abc")
    assert lab.set(handle, n.FileDispositionInformation, b"\1") == 0
    lab.close(handle)
    assert [event[0] for event in lab.events] == ["pre", "post"]


# Results of pre-operation callbacks


def test_complete_ends_the_request_and_lower_filters_never_see_it(lab: FilterLab) -> None:
    def deny(data: Data, context: int) -> int:
        data.complete(STATUS_ACCESS_DENIED)
        return COMPLETE

    lab.filter({n.IRP_MJ_CREATE: recorder(lab, "top ")}, altitude="390000", name="top")
    lab.filter({n.IRP_MJ_CREATE: (deny, lambda data, context, flags: lab.events.append("own post"))})
    lab.filter({n.IRP_MJ_CREATE: recorder(lab, "low ")}, altitude="100000", name="low")
    status, _ = lab.service(
        "create_file",
        path=r"D:\a.txt",
        access=n.FILE_GENERIC_READ,
        share=7,
        disposition=n.FILE_CREATE,
        options=SYNCHRONOUS_FILE,
        attributes=0,
    )
    assert status == STATUS_ACCESS_DENIED
    assert lab.events == [("top pre", "CREATE"), ("top post", "CREATE", STATUS_ACCESS_DENIED)]


def test_the_completion_context_goes_from_pre_to_post(lab: FilterLab) -> None:
    def pre(data: Data, context: int) -> int:
        data.kernel.memory.put64(context, 0xC0FFEE)
        return WITH_CALLBACK

    lab.filter({n.IRP_MJ_CREATE: (pre, lambda data, context, flags: lab.events.append(context))})
    lab.open(r"D:\a.txt")
    assert lab.events == [0xC0FFEE]


def test_a_post_operation_callback_without_a_pre_operation_callback_is_called(lab: FilterLab) -> None:
    lab.filter({n.IRP_MJ_CREATE: (None, recorder(lab)[1])})
    lab.open(r"D:\a.txt")
    assert lab.events == [("post", "CREATE", 0)]


def pended(lab: FilterLab) -> list[int]:
    """A filter that pends every write; the list gets the callback data."""
    waiting: list[int] = []

    def pre(data: Data, context: int) -> int:
        waiting.append(data.address)
        return PENDING

    lab.filter({n.IRP_MJ_WRITE: (pre, recorder(lab)[1])}, altitude="300000", name="pends")
    return waiting


def test_a_pended_request_goes_on_when_another_thread_completes_it(lab: FilterLab) -> None:
    waiting = pended(lab)
    lab.filter({n.IRP_MJ_WRITE: recorder(lab, "low ")}, altitude="100000", name="low")
    handle = lab.open(r"D:\a.txt")
    outcome = lab.begin(lab_write(lab, handle))
    lab.kernel.run_until_idle()
    assert outcome == [] and lab.d.instances[0].callbacks_running == 1
    lab.kernel.run(lab.call("FltCompletePendedPreOperation", waiting[0], WITH_CALLBACK, 0))
    lab.kernel.run_until_idle()
    assert outcome[0][0] == (0, {"written": 4})
    assert [event[0] for event in lab.events] == ["low pre", "low post", "post"]
    assert lab.d.instances[0].callbacks_running == 0
    assert lab.leftovers() != []  # only the file that is still open
    lab.close(handle)
    assert lab.leftovers() == []


def lab_write(lab: FilterLab, handle: int) -> Model:
    from vm.emulated.fltmgr.services_files import SERVICES

    return SERVICES["write_file"](lab.kernel, lab.thread, handle=handle, offset=0, data=b"data")


def test_a_request_completed_before_its_callback_returns_pending_goes_on_at_once(lab: FilterLab) -> None:
    def pre(data: Data, context: int) -> Model:
        yield from lab.call("FltCompletePendedPreOperation", data.address, NO_CALLBACK, 0)
        return PENDING

    lab.filter({n.IRP_MJ_WRITE: (pre, None)})
    assert lab.write(lab.open(r"D:\a.txt"), b"x") == 0


def test_a_synchronised_post_callback_runs_in_the_requestors_thread(lab: FilterLab) -> None:
    def pre(data: Data, context: int) -> int:
        return SYNCHRONIZE

    def post(data: Data, context: int, flags: int) -> int:
        lab.events.append(lab.kernel.current is lab.thread)
        return 0

    waiting = pended(lab)
    lab.filter({n.IRP_MJ_WRITE: (pre, post)}, altitude="385000", name="synchronised")
    handle = lab.open(r"D:\a.txt")
    outcome = lab.begin(lab_write(lab, handle))
    lab.kernel.run_until_idle()
    lab.kernel.run(lab.call("FltCompletePendedPreOperation", waiting[0], NO_CALLBACK, 0))
    lab.kernel.run_until_idle()
    assert outcome[0][0][0] == 0
    assert lab.events == [True]


def test_changed_parameters_count_when_marked_dirty_and_are_put_back_for_the_post_callback(
    lab: FilterLab,
) -> None:
    swapped = lab.buffer(4, b"SWAP")

    def pre(data: Data, context: int) -> Model:
        lab.events.append(data.parameter(0x18))
        data.put_parameter(0x18, swapped)
        yield from lab.call("FltSetCallbackDataDirty", data.address)
        return WITH_CALLBACK

    def post(data: Data, context: int, flags: int) -> int:
        lab.events.append(data.parameter(0x18))
        return 0

    lab.filter({n.IRP_MJ_WRITE: (pre, post)})
    handle = lab.open(r"D:\a.txt")
    assert lab.write(handle, b"data") == 0
    _, values = lab.service("read_file", handle=handle, offset=0, length=10)
    assert values["data"] == b"SWAP"
    assert lab.events[0] == lab.events[1] != swapped


def test_changed_parameters_without_the_dirty_bit_are_lost_and_a_violation(lab: FilterLab) -> None:
    def pre(data: Data, context: int) -> int:
        data.put_parameter(0, 1)
        return NO_CALLBACK

    lab.filter({n.IRP_MJ_WRITE: (pre, None)})
    handle = lab.open(r"D:\a.txt")
    assert lab.write(handle, b"data") == 0
    assert lab.file_object(handle).opened.stream.size == 4
    assert [violation.rule for violation in lab.kernel.violations] == ["callback-data-not-dirty"]


def test_fast_io_is_offered_first_and_falls_back_when_a_filter_disallows_it(lab: FilterLab) -> None:
    lab.settings.fast_io = True

    def pre(data: Data, context: int) -> int:
        fast = bool(data.flags & n.FLTFL_CALLBACK_DATA_FAST_IO_OPERATION)
        lab.events.append("fast" if fast else "irp")
        return DISALLOW_FASTIO if fast else NO_CALLBACK

    lab.filter({n.IRP_MJ_WRITE: (pre, None)})
    assert lab.write(lab.open(r"D:\a.txt"), b"x") == 0
    assert lab.events == ["fast", "irp"]


def test_a_completion_that_needs_more_processing_waits_for_the_driver(lab: FilterLab) -> None:
    waiting: list[int] = []

    def post(data: Data, context: int, flags: int) -> int:
        waiting.append(data.address)
        return MORE_PROCESSING

    lab.filter({n.IRP_MJ_WRITE: recorder(lab, "top ")}, altitude="390000", name="top")
    lab.filter({n.IRP_MJ_WRITE: (None, post)})
    handle = lab.open(r"D:\a.txt")
    outcome = lab.begin(lab_write(lab, handle))
    lab.kernel.run_until_idle()
    assert outcome == [] and lab.events == [("top pre", "WRITE")]
    lab.kernel.run(lab.call("FltCompletePendedPostOperation", waiting[0]))
    lab.kernel.run_until_idle()
    assert outcome[0][0][0] == 0
    assert lab.events[-1] == ("top post", "WRITE", 0)


def test_a_completion_at_dispatch_level_is_moved_to_a_safe_thread(lab: FilterLab) -> None:
    lab.settings.completion_irql = 2

    def safe(k: Any, data: Any, related: Any, context: Any, flags: Any) -> int:
        lab.events.append(("safe", k.engine.irql))
        return 0

    from vm.emulated.exports.declare import PVOID, ULONG

    safe.__annotations__ = {
        "data": PVOID,
        "related": PVOID,
        "context": PVOID,
        "flags": ULONG,
        "return": ULONG,
    }
    safe_address = lab.function(safe, "SafePost", irql=0)
    result = lab.buffer(4)

    def post(data: Data, context: int, flags: int) -> Model:
        lab.events.append(("post", lab.kernel.engine.irql))
        done = yield from lab.call(
            "FltDoCompletionProcessingWhenSafe",
            data.address,
            data.related,
            context,
            flags,
            safe_address,
            result,
        )
        assert done
        return lab.kernel.memory.u32(result)

    lab.filter({n.IRP_MJ_WRITE: (None, post)})
    assert lab.write(lab.open(r"D:\a.txt"), b"x") == 0
    assert lab.events == [("post", 2), ("safe", 0)]


def test_draining_calls_the_post_callback_of_an_operation_that_is_still_below(lab: FilterLab) -> None:
    waiting = pended(lab)

    def post(data: Data, context: int, flags: int) -> int:
        lab.events.append(("drained", flags, context))
        return 0

    def pre(data: Data, context: int) -> int:
        data.kernel.memory.put64(context, 7)
        return WITH_CALLBACK

    top = lab.filter({n.IRP_MJ_WRITE: (pre, post)}, altitude="390000", name="top")
    outcome = lab.begin(lab_write(lab, lab.open(r"D:\a.txt")))
    lab.kernel.run_until_idle()
    assert top.callbacks_running == 1
    lab.kernel.run(tear_down(lab.kernel, top, TEARDOWN_MANUAL))
    assert lab.events == [("drained", 1, 7)] and top not in lab.d.instances
    lab.kernel.run(lab.call("FltCompletePendedPreOperation", waiting[0], NO_CALLBACK, 0))
    lab.kernel.run_until_idle()
    assert outcome[0][0][0] == 0
    assert len(lab.events) == 1


def test_a_callback_that_is_running_when_its_instance_goes_is_drained_when_it_returns(lab: FilterLab) -> None:
    event = lab.buffer(0x18)
    lab.kernel.dispatcher.initialize(event, 0, 0)
    waiting = pended(lab)

    def pre(data: Data, context: int) -> Model:
        yield Wait((event,))
        return WITH_CALLBACK

    def post(data: Data, context: int, flags: int) -> int:
        lab.events.append(("drained", flags))
        return 0

    top = lab.filter({n.IRP_MJ_WRITE: (pre, post)}, altitude="390000", name="top")
    outcome = lab.begin(lab_write(lab, lab.open(r"D:\a.txt")))
    lab.kernel.run_until_idle()
    gone = lab.begin(tear_down(lab.kernel, top, TEARDOWN_MANUAL), lab.new_thread())
    lab.kernel.run_until_idle()
    assert gone == [] and lab.events == []
    lab.kernel.dispatcher.set_event(event)
    lab.kernel.run_until_idle()
    assert gone and lab.events == [("drained", 1)] and outcome == []
    lab.kernel.run(lab.call("FltCompletePendedPreOperation", waiting[0], NO_CALLBACK, 0))
    lab.kernel.run_until_idle()
    assert outcome[0][0][0] == 0 and len(lab.events) == 1


# Broken rules


def broken(lab: FilterLab, pre: Any, post: Any = None, major: int = n.IRP_MJ_CREATE) -> str:
    lab.filter({major: (pre, post)})
    with pytest.raises(MachineCrashedError):
        lab.open(r"D:\a.txt")
        lab.close(4)
    return lab.rule


def test_an_unknown_result_stops_the_machine(lab: FilterLab) -> None:
    assert "returned 0x2a, which is no FLT_PREOP_CALLBACK_STATUS" in broken(lab, lambda data, context: 42)


def test_a_callback_that_was_promised_but_is_not_registered_stops_the_machine(lab: FilterLab) -> None:
    assert "no post-operation callback is registered" in broken(lab, lambda data, context: WITH_CALLBACK)


def test_a_completion_without_a_status_stops_the_machine(lab: FilterLab) -> None:
    assert "without setting Data->IoStatus.Status" in broken(lab, lambda data, context: COMPLETE)


def test_a_leaked_completion_context_stops_the_machine(lab: FilterLab) -> None:
    def pre(data: Data, context: int) -> int:
        data.kernel.memory.put64(context, 0x1234)
        return NO_CALLBACK

    assert "it leaks" in broken(lab, pre)


def test_a_changed_irql_stops_the_machine(lab: FilterLab) -> None:
    def pre(data: Data, context: int) -> int:
        data.kernel.engine.irql = 1
        return NO_CALLBACK

    assert "returned at IRQL 1" in broken(lab, pre)


def test_a_cleanup_that_is_failed_stops_the_machine(lab: FilterLab) -> None:
    def pre(data: Data, context: int) -> int:
        data.complete(STATUS_ACCESS_DENIED)
        return COMPLETE

    assert "a cleanup or close cannot fail" in broken(lab, pre, major=n.IRP_MJ_CLEANUP)


def test_disallowing_fast_io_of_an_irp_stops_the_machine(lab: FilterLab) -> None:
    assert "not fast I/O" in broken(lab, lambda data, context: DISALLOW_FASTIO)


def test_failing_an_open_file_without_cancelling_it_stops_the_machine(lab: FilterLab) -> None:
    def post(data: Data, context: int, flags: int) -> int:
        data.complete(STATUS_ACCESS_DENIED)
        return 0

    assert "without FltCancelFileOpen" in broken(lab, None, post)


def test_callback_data_that_is_used_after_its_request_faults(lab: FilterLab) -> None:
    kept: list[Data] = []
    lab.filter({n.IRP_MJ_CREATE: (lambda data, context: kept.append(data) or NO_CALLBACK, None)})
    lab.open(r"D:\a.txt")
    with pytest.raises(MachineCrashedError):
        lab.kernel.run(lab.call("FltSetCallbackDataDirty", kept[0].address))
        lab.kernel.check_alive()
    assert "not the callback data of a request" in lab.rule


# Cancelled opens, reissue, requests of a filter's own


def test_a_cancelled_open_leaves_nothing_open(lab: FilterLab) -> None:
    def post(data: Data, context: int, flags: int) -> Model:
        yield from lab.call("FltCancelFileOpen", data.instance, data.file_object)
        data.complete(STATUS_ACCESS_DENIED)
        return 0

    lab.filter({n.IRP_MJ_CREATE: (None, post), n.IRP_MJ_CLEANUP: recorder(lab)})
    status, _ = lab.service(
        "create_file",
        path=r"D:\a.txt",
        access=READ_WRITE_DELETE,
        share=0,
        disposition=n.FILE_CREATE,
        options=SYNCHRONOUS_FILE,
        attributes=0,
    )
    assert status == STATUS_ACCESS_DENIED and lab.events == []
    assert not lab.d.file_system.root.children["A.TXT"].node.is_open
    assert lab.leftovers() == []


def test_a_reissued_request_goes_through_the_lower_filters_again(lab: FilterLab) -> None:
    def post(data: Data, context: int, flags: int) -> Model:
        if not lab.events.count("again"):
            lab.events.append("again")
            yield from lab.call("FltReissueSynchronousIo", data.instance, data.address)
        return 0

    lab.filter({n.IRP_MJ_WRITE: (None, post)})
    lab.filter({n.IRP_MJ_WRITE: recorder(lab, "low ")}, name="low", altitude="100000")
    assert lab.write(lab.open(r"D:\a.txt"), b"x", 0) == 0
    assert [e if isinstance(e, str) else e[0] for e in lab.events] == [
        "low pre",
        "low post",
        "again",
        "low pre",
        "low post",
    ]


def test_a_filter_opens_writes_and_closes_a_file_that_only_lower_filters_see(lab: FilterLab) -> None:
    low = lab.filter(dict.fromkeys(MAJORS, recorder(lab, "low ")), name="low", altitude="100000")
    high = lab.filter(dict.fromkeys(MAJORS, recorder(lab, "high ")), name="high")
    memory = lab.kernel.memory
    name = lab.string(r"\??\D:\own.txt")
    attributes = lab.buffer(0x30, struct.pack("<I4xQQI4xQQ", 0x30, 0, name, 0x240, 0, 0))
    out = lab.buffer(0x40)
    data = lab.buffer(5, b"bytes")

    def work() -> Model:
        status = yield from lab.call(
            "FltCreateFileEx",
            high.filter.address,
            high.address,
            out,
            out + 8,
            n.FILE_GENERIC_WRITE,
            attributes,
            out + 16,
            0,
            n.FILE_ATTRIBUTE_NORMAL,
            7,
            n.FILE_CREATE,
            SYNCHRONOUS_FILE,
            0,
            0,
            0,
        )
        assert status == 0
        file_object = memory.u64(out + 8)
        status = yield from lab.call(
            "FltWriteFile", high.address, file_object, 0, 5, data, 0, out + 0x30, 0, 0
        )
        assert (status, memory.u32(out + 0x30)) == (0, 5)
        yield from lab.call("FltClose", memory.u64(out))
        lab.kernel.objects.dereference(lab.kernel.objects.get(file_object))

    lab.kernel.run(work())
    lab.kernel.run_until_idle()
    assert {event[0] for event in lab.events} == {"low pre", "low post"}
    assert [event[1] for event in lab.events if event[0] == "low pre"] == [
        "CREATE",
        "WRITE",
        "CLEANUP",
        "CLOSE",
    ]
    assert low.callbacks_running == 0
    assert lab.leftovers() == []


def test_callback_data_of_a_filters_own_is_sent_below_it(lab: FilterLab) -> None:
    lab.filter({n.IRP_MJ_FLUSH_BUFFERS: recorder(lab, "low ")}, name="low", altitude="100000")
    high = lab.filter({n.IRP_MJ_FLUSH_BUFFERS: recorder(lab, "high ")}, name="high")
    handle = lab.open(r"D:\a.txt")
    out = lab.buffer(8)

    def work() -> Model:
        status = yield from lab.call(
            "FltAllocateCallbackData", high.address, lab.file_object(handle).address, out
        )
        assert status == 0
        data = lab.kernel.memory.u64(out)
        lab.kernel.memory.put8(lab.kernel.memory.u64(data + 0x10) + 4, n.IRP_MJ_FLUSH_BUFFERS)
        yield from lab.call("FltPerformSynchronousIo", data)
        assert lab.kernel.memory.u32(data + 0x18) == 0
        yield from lab.call("FltFreeCallbackData", data)

    lab.kernel.run(work())
    assert [event[0] for event in lab.events] == ["low pre", "low post"]
    assert io_state(lab.kernel).requests == {}


def test_a_locked_user_buffer_can_be_read_in_another_process(lab: FilterLab) -> None:
    waiting: list[tuple[int, int]] = []

    def pre(data: Data, context: int) -> Model:
        status = yield from lab.call("FltLockUserBuffer", data.address)
        assert status == 0
        waiting.append((data.address, data.parameter(0x20)))
        return PENDING

    lab.filter({n.IRP_MJ_WRITE: (pre, None)})
    handle = lab.open(r"D:\a.txt")
    outcome = lab.begin(lab_write(lab, handle))
    lab.kernel.run_until_idle()
    data, mdl = waiting[0]
    mapped = lab.kernel.memory.u64(mdl + 0x18)
    assert mapped >= 1 << 63 and lab.kernel.memory.read(mapped, 4) == b"data"
    lab.kernel.run(lab.call("FltCompletePendedPreOperation", data, NO_CALLBACK, 0))
    lab.kernel.run_until_idle()
    assert outcome[0][0][0] == 0 and not lab.kernel.violations
    assert not lab.kernel.memory.is_mapped(mapped)
    lab.close(handle)
    assert lab.leftovers() == []


def test_work_is_not_deferred_in_the_paging_path(lab: FilterLab) -> None:
    lab.settings.lazy_writer = True

    def pre(data: Data, context: int) -> Model:
        if data.irp_flags & n.IRP_PAGING_IO:
            item = yield from lab.call("FltAllocateDeferredIoWorkItem")
            status = yield from lab.call("FltQueueDeferredIoWorkItem", item, data.address, 0x1000, 1, 0)
            lab.events.append(status)
            yield from lab.call("FltFreeDeferredIoWorkItem", item)
        return NO_CALLBACK

    lab.filter({n.IRP_MJ_WRITE: (pre, None)})
    handle = lab.open(r"D:\a.txt")
    lab.write(handle, b"x")
    lab.close(handle)
    assert lab.events == [STATUS_FLT_NOT_SAFE_TO_POST_OPERATION]


# Handles, references, names, services


def test_duplicate_handles_share_one_cleanup(lab: FilterLab) -> None:
    lab.filter({n.IRP_MJ_CLEANUP: recorder(lab), n.IRP_MJ_CLOSE: recorder(lab)})
    handle = lab.open(r"D:\a.txt")
    _, values = lab.service("duplicate", handle=handle)
    lab.close(handle)
    assert lab.events == []
    lab.close(values["handle"])
    assert [event[1] for event in lab.events if event[0] == "pre"] == ["CLEANUP", "CLOSE"]


def test_a_reference_held_by_a_driver_delays_the_close_but_not_the_cleanup(lab: FilterLab) -> None:
    lab.filter({n.IRP_MJ_CLEANUP: recorder(lab), n.IRP_MJ_CLOSE: recorder(lab)})
    handle = lab.open(r"D:\a.txt")
    item = lab.file_object(handle).object
    lab.kernel.objects.reference(item)
    lab.close(handle)
    assert [event[1] for event in lab.events if event[0] == "pre"] == ["CLEANUP"]
    lab.kernel.objects.dereference(item)
    lab.kernel.run_until_idle()
    assert [event[1] for event in lab.events if event[0] == "pre"] == ["CLEANUP", "CLOSE"]
    assert lab.leftovers() == []


def test_a_rename_opens_the_target_directory_first(lab: FilterLab) -> None:
    lab.mkdir(r"D:\dir")
    handle = lab.open(r"D:\a.txt")
    memory = lab.kernel.memory

    def pre_create(data: Data, context: int) -> int:
        lab.events.append(("create", memory.u8(data.iopb + 6) & n.SL_OPEN_TARGET_DIRECTORY))
        return NO_CALLBACK

    def pre_set(data: Data, context: int) -> int:
        lab.events.append(("set", memory.u32(data.iopb + 0x18 + 8), data.parameter(0x10) != 0))
        return NO_CALLBACK

    lab.filter({n.IRP_MJ_CREATE: (pre_create, None), n.IRP_MJ_SET_INFORMATION: (pre_set, None)})
    assert lab.set(handle, n.FileRenameInformation, rename_data(r"\??\D:\dir\B.txt")) == 0
    assert lab.events == [("create", 4), ("set", n.FileRenameInformation, True)]
    name = lab.query(handle, n.FileNameInformation)
    assert name[4:].decode("utf-16-le") == r"\dir\B.txt"


def test_a_rename_to_another_volume_or_a_taken_name_fails(lab: FilterLab) -> None:
    lab.close(lab.open(r"D:\taken.txt"))
    handle = lab.open(r"D:\a.txt")
    assert lab.set(handle, n.FileRenameInformation, rename_data(r"\??\E:\b.txt")) == STATUS_NOT_SAME_DEVICE
    assert (
        lab.set(handle, n.FileRenameInformation, rename_data(r"\??\D:\taken.txt"))
        == STATUS_OBJECT_NAME_COLLISION
    )
    assert lab.set(handle, n.FileRenameInformation, rename_data("taken.txt", replace=True)) == 0


def test_a_filter_learns_of_a_deletion_in_its_post_cleanup_callback(lab: FilterLab) -> None:
    buffer = lab.buffer(0x18)

    def post(data: Data, context: int, flags: int) -> Model:
        status = yield from lab.call(
            "FltQueryInformationFile",
            data.instance,
            data.file_object,
            buffer,
            0x18,
            n.FileStandardInformation,
            0,
        )
        lab.events.append(status)
        return 0

    lab.filter({n.IRP_MJ_CLEANUP: (None, post)})
    handle = lab.open(r"D:\a.txt")
    lab.close(handle)
    handle = lab.open(r"D:\a.txt")
    assert lab.set(handle, n.FileDispositionInformation, b"\1") == 0
    lab.close(handle)
    assert lab.events == [0, STATUS_FILE_DELETED]
    # Of a stream, too: the file that it belonged to is still there.
    lab.events.clear()
    kept = lab.open(r"D:\b.txt")
    lab.close(lab.open(r"D:\b.txt:stream"))
    handle = lab.open(r"D:\b.txt:stream")
    other = lab.open(r"D:\b.txt:stream")
    assert lab.set(handle, n.FileDispositionInformation, b"\1") == 0
    for each in (handle, other, kept):
        lab.close(each)
    assert lab.events == [0, 0, STATUS_FILE_DELETED, 0]


def test_sharing_rights_and_bad_handles_are_refused(lab: FilterLab) -> None:
    handle = lab.open(r"D:\a.txt", share=0)
    status, _ = lab.service(
        "create_file",
        path=r"\Device\HarddiskVolume2\a.txt",
        access=n.FILE_GENERIC_READ,
        share=7,
        disposition=n.FILE_OPEN,
        options=SYNCHRONOUS_FILE,
        attributes=0,
    )
    assert status == STATUS_SHARING_VIOLATION
    assert lab.service("flush", handle=0x1000)[0] == STATUS_INVALID_HANDLE
    lab.close(handle)
    reader = lab.open(r"D:\a.txt", access=n.FILE_GENERIC_READ)
    assert lab.write(reader, b"x") == STATUS_ACCESS_DENIED
    assert lab.set(reader, n.FileDispositionInformation, b"\1") == STATUS_ACCESS_DENIED


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (n.FileEndOfFileInformation, bytes(8)),
        (n.FileAllocationInformation, bytes(8)),
        (n.FileBasicInformation, bytes(40)),
        (n.FileRenameInformation, rename_data("b.txt")),
        (n.FileDispositionInformationEx, bytes(4)),
        (None, b""),
    ],
)
def test_what_a_handle_may_not_do_is_refused_before_a_filter_sees_it(
    lab: FilterLab, kind: int | None, data: bytes
) -> None:
    lab.close(lab.open(r"D:\a.txt"))
    reader = lab.open(r"D:\a.txt", access=n.FILE_GENERIC_READ)
    majors = (n.IRP_MJ_CREATE, n.IRP_MJ_WRITE, n.IRP_MJ_SET_INFORMATION, n.IRP_MJ_SET_SECURITY)
    lab.filter(dict.fromkeys(majors, recorder(lab)))
    if kind is not None:
        assert lab.set(reader, kind, data) == STATUS_ACCESS_DENIED
    else:
        null_dacl = bytes.fromhex("0100048000000000000000000000000000000000")
        status, _ = lab.service("set_security", handle=reader, information=4, descriptor=null_dacl)
        assert status == STATUS_ACCESS_DENIED
        assert lab.write(reader, b"x") == STATUS_ACCESS_DENIED
    assert lab.events == []


def test_a_directory_is_listed_in_order_with_its_own_entries_first(lab: FilterLab) -> None:
    lab.mkdir(r"D:\dir")
    for name in ("b.txt", "A.txt", "c.log"):
        lab.close(lab.open(rf"D:\dir\{name}"))
    directory = lab.open(r"D:\dir", access=n.FILE_GENERIC_READ, options=0x21, disposition=n.FILE_OPEN)
    status, values = lab.service("query_directory", handle=directory, pattern=None, restart=True)
    assert status == 0
    assert [entry[0] for entry in values["entries"]] == [".", "..", "A.txt", "b.txt", "c.log"]
    _, values = lab.service("query_directory", handle=directory, pattern="*.txt", restart=True)
    assert [entry[0] for entry in values["entries"]] == ["A.txt", "b.txt"]
    assert lab.write(directory, b"x") == STATUS_ACCESS_DENIED
    with pytest.raises(AssertionError, match=hex(STATUS_INVALID_DEVICE_REQUEST)):
        _read_directory(lab)


def _read_directory(lab: FilterLab) -> None:
    handle = lab.open(r"D:\dir", options=0x20, access=n.FILE_GENERIC_READ | n.FILE_GENERIC_WRITE)
    status, _ = lab.service("read_file", handle=handle, offset=0, length=1)
    assert status == 0, hex(status)


def test_a_large_directory_is_listed_completely_in_several_queries(lab: FilterLab) -> None:
    for number in range(300):
        lab.close(lab.open(rf"D:\file-{number:03}.txt"))
    directory = lab.open("D:\\", access=n.FILE_GENERIC_READ, options=0x21, disposition=n.FILE_OPEN)
    found: list[str] = []
    restart = True
    while True:
        status, values = lab.service("query_directory", handle=directory, pattern=None, restart=restart)
        if status:
            break
        found += [entry[0] for entry in values["entries"]]
        restart = False
    assert found == [f"file-{number:03}.txt" for number in range(300)]


def test_security_is_stored_and_told(lab: FilterLab) -> None:
    handle = lab.open(r"D:\a.txt", access=READ_WRITE_DELETE | n.WRITE_DAC)
    null_dacl = bytes.fromhex("0100048000000000000000000000000000000000")
    assert lab.service("set_security", handle=handle, information=4, descriptor=null_dacl)[0] == 0
    status, values = lab.service("query_security", handle=handle, information=4)
    assert (status, values["descriptor"]) == (0, null_dacl)
    status, values = lab.service("query_security", handle=handle, information=1)
    assert status == 0 and len(values["descriptor"]) == 20 + 16  # the owner, Administrators


def owned_by(sid: str) -> bytes:
    """A self-relative security descriptor with an owner and nothing else."""
    return bytes.fromhex("0100008014000000000000000000000000000000") + sid_bytes(sid)


@pytest.mark.parametrize(
    ("sid", "expected"),
    [(LAB_USER, 0), (ADMINISTRATORS, 0), (EVERYONE, STATUS_INVALID_OWNER), (SYSTEM, STATUS_INVALID_OWNER)],
)
def test_an_owner_is_the_caller_or_its_administrators_and_a_filter_sees_who_was_refused(
    lab: FilterLab, sid: str, expected: int
) -> None:
    lab.filter(
        {n.IRP_MJ_SET_SECURITY: (None, lambda data, context, flags: lab.events.append(data.status) or 0)}
    )
    handle = lab.open(r"D:\a.txt", access=READ_WRITE_DELETE | n.WRITE_OWNER)
    before = lab.service("query_security", handle=handle, information=1)[1]["descriptor"]
    status, _ = lab.service("set_security", handle=handle, information=1, descriptor=owned_by(sid))
    after = lab.service("query_security", handle=handle, information=1)[1]["descriptor"]
    assert (status, lab.events) == (expected, [expected])
    assert after == (before if expected else owned_by(sid))


def test_a_caller_without_its_administrators_cannot_make_them_the_owner(lab: FilterLab) -> None:
    handle = lab.open(r"D:\a.txt", access=READ_WRITE_DELETE | n.WRITE_OWNER)
    lab.thread.impersonation = Impersonation(lab.process.token.restricted())
    status, _ = lab.service("set_security", handle=handle, information=1, descriptor=owned_by(ADMINISTRATORS))
    assert status == STATUS_INVALID_OWNER
    status, _ = lab.service("set_security", handle=handle, information=1, descriptor=owned_by(LAB_USER))
    assert status == 0


@pytest.mark.parametrize("seed", range(5))
def test_many_threads_at_once_leave_nothing_behind(seed: int) -> None:
    lab = FilterLab(seed=seed)
    lab.settings.lazy_writer = True
    lab.filter(dict.fromkeys(MAJORS, recorder(lab)))
    from vm.emulated.fltmgr.services_files import SERVICES

    def client(number: int) -> Model:
        thread = lab.kernel.current
        status, values = yield from SERVICES["create_file"](
            lab.kernel,
            thread,
            path=rf"D:\{number}.txt",
            access=READ_WRITE_DELETE,
            share=7,
            disposition=n.FILE_CREATE,
            options=SYNCHRONOUS_FILE,
            attributes=0,
        )
        assert status == 0
        handle = values["handle"]
        for _ in range(3):
            status, _ = yield from SERVICES["write_file"](
                lab.kernel, thread, handle=handle, offset=None, data=b"0123456789"
            )
            assert status == 0
        work = lab.kernel.objects.close(thread.process.handles, handle)
        yield from work

    outcomes = [lab.begin(client(number), lab.new_thread()) for number in range(8)]
    lab.kernel.run_until_idle()
    assert all(outcome and outcome[0][1] is None for outcome in outcomes)
    assert [event[1] for event in lab.events].count("CLOSE") == 16
    assert lab.leftovers() == []
    lab.kernel.close()
