"""Reading what a driver hands to FltRegisterFilter: FLT_REGISTRATION and the tables it points to."""

from __future__ import annotations

import struct

from vm.emulated.cpu.memory import Memory
from vm.emulated.fltmgr.model import ContextRegistration, Operation, Registration
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.pool import tag_text
from vm.emulated.kernel.status import STATUS_INVALID_PARAMETER

IRP_MJ_OPERATION_END = 0x80
FLT_CONTEXT_END = 0xFFFF
_SIZES = {0x0203: 0x70, 0x0202: 0x68, 0x0201: 0x60, 0x0200: 0x58}
"""Size of FLT_REGISTRATION by version (fact Y3)."""


def read_registration(memory: Memory, address: int) -> Registration:
    """The registration at an address, in the layout of its version.

    Raises:
        StatusError: STATUS_INVALID_PARAMETER for a version that is not supported (fact L6) or a size that is too small.
    """
    size, version, flags = struct.unpack("<HHI", memory.read(address, 8))
    wanted = _SIZES.get(version)
    if wanted is None or size < wanted:
        raise StatusError(STATUS_INVALID_PARAMETER)
    pointers = struct.unpack("<10Q", memory.read(address + 8, 80))
    (
        contexts,
        operations,
        unload,
        setup,
        query_teardown,
        teardown_start,
        teardown_complete,
        generate,
        normalize,
        cleanup,
    ) = pointers
    return Registration(
        version=version,
        flags=flags,
        contexts=_contexts(memory, contexts) if contexts else (),
        operations=_operations(memory, operations) if operations else {},
        unload=unload,
        instance_setup=setup,
        instance_query_teardown=query_teardown,
        instance_teardown_start=teardown_start,
        instance_teardown_complete=teardown_complete,
        generate_file_name=generate,
        normalize_name_component=normalize,
        normalize_context_cleanup=cleanup,
    )


def _operations(memory: Memory, address: int) -> dict[int, Operation]:
    found: dict[int, Operation] = {}
    while True:
        major, flags, pre, post = struct.unpack("<B3xIQQ", memory.read(address, 24))
        if major == IRP_MJ_OPERATION_END:
            return found
        found[major] = Operation(major, flags, pre, post)
        address += 0x20


def _contexts(memory: Memory, address: int) -> tuple[ContextRegistration, ...]:
    found: list[ContextRegistration] = []
    while True:
        kind = memory.u16(address)
        if kind == FLT_CONTEXT_END:
            return tuple(found)
        flags, cleanup, size, tag, allocate, free = struct.unpack("<H4xQQI4xQQ", memory.read(address + 2, 46))
        found.append(ContextRegistration(kind, flags, cleanup, size, tag_text(tag), allocate, free))
        address += 0x38
