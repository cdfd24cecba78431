"""What tests of the kernel model share: a machine with all exports, calls into it, and a compiled probe driver."""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness.toolchain import cross_compile
from vm.emulated.exports import ntoskrnl_exports
from vm.emulated.image.pdb import read_symbols
from vm.emulated.kernel.kernel import Kernel, MachineCrashedError
from vm.emulated.kernel.scheduler import Preemption
from vm.emulated.kernel.threads import Call, Model
from vm.machine import CrashReport

NTOSKRNL = "ntoskrnl.exe"
EXPORTS = ntoskrnl_exports()
PROBE = Path(__file__).parent / "drivers" / "probe.c"
ROUTINES = (
    "CatchFault",
    "CatchAcross",
    "SeenByFilter",
    "CatchRaised",
    "CatchInFilter",
    "CatchOutOfFilter",
    "ContinueAfterRepair",
    "RaiseUncaught",
    "IncrementUnlocked",
    "IncrementLocked",
    "IncrementUnderMutex",
    "SetCounter",
    "LeaveAtDispatch",
    "Recurse",
    "SpinForEver",
    "LookasideRoundTrip",
    "WorkAndCall",
)
"""The table that the probe driver's entry point fills."""


@cache
def probe_files(out: Path) -> tuple[bytes, Path]:
    """The probe driver's image and the path of its symbols; compiled once per run, cached between runs."""
    result = cross_compile([PROBE], "probe", out)
    return result.image.read_bytes(), result.image.with_suffix(".pdb")


@dataclass
class Bench:
    """A kernel with scratch memory."""

    kernel: Kernel
    scratch: int = 0
    routines: dict[str, int] = field(default_factory=dict)
    _next: int = 0

    @classmethod
    def make(cls, *, seed: int = 1, preemption: Preemption | None = None) -> Bench:
        kernel = Kernel(EXPORTS, seed=seed, preemption=preemption, memory_bytes=32 << 20)
        bench = cls(kernel)
        bench.scratch = bench._next = kernel.pool.allocate(0x4000, "Test", owner="test", aligned=True)
        return bench

    # Memory of the test

    def room(self, size: int) -> int:
        """Fresh zeroed scratch memory."""
        address = self._next
        self._next += (size + 15) & ~15
        assert self._next <= self.scratch + 0x4000, "the bench has no more scratch memory"
        return address

    def put(self, data: bytes) -> int:
        """Bytes in scratch memory."""
        address = self.room(len(data))
        self.kernel.memory.write(address, data)
        return address

    def ansi(self, text: str) -> int:
        return self.put(text.encode("cp1252") + b"\0")

    def wide(self, text: str) -> int:
        return self.put(text.encode("utf-16-le", "surrogatepass") + b"\0\0")

    def unicode(self, text: str, *, room: int | None = None) -> int:
        """A UNICODE_STRING whose buffer has `room` bytes (its length by default)."""
        raw = text.encode("utf-16-le", "surrogatepass")
        size = len(raw) if room is None else room
        buffer = self.put(raw.ljust(size, b"\0")) if size else 0
        return self.put(struct.pack("<HHIQ", len(raw), size, 0, buffer))

    def attributes(self, name: str | None = None, flags: int = 0x240, root: int = 0) -> int:
        """OBJECT_ATTRIBUTES."""
        text = self.unicode(name) if name is not None else 0
        return self.put(struct.pack("<IIQQIIQQ", 0x30, 0, root, text, flags, 0, 0, 0))

    # Calls

    def import_(self, name: str) -> int:
        return self.kernel.resolve_import(NTOSKRNL, name)

    def call(self, name: str, *arguments: int) -> Call:
        """The effect that calls an export through its stub."""
        return Call(self.import_(name), tuple(a & 0xFFFF_FFFF_FFFF_FFFF for a in arguments), name)

    def run(self, name: str, *arguments: int) -> int:
        """Call one export on a thread of its own and wait for it."""

        def one() -> Model:
            return (yield self.call(name, *arguments))

        result: int = self.kernel.run(one(), name)
        return result

    def model(self, generator: Generator[Any, Any, Any]) -> Any:
        return self.kernel.run(generator, "test")

    def crash(self, generator: Generator[Any, Any, Any]) -> CrashReport:
        """Run something that must bugcheck; the report."""
        try:
            self.kernel.run(generator, "test")
        except MachineCrashedError:
            report = self.kernel.crash_report
            assert report is not None
            return report
        raise AssertionError("the machine did not bugcheck")

    def crash_of(self, *calls: Call) -> CrashReport:
        """Make the calls on one thread; the last one must bugcheck."""

        def all_() -> Model:
            for call in calls:  # noqa: UP028  # a tuple's iterator takes no results
                yield call

        return self.crash(all_())

    # The probe driver

    def load_probe(self, out: Path) -> None:
        """Load the compiled driver and learn its routines' addresses."""
        data, pdb = probe_files(out)
        driver = self.kernel.load_driver(data, "probe.sys", symbols=read_symbols(pdb.read_bytes()))
        table = self.room(8 * len(ROUTINES))

        def entry() -> Model:
            return (yield Call(driver.base + driver.image.entry_rva, (table, 0), "DriverEntry"))

        assert self.kernel.run(entry(), "DriverEntry") == 0
        for index, name in enumerate(ROUTINES):
            self.routines[name] = self.kernel.memory.u64(table + 8 * index)

    def driver(self, name: str, *arguments: int) -> Call:
        """The effect that calls a routine of the probe driver."""
        return Call(self.routines[name], arguments, name)

    def run_driver(self, name: str, *arguments: int) -> int:
        def one() -> Model:
            return (yield self.driver(name, *arguments))

        result: int = self.kernel.run(one(), name)
        return result
