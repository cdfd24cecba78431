"""Emulated threads: stacks of frames, and the effects that frames of the model yield. The scheduler runs them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vm.emulated.cpu.engine import Context
    from vm.emulated.kernel.processes import KProcess

PASSIVE_LEVEL = 0
APC_LEVEL = 1
DISPATCH_LEVEL = 2
HIGH_LEVEL = 15

KERNEL_MODE = 0
USER_MODE = 1

Model = Generator["Effect", Any, Any]
"""Code of the model that may block or call the driver; it yields effects and returns its result."""


@dataclass(frozen=True, slots=True)
class Call:
    """Effect: run driver code at `address` on this thread; the yield returns RAX (unsigned, 64 bit)."""

    address: int
    arguments: tuple[int, ...]
    name: str = ""
    """What is being called, for stack traces ("PreOperation of IRP_MJ_CREATE")."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Effect: wait for dispatcher objects; the yield returns an NTSTATUS.

    `timeout` is None (for ever), 0 (do not wait), negative (relative) or positive (absolute), in 100 ns units.
    """

    objects: Sequence[int]
    """Addresses of dispatcher headers."""
    timeout: int | None = None
    wait_all: bool = False
    mode: int = KERNEL_MODE


@dataclass(frozen=True, slots=True)
class Block:
    """Effect: park this thread until `Scheduler.wake(thread, value)`; the yield returns that value.

    With a timeout (100 ns units from now, not negative) the yield returns `TIMED_OUT` when it expires first. A
    `killable` block returns `TERMINATING` when the thread is being terminated.
    """

    reason: str
    timeout: int | None = None
    killable: bool = False
    on_cancel: Callable[[], None] | None = None
    """Called when the block ends by timeout or termination, so that whoever queued the thread forgets it."""


Effect = Call | Wait | Block


class Signal(Enum):
    """What a `Block` returns when nobody woke it with a value."""

    TIMED_OUT = "timed out"
    TERMINATING = "terminating"


TIMED_OUT = Signal.TIMED_OUT
TERMINATING = Signal.TERMINATING


class ThreadState(Enum):
    """Where a thread is."""

    READY = "ready"
    RUNNING = "running"
    WAITING = "waiting"
    IDLE = "idle"
    """A user thread with nothing to do in the kernel: it runs its own, host-side code."""
    TERMINATED = "terminated"


class GuestFrame:
    """Driver code on the thread's kernel stack."""

    __slots__ = ("caller_pc", "entry", "name", "pc", "reset_rsp", "result", "rsp")

    def __init__(self, entry: int, rsp: int, name: str) -> None:
        self.entry = entry
        self.pc = entry
        self.rsp = rsp
        """RSP at the last trap (points to the return address into the driver), or at entry."""
        self.name = name
        self.result: int | None = None
        """RAX to hand over before the frame runs on after an export."""
        self.reset_rsp = False
        """True when a nested frame ran below this one, so that the engine's RSP is not this frame's."""


class ModelFrame:
    """A generator of the model."""

    __slots__ = ("error", "export", "generator", "name", "on_done", "value")

    def __init__(
        self,
        generator: Model,
        name: str,
        *,
        export: Any = None,
        on_done: Callable[[Any, BaseException | None], None] | None = None,
    ) -> None:
        self.generator = generator
        self.name = name
        self.export = export
        """The export declaration this frame implements, None for requests and system threads."""
        self.on_done = on_done
        self.value: Any = None
        self.error: BaseException | None = None


class KThread:
    """One emulated thread. `address` is its ETHREAD, whose first bytes are a dispatcher header."""

    __slots__ = (
        "address",
        "block",
        "context",
        "context_valid",
        "critical_region",
        "exit_status",
        "frames",
        "guarded_region",
        "id",
        "impersonation",
        "io_callbacks",
        "irql",
        "is_system",
        "name",
        "owned",
        "previous_mode",
        "process",
        "stack_base",
        "stack_limit",
        "state",
        "terminating",
        "timer",
        "top_level_irp",
        "wait_objects",
    )

    def __init__(
        self, *, thread_id: int, address: int, process: KProcess, name: str, stack_base: int, stack_limit: int
    ):
        self.id = thread_id
        self.address = address
        self.process = process
        self.name = name
        self.stack_base = stack_base
        """Highest address of the kernel stack (exclusive)."""
        self.stack_limit = stack_limit
        self.frames: list[GuestFrame | ModelFrame] = []
        self.state = ThreadState.READY
        self.context: Context | None = None
        self.context_valid = False
        self.irql = PASSIVE_LEVEL
        self.critical_region = 0
        self.guarded_region = 0
        self.previous_mode = KERNEL_MODE
        self.is_system = True
        self.impersonation: Any = None
        self.block: Block | None = None
        self.timer: Any = None
        self.wait_objects: tuple[int, ...] = ()
        self.terminating = False
        self.owned: list[Any] = []
        """Locks this thread holds, newest last, for rule checks: (kind, address)."""
        self.io_callbacks: list[str] = []
        """Names of the driver's I/O callbacks that are active on this thread, innermost last."""
        self.top_level_irp = 0
        self.exit_status = 0

    def guest_frame(self) -> GuestFrame | None:
        """The innermost frame of driver code, or None."""
        for frame in reversed(self.frames):
            if isinstance(frame, GuestFrame):
                return frame
        return None

    def __repr__(self) -> str:
        return f"<KThread {self.id} {self.name!r} {self.state.value} irql={self.irql}>"
