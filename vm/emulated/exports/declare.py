"""How an export is declared: the C prototype is the Python signature, `@export` does the rest.

    @export(NTOSKRNL, irql=DISPATCH_LEVEL)
    def KeSetEvent(k: Kernel, Event: PRKEVENT, Increment: KPRIORITY, Wait: BOOLEAN) -> LONG: ...

The first parameter is the kernel; the others are read by the x64 calling convention and cut to their C type. A
generator function may block or call the driver (vm.emulated.kernel.threads). What it returns becomes RAX.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_type_hints

from vm.emulated.kernel.threads import PASSIVE_LEVEL

if TYPE_CHECKING:
    from vm.emulated.cpu.memory import Memory
    from vm.emulated.kernel.kernel import Kernel

NTOSKRNL = "ntoskrnl.exe"
FLTMGR = "fltmgr.sys"


@dataclass(frozen=True, slots=True)
class CType:
    """A C parameter type: its width in bytes and whether it is signed."""

    size: int
    signed: bool = False


class VarArgs:
    """The variable arguments of a call, read one after the other."""

    def __init__(self, memory: Memory, registers: tuple[int, ...], rsp: int, position: int) -> None:
        self._memory = memory
        self._registers = registers
        self._rsp = rsp
        self._position = position

    def next(self) -> int:
        """The next argument as an unsigned 64-bit integer."""
        position = self._position
        self._position += 1
        if position < 4:
            return self._registers[position]
        return self._memory.u64(self._rsp + 8 + 8 * position)


PVOID = Annotated[int, CType(8)]
HANDLE = Annotated[int, CType(8)]
SIZE_T = Annotated[int, CType(8)]
ULONG_PTR = Annotated[int, CType(8)]
ULONGLONG = Annotated[int, CType(8)]
LONGLONG = Annotated[int, CType(8, signed=True)]
LARGE_INTEGER = Annotated[int, CType(8, signed=True)]
ULONG = Annotated[int, CType(4)]
LONG = Annotated[int, CType(4, signed=True)]
NTSTATUS = Annotated[int, CType(4)]
ACCESS_MASK = Annotated[int, CType(4)]
USHORT = Annotated[int, CType(2)]
SHORT = Annotated[int, CType(2, signed=True)]
WCHAR = Annotated[int, CType(2)]
UCHAR = Annotated[int, CType(1)]
CHAR = Annotated[int, CType(1, signed=True)]
BOOLEAN = Annotated[int, CType(1)]
KIRQL = Annotated[int, CType(1)]
KPROCESSOR_MODE = Annotated[int, CType(1)]
KPRIORITY = Annotated[int, CType(4, signed=True)]
VOID: TypeAlias = None

PUNICODE_STRING = PVOID
POBJECT_ATTRIBUTES = PVOID
PLARGE_INTEGER = PVOID
PULONG = PVOID


@dataclass(frozen=True)
class Export:
    """One declared export.

    Attributes:
        dll: lower-case name of the module that exports it.
        irql: highest IRQL at which the caller may run; `minimum` the lowest (both from the function's documentation).
    """

    name: str
    dll: str
    function: Callable[..., Any]
    irql: int
    minimum: int = PASSIVE_LEVEL
    is_model: bool = field(default=False)

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    @cached_property
    def parameters(self) -> tuple[tuple[str, CType | None], ...]:
        """(name, type) of each C parameter; the type is None for the variable arguments."""
        hints = get_type_hints(
            self.function, localns={"Kernel": object, "Model": object}, include_extras=True
        )
        found: list[tuple[str, CType | None]] = []
        for name in list(inspect.signature(self.function).parameters)[1:]:
            hint = hints[name]
            found.append((name, None if hint is VarArgs else hint.__metadata__[0]))
        return tuple(found)

    def bind(self, k: Kernel) -> Callable[[tuple[int, ...]], Any]:
        """A function from the trap's registers (RCX, RDX, R8, R9, RSP) to the result, or to a generator."""
        function = self.function
        types = [ctype for _, ctype in self.parameters]
        count = len(types)
        if None in types:
            fixed = count - 1
            memory = k.memory
            masks = [(1 << 8 * t.size) - 1 for t in types if t is not None]

            def variadic(r: tuple[int, ...]) -> Any:
                values = [r[i] & masks[i] for i in range(fixed)]
                return function(k, *values, VarArgs(memory, r, r[4], fixed))

            return variadic
        shape = tuple((t.size, t.signed) for t in types if t is not None)
        bound: Callable[[tuple[int, ...]], Any] = _caller(shape)(function, k, k.memory.u64)
        return bound


@cache
def _caller(shape: tuple[tuple[int, bool], ...]) -> Callable[..., Any]:
    """For one list of C types: a function (function, kernel, u64) -> (registers -> result).

    Made from source text, once per list: this is the way of every call from driver code into the model, and a loop
    over the types costs more than the rest of the call together (measured: 1.9 us against 0.4 us).
    """
    arguments = ["k"]
    for position, (size, signed) in enumerate(shape):
        bits = 8 * size
        raw = f"r[{position}]" if position < 4 else f"u64(r[4] + {8 + 8 * position})"
        cut = f"{raw} & {(1 << bits) - 1:#x}"
        arguments.append(f"(({cut}) ^ {1 << bits - 1:#x}) - {1 << bits - 1:#x}" if signed else cut)
    source = f"lambda function, k, u64: lambda r: function({', '.join(arguments)})"
    made: Callable[..., Any] = eval(source, {})  # the text is made of numbers only
    return made


def export(
    dll: str, *, irql: int, minimum: int = PASSIVE_LEVEL, name: str | None = None
) -> Callable[[Callable[..., Any]], Export]:
    """Declare the decorated function as an export of `dll`.

    Args:
        irql: highest IRQL allowed for the caller; above it the machine bugchecks, naming the rule.
        minimum: lowest IRQL allowed.
        name: name of the export where Python cannot spell it (`__C_specific_handler`).
    """

    def declare(function: Callable[..., Any]) -> Export:
        return Export(
            name or function.__name__,
            dll,
            function,
            irql,
            minimum,
            is_model=inspect.isgeneratorfunction(function),
        )

    return declare


def alias(of: Export, name: str, *, dll: str | None = None) -> Export:
    """The same routine under a second name, as ntoskrnl exports several, or from a second module."""
    return Export(name, dll or of.dll, of.function, of.irql, of.minimum, is_model=of.is_model)


def collect(modules: Iterable[ModuleType]) -> dict[tuple[str, str], Export]:
    """All exports declared in `modules`, by (dll, name)."""
    table: dict[tuple[str, str], Export] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Export):
                table[value.dll, value.name] = value
    return table
