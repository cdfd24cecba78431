"""The guest's own clock: the host's plus a step that is kept in the registry, so that restarts keep it, too."""

from __future__ import annotations

import time

from vm.emulated.registry import MissingKeyError, MissingValueError, Registry, RegistryValue

# Below HARDWARE, where Windows describes the machine and not its settings.
_KEY = "HKLM\\HARDWARE\\DESCRIPTION\\System\\RealTimeClock"
_VALUE = "StepMicroseconds"


class GuestClock:
    """Seconds since the Unix epoch as the guest sees them; all objects of one registry are the same clock."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def offset(self) -> float:
        """Seconds that the guest is ahead of the host; negative if it is behind."""
        try:
            data = self._registry.get_value(_KEY, _VALUE).data
        except (MissingKeyError, MissingValueError):
            return 0.0
        return int.from_bytes(data, "little", signed=True) / 1e6

    def now(self) -> float:
        """The time in the guest."""
        return time.time() + self.offset

    def set(self, now: float) -> None:
        """Set the clock."""
        self._step_to(now - time.time())

    def step(self, seconds: float) -> None:
        """Move the clock."""
        if seconds:
            self._step_to(self.offset + seconds)

    def _step_to(self, offset: float) -> None:
        self._registry.create_key(_KEY)
        value = RegistryValue.qword(round(offset * 1e6) & 0xFFFFFFFFFFFFFFFF)
        self._registry.set_value(_KEY, _VALUE, value)
