"""The guest of a machine of the stand-in: an emulated machine whose disk, registry and identity outlive its process."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from vm.deadline import Deadline
from vm.emulated.control import ask
from vm.emulated.guest import boot, verifier
from vm.emulated.machine import STATE_FILE, EmulatedMachine
from vm.emulated.registry import Registry
from vm.errors import MachineError

START_SECONDS = 40.0
ROOT = Path(__file__).resolve().parents[3]

VERIFIER_STANDARD = 0x209BB
"""Flags of `verifier /standard` (windows-lab D.3)."""

CRASH_DUMPS = {"CrashDumpEnabled": 2, "AlwaysKeepMemoryDump": 1, "AutoReboot": 1, "Overwrite": 1}
"""What Set-GuestCrashDumps.ps1 writes."""


class Emulated:
    """The emulated machine on one disk.

    Args:
        content: directory of the disk's content.
        guest: what the stand-in knows of the guest.
    """

    def __init__(self, content: Path, guest: dict[str, Any]) -> None:
        self.content = content
        self._guest = guest
        self.drive = content / "machine" / "c"
        self._registry = content / "registry.json"

    def start(self) -> None:
        """Bring it up with the boot identity that the stand-in has in mind; nothing before remoting was set up."""
        remoting = self._guest.get("remoting")
        if not remoting:
            return
        registry = Registry()
        if self._registry.exists():
            registry.restore(json.loads(self._registry.read_text(encoding="utf-8")))
        registry.set_dword(boot.BOOT_COUNTER_KEY, boot.BOOT_COUNTER_VALUE, self._guest["boot_id"] - 1)
        if self._guest.get("crash_dumps"):
            for name, value in CRASH_DUMPS.items():
                registry.set_dword(f"{boot.CONTROL}\\CrashControl", name, value)
        verified = tuple(self._guest.get("verified", ()))
        verifier.configure(
            registry, verifier.Settings(VERIFIER_STANDARD if verified else 0, drivers=verified)
        )
        self._registry.write_text(json.dumps(registry.snapshot()), encoding="utf-8")
        self._machine().start(Deadline.after(seconds=START_SECONDS))

    def stop(self) -> None:
        """Take it down; what it wrote stays."""
        self.save()
        if self._state() is not None:
            self._machine().stop(Deadline.after(seconds=START_SECONDS))

    def save(self) -> None:
        """Write the running machine's registry to the disk."""
        state = self._state()
        if state is None:
            return
        # A process that has ended by itself, as after a power failure, has nothing to save.
        with suppress(MachineError):
            snapshot = ask(int(state["control_port"]), bytes.fromhex(state["key"]), "registry")
            self._registry.write_text(json.dumps(snapshot), encoding="utf-8")

    def write(self, path: str, text: str) -> None:
        """Write a file of the C: drive; `path` with slashes, without the drive."""
        file = self.drive / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def _machine(self) -> EmulatedMachine:
        remoting = self._guest["remoting"]
        settings = {
            "cache": str(ROOT / ".cache"),
            "seed": 1,
            "scheme": remoting["scheme"],
            "winrm_port": remoting["port"],
            "ssh_port": self._guest.get("ssh_port", 0),
            "password": self._guest["password"],
            "identity": str(self.content / "identity"),
            "registry": str(self._registry),
        }
        return EmulatedMachine("standin", self.content / "machine", settings)

    def _state(self) -> dict[str, Any] | None:
        path = self.content / "machine" / STATE_FILE
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def make_certificate(directory: Path, address: str) -> str:
    """A self-signed certificate for the address, with its key, in `directory`; returns it as base64 of its DER form."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (directory / "certificate.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode("ascii")


def make_host_key(directory: Path) -> str:
    """An ed25519 host key in `directory`; returns the public one in OpenSSH form."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    directory.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    (directory / "ssh_host_ed25519_key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
