"""Machines whose whole life is the harness' business: made, put on record, removed. A kind may offer it or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vm.deadline import Deadline

Say = Callable[[str, str, float], None]
"""Told of each thing done: what, the details, seconds (as `harness.console.Console.step`)."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a machine is made from: one of `iso` and `vhdx`, a path on the machine's host."""

    iso: str = ""
    vhdx: str = ""
    edition: str = ""
    """Name or number of the edition on the ISO; "" = the machine's setting, or the only one there is."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state that `restore` can go back to. `created` is UTC in ISO 8601."""

    name: str
    created: str
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Timings:
    """How long the last restore took, in seconds: until the host was done, and until the guest took commands."""

    restore_s: float
    ready_s: float
    conditions: tuple[tuple[str, float], ...] = ()
    """Each condition of readiness in its order and when it was met, seconds after the host was done."""
    skew_s: float = 0.0
    """How far the guest's clock was off before it was set; negative is behind."""


@runtime_checkable
class Managed(Protocol):
    """A machine that can be made from an image, keeps checkpoints and can be removed."""

    @property
    def timings(self) -> Timings | None:
        """Of the last restore by this object."""
        ...

    def create(self, source: Source, deadline: Deadline, say: Say) -> None:
        """Make the machine and its checkpoints.

        Everything that can be found wrong beforehand is; when it fails or is interrupted later, what was made is removed
        again, in reverse order.
        """
        ...

    def checkpoint(self, name: str, deadline: Deadline) -> Checkpoint:
        """Take a checkpoint of the machine as it runs."""
        ...

    def checkpoints(self, deadline: Deadline) -> tuple[Checkpoint, ...]:
        """All checkpoints, oldest first."""
        ...

    def describe(self) -> str:
        """What `destroy` would remove, as it reads after 'this removes'; refuses what was not made here."""
        ...

    def destroy(self, deadline: Deadline) -> tuple[str, ...]:
        """Remove the machine; returns what was removed. One that is not there is fine."""
        ...
