"""What the guest must agree to before it takes a test-signed driver: test signing, and the publisher's certificate."""

from __future__ import annotations

import hashlib
import re

from harness.deployment.plan import PACKAGE_DIRECTORY
from harness.package import Package
from harness.remote.channels import Upload
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.errors import GuestError

_TEST_SIGNING = re.compile(r"^\s*testsigning\s+(\S+)", re.IGNORECASE | re.MULTILINE)
STORES = ("Root", "TrustedPublisher")
"""Stores of the guest's local machine that must have the publisher's certificate."""

_NO = frozenset({"no", "nein", "non", "nee", "nej", "não", "нет", "off", "0"})


def check_test_signing(guest: Guest, deadline: Deadline) -> str:
    """Say that test signing is on; GuestError if it is not."""
    result = guest.run(["bcdedit", "/enum", "{current}"], deadline=deadline)
    match = _TEST_SIGNING.search(result.stdout)
    if match is None or match[1].lower() in _NO:
        raise GuestError(
            "the guest does not load test-signed drivers: 'testsigning' is off",
            hint="in the guest: bcdedit /set testsigning on, then restart it (Secure Boot must be off)",
            machine=guest.machine,
        )
    return "testsigning is on"


def thumbprint(package: Package, certificate: str) -> str:
    """SHA-1 of a certificate of the package in hex, by which the stores know it."""
    content = (package.directory / certificate).read_bytes()
    return hashlib.sha1(_der(content), usedforsecurity=False).hexdigest()


def is_trusted(guest: Guest, store: str, thumbprint: str, deadline: Deadline) -> bool:
    """Whether a store of the guest has the certificate."""
    command = ["certutil", "-store", store, thumbprint]
    return not guest.run(command, deadline=deadline, check=False, repeatable=True).exit_code


def trust(guest: Guest, package: Package, certificate: str, deadline: Deadline) -> bool:
    """Put the certificate into both stores; returns False when it was in both already."""
    known = thumbprint(package, certificate)
    missing = [store for store in STORES if not is_trusted(guest, store, known, deadline)]
    if missing:
        target = str(PACKAGE_DIRECTORY / certificate)
        guest.put([Upload(package.directory / certificate, target)], deadline)
        for store in missing:
            guest.run(["certutil", "-f", "-addstore", store, target], deadline=deadline)
    return bool(missing)


def distrust(guest: Guest, store: str, thumbprint: str, deadline: Deadline) -> None:
    """Take the certificate out of a store; one that is not there is fine.

    Raises:
        GuestError: it is still there.
    """
    if is_trusted(guest, store, thumbprint, deadline):
        guest.run(["certutil", "-delstore", store, thumbprint], deadline=deadline)


def _der(content: bytes) -> bytes:
    """The certificate as DER: Windows takes `.cer` files in either form, the thumbprint is that of the DER."""
    if not content.lstrip().startswith(b"-----BEGIN"):
        return content
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_pem_x509_certificate(content).public_bytes(Encoding.DER)
