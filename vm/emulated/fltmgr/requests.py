"""One I/O request as filters see it: FLT_CALLBACK_DATA and its parts in kernel memory, and the way it has gone.

Layouts are those of facts Appendix A.1. Walking a request through the callbacks is io.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from vm.emulated.cpu.memory import MemoryFaultError
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.fltmgr.mdl import STATUS_INVALID_USER_BUFFER, address_space, free_mdl
from vm.emulated.fltmgr.model import Instance, Operation, Volume
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.exceptions import USER_END
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import STATUS_PENDING

if TYPE_CHECKING:
    from vm.emulated.fltmgr.file_objects import FileObject
    from vm.emulated.kernel.kernel import Kernel
    from vm.emulated.kernel.processes import KProcess
    from vm.emulated.kernel.threads import KThread

DATA_SIZE = 0x58
DATA_THREAD, DATA_IOPB, DATA_STATUS, DATA_INFORMATION, DATA_TAG_DATA, DATA_MODE = (
    0x08,
    0x10,
    0x18,
    0x20,
    0x28,
    0x50,
)
IOPB_SIZE = 0x48
IOPB_MAJOR, IOPB_MINOR, IOPB_OPERATION_FLAGS, IOPB_FILE, IOPB_INSTANCE, IOPB_PARAMETERS = (
    4,
    5,
    6,
    8,
    0x10,
    0x18,
)
_IOPB_OFFSET = 0x60
_SLOTS_OFFSET = 0xB0
_SLOT_SIZE = 0x40
_RELATED_SIZE = 0x30
_CONTEXT_OFFSET = 0x38
_TAG = "FMcd"

_DATA = struct.Struct("<I4xQQI4xQQ")
_IOPB = struct.Struct("<IBBBxQQ48s")
_RELATED = struct.Struct("<HH4xQQQQQ")

UNSET_STATUS = STATUS_PENDING
"""What IoStatus.Status holds before a pre-operation callback; to complete with it is never right."""


class Phase(Enum):
    """Which way a request is going."""

    DOWN = "down"
    UP = "up"


@dataclass(slots=True, eq=False)
class PostEntry:
    """A post-operation callback that is due."""

    instance: Instance
    operation: Operation
    context: int
    parameters: bytes
    """FLT_IO_PARAMETER_BLOCK as the instance's pre-operation callback was given it."""
    slot: int
    thread: KThread | None
    """The only thread it may be called in (FLT_PREOP_SYNCHRONIZE, creates), or None."""


@dataclass(slots=True, eq=False)
class Pended:
    """A callback that has pended the request, or may yet do so while it runs."""

    instance: Instance
    operation: Operation
    parameters: bytes
    slot: int
    thread: KThread
    is_post: bool
    returned: bool = False
    """The callback has returned and did pend."""
    completed: tuple[int, int] | None = None
    """(callback status, completion context) when the driver completed it before the callback returned."""


@dataclass(slots=True, eq=False)
class Walk:
    """One passage through the instances: the first one, or that of a reissue."""

    instances: list[Instance]
    index: int = 0
    phase: Phase = Phase.DOWN
    posts: list[PostEntry] = field(default_factory=list)
    pended: Pended | None = None
    resume_in: KThread | None = None
    """Thread that has to go on because a synchronised post-operation callback is due in it."""
    waiter: KThread | None = None
    done: bool = False


@dataclass(slots=True, eq=False)
class Request:
    """One request. `data` is its FLT_CALLBACK_DATA, `iopb` the parameter block in the same allocation."""

    kernel: Kernel
    data: int
    iopb: int
    slots: int
    major: int
    volume: Volume
    thread: KThread
    """The requestor."""
    walk: Walk
    walks: list[Walk] = field(default_factory=list)
    """All passages under way, outermost first."""
    fast_io: bool = False
    initiator: Instance | None = None
    """The instance that made the request, for generated I/O."""
    mdls: list[int] = field(default_factory=list)
    """MDLs made by FltLockUserBuffer, freed with the request."""
    owned: list[int] = field(default_factory=list)
    """Pool blocks that go with the request."""
    cleared: bool = False
    """The request ended; the data is kept for its owner (FltAllocateCallbackData)."""

    @property
    def status(self) -> int:
        return self.kernel.memory.u32(self.data + DATA_STATUS)

    @property
    def information(self) -> int:
        return self.kernel.memory.u64(self.data + DATA_INFORMATION)

    def set_status(self, status: int, information: int = 0) -> None:
        """Write IoStatus."""
        self.kernel.memory.put32(self.data + DATA_STATUS, status)
        self.kernel.memory.put64(self.data + DATA_INFORMATION, information)

    @property
    def flags(self) -> int:
        return self.kernel.memory.u32(self.data)

    def change_flags(self, *, add: int = 0, remove: int = 0) -> None:
        """Set and clear bits of FLT_CALLBACK_DATA.Flags."""
        self.kernel.memory.put32(self.data, self.flags & ~remove | add)

    @property
    def irp_flags(self) -> int:
        return self.kernel.memory.u32(self.iopb)

    @property
    def operation_flags(self) -> int:
        return self.kernel.memory.u8(self.iopb + IOPB_OPERATION_FLAGS)

    @property
    def minor(self) -> int:
        return self.kernel.memory.u8(self.iopb + IOPB_MINOR)

    @property
    def file(self) -> FileObject | None:
        """The target as it is now: a filter may have changed it."""
        address = self.kernel.memory.u64(self.iopb + IOPB_FILE)
        return io_state(self.kernel).files.get(address)

    def parameter(self, offset: int) -> int:
        """A pointer-sized member of Parameters."""
        return self.kernel.memory.u64(self.iopb + IOPB_PARAMETERS + offset)

    def parameter32(self, offset: int) -> int:
        """A ULONG member of Parameters."""
        return self.kernel.memory.u32(self.iopb + IOPB_PARAMETERS + offset)

    def slot_of(self, position: int) -> int:
        """Address of the FLT_RELATED_OBJECTS of the instance at a position of the first passage."""
        return self.slots + position * _SLOT_SIZE

    def make_slots(self, count: int) -> None:
        """Make room for more instances than the request began with; earlier slots stay where they are."""
        self.slots = self.kernel.pool.allocate(_SLOT_SIZE * (count + 1), _TAG, owner="fltmgr")
        self.owned.append(self.slots)

    def fill_slot(self, slot: int, instance: Instance) -> int:
        """Write the related objects of an instance; returns the address of its completion context."""
        memory = self.kernel.memory
        memory.write(
            slot,
            _RELATED.pack(
                _RELATED_SIZE,
                0,
                instance.filter.address,
                instance.volume.address,
                instance.address,
                memory.u64(self.iopb + IOPB_FILE),
                0,
            ),
        )
        memory.put64(slot + _CONTEXT_OFFSET, 0)
        return slot + _CONTEXT_OFFSET

    def read_parameters(self) -> bytes:
        """The parameter block as it is now."""
        return self.kernel.memory.read(self.iopb, IOPB_SIZE)

    # Buffers

    def read_buffer(self, address: int, length: int, what: str) -> bytes:
        """Bytes of a caller's buffer, in the address space of the requestor."""
        with _buffer_access(self.kernel, self.thread.process, what):
            return self.kernel.memory.read(address, length)

    def write_buffer(self, address: int, data: bytes, what: str) -> None:
        """Store into a caller's buffer, in the address space of the requestor."""
        with _buffer_access(self.kernel, self.thread.process, what):
            self.kernel.memory.write(address, data)


@contextmanager
def _buffer_access(k: Kernel, process: KProcess, what: str) -> Iterator[None]:
    try:
        with address_space(k, process):
            yield
    except MemoryFaultError as fault:
        if fault.address < USER_END:
            raise StatusError(STATUS_INVALID_USER_BUFFER) from fault
        raise Bugcheck(
            bc.PAGE_FAULT_IN_NONPAGED_AREA,
            fault.address,
            int(fault.access),
            rule=f"the file system could not use the {what} of a request: {fault.address:#x} is not accessible; "
            "a filter has put it there or freed it too early",
        ) from fault


def instances_below(volume: Volume, top: Instance | None) -> list[Instance]:
    """The instances a request meets, highest first; with `top` only those below that one."""
    if top is None:
        return list(volume.instances)
    return [instance for instance in volume.instances if instance.order < top.order]


def make_request(
    k: Kernel,
    *,
    major: int,
    volume: Volume,
    file_object: int,
    thread: KThread,
    parameters: bytes,
    minor: int = 0,
    irp_flags: int = 0,
    operation_flags: int = 0,
    mode: int = 0,
    top: Instance | None = None,
    fast_io: bool = False,
    data_flags: int = 0,
) -> Request:
    """Lay a request out in kernel memory.

    Args:
        parameters: the 48 bytes of FLT_PARAMETERS.
        top: only instances below this one see the request.
        data_flags: FLTFL_CALLBACK_DATA_* beside the kind of operation.
    """
    instances = instances_below(volume, top)
    size = _SLOTS_OFFSET + _SLOT_SIZE * (len(instances) + 1)
    data = k.pool.allocate(size, _TAG, owner="fltmgr")
    iopb = data + _IOPB_OFFSET
    kind = n.FLTFL_CALLBACK_DATA_FAST_IO_OPERATION if fast_io else n.FLTFL_CALLBACK_DATA_IRP_OPERATION
    memory = k.memory
    memory.write(data, _DATA.pack(kind | data_flags, thread.address, iopb, UNSET_STATUS, 0, 0))
    memory.put8(data + DATA_MODE, mode)
    memory.write(iopb, _IOPB.pack(irp_flags, major, minor, operation_flags, file_object, 0, parameters))
    walk = Walk(instances)
    request = Request(
        k,
        data,
        iopb,
        data + _SLOTS_OFFSET,
        major,
        volume,
        thread,
        walk,
        [walk],
        fast_io=fast_io,
        initiator=top,
    )
    io_state(k).requests[data] = request
    return request


def release_request(k: Kernel, request: Request) -> None:
    """The request is over: its memory is freed, so that a driver that kept the pointer faults."""
    state = io_state(k)
    state.requests.pop(request.data, None)
    for mdl in request.mdls:
        free_mdl(k, mdl)
    for block in request.owned:
        k.pool.free(block)
    request.owned.clear()
    k.pool.free(request.data, _TAG)


def request_at(k: Kernel, data: int, caller: str) -> Request:
    """The request of a PFLT_CALLBACK_DATA that a driver passed in; anything else bugchecks."""
    request = io_state(k).requests.get(data)
    if request is None:
        raise Bugcheck(
            bc.FLTMGR_FILE_SYSTEM,
            0x6B,
            data,
            rule=f"{caller} was given {data:#x}, which is not the callback data of a request (any more)",
        )
    return request
