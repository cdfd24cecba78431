"""The certificate with which WinRM speaks HTTPS: self-signed, made at the first start, for 127.0.0.1 (windows-lab D.1)."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from vm.emulated.guest.settings import TlsIdentity

_AGE = datetime.timedelta(days=2)


def make_identity(directory: Path, computer_name: str, days: int, *, stem: str = "winrm") -> TlsIdentity:
    """A certificate and its key (0600) as files in the directory.

    Args:
        days: how long it is still valid; negative for one that has expired.

    Raises:
        OSError: the files cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, computer_name)])
    now = datetime.datetime.now(datetime.UTC)
    alternative = [x509.DNSName(computer_name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _AGE)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    identity = TlsIdentity(directory / f"{stem}.pem", directory / f"{stem}.key")
    directory.mkdir(parents=True, exist_ok=True)
    identity.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    identity.key.unlink(missing_ok=True)
    with open(identity.key, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return identity
