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


class DeploymentMode(Enum):
    """How a package is installed in a guest."""

    PACKAGE = "package"
    """By pnputil, with INF and catalog, out of the driver store: as a customer's machine gets it."""
    SERVICE = "service"
    """By a copied image and a service key of our own: no INF, no catalog, the fastest way."""


class Channel(Enum):
    """The way to a guest."""

    WINRM = "winrm"
    """Commands over WinRM; files over SFTP where there is SSH, else through WinRM's standard input."""
    LOCAL = "local"
    """This host is the guest: child processes and its own files."""


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
    private_key: Path | None = None
    """File with the private SSH key that SFTP logs on with; None = with the password."""
    channel: Channel = Channel.WINRM


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a machine can do, and what it therefore proves; the harness asks this, never for the kind."""

    deployment: DeploymentMode = DeploymentMode.SERVICE
    """How a package is installed on it."""
    restores: bool = True
    """`restore` really goes back to a clean state; False = the harness has to clean up behind itself."""
    detached: bool = False
    """Suites run as a scheduled task in the guest and survive the loss of every connection."""
    witness: bool = False
    """`condition` knows of every crash and broken rule by itself; False = the guest's event log is asked."""
    restarts: bool = True
    """The guest may be restarted, and a restart leaves what was installed."""
    start_seconds: int = 60
    """How long a start or a restore may take until the guest answers."""
    untested: tuple[str, ...] = ()
    """Sentences for the report: what a run on this machine cannot show."""


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

    @property
    def abilities(self) -> Abilities: ...

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

    def clone(self, number: int) -> Machine:
        """Another machine with the same clean state, which runs beside this one; `number` counts from 1.

        Raises:
            MachineError: machines of this kind have no clones.
        """
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
