"""The kernel as the inbox tools see it: faults stand in between, and the event log hears of filters that come and go."""

from __future__ import annotations

from typing import cast

from vm.emulated.computer import NTSTATUS, Computer
from vm.emulated.guest.chaos.plan import Chaos
from vm.emulated.guest.events import EventLogs


class _Observed:
    """Everything but loads and unloads goes straight through."""

    def __init__(self, computer: Computer, chaos: Chaos, events: EventLogs) -> None:
        self._computer = computer
        self._chaos = chaos
        self._events = events

    def __getattr__(self, name: str) -> object:
        return getattr(self._computer, name)

    def load_filter(self, name: str) -> NTSTATUS:
        refused = self._chaos.on_load(name)
        return self._told(name, self._computer.load_filter(name), loaded=True) if refused is None else refused

    def unload_filter(self, name: str) -> NTSTATUS:
        refused = self._chaos.on_unload(name)
        return (
            self._told(name, self._computer.unload_filter(name), loaded=False) if refused is None else refused
        )

    def stop_service(self, name: str) -> NTSTATUS:
        return self._told(name, self._computer.stop_service(name), loaded=False)

    def _told(self, name: str, status: NTSTATUS, *, loaded: bool) -> NTSTATUS:
        if not status & 0x80000000:
            self._events.filter_changed(name, loaded=loaded)
        return status


def observed(computer: Computer, chaos: Chaos, events: EventLogs) -> Computer:
    """The computer, with the faults that concern drivers before it and the event log behind it."""
    return cast(Computer, _Observed(computer, chaos, events))
