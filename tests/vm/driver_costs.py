"""What an event costs in the driver, in counts that are repeatable to the digit: instructions and kernel calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.vm.driver_lab import Station
from vm.emulated.cpu.engine import Engine
from vm.emulated.exports.declare import Export
from vm.emulated.kernel.threads import KThread


@dataclass
class Costs:
    """What the driver did between two moments. `worker` is the part of its own threads."""

    instructions: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    worker_calls: Counter[str] = field(default_factory=Counter)
    worker_instructions: int = 0

    @property
    def call_count(self) -> int:
        """Kernel calls in the requestors' threads."""
        return self.calls.total()


class Meter:
    """Counts in a station whose driver was loaded after the meter was made."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._costs: Costs | None = None
        self._lengths: dict[tuple[int, int], int] = {}
        station.kernel.scheduler.on_call = self._call

    def attach(self) -> None:
        """Hook the driver's image; before the first instruction of it that is to be counted is translated."""
        image = next(m for m in self._station.kernel.drivers if "downlink" in m.name.lower())
        engine: Engine = self._station.kernel.engine
        engine.on_block(image.base, image.end - 1, self._block)

    @contextmanager
    def counting(self) -> Iterator[Costs]:
        """Count what happens inside."""
        costs = self._costs = Costs()
        try:
            yield costs
        finally:
            self._costs = None

    def _call(self, thread: KThread, export: Export, arguments: tuple[int, ...], value: object) -> None:
        # A call that blocks or calls back is told a second time, without arguments, when it returns.
        if self._costs is not None and arguments:
            table = self._costs.worker_calls if self._is_worker(thread) else self._costs.calls
            table[export.name] += 1

    def _block(self, address: int, size: int) -> None:
        if self._costs is None:
            return
        count = self._lengths.get((address, size))
        if count is None:
            count = self._lengths[address, size] = self._count(address, size)
        thread = self._station.kernel.current
        if self._is_worker(thread):
            self._costs.worker_instructions += count
        else:
            self._costs.instructions += count

    def _count(self, address: int, size: int) -> int:
        import capstone

        decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        code = self._station.kernel.memory.read(address, size)
        return sum(1 for _ in decoder.disasm_lite(code, address))

    @staticmethod
    def _is_worker(thread: KThread) -> bool:
        return bool(thread.process.id == 4)
