"""Finds the instructions of a driver that the engine runs with the host's answer or with none (CR8, RDTSC, ...), so
that the cpu room can replace each by an interrupt of the same length. Finds only; changes nothing."""

from __future__ import annotations

import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import capstone

from vm.emulated.image.pe import Image, Section


class SiteKind(Enum):
    """What the instruction does; the value is its mnemonic."""

    READ_CR8 = "mov r64, cr8"
    WRITE_CR8 = "mov cr8, r64"
    RDTSC = "rdtsc"
    RDTSCP = "rdtscp"
    RDRAND = "rdrand"
    RDSEED = "rdseed"
    CLI = "cli"
    STI = "sti"
    SWAPGS = "swapgs"
    IN = "in"
    OUT = "out"
    RDMSR = "rdmsr"
    WRMSR = "wrmsr"
    INVLPG = "invlpg"
    HLT = "hlt"


@dataclass(frozen=True, slots=True)
class Site:
    """One such instruction.

    Attributes:
        register: number of the general register it reads or writes (0 = RAX ... 15 = R15), None without one.
        width: bits of that register; 0 without one.
        length: bytes of the whole instruction, prefixes included.
        encoding: these bytes.
    """

    rva: int
    kind: SiteKind
    register: int | None
    width: int
    length: int
    encoding: bytes


_PLAIN = {
    kind.value: kind
    for kind in SiteKind
    if kind not in (SiteKind.READ_CR8, SiteKind.WRITE_CR8, SiteKind.IN, SiteKind.OUT)
}
_PORT = {
    mnemonic: SiteKind.IN if mnemonic.startswith("in") else SiteKind.OUT
    for mnemonic in ("in", "insb", "insw", "insd", "out", "outsb", "outsw", "outsd")
}
_WITH_REGISTER = (SiteKind.READ_CR8, SiteKind.WRITE_CR8, SiteKind.RDRAND, SiteKind.RDSEED)

# What ends a run of instructions: nothing falls through behind these.
_TERMINATORS = frozenset(("ret", "retf", "iretq", "jmp", "int3", "ud2"))

# `mov ecx, dword ptr [rdx + rax*4 + 0x1234]` with RDX = image base: how MSVC reads a jump table that it put behind the
# code of the function. The displacement is the RVA of the table, its entries are RVAs in the function.
_TABLE = re.compile(r"\[r\w+ \+ r\w+\*4 \+ (0x[0-9a-f]+)\]")
_RIP_RELATIVE = re.compile(r"\[rip ([+-]) (0x[0-9a-f]+)\]")


def find_sites(image: Image) -> tuple[Site, ...]:
    """The sites of all executable sections, in the order of their RVAs.

    Functions that `.pdata` lists are swept from begin to end, up to the first jump table they use. What lies between
    them (leaf functions, padding, tables) is entered only where something points to it: the entry point, an export, a
    relocated pointer, a direct call or jump, a `lea`. So data between functions is never taken for instructions.

    The result depends on the file only: cache it under `image.sha256`.
    """
    ranges = sorted({(begin, end) for begin, end, _ in image.runtime_functions()})
    sites: dict[int, Site] = {}
    for section in image.sections:
        if section.executable:
            _Sweep(image, section, ranges, sites).run()
    return tuple(sites[rva] for rva in sorted(sites))


class _Sweep:
    """One pass over one executable section."""

    def __init__(
        self, image: Image, section: Section, ranges: list[tuple[int, int]], sites: dict[int, Site]
    ) -> None:
        self._image = image
        self._section = section
        self._ranges = [r for r in ranges if r[0] in section and r[1] <= section.end]
        self._begins = [begin for begin, _ in self._ranges]
        self._sites = sites
        self._targets: set[int] = set()
        self._engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def run(self) -> None:
        for begin, end in self._ranges:
            self._sweep_function(begin, end)
        self._targets |= self._roots()
        visited: set[int] = set()
        while self._targets:
            target = self._targets.pop()
            if target in self._section and target not in visited and not self._is_listed(target):
                self._follow(target, visited)

    def _sweep_function(self, begin: int, end: int) -> None:
        position: int | None = begin
        while position is not None:
            position, end = self._sweep_until_undecodable(position, end)

    def _sweep_until_undecodable(self, begin: int, end: int) -> tuple[int | None, int]:
        """Where to go on (None = done) and where the code of the function ends, as far as is known by now."""
        position = begin
        for address, size, mnemonic, operands in self._instructions(begin, end):
            if address >= end:
                return None, end
            self._note(address, size, mnemonic, operands)
            if "*4 + 0x" in operands and (found := _TABLE.search(operands)):
                table = int(found.group(1), 16)
                if address < table < end and self._is_table(table, begin, end):
                    end = table
            position = address + size
        resume = [target for target in self._targets if position < target < end]
        return min(resume, default=None), end

    def _is_table(self, rva: int, begin: int, end: int) -> bool:
        """Whether the first two entries lead into the code before the table; an array in a structure may be read with
        the same instruction, and to end the sweep there would hide sites."""
        if rva + 8 > end:
            return False
        entries = struct.unpack_from("<II", self._image.template, rva)
        return all(begin <= entry < rva for entry in entries)

    def _follow(self, start: int, visited: set[int]) -> None:
        index = bisect_left(self._begins, start)
        end = self._begins[index] if index < len(self._begins) else self._section.end
        for address, size, mnemonic, operands in self._instructions(start, end):
            if address in visited:
                return
            visited.add(address)
            self._note(address, size, mnemonic, operands)
            if mnemonic in _TERMINATORS:
                return

    def _note(self, address: int, size: int, mnemonic: str, operands: str) -> None:
        if (site := self._site(address, size, mnemonic, operands)) is not None:
            self._sites[address] = site
        elif operands.startswith("0x") and (mnemonic == "call" or mnemonic[0] == "j"):
            self._targets.add(int(operands, 16))
        elif mnemonic == "lea" and (found := _RIP_RELATIVE.search(operands)):
            offset = int(found.group(2), 16)
            self._targets.add(address + size + (offset if found.group(1) == "+" else -offset))

    def _site(self, address: int, size: int, mnemonic: str, operands: str) -> Site | None:
        if mnemonic == "mov":
            if operands.endswith(", cr8"):
                return self._make(address, size, SiteKind.READ_CR8, operands[:-5])
            if operands.startswith("cr8, "):
                return self._make(address, size, SiteKind.WRITE_CR8, operands[5:])
            return None
        kind = _PLAIN.get(mnemonic) or _PORT.get(mnemonic.rsplit(" ", 1)[-1])
        return self._make(address, size, kind, operands) if kind else None

    def _make(self, rva: int, size: int, kind: SiteKind, operand: str) -> Site:
        register, width = _REGISTERS[operand] if kind in _WITH_REGISTER else (None, 0)
        return Site(rva, kind, register, width, size, self._image.template[rva : rva + size])

    def _instructions(self, begin: int, end: int) -> Iterator[tuple[int, int, str, str]]:
        decoded: Iterator[tuple[int, int, str, str]] = self._engine.disasm_lite(
            self._image.template[begin:end], begin
        )
        return decoded

    def _roots(self) -> set[int]:
        image = self._image
        unpack = int.from_bytes
        roots = {image.entry_rva, *(export.rva for export in image.exports if export.forwarder is None)}
        roots |= {unpack(image.template[rva : rva + 8], "little") - image.base for rva in image.relocations}
        return {root for root in roots if root in self._section}

    def _is_listed(self, rva: int) -> bool:
        index = bisect_right(self._begins, rva) - 1
        return index >= 0 and rva < self._ranges[index][1]


def _registers() -> dict[str, tuple[int, int]]:
    legacy = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
    names: dict[str, tuple[int, int]] = {}
    for number, name in enumerate(legacy):
        names |= {name: (number, 16), f"e{name}": (number, 32), f"r{name}": (number, 64)}
    for number in range(8, 16):
        names |= {f"r{number}w": (number, 16), f"r{number}d": (number, 32), f"r{number}": (number, 64)}
    return names


_REGISTERS = _registers()
