"""The kernel as the inbox tools see it when faults stand in between: loads and unloads that fail or hang."""

from __future__ import annotations

from typing import cast

from vm.emulated.computer import NTSTATUS, Computer
from vm.emulated.guest.chaos.plan import Chaos


class _Troubled:
    """Everything but loads and unloads goes straight through."""

    def __init__(self, computer: Computer, chaos: Chaos) -> None:
        self._computer = computer
        self._chaos = chaos

    def __getattr__(self, name: str) -> object:
        return getattr(self._computer, name)

    def load_filter(self, name: str) -> NTSTATUS:
        status = self._chaos.on_load(name)
        return self._computer.load_filter(name) if status is None else status

    def unload_filter(self, name: str) -> NTSTATUS:
        status = self._chaos.on_unload(name)
        return self._computer.unload_filter(name) if status is None else status


def troubled(computer: Computer, chaos: Chaos) -> Computer:
    """The computer, with the faults that concern drivers before it."""
    return cast(Computer, _Troubled(computer, chaos)) if chaos else computer
