"""File names against expressions: FsRtlIsNameInExpression and its relatives."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import BOOLEAN, NTOSKRNL, PVOID, WCHAR, export
from vm.emulated.exports.strings import put_counted, upcase
from vm.emulated.kernel.threads import APC_LEVEL, PASSIVE_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

DOS_STAR, DOS_QM, DOS_DOT = "<", ">", '"'
"""Wildcards with the meaning of MS-DOS (ntifs.h)."""
WILDCARDS = frozenset("*?" + DOS_STAR + DOS_QM + DOS_DOT)


@lru_cache(maxsize=1024)
def name_matches(expression: str, name: str) -> bool:
    """Match a name as FsRtlIsNameInExpression does, case-sensitively (fold both sides before for the other).

    * any run; ? one character; < any run that ends before the final dot or at it; > one character, or none before a
    dot or at the end; " a dot, or nothing at the end of the name.
    """
    last_dot = name.rfind(".")
    positions = {0}
    for symbol in expression:
        following: set[int] = set()
        for at in positions:
            if symbol == "*":
                following.update(range(at, len(name) + 1))
            elif symbol == DOS_STAR:
                # The run may not take in the final dot, unless the whole rest has none.
                end = last_dot if at <= last_dot else len(name)
                following.update(range(at, end + 1))
            elif symbol == DOS_QM:
                if at == len(name) or name[at] == ".":
                    following.add(at)
                else:
                    following.add(at + 1)
            elif symbol == DOS_DOT:
                if at == len(name):
                    following.add(at)
                elif name[at] == ".":
                    following.add(at + 1)
            elif at < len(name) and symbol in ("?", name[at]):
                following.add(at + 1)
        if not following:
            return False
        positions = following
    return len(name) in positions


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def FsRtlIsNameInExpression(
    k: Kernel, Expression: PVOID, Name: PVOID, IgnoreCase: BOOLEAN, UpcaseTable: PVOID
) -> bool:
    """With IgnoreCase the expression must be in upper case already (docs)."""
    expression, name = k.memory.unicode_string(Expression), k.memory.unicode_string(Name)
    return name_matches(expression, upcase(name) if IgnoreCase else name)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def FsRtlIsNameInUnUpcasedExpression(
    k: Kernel, Expression: PVOID, Name: PVOID, IgnoreCase: BOOLEAN, UpcaseTable: PVOID
) -> bool:
    expression, name = k.memory.unicode_string(Expression), k.memory.unicode_string(Name)
    if IgnoreCase:
        expression, name = upcase(expression), upcase(name)
    return name_matches(expression, name)


@export(NTOSKRNL, irql=APC_LEVEL)
def FsRtlDoesNameContainWildCards(k: Kernel, Name: PVOID) -> bool:
    return any(c in WILDCARDS for c in k.memory.unicode_string(Name))


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def FsRtlAreNamesEqual(
    k: Kernel, ConstantNameA: PVOID, ConstantNameB: PVOID, IgnoreCase: BOOLEAN, UpcaseTable: PVOID
) -> bool:
    a, b = k.memory.unicode_string(ConstantNameA), k.memory.unicode_string(ConstantNameB)
    return upcase(a) == upcase(b) if IgnoreCase else a == b


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def FsRtlDissectName(k: Kernel, Path: PVOID, FirstName: PVOID, RemainingName: PVOID) -> None:
    """Path is a UNICODE_STRING by value, which the x64 convention passes by address."""
    memory = k.memory
    text, buffer = memory.unicode_string(Path), memory.u64(Path + 8)
    start = 1 if text.startswith("\\") else 0
    end = text.find("\\", start)
    first_end = len(text) if end < 0 else end
    put_counted(memory, FirstName, 2 * (first_end - start), 2 * (first_end - start), buffer + 2 * start)
    if end < 0:
        put_counted(memory, RemainingName, 0, 0, 0)
    else:
        rest = 2 * (len(text) - end - 1)
        put_counted(memory, RemainingName, rest, rest, buffer + 2 * (end + 1))


@export(NTOSKRNL, irql=APC_LEVEL)
def FsRtlIsUnicodeCharacterWild(k: Kernel, C: WCHAR) -> bool:
    """A macro in most headers."""
    return chr(C) in WILDCARDS
