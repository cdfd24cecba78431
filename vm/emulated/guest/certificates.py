"""The guest's certificate stores: kept in its registry where Windows keeps them, so that a restart keeps them too."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vm.emulated.registry import REG_BINARY, MissingKeyError, MissingValueError, Registry, RegistryValue

_STORES = "HKLM\\SOFTWARE\\Microsoft\\SystemCertificates"
_CERT_SHA1_HASH_PROP_ID = 3
_CERT_CERT_PROP_ID = 32

FRIENDLY_NAMES: Mapping[str, str] = {
    "root": "Trusted Root Certification Authorities",
    "trustedpublisher": "Trusted Publishers",
    "my": "Personal",
    "ca": "Intermediate Certification Authorities",
    "trustedpeople": "Trusted People",
    "disallowed": "Untrusted Certificates",
}


def thumbprint(certificate: x509.Certificate) -> str:
    """SHA-1 of the certificate in upper-case hexadecimal: the name Windows gives it in a store."""
    # Not a security decision: the thumbprint is an identifier.
    return hashlib.sha1(certificate.public_bytes(Encoding.DER), usedforsecurity=False).hexdigest().upper()


def parse(data: bytes) -> x509.Certificate:
    """A certificate in DER or PEM; ValueError if it is neither."""
    if b"-----BEGIN CERTIFICATE-----" in data:
        return x509.load_pem_x509_certificate(data)
    return x509.load_der_x509_certificate(data)


def add(registry: Registry, store: str, certificate: x509.Certificate) -> bool:
    """Put the certificate into the machine's store; False if it was there."""
    name = thumbprint(certificate)
    key = f"{_STORES}\\{store}\\Certificates\\{name}"
    if registry.exists(key):
        return False
    registry.create_key(key)
    blob = _property(_CERT_SHA1_HASH_PROP_ID, bytes.fromhex(name))
    blob += _property(_CERT_CERT_PROP_ID, certificate.public_bytes(Encoding.DER))
    registry.set_value(key, "Blob", RegistryValue(REG_BINARY, blob))
    return True


def remove(registry: Registry, store: str, name: str) -> None:
    """Take a certificate out of a store by its thumbprint; MissingKeyError if it is not there."""
    registry.delete_key(f"{_STORES}\\{store}\\Certificates\\{name}", recursive=True)


def certificates(registry: Registry, store: str) -> list[x509.Certificate]:
    """The certificates of a store in the order of their thumbprints; none for a store that does not exist."""
    key = f"{_STORES}\\{store}\\Certificates"
    found = []
    try:
        for name in registry.subkeys(key):
            data = _certificate_of(registry.get_value(f"{key}\\{name}", "Blob").data)
            if data is not None:
                found.append(x509.load_der_x509_certificate(data))
    except (MissingKeyError, MissingValueError):
        return found
    return found


def _property(number: int, data: bytes) -> bytes:
    return struct.pack("<III", number, 1, len(data)) + data


def _certificate_of(blob: bytes) -> bytes | None:
    position = 0
    while position + 12 <= len(blob):
        number, _, size = struct.unpack_from("<III", blob, position)
        position += 12
        if number == _CERT_CERT_PROP_ID:
            return blob[position : position + size]
        position += size
    return None
