"""What this host remembers of a Hyper-V machine: `.machines/<name>/state.json` (0600) and the keys beside it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509 import load_der_x509_certificate

from vm.errors import MachineError

STATE_FILE = "state.json"
CERTIFICATE_FILE = "certificate.pem"
PRIVATE_KEY_FILE = "id_ed25519"
KNOWN_HOSTS_FILE = "known_hosts"

CREATING = "creating"
READY = "ready"


@dataclass(slots=True)
class Record:
    """Everything of a machine that outlives a command. No password is in it."""

    mark: str
    """In the notes of the virtual machine and in its directory: what bears it was made by this checkout."""
    vm: str
    host: str
    directory: str
    stage: str = CREATING
    address: str = ""
    host_key: str = ""
    """"" without SSH."""
    parent: str = ""
    made_switch: str = ""
    """The switch, if making this machine made it."""
    python: str = ""
    defender: str = ""
    nonce: str = ""
    """Written into the guest after its last restore; gone after the next one."""
    boot_id: str = ""
    booted: str = ""
    system_record: int = 0
    """Newest event of the guest's System log at the last restore."""
    host_record: int = 0
    """Newest event of the host's log of worker processes at the last restore."""
    restored: str = ""
    """The checkpoint of the last restore."""
    clones: list[int] = field(default_factory=list)
    """Numbers of the clones that were made."""


class RecordFile:
    """The record of a machine on this host.

    Args:
        directory: `.machines/<name>`; made on the first write.
        machine: for messages.
    """

    def __init__(self, directory: Path, machine: str) -> None:
        self.directory = directory
        self._machine = machine

    @property
    def certificate(self) -> Path:
        """The pinned certificate of the guest's WinRM."""
        return self.directory / CERTIFICATE_FILE

    @property
    def private_key(self) -> Path:
        """The SSH key that was made for this machine."""
        return self.directory / PRIVATE_KEY_FILE

    def load(self) -> Record | None:
        """The record, None when there is none.

        Raises:
            MachineError: the file cannot be read, or is none of ours.
        """
        path = self.directory / STATE_FILE
        try:
            return Record(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise MachineError(
                f"what is remembered of the machine cannot be read: {error}",
                hint=f"look at '{path}'; when it is beyond repair, remove the virtual machine by hand, then this file",
                machine=self._machine,
                causes=[error],
            ) from error

    def save(self, record: Record) -> None:
        """Write it, complete or not at all."""
        text = json.dumps(asdict(record), indent=1)
        self._write(STATE_FILE, text.encode("utf-8"))

    def save_certificate(self, der: bytes) -> None:
        """Pin the certificate.

        Raises:
            MachineError: the bytes are no certificate.
        """
        try:
            certificate = load_der_x509_certificate(der)
        except ValueError as error:
            raise MachineError(
                f"the guest's certificate cannot be read: {error}", machine=self._machine
            ) from error
        self._write(CERTIFICATE_FILE, certificate.public_bytes(Encoding.PEM))

    def save_host_key(self, address: str, port: int, host_key: str) -> None:
        """Keep the host key in the form that `ssh -o UserKnownHostsFile=` reads, for a look by hand."""
        where = address if port == 22 else f"[{address}]:{port}"
        self._write(KNOWN_HOSTS_FILE, f"{where} {host_key}\n".encode("ascii"))

    def make_key(self) -> str:
        """Make the machine's SSH key (Ed25519), private on this host, and return the public one in OpenSSH form."""
        key = Ed25519PrivateKey.generate()
        self._write(PRIVATE_KEY_FILE, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return f"{public.decode('ascii')} downlink@{self._machine}"

    def remove(self) -> None:
        """Forget the machine."""
        for name in (STATE_FILE, CERTIFICATE_FILE, PRIVATE_KEY_FILE, KNOWN_HOSTS_FILE):
            (self.directory / name).unlink(missing_ok=True)
        with suppress(OSError):
            # Only when nothing else is in it: a machine's directory may hold logs of its user.
            self.directory.rmdir()

    def _write(self, name: str, content: bytes) -> None:
        path = self.directory / name
        draft = path.with_name(f"{name}.part")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            descriptor = os.open(
                draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600
            )
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            draft.replace(path)
        except OSError as error:
            raise MachineError(
                f"'{path}' cannot be written: {error.strerror or error}", machine=self._machine
            ) from error


def merged(record: Record, answer: dict[str, Any], *names: str) -> None:
    """Take values of a script's answer into the record."""
    for name in names:
        setattr(record, name, type(getattr(record, name))(answer.get(name) or type(getattr(record, name))()))
