"""Counts what driver code costs: instructions, kernel calls, bytes copied. Counts, not times: repeatable to the digit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import capstone

from vm.emulated.exports.declare import Export
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.threads import KThread

_COPIES = frozenset(("memcpy", "memmove", "RtlCopyMemory", "RtlMoveMemory"))
_SEND = "FltSendMessage"


@dataclass
class Costs:
    """What the driver did between two moments; the parts named `worker` are those of its own threads."""

    instructions: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    bytes_copied: int = 0
    worker_instructions: int = 0
    worker_calls: Counter[str] = field(default_factory=Counter)
    worker_bytes_copied: int = 0
    """Copies by the driver and what FltSendMessage hands over."""

    @property
    def call_count(self) -> int:
        """Kernel calls in the requestors' threads."""
        return self.calls.total()


class Meter:
    """Counts in one loaded driver.

    Args:
        kernel: its kernel; the meter takes the scheduler's `on_call`.
        driver: part of the driver's name, without regard to case.

    Create it after the load and before the instructions that are to be counted have run: the engine reports blocks
    that were translated after its hook was set.
    """

    def __init__(self, kernel: Kernel, driver: str) -> None:
        self._kernel = kernel
        self._costs: Costs | None = None
        self._lengths: dict[tuple[int, int], int] = {}
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        image = next(d for d in kernel.drivers if driver.lower() in d.name.lower() and not d.unloaded)
        kernel.scheduler.on_call = self._call
        kernel.engine.on_block(image.base, image.end - 1, self._block)

    @contextmanager
    def counting(self) -> Iterator[Costs]:
        """Count what happens inside."""
        costs = self._costs = Costs()
        try:
            yield costs
        finally:
            self._costs = None

    def _call(self, thread: KThread, export: Export, arguments: tuple[int, ...], _value: object) -> None:
        costs = self._costs
        # A call that blocks or calls back is told a second time, without arguments, when it returns.
        if costs is None or not arguments:
            return
        copied = 0
        if export.name in _COPIES:
            copied = arguments[2]
        elif export.name == _SEND:
            copied = arguments[3] & 0xFFFF_FFFF
        if thread.process.is_system:
            costs.worker_calls[export.name] += 1
            costs.worker_bytes_copied += copied
        else:
            costs.calls[export.name] += 1
            costs.bytes_copied += copied

    def _block(self, address: int, size: int) -> None:
        costs = self._costs
        if costs is None:
            return
        count = self._lengths.get((address, size))
        if count is None:
            code = self._kernel.memory.read(address, size)
            count = sum(1 for _ in self._decoder.disasm_lite(code, address))
            self._lengths[address, size] = count
        if self._kernel.current.process.is_system:
            costs.worker_instructions += count
        else:
            costs.instructions += count
