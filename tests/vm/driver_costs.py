"""What an event costs in the driver, counted on a station."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.vm.driver_lab import Station
from vm.emulated import meter
from vm.emulated.meter import Costs

__all__ = ["Costs", "Meter"]


class Meter:
    """Counts in a station's driver; `attach` before the first instruction that is to be counted has run."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._meter: meter.Meter | None = None

    def attach(self) -> None:
        self._meter = meter.Meter(self._station.kernel, "downlink")

    @contextmanager
    def counting(self) -> Iterator[Costs]:
        """Count what happens inside."""
        assert self._meter is not None, "attach the meter first"
        with self._meter.counting() as costs:
            yield costs
