"""Structured exception handling of driver code as a plan: generators that say which filter or `__finally` funclet to
run next and, in the end, where to go on. They run nothing themselves.

The kernel room's dispatcher is then a loop (`Call` is its own effect):

    plan = plan_exception(code, registers, find_module, read)
    try:
        request = next(plan)
        while True:
            request = plan.send((yield Call(request.address, *request.arguments(pointers))))
    except StopIteration as end:
        outcome = end.value

* `registers` of a fault are those at the faulting instruction; of an exception that an export raises
  (ExRaiseStatus), those right after the call returned: RIP = return address, RSP = behind it.
* `find_module(address)` gives the driver image that holds an address, `read(address, size)` its memory.
* A funclet runs on the same thread's stack below RSP of the context that caused the exception. `pointers` is the
  guest address of an EXCEPTION_POINTERS; it is the first argument of filters.
* `Resume`: load the registers and continue there; RAX already is the exception code. `ContinueExecution`: load the
  context as it is now in the CONTEXT behind `pointers` (a filter may have changed it); if the exception is
  noncontinuable, raise STATUS_NONCONTINUABLE_EXCEPTION instead. `Unhandled`: bugcheck with its frames as the stack.
* An exception inside of a funclet is planned the same way. Give `across`: when the walk comes out of the funclet (at
  whatever return address the kernel gave it), `across(registers)` returns the `Interruption` of the request that ran
  it (RSP is what it was before the kernel pushed that return address), so that the walk goes on in the frame below. `Resume.crossed` says how many of such funclets, innermost first,
  have to be dropped.

Sources: "Structured Exception Handling (x64)" and `__C_specific_handler` in Microsoft's documentation."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from enum import Enum

from vm.emulated.image.unwind import (
    EXCEPTION_HANDLER,
    UNWIND_HANDLER,
    ReadMemory,
    Registers,
    UnwindError,
    UnwindTable,
    UnwoundFrame,
    virtual_unwind,
)

EXCEPTION_EXECUTE_HANDLER = 1
_MOST_SCOPES = 4096
_MOST_FRAMES = 1024
_SCOPE = struct.Struct("<IIII")


@dataclass(frozen=True, slots=True)
class Module:
    """A loaded image."""

    base: int
    table: UnwindTable


FindModule = Callable[[int], Module | None]


@dataclass(frozen=True, slots=True)
class Scope:
    """One entry of the scope table of `__C_specific_handler`; all RVAs.

    Attributes:
        handler: for `__except` the filter funclet, or 1 for a filter that is constantly EXCEPTION_EXECUTE_HANDLER;
            for `__finally` its funclet.
        target: where the `__except` block begins; 0 for `__finally`.
    """

    begin: int
    end: int
    handler: int
    target: int

    @property
    def is_finally(self) -> bool:
        return self.target == 0

    def __contains__(self, rva: int) -> bool:
        return self.begin <= rva < self.end


class FuncletKind(Enum):
    FILTER = "filter"
    FINALLY = "finally"


@dataclass(frozen=True, slots=True)
class Interruption:
    """Where a walk goes on when it comes out of a funclet: a frame, and the first of its scopes still to look at."""

    registers: Registers
    first_scope: int
    is_caller: bool


@dataclass(frozen=True, slots=True)
class Funclet:
    """A request to run driver code; send its RAX back into the plan.

    Attributes:
        address: absolute address of the funclet.
        establisher_frame: its second argument.
        interruption: what `across` has to return while this funclet runs.
    """

    kind: FuncletKind
    address: int
    establisher_frame: int
    interruption: Interruption

    def arguments(self, exception_pointers: int) -> tuple[int, int]:
        """RCX and RDX: EXCEPTION_POINTERS or AbnormalTermination = TRUE, and the establisher frame."""
        first = exception_pointers if self.kind is FuncletKind.FILTER else 1
        return first, self.establisher_frame


@dataclass(frozen=True, slots=True)
class StackFrame:
    """One frame of a walk.

    Attributes:
        registers: context in this frame.
        module: None when RIP is in no driver image; such a frame ends the walk.
        is_caller: whether RIP is a return address; then its line is that of the byte before it.
        unwound: the frame undone, or None when that was not possible.
        first_scope: scopes before this one were dealt with already, see `Interruption`.
        crossed: how many funclets the walk had come out of before this frame.
    """

    registers: Registers
    module: Module | None
    is_caller: bool
    unwound: UnwoundFrame | None
    first_scope: int = 0
    crossed: int = 0

    @property
    def rva(self) -> int | None:
        """RIP relative to the image; None outside of images."""
        return None if self.module is None else self.registers.rip - self.module.base


@dataclass(frozen=True, slots=True)
class Resume:
    """Continue at these registers, after dropping the `crossed` innermost funclets and what they called."""

    registers: Registers
    establisher_frame: int
    crossed: int


@dataclass(frozen=True, slots=True)
class ContinueExecution:
    """A filter said EXCEPTION_CONTINUE_EXECUTION: go on where the exception happened."""


@dataclass(frozen=True, slots=True)
class Unhandled:
    """Nobody took the exception; `frames` is the stack, innermost first."""

    frames: tuple[StackFrame, ...]


Across = Callable[[Registers], Interruption | None]
ExceptionPlan = Generator[Funclet, int, Resume | ContinueExecution | Unhandled]
UnwindPlan = Generator[Funclet, int, Resume | Unhandled]


def scope_table(table: UnwindTable, unwound: UnwoundFrame) -> tuple[Scope, ...]:
    """The scopes of a frame whose handler may run, innermost first; empty when its handler has none.

    Handlers are told apart by their data, not by name: the data is a scope table only if every entry lies within code
    of the image. So `__GSHandlerCheck_SEH` (a scope table, then more) counts, `__GSHandlerCheck` (a number) does not.
    """
    if unwound.info is None or not unwound.info.handler_rva:
        return ()
    return read_scope_table(table, unwound.info.handler_data_rva)


def read_scope_table(table: UnwindTable, rva: int) -> tuple[Scope, ...]:
    """The SCOPE_TABLE at `rva` of the image; empty when there is none that makes sense."""
    data = table.image.template
    if rva + 4 > len(data):
        return ()
    (count,) = struct.unpack_from("<I", data, rva)
    if not 0 < count <= _MOST_SCOPES or rva + 4 + _SCOPE.size * count > len(data):
        return ()
    end = rva + 4 + _SCOPE.size * count
    scopes = tuple(Scope(*entry) for entry in _SCOPE.iter_unpack(data[rva + 4 : end]))
    return scopes if all(_makes_sense(table, scope) for scope in scopes) else ()


def walk_stack(
    registers: Registers,
    find_module: FindModule,
    read: ReadMemory,
    *,
    across: Across | None = None,
    limit: int = _MOST_FRAMES,
    first_is_caller: bool = False,
) -> Iterator[StackFrame]:
    """The frames from `registers` on, innermost first, as far as they are in driver images.

    The last frame is the first one outside of every image (the kernel's return address) or the first that cannot be
    unwound; memory is read as the walk advances. Never raises and never loops: a frame has to lie above its callee.
    """
    is_caller, first_scope, crossed = first_is_caller, 0, 0
    for _ in range(limit):
        module = find_module(registers.rip)
        if module is None:
            interruption = across(registers) if across is not None else None
            if interruption is None:
                yield StackFrame(registers, None, is_caller, None, 0, crossed)
                return
            registers, first_scope = interruption.registers, interruption.first_scope
            crossed += 1
            is_caller = interruption.is_caller
            continue
        try:
            unwound = virtual_unwind(module.table, module.base, registers, read)
        except UnwindError:
            yield StackFrame(registers, module, is_caller, None, first_scope, crossed)
            return
        yield StackFrame(registers, module, is_caller, unwound, first_scope, crossed)
        if unwound.caller.rsp <= registers.rsp:
            return
        registers, is_caller, first_scope = unwound.caller, True, 0


def plan_exception(
    code: int,
    registers: Registers,
    find_module: FindModule,
    read: ReadMemory,
    *,
    across: Across | None = None,
    first_is_caller: bool = False,
) -> ExceptionPlan:
    """Search for a handler (phase one) and, when a filter takes the exception, unwind to it (phase two).

    Args:
        code: NTSTATUS of the exception; becomes RAX in the `__except` block.
        first_is_caller: True when an export raised it, so that RIP is a return address; only the frames of
            `Unhandled` differ.

    See the module's docstring for how to run the plan.
    """
    frames: list[StackFrame] = []
    for frame in walk_stack(registers, find_module, read, across=across):
        frames.append(frame)
        if (
            frame.module is None
            or frame.unwound is None
            or not frame.unwound.handler_flags & EXCEPTION_HANDLER
        ):
            continue
        base, establisher = frame.module.base, frame.unwound.establisher_frame
        for index, scope in _active_scopes(frame):
            if scope.is_finally:
                continue
            verdict = EXCEPTION_EXECUTE_HANDLER
            if scope.handler != EXCEPTION_EXECUTE_HANDLER:
                interruption = Interruption(frame.registers, index + 1, frame.is_caller)
                answer = yield Funclet(FuncletKind.FILTER, base + scope.handler, establisher, interruption)
                verdict = _signed(answer)
            if verdict < 0:
                return ContinueExecution()
            if verdict > 0:
                return (
                    yield from plan_unwind(
                        registers, establisher, base + scope.target, code, find_module, read, across=across
                    )
                )
    return Unhandled(tuple(frames))


def plan_unwind(
    registers: Registers,
    target_frame: int,
    target_ip: int,
    return_value: int,
    find_module: FindModule,
    read: ReadMemory,
    *,
    across: Across | None = None,
) -> UnwindPlan:
    """Run the `__finally` funclets on the way to `target_frame` and arrive there at `target_ip`; what RtlUnwindEx and
    `_local_unwind` do.

    Args:
        target_frame: establisher frame to stop at.
        target_ip: absolute address to continue at.
        return_value: RAX on arrival.

    Returns (as the generator's value): `Resume`, or `Unhandled` when the stack has no such frame.
    """
    frames: list[StackFrame] = []
    for frame in walk_stack(registers, find_module, read, across=across):
        frames.append(frame)
        if frame.module is None or frame.unwound is None:
            continue
        base, establisher = frame.module.base, frame.unwound.establisher_frame
        is_target = establisher == target_frame and frame.unwound.function is not None
        if frame.unwound.handler_flags & UNWIND_HANDLER:
            target_rva = target_ip - base if is_target else None
            for index in _finally_scopes(frame, target_rva):
                scope = scope_table(frame.module.table, frame.unwound)[index]
                interruption = Interruption(frame.registers, index + 1, frame.is_caller)
                yield Funclet(FuncletKind.FINALLY, base + scope.handler, establisher, interruption)
        if is_target:
            return Resume(frame.registers.at(target_ip, rax=return_value), establisher, frame.crossed)
    return Unhandled(tuple(frames))


def _active_scopes(frame: StackFrame) -> Iterator[tuple[int, Scope]]:
    """(index, scope) of those around the frame's RIP that were not dealt with yet, innermost first."""
    if frame.module is None or frame.unwound is None:
        return
    rva = frame.registers.rip - frame.module.base
    for index, scope in enumerate(scope_table(frame.module.table, frame.unwound)):
        if index >= frame.first_scope and rva in scope:
            yield index, scope


def _finally_scopes(frame: StackFrame, target_rva: int | None) -> Iterator[int]:
    """Indexes of the `__finally` scopes that this frame leaves; in the target frame those that still surround the
    target stay, and the `__except` that took the exception ends the list."""
    assert frame.module is not None and frame.unwound is not None
    table = scope_table(frame.module.table, frame.unwound)
    for index, scope in _active_scopes(frame):
        if target_rva is not None:
            same = (
                other for other in table if (other.handler, other.target) == (scope.handler, scope.target)
            )
            if any(target_rva in other for other in same) or scope.target == target_rva:
                return
        if scope.is_finally:
            yield index


def _makes_sense(table: UnwindTable, scope: Scope) -> bool:
    def is_code(rva: int) -> bool:
        section = table.image.section_at(rva)
        return section is not None and section.executable

    if not (scope.begin < scope.end and is_code(scope.begin) and is_code(scope.end - 1)):
        return False
    if scope.is_finally:
        return is_code(scope.handler)
    return is_code(scope.target) and (scope.handler == EXCEPTION_EXECUTE_HANDLER or is_code(scope.handler))


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value
