"""What a machine is: the interface between the harness and every kind of machine in `vm/`.

Nothing of any kind lives here; a kind is a package beside this file that registers itself in `vm.registry`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from vm.deadline import Deadline


class MachineState(Enum):
    """Life of a machine as the harness sees it."""

    ABSENT = "absent"
    STOPPED = "stopped"
    RUNNING = "running"
    DIRTY = "dirty"
    """Running or stopped, but must be restored before it is used again (hung unload, half a deployment)."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to log on to a guest. `password` never appears in a repr, a log or an exception."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class GuestAddress:
    """Where the guest of a running machine answers.

    `host_key` is the SSH host key in OpenSSH form ("ssh-ed25519 AAAA…"), pinned: no other key is accepted.
    `certificate` is the file with the pinned TLS certificate when `winrm_scheme` is "https".
    """

    host: str
    winrm_port: int
    winrm_scheme: str
    """"http" (always with message sealing) or "https"."""
    winrm_transport: str
    """pywinrm transport: "ntlm", "basic" or "ssl"."""
    ssh_port: int | None
    host_key: str | None
    credentials: Credentials
    certificate: Path | None = None


@dataclass(frozen=True, slots=True)
class CrashReport:
    """One bugcheck of a guest, as far as the machine can tell.

    `code` and `parameters` are those of the bugcheck; `rule` says in a sentence what was broken (emulated machine
    only); `stack` is innermost first, symbolised where symbols were found.
    """

    code: int
    name: str
    parameters: tuple[int, int, int, int]
    rule: str | None = None
    stack: tuple[str, ...] = ()
    dump: str | None = None
    """Path of the dump file inside the guest."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule that did not stop the machine: a leak at unload, a wait where the configuration forbids it."""

    rule: str
    """Short identifier, e.g. "client-port-leaked"."""
    message: str
    driver: str
    stack: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """What a machine says of itself after use: it came through clean when there is nothing in it."""

    crashes: tuple[CrashReport, ...] = ()
    violations: tuple[Violation, ...] = ()

    @property
    def clean(self) -> bool:
        return not self.crashes and not self.violations


class Machine(Protocol):
    """A place where packages are deployed and tested. Every method is idempotent and obeys its deadline.

    Raises `vm.errors.MachineError` (or `DeadlineExceededError`) with the machine's name in it.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def state(self) -> MachineState: ...

    def start(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        """Bring the machine up until its guest answers; returns at once if it runs already.

        Args:
            keep: False asks that the machine does not outlive the calling process, where the kind can do that.
        """
        ...

    def stop(self, deadline: Deadline) -> None:
        """Take the machine down; nothing of it is left running."""
        ...

    def restore(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        """Put the machine back to its clean checkpoint and bring it up. Addresses and passwords may change."""
        ...

    def check_image(self, image: bytes, name: str) -> None:
        """Refuse a driver image that this machine cannot load, before anything is deployed.

        Raises:
            PackageError: with the reason; for the emulated machine every import that is not modelled.
        """
        ...

    def address(self) -> GuestAddress:
        """Address of the running guest; raises `MachineError` when the machine does not run."""
        ...

    def condition(self) -> Condition:
        """Crashes and violations since the last restore, as the machine itself knows them."""
        ...
