"""Contexts: allocation against the registration, attachment, references, cleanup at the right moment, leaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.filter_lab import Data, FilterLab
from vm.emulated.exports.declare import PVOID, USHORT
from vm.emulated.fltmgr import contexts as c
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.manager import manager_of
from vm.emulated.fltmgr.model import ContextRegistration, Instance
from vm.emulated.kernel.kernel import MachineCrashedError
from vm.emulated.kernel.status import (
    STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND,
    STATUS_FLT_CONTEXT_ALREADY_DEFINED,
    STATUS_FLT_CONTEXT_ALREADY_LINKED,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_FOUND,
    STATUS_NOT_SUPPORTED,
)
from vm.emulated.kernel.threads import Model

NO_CALLBACK = 1
NON_PAGED, PAGED = 0x200, 1
REPLACE, KEEP = 0, 1
TYPES = (c.VOLUME, c.INSTANCE, c.FILE, c.STREAM, c.STREAM_HANDLE)


class ContextLab(FilterLab):
    """A laboratory whose filter registers contexts of every type."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cleaned: list[tuple[int, int]] = []

        def cleanup(k: Any, context: PVOID, kind: USHORT) -> None:
            self.kernel.memory.read(context, 8)  # it must still be there
            self.cleaned.append((context, kind))

        cleanup.__annotations__ = {"context": PVOID, "kind": USHORT, "return": None}
        address = self.function(cleanup, "Cleanup")
        table = [ContextRegistration(kind, 0, address, 32, "Ctxt", 0, 0) for kind in TYPES]
        table.append(ContextRegistration(c.STREAM_HANDLE, 0, address, c.VARIABLE_SIZED, "Vary", 0, 0))
        self.instance: Instance = self.filter({}, contexts=table)
        self.owner = self.instance.filter
        self.out = self.buffer(8)

    def do(self, name: str, *arguments: int) -> int:
        """Call an export in a system thread."""
        return int(self.kernel.run(self.call(name, *arguments)) or 0)

    def result(self) -> int:
        return self.kernel.memory.u64(self.out)

    def allocate(self, kind: int, size: int = 32, pool: int = NON_PAGED) -> int:
        assert self.do("FltAllocateContext", self.owner.address, kind, size, pool, self.out) == 0
        return self.result()

    def set(self, kind: int, file: int, context: int, operation: int = REPLACE, old: int = 0) -> int:
        name, where = self.place(kind, file)
        where = where[1:] if kind == c.VOLUME else where
        return self.do(f"FltSet{name}Context", *where, operation, context, old)

    def get(self, kind: int, file: int) -> int:
        name, where = self.place(kind, file)
        return self.do(f"FltGet{name}Context", *where, self.out)

    def delete(self, kind: int, file: int, old: int = 0) -> int:
        name, where = self.place(kind, file)
        return self.do(f"FltDelete{name}Context", *where, old)

    def place(self, kind: int, file: int) -> tuple[str, tuple[int, ...]]:
        if kind == c.VOLUME:
            return "Volume", (self.owner.address, self.d.address)
        if kind == c.INSTANCE:
            return "Instance", (self.instance.address,)
        names = {c.FILE: "File", c.STREAM: "Stream", c.STREAM_HANDLE: "StreamHandle"}
        return names[kind], (self.instance.address, file)

    def release(self, context: int) -> None:
        self.do("FltReleaseContext", context)

    def open_object(self, path: str = r"D:\a.txt") -> tuple[int, int]:
        """(handle, address of the file object)."""
        handle = self.open(path)
        return handle, self.file_object(handle).address


@pytest.fixture
def lab() -> Iterator[ContextLab]:
    made = ContextLab()
    yield made
    made.kernel.close()


@pytest.mark.parametrize("kind", TYPES)
def test_a_context_is_set_got_and_deleted_with_its_references(lab: ContextLab, kind: int) -> None:
    _, file = lab.open_object()
    assert lab.get(kind, file) == STATUS_NOT_FOUND and lab.result() == 0
    context = lab.allocate(kind)
    assert lab.set(kind, file, context) == 0
    lab.release(context)
    assert lab.get(kind, file) == 0 and lab.result() == context
    assert lab.delete(kind, file) == 0
    assert lab.cleaned == []
    lab.release(context)
    assert lab.cleaned == [(context, kind)]
    assert lab.delete(kind, file) == STATUS_NOT_FOUND
    assert not lab.kernel.memory.is_mapped(context)


def test_an_existing_context_is_kept_or_replaced(lab: ContextLab) -> None:
    _, file = lab.open_object()
    one, two = lab.allocate(c.STREAM), lab.allocate(c.STREAM)
    assert lab.set(c.STREAM, file, one) == 0
    assert lab.set(c.STREAM, file, two, KEEP, lab.out) == STATUS_FLT_CONTEXT_ALREADY_DEFINED
    assert lab.result() == one
    lab.release(one)
    assert lab.set(c.STREAM, file, two, REPLACE) == 0
    lab.release(one)
    assert lab.cleaned == [(one, c.STREAM)]
    assert lab.set(c.STREAM, file, two) == STATUS_FLT_CONTEXT_ALREADY_LINKED


def test_a_replaced_context_can_be_handed_to_the_caller(lab: ContextLab) -> None:
    _, file = lab.open_object()
    one, two = lab.allocate(c.STREAM), lab.allocate(c.STREAM)
    lab.set(c.STREAM, file, one)
    lab.release(one)
    assert lab.set(c.STREAM, file, two, REPLACE, lab.out) == 0
    assert lab.result() == one and lab.cleaned == []
    lab.release(one)
    assert lab.cleaned == [(one, c.STREAM)]


def test_stream_handle_contexts_go_with_their_file_object_and_stream_contexts_with_the_last(
    lab: ContextLab,
) -> None:
    first_handle, first = lab.open_object()
    second_handle, second = lab.open_object()
    handle_context, stream_context, file_context = (
        lab.allocate(kind) for kind in (c.STREAM_HANDLE, c.STREAM, c.FILE)
    )
    for kind, context in (
        (c.STREAM_HANDLE, handle_context),
        (c.STREAM, stream_context),
        (c.FILE, file_context),
    ):
        assert lab.set(kind, first, context) == 0
        lab.release(context)
    assert lab.get(c.STREAM, second) == 0
    lab.release(lab.result())
    assert lab.get(c.STREAM_HANDLE, second) == STATUS_NOT_FOUND
    lab.close(first_handle)
    assert lab.cleaned == [(handle_context, c.STREAM_HANDLE)]
    lab.close(second_handle)
    assert lab.cleaned[1:] == [(stream_context, c.STREAM), (file_context, c.FILE)]


def test_a_referenced_context_outlives_its_file_object(lab: ContextLab) -> None:
    handle, file = lab.open_object()
    context = lab.allocate(c.STREAM_HANDLE)
    lab.set(c.STREAM_HANDLE, file, context)
    lab.close(handle)
    assert lab.cleaned == []
    lab.release(context)
    assert lab.cleaned == [(context, c.STREAM_HANDLE)]


def test_contexts_are_allocated_as_registered_only(lab: ContextLab) -> None:
    def allocate(kind: int, size: int, pool: int = NON_PAGED) -> int:
        return lab.do("FltAllocateContext", lab.owner.address, kind, size, pool, lab.out)

    assert allocate(c.STREAM, 31) == STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND
    assert allocate(c.TRANSACTION, 32) == STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND
    assert allocate(0x80, 32) == STATUS_INVALID_PARAMETER
    assert allocate(c.VOLUME, 32, PAGED) == STATUS_INVALID_PARAMETER
    assert lab.result() == 0
    context = lab.allocate(c.STREAM_HANDLE, 1000)
    assert lab.kernel.pool.live[context].tag == "Vary"
    assert lab.kernel.pool.live[lab.allocate(c.STREAM_HANDLE)].tag == "Ctxt"


def test_a_file_that_is_not_open_yet_supports_no_contexts(lab: ContextLab) -> None:
    context = lab.allocate(c.STREAM_HANDLE)
    answers: list[int] = []

    def pre(data: Data, slot: int) -> Model:
        answers.append(
            (
                yield from lab.call(
                    "FltSetStreamHandleContext", lab.instance.address, data.file_object, REPLACE, context, 0
                )
            )
        )
        answers.append((yield from lab.call("FltSupportsStreamHandleContexts", data.file_object)))
        return NO_CALLBACK

    lab.filter({n.IRP_MJ_CREATE: (pre, None)}, name="other", altitude="100000")
    handle, file = lab.open_object()
    assert answers == [STATUS_NOT_SUPPORTED, 0]
    assert lab.do("FltSupportsStreamHandleContexts", file) == 1
    lab.close(handle)


def test_an_instance_that_is_torn_down_takes_no_context_and_drops_its_own(lab: ContextLab) -> None:
    _, file = lab.open_object()
    attached = lab.allocate(c.STREAM)
    lab.set(c.STREAM, file, attached)
    lab.release(attached)
    late = lab.allocate(c.STREAM_HANDLE)
    lab.instance.tearing_down = True
    assert lab.set(c.STREAM_HANDLE, file, late) == STATUS_FLT_DELETING_OBJECT
    lab.kernel.run(c.drop_instance_contexts(lab.kernel, lab.instance))
    assert lab.cleaned == [(attached, c.STREAM)]


def test_a_context_that_is_never_released_is_reported_at_unload(lab: ContextLab) -> None:
    volume_context = lab.allocate(c.VOLUME)
    assert lab.set(c.VOLUME, 0, volume_context) == 0
    lab.release(volume_context)
    leaked = lab.allocate(c.STREAM)
    lab.kernel.run(c.drop_volume_contexts(lab.kernel, lab.owner))
    assert lab.cleaned == [(volume_context, c.VOLUME)]
    assert [v.rule for v in lab.kernel.violations] == ["context-leaked"]
    message = lab.kernel.violations[0].message
    assert "stream context" in message and "'Ctxt'" in message and hex(leaked) in message


def test_a_context_released_too_often_stops_the_machine(lab: ContextLab) -> None:
    context = lab.allocate(c.STREAM)
    lab.release(context)
    with pytest.raises(MachineCrashedError):
        lab.release(context)
        lab.kernel.check_alive()
    assert "released for the last time already" in lab.rule


def test_releasing_the_reference_of_the_attachment_stops_the_machine(lab: ContextLab) -> None:
    _, file = lab.open_object()
    context = lab.allocate(c.STREAM)
    lab.set(c.STREAM, file, context)
    lab.release(context)
    with pytest.raises(MachineCrashedError):
        lab.release(context)
        lab.kernel.check_alive()
    assert "still attached" in lab.rule


def test_several_contexts_are_got_and_released_at_once(lab: ContextLab) -> None:
    _, file = lab.open_object()
    stream = lab.allocate(c.STREAM)
    lab.set(c.STREAM, file, stream)
    lab.release(stream)
    related, out = lab.buffer(0x30), lab.buffer(48)
    memory = lab.kernel.memory
    memory.put64(related + 0x18, lab.instance.address)
    memory.put64(related + 0x20, file)
    lab.do("FltGetContexts", related, 0x1F, out)
    assert [memory.u64(out + 8 * i) for i in range(6)] == [0, 0, 0, stream, 0, 0]
    lab.do("FltReleaseContexts", out)
    assert c.context_state(lab.kernel).live[stream].references == 1
    assert memory.u64(out + 24) == 0


def test_a_last_release_at_dispatch_level_cleans_up_in_another_thread(lab: ContextLab) -> None:
    context = lab.allocate(c.STREAM)
    levels: list[int] = []

    def work() -> Model:
        lab.kernel.engine.irql = 2
        yield from lab.call("FltReleaseContext", context)
        levels.append(len(lab.cleaned))
        lab.kernel.engine.irql = 0

    lab.kernel.run(work())
    lab.kernel.run_until_idle()
    assert levels == [0] and lab.cleaned == [(context, c.STREAM)]


def test_an_unload_waits_for_a_cleanup_that_still_runs(lab: ContextLab) -> None:
    manager = manager_of(lab.kernel)
    context = c.context_state(lab.kernel).live[lab.allocate(c.STREAM)]
    order: list[str] = []

    def waits() -> Model:
        yield from manager.wait_for_rundown(context.owner)
        order.append("unloaded")

    original = context.owner
    manager.hold(original, "the test's own, so that the waiter sleeps first")
    waiter = lab.kernel.start_system_thread(waits(), "unload")
    lab.kernel.run_until_idle()
    assert waiter.state.value == "waiting"

    def releases() -> Model:
        release = c.release(lab.kernel, context)
        step = next(release, None)  # up to the call of the cleanup callback, which has not run yet
        assert step is not None
        manager.release_rundown(original, "the test's own, so that the waiter sleeps first")
        assert original.rundown == 1, "the cleanup callback is not waited for"
        value = yield step
        try:
            while True:
                value = yield release.send(value)
        except StopIteration:
            order.append("cleaned")

    lab.kernel.run(releases())
    lab.kernel.run_until_idle()
    assert order == ["cleaned", "unloaded"]
