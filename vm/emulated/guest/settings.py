"""What an emulated guest is told when it is made: account, ports, quotas and the few knobs of its servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Quotas:
    """Limits of the WinRM service; the defaults are those of a published Windows 2012 R2 (windows-lab.md A.2).

    An administrator may change them while the service runs: what reads them, reads them anew.
    """

    max_envelope_bytes: int = 500 * 1024
    max_shells_per_user: int = 30
    max_processes_per_shell: int = 25
    max_memory_per_shell_mb: int = 1024
    """Stated, not enforced: the guest's processes are the host's."""
    max_operations_per_user: int = 1500
    max_timeout_seconds: float = 60.0
    """MaxTimeoutms: an OperationTimeout above it is cut to it."""
    idle_timeout_seconds: float = 7200.0
    """A shell that nobody used for so long is deleted, unless its creator asked for less."""


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """Certificate and key files (PEM) with which WinRM speaks HTTPS."""

    certificate: Path
    key: Path = field(repr=False)


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """Everything a guest face needs to know; the password never appears in a repr."""

    username: str
    password: str = field(repr=False)
    state_directory: Path
    """Host directory of the machine, where the NTLM credential file is written (0600)."""
    cache_directory: Path
    """Host directory where prepared guest Pythons are kept for all machines."""
    computer_name: str = "DOWNLINK-VM"
    winrm_port: int = 0
    """0 takes any free port."""
    ssh_port: int = 0
    host_key_file: Path | None = None
    """File with the private SSH host key; None makes a new one at every start."""
    quotas: Quotas = field(default_factory=Quotas)
    idle_drop_seconds: float = 120.0
    """http.sys closes a connection that is idle for so long (windows-lab.md A.3)."""
    unencrypted_basic: bool = True
    """Whether Basic is taken over plain HTTP; NTLM without sealing never is."""
    tls: TlsIdentity | None = None
    https: bool = False
    """WinRM speaks HTTPS with a certificate that is made at the start, unless `tls` names one."""
    certificate_days: int = 365
    """How long that certificate is still valid; negative for one that has expired."""
    certificate_pinned: bool = True
    """Whether the certificate that clients are told to pin is the one that is used."""
    testsigning: bool = True
    """Boot option of a machine that boots for the first time (its registry has no boot configuration yet)."""
    secure_boot: bool = False
    """Whether the firmware has Secure Boot on: then test signing cannot be switched on."""
    language: str = "en"
    """Display language of the inbox tools: "en" or "de"; changes labels, never numbers."""
    chaos: str | tuple[str, ...] = ()
    """Faults (see `vm.emulated.guest.chaos`)."""
    chaos_seed: int = 0
    python_packages: tuple[str, ...] = ("hypothesis", "pytest")
    """Distributions of the host environment that the guest's Python gets, with what they depend on."""
