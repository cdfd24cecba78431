"""A pinned TLS certificate: the guest has to show exactly this one, whoever signed it and whatever it is named after."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from requests.adapters import HTTPAdapter

from harness.remote.faults import EXPIRED
from vm.errors import ConfigurationError, GuestError


class _PinnedAdapter(HTTPAdapter):
    """Connections whose certificate has this SHA-256; the names in it are not looked at."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options, assert_fingerprint=self._fingerprint)


def pin(transport: Any, certificate: Path, *, machine: str) -> None:
    """Have every session of pywinrm's `transport` accept this certificate and no other.

    Args:
        transport: pywinrm's `Transport`, made with `server_cert_validation="ignore"`.
        certificate: file with one certificate, PEM or DER.
        machine: the machine's name, for messages.

    Raises:
        ConfigurationError: the file cannot be read or holds no certificate.
        GuestError: the certificate has expired or is not valid yet by this host's clock.
    """
    adapter = _PinnedAdapter(_fingerprint(certificate, machine))
    build = transport.build_session

    def build_pinned() -> Any:
        fresh = transport.session is None
        session = build()
        if fresh:
            session.mount("https://", adapter)
        return session

    transport.build_session = build_pinned


def _fingerprint(path: Path, machine: str) -> str:
    try:
        content = path.read_bytes()
        pem = content.lstrip().startswith(b"-----BEGIN")
        made = x509.load_pem_x509_certificate(content) if pem else x509.load_der_x509_certificate(content)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no certificate"
        raise ConfigurationError(
            f"the pinned certificate '{path}' cannot be used: {reason}",
            hint="export the certificate of the guest's HTTPS listener and name its file in 'certificate'",
            machine=machine,
        ) from error
    now = datetime.now(UTC)
    begins, ends = made.not_valid_before_utc, made.not_valid_after_utc
    if not begins <= now <= ends:
        state = (
            f"has expired on {ends:%Y-%m-%d}"
            if now > ends
            else f"is not valid yet (from {begins:%Y-%m-%d} on)"
        )
        raise GuestError(
            f"the certificate '{path.name}' of the machine {state}", hint=EXPIRED.cure, machine=machine
        )
    return hashlib.sha256(made.public_bytes(Encoding.DER)).hexdigest()
