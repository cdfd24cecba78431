"""What the I/O path of one kernel remembers: file objects, requests under way, settings, who cleans contexts up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vm.emulated.exports.state import state_of
from vm.emulated.fltmgr.model import Volume

if TYPE_CHECKING:
    from vm.emulated.fltmgr.file_nodes import Stream
    from vm.emulated.fltmgr.file_objects import FileControlBlock, FileObject
    from vm.emulated.fltmgr.requests import Request
    from vm.emulated.kernel.kernel import Kernel


@dataclass(slots=True)
class IoSettings:
    """How the I/O system of a machine behaves where Windows may do one or the other."""

    fast_io: bool = False
    """Cached reads and writes, and basic and standard queries, are tried as fast I/O first."""
    lazy_writer: bool = True
    """After the cleanup of a file written through the cache, a system thread writes its pages."""
    completion_irql: int = 0
    """IRQL of post-operation callbacks of reads and writes that are not synchronised: PASSIVE or DISPATCH_LEVEL."""


class IoState:
    """State of the I/O path of one kernel; made at the first use."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.settings = IoSettings()
        self.volumes: list[Volume] = []
        self.files: dict[int, FileObject] = {}
        """By the address of the FILE_OBJECT; also while it is being closed."""
        self.requests: dict[int, Request] = {}
        """By the address of the FLT_CALLBACK_DATA."""
        self.blocks: dict[Stream, FileControlBlock] = {}
        self.names: dict[int, str] = {}
        """Readable names of callbacks by address."""


def io_state(k: Kernel) -> IoState:
    """The I/O state of a kernel."""
    return state_of(k, IoState)
