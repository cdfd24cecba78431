"""Contexts: memory that a filter attaches to a volume, an instance, a file, a stream or a file object.

A context lives as long as it is referenced; being attached is one reference. The exports are context_exports.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vm.emulated.exports.state import state_of
from vm.emulated.fltmgr.file_nodes import Node
from vm.emulated.fltmgr.manager import manager_of
from vm.emulated.fltmgr.model import ContextRegistration, Filter, Instance, Volume
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_SUPPORTED,
)
from vm.emulated.kernel.threads import DISPATCH_LEVEL, Call, Model

if TYPE_CHECKING:
    from vm.emulated.fltmgr.file_objects import FileObject
    from vm.emulated.kernel.kernel import Kernel

VOLUME, INSTANCE, FILE, STREAM, STREAM_HANDLE, TRANSACTION, SECTION = 1, 2, 4, 8, 0x10, 0x20, 0x40
"""FLT_*_CONTEXT."""
TYPE_NAMES = {
    VOLUME: "volume",
    INSTANCE: "instance",
    FILE: "file",
    STREAM: "stream",
    STREAM_HANDLE: "stream-handle",
    TRANSACTION: "transaction",
    SECTION: "section",
}
VARIABLE_SIZED = 0xFFFF_FFFF_FFFF_FFFF
NO_EXACT_SIZE_MATCH = 0x0001
PAGED_POOL = 1
ALLOCATIONS_OWNER = "fltmgr"

Table = dict[Any, Any]
"""Where a context is attached: the key depends on the kind of table."""


CLEANUP_RUNS = "a context cleanup callback that still runs"


@dataclass(slots=True, eq=False)
class Context:
    """One context; `address` is what the filter holds."""

    address: int
    type: int
    owner: Filter
    registration: ContextRegistration
    site: int
    references: int = 1
    table: Table | None = None
    key: Any = None

    def describe(self, k: Kernel) -> str:
        """For messages."""
        kind = TYPE_NAMES.get(self.type, hex(self.type))
        return (
            f"the {kind} context {self.address:#x} (tag '{self.registration.tag}', "
            f"allocated by {k.describe(self.site)})"
        )


@dataclass(slots=True)
class ContextState:
    """Live contexts of one kernel, and the tables that belong to no object of their own."""

    kernel: Kernel
    live: dict[int, Context] = field(default_factory=dict)
    released: dict[int, str] = field(default_factory=dict)
    """What contexts that are gone were, for messages."""
    files: dict[Node, Table] = field(default_factory=dict)


def context_state(k: Kernel) -> ContextState:
    """The context state of a kernel."""
    return state_of(k, ContextState)


def context_at(k: Kernel, address: int, caller: str) -> Context:
    """The context at an address that a driver passed in; anything else bugchecks."""
    state = context_state(k)
    found = state.live.get(address)
    if found is None:
        gone = state.released.get(address)
        raise Bugcheck(
            bc.FLTMGR_FILE_SYSTEM,
            0x6D,
            address,
            rule=f"{caller} was given {gone}, which has been released for the last time already"
            if gone
            else f"{caller} was given {address:#x}, which is not a context",
        )
    return found


def allocate(k: Kernel, owner: Filter, kind: int, size: int, pool_type: int, site: int) -> Model:
    """A new context with one reference; returns its address.

    Raises:
        StatusError: no registration fits (STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND), or bad parameters.
    """
    paged = bool(pool_type & PAGED_POOL)
    if kind not in TYPE_NAMES or (kind == VOLUME and paged):
        raise StatusError(STATUS_INVALID_PARAMETER)
    registration = _registration_for(owner, kind, size)
    if registration is None:
        raise StatusError(STATUS_FLT_CONTEXT_ALLOCATION_NOT_FOUND)
    if registration.allocate:
        address = yield Call(registration.allocate, (pool_type, size, kind), "ContextAllocateCallback")
        if not address:
            from vm.emulated.kernel.status import STATUS_INSUFFICIENT_RESOURCES

            raise StatusError(STATUS_INSUFFICIENT_RESOURCES)
    else:
        address = k.pool.allocate(
            size, registration.tag, owner=ALLOCATIONS_OWNER, site=site, paged=paged, zero=False
        )
    context_state(k).live[address] = Context(address, kind, owner, registration, site)
    return address


def _registration_for(owner: Filter, kind: int, size: int) -> ContextRegistration | None:
    variable = None
    for entry in owner.registration.contexts:
        if entry.type != kind:
            continue
        if entry.size == VARIABLE_SIZED:
            variable = variable or entry
        elif entry.size == size or (entry.flags & NO_EXACT_SIZE_MATCH and size <= entry.size):
            return entry
    return variable


def attach(k: Kernel, context: Context, table: Table, key: Any) -> None:
    """Attach a context; the table holds a reference."""
    table[key] = context
    context.table, context.key = table, key
    context.references += 1


def detach(context: Context) -> None:
    """Take a context out of its table; the reference of the table now belongs to the caller."""
    assert context.table is not None
    del context.table[context.key]
    context.table = context.key = None


def release(k: Kernel, context: Context) -> Model:
    """Drop a reference; the last one calls the cleanup callback and frees the memory."""
    context.references -= 1
    if context.references:
        return
    if context.table is not None:
        raise Bugcheck(
            bc.FLTMGR_FILE_SYSTEM,
            0x6D,
            context.address,
            rule=f"{context.describe(k)} was released more often than it was referenced: it is still attached",
        )
    state = context_state(k)
    del state.live[context.address]
    state.released[context.address] = context.describe(k)
    # The cleanup callback is the driver's code: FltUnregisterFilter must not return before it has.
    manager_of(k).hold(context.owner, CLEANUP_RUNS)
    if k.engine.irql >= DISPATCH_LEVEL:
        k.start_system_thread(_destroy(k, context), "context cleanup")
    else:
        yield from _destroy(k, context)


def _destroy(k: Kernel, context: Context) -> Model:
    registration = context.registration
    if registration.cleanup:
        kind = TYPE_NAMES.get(context.type, "")
        yield Call(
            registration.cleanup,
            (context.address, context.type),
            f"ContextCleanupCallback of a {kind} context",
        )
    if registration.free:
        yield Call(registration.free, (context.address, context.type), "ContextFreeCallback")
    else:
        k.pool.free(context.address)
    manager_of(k).release_rundown(context.owner, CLEANUP_RUNS)


# Where contexts are attached


def table_of_file(k: Kernel, file: FileObject, kind: int) -> Table:
    """The table of a file object, its stream or its file.

    Raises:
        StatusError: STATUS_NOT_SUPPORTED: not open (pre-create, a failed create) or closed.
    """
    if file.opened is None or file.block is None:
        raise StatusError(STATUS_NOT_SUPPORTED)
    if kind == STREAM_HANDLE:
        return file.contexts
    if kind == STREAM:
        return file.block.contexts
    return context_state(k).files.setdefault(file.opened.node, {})


def table_of_volume(volume: Volume, owner: Filter) -> Table:
    """The volume contexts of one filter."""
    return volume.contexts.setdefault(owner.address, {})


# The moments at which the Filter Manager lets contexts go


def _drop(k: Kernel, table: Table, instance: int | None = None) -> Model:
    for key in list(table):
        context: Context | None = table.get(key)
        if context is not None and (instance is None or key[0] == instance):
            detach(context)
            yield from release(k, context)


def release_file_contexts(k: Kernel, file: FileObject) -> Model:
    """The file object is closed: its own contexts go, and the stream's and file's with their last file object."""
    yield from _drop(k, file.contexts)
    block, opened = file.block, file.opened
    if block is None or opened is None:
        return
    if block.users == 1:
        yield from _drop(k, block.contexts)
    from vm.emulated.fltmgr.io_state import io_state

    others = any(
        found is not file
        and found.block is not None
        and found.opened is not None
        and found.opened.node is opened.node
        for found in io_state(k).files.values()
    )
    table = context_state(k).files.get(opened.node)
    if table is not None and not others:
        yield from _drop(k, table)
        context_state(k).files.pop(opened.node, None)


def drop_instance_contexts(k: Kernel, instance: Instance) -> Model:
    """An instance is torn down: all contexts that it has attached anywhere go."""
    from vm.emulated.fltmgr.io_state import io_state

    state = io_state(k)
    yield from _drop(k, instance.contexts)
    for file in list(state.files.values()):
        yield from _drop(k, file.contexts, instance.address)
    for block in list(state.blocks.values()):
        yield from _drop(k, block.contexts, instance.address)
    for table in list(context_state(k).files.values()):
        yield from _drop(k, table, instance.address)


def drop_volume_contexts(k: Kernel, owner: Filter) -> Model:
    """A filter is unregistered: its volume contexts go, and whatever it still holds then is a leak."""
    from vm.emulated.fltmgr.io_state import io_state
    from vm.emulated.fltmgr.manager import manager_of
    from vm.emulated.fltmgr.names import report_leaked_names

    for volume in io_state(k).volumes:
        table = volume.contexts.pop(owner.address, None)
        if table:
            yield from _drop(k, table)
    # Work items and other holders of a rundown reference may still own contexts and names.
    yield from manager_of(k).wait_for_rundown(owner)
    for context in [c for c in context_state(k).live.values() if c.owner is owner]:
        k.violate(
            "context-leaked",
            f"the filter '{owner.name}' was unregistered and still holds {context.references} reference(s) on "
            f"{context.describe(k)}",
            owner.driver.name,
        )
        del context_state(k).live[context.address]
        if not context.registration.free:
            k.pool.free(context.address)
    report_leaked_names(k, owner.driver.name)
