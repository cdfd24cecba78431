"""FILE_OBJECTs in kernel memory: made before a create, visible to filters until IRP_MJ_CLOSE has been sent.

The object manager counts handles and references; the last handle sends IRP_MJ_CLEANUP, the last reference
IRP_MJ_CLOSE (in close.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_nodes import Open, Stream
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.fltmgr.model import Instance, Volume
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.dispatcher import ObjectType
from vm.emulated.kernel.objects import KObject

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

FILE_TYPE = "File"
FILE_OBJECT_SIZE = 0xD8
IO_TYPE_FILE = 5
DEVICE, VPB, FS_CONTEXT, FS_CONTEXT2, SECTION_POINTER, PRIVATE_CACHE_MAP = 0x08, 0x10, 0x18, 0x20, 0x28, 0x30
FINAL_STATUS, RELATED, READ_ACCESS, FLAGS, FILE_NAME, CURRENT_OFFSET = 0x38, 0x40, 0x4A, 0x50, 0x58, 0x68
LOCK_EVENT, EVENT = 0x80, 0x98
_NAME_TAG = "IoNm"
_FCB_SIZE = 0x80
_FCB = struct.Struct("<HHBBBBQQqqq")
_ADVANCED_HEADER = 0x40
_SUPPORTS_FILTER_CONTEXTS = 0x02
_SECTION_POINTERS = 0x60


@dataclass(slots=True, eq=False)
class FileControlBlock:
    """The FSRTL_ADVANCED_FCB_HEADER of a stream: what FsContext of all of its file objects points to."""

    address: int
    users: int = 0
    contexts: dict[tuple[int, int], Any] = field(default_factory=dict)
    """Stream contexts by (instance address, context type)."""


@dataclass(slots=True, eq=False)
class FileObject:
    """One file object; `address` is the FILE_OBJECT that drivers see."""

    kernel: Kernel
    address: int
    volume: Volume
    path: str
    """Path inside the volume as it was asked for; a relative one if `related` is given."""
    related: FileObject | None
    options: int
    access: int
    share: int
    top: Instance | None
    """Made by FltCreateFile with this instance: only the instances below see the file object."""
    object: KObject = field(init=False)
    opened: Open | None = None
    block: FileControlBlock | None = None
    cancelled: bool = False
    """FltCancelFileOpen."""
    closed: bool = False
    """IRP_MJ_CLOSE has been sent, or never will be."""
    cleaned_up: bool = False
    is_volume_open: bool = False
    written: bool = False
    """Written through the cache since it was opened: the lazy writer has work."""
    contexts: dict[tuple[int, int], Any] = field(default_factory=dict)
    """Stream-handle contexts by (instance address, context type)."""
    name_buffer: int = 0

    @property
    def flags(self) -> int:
        return self.kernel.memory.u32(self.address + FLAGS)

    def change_flags(self, *, add: int = 0, remove: int = 0) -> None:
        """Set and clear FO_* bits."""
        memory = self.kernel.memory
        memory.put32(self.address + FLAGS, memory.u32(self.address + FLAGS) & ~remove | add)

    @property
    def synchronous(self) -> bool:
        return bool(self.options & (n.FILE_SYNCHRONOUS_IO_ALERT | n.FILE_SYNCHRONOUS_IO_NONALERT))

    @property
    def position(self) -> int:
        """CurrentByteOffset."""
        return self.kernel.memory.i64(self.address + CURRENT_OFFSET)

    @position.setter
    def position(self, value: int) -> None:
        self.kernel.memory.put64(self.address + CURRENT_OFFSET, value)

    def name(self) -> str:
        """FileName as it is in the FILE_OBJECT now; a filter may have changed it."""
        return self.kernel.memory.unicode_string(self.address + FILE_NAME)

    def full_path(self) -> str:
        """Path inside the volume, with the related file object's name in front."""
        if self.related is None:
            return self.path
        base = self.related.full_path().rstrip("\\")
        if not self.path:
            return base or "\\"
        return base + self.path if self.path.startswith(":") else f"{base}\\{self.path}"


def make_file_object(
    k: Kernel,
    volume: Volume,
    path: str,
    *,
    related: FileObject | None,
    options: int,
    access: int,
    share: int,
    top: Instance | None,
    on_last_handle: Callable[[FileObject], Any],
    on_last_reference: Callable[[FileObject], None],
) -> FileObject:
    """A file object as the I/O manager makes it before IRP_MJ_CREATE: named, not open, with one reference."""
    address = k.pool.allocate(FILE_OBJECT_SIZE, FILE_TYPE, owner="nt")
    file = FileObject(k, address, volume, path, related, options, access, share, top)
    file.is_volume_open = path == "" and related is None
    memory = k.memory
    memory.write(address, struct.pack("<HH4xQQ", IO_TYPE_FILE, FILE_OBJECT_SIZE, volume.device_object, 0))
    if related is not None:
        memory.put64(address + RELATED, related.address)
    set_file_name(k, file, path)
    k.dispatcher.initialize(address + LOCK_EVENT, ObjectType.SYNCHRONIZATION_EVENT, 0)
    k.dispatcher.initialize(address + EVENT, ObjectType.NOTIFICATION_EVENT, 0)
    flags = 0
    for option, flag in _FLAGS_OF_OPTIONS:
        if options & option:
            flags |= flag
    if file.is_volume_open:
        flags |= n.FO_VOLUME_OPEN
    memory.put32(address + FLAGS, flags)
    file.object = k.objects.create(
        FILE_TYPE,
        file,
        address=address,
        on_last_handle=lambda: on_last_handle(file),
        on_delete=lambda: on_last_reference(file),
    )
    io_state(k).files[address] = file
    return file


def set_file_name(k: Kernel, file: FileObject, name: str) -> None:
    """Write FileName, in a buffer of its own, as RtlInitUnicodeString would leave it."""
    raw = name.encode("utf-16-le", "surrogatepass")
    if file.name_buffer:
        k.pool.free(file.name_buffer, _NAME_TAG)
        file.name_buffer = 0
    if raw:
        file.name_buffer = k.pool.allocate(len(raw), _NAME_TAG, owner="nt", paged=True)
        k.memory.write(file.name_buffer, raw)
    k.memory.write(file.address + FILE_NAME, struct.pack("<HH4xQ", len(raw), len(raw), file.name_buffer))


def bind(k: Kernel, file: FileObject, opened: Open) -> None:
    """The file system has opened the file: its context pointers, and what the I/O manager notes of the access."""
    file.opened = opened
    block = io_state(k).blocks.get(opened.stream)
    if block is None:
        block = FileControlBlock(k.pool.allocate(_FCB_SIZE, "Ntff", owner="ntfs", paged=True))
        io_state(k).blocks[opened.stream] = block
    block.users += 1
    file.block = block
    update_block(k, block, opened.stream)
    context2 = k.pool.allocate(0x40, "NtFC", owner="ntfs", paged=True)
    memory = k.memory
    memory.put64(file.address + FS_CONTEXT, block.address)
    memory.put64(file.address + FS_CONTEXT2, context2)
    memory.put64(file.address + SECTION_POINTER, block.address + _SECTION_POINTERS)
    access, share = file.access, file.share
    reading, writing, deleting = (
        bool(access & (n.FILE_READ_DATA | n.FILE_EXECUTE)),
        bool(access & (n.FILE_WRITE_DATA | n.FILE_APPEND_DATA)),
        bool(access & n.DELETE),
    )
    takes_part = reading or writing or deleting
    memory.write(
        file.address + READ_ACCESS,
        bytes(
            (
                reading,
                writing,
                deleting,
                takes_part and bool(share & n.FILE_SHARE_READ),
                takes_part and bool(share & n.FILE_SHARE_WRITE),
                takes_part and bool(share & n.FILE_SHARE_DELETE),
            )
        ),
    )
    if not opened.node.is_directory and not file.options & n.FILE_NO_INTERMEDIATE_BUFFERING:
        file.change_flags(add=n.FO_CACHE_SUPPORTED)


def update_block(k: Kernel, block: FileControlBlock, stream: Stream) -> None:
    """Write the sizes of a stream into its FCB header."""
    k.memory.write(
        block.address,
        _FCB.pack(
            0x702,
            _FCB_SIZE,
            _ADVANCED_HEADER,
            0,
            _SUPPORTS_FILTER_CONTEXTS,
            0,
            0,
            0,
            stream.allocation,
            stream.size,
            stream.size,
        ),
    )


def free_file_object(k: Kernel, file: FileObject) -> None:
    """Nobody refers to the file object any more: its memory goes."""
    unbind(k, file)
    if file.name_buffer:
        k.pool.free(file.name_buffer, _NAME_TAG)
    k.pool.free(file.address, FILE_TYPE)


def unbind(k: Kernel, file: FileObject) -> None:
    """The file system lets go of the file object."""
    opened, block = file.opened, file.block
    if opened is None or block is None:
        return
    file.volume.file_system.close(opened)
    file.block = None
    k.pool.free(k.memory.u64(file.address + FS_CONTEXT2), "NtFC")
    block.users -= 1
    if not block.users:
        del io_state(k).blocks[opened.stream]
        k.pool.free(block.address, "Ntff")
    for offset in (FS_CONTEXT, FS_CONTEXT2, SECTION_POINTER):
        k.memory.put64(file.address + offset, 0)


def file_at(k: Kernel, address: int, caller: str) -> FileObject:
    """The file object at an address that a driver passed in; anything else bugchecks."""
    file = io_state(k).files.get(address)
    if file is None:
        raise Bugcheck(
            bc.REFERENCE_BY_POINTER,
            0,
            address,
            rule=f"{caller} was given {address:#x}, which is not a file object (any more)",
        )
    return file


_FLAGS_OF_OPTIONS = (
    (n.FILE_SYNCHRONOUS_IO_NONALERT, n.FO_SYNCHRONOUS_IO),
    (n.FILE_SYNCHRONOUS_IO_ALERT, n.FO_SYNCHRONOUS_IO | n.FO_ALERTABLE_IO),
    (n.FILE_NO_INTERMEDIATE_BUFFERING, n.FO_NO_INTERMEDIATE_BUFFERING),
    (n.FILE_WRITE_THROUGH, n.FO_WRITE_THROUGH),
    (n.FILE_SEQUENTIAL_ONLY, n.FO_SEQUENTIAL_ONLY),
    (n.FILE_RANDOM_ACCESS, n.FO_RANDOM_ACCESS),
    (n.FILE_DELETE_ON_CLOSE, n.FO_DELETE_ON_CLOSE),
)
