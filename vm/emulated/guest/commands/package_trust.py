"""Whether Windows would take a driver package: its catalog, who signed it, and the hash of every file.

Codes: winerror.h and setupapi.h. That the publisher's certificate has to be in Root and in TrustedPublisher of the
machine: windows-lab C.5. Which code comes first where several things are wrong is not documented; here it is the order
of the checks: catalog, chain, publisher, files.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from vm.emulated.guest import certificates
from vm.emulated.guest.commands.setup_log import SetupFailure
from vm.emulated.image.catalog import Catalog, CatalogError, verify_catalog
from vm.emulated.image.signed_data import Signer, UnsignedError
from vm.emulated.registry import Registry
from vm.errors import PackageError

TRUST_E_NOSIGNATURE = 0x800B0100
CERT_E_EXPIRED = 0x800B0101
CERT_E_UNTRUSTEDROOT = 0x800B0109
CERT_E_CHAINING = 0x800B010A
CERT_E_WRONG_USAGE = 0x800B0110
TRUST_E_BAD_DIGEST = 0x80096010
ERROR_AUTHENTICODE_TRUST_NOT_ESTABLISHED = 0xE0000242
ERROR_FILE_HASH_NOT_IN_CATALOG = 0xE000024B

MESSAGES: Mapping[int, str] = MappingProxyType(
    {
        TRUST_E_NOSIGNATURE: "No signature was present in the subject.",
        CERT_E_EXPIRED: (
            "A required certificate is not within its validity period when verifying against the current system clock"
            " or the timestamp in the signed file."
        ),
        CERT_E_UNTRUSTEDROOT: (
            "A certificate chain processed, but terminated in a root certificate which is not trusted by the trust"
            " provider."
        ),
        CERT_E_CHAINING: "A certificate chain could not be built to a trusted root authority.",
        CERT_E_WRONG_USAGE: "The certificate is not valid for the requested usage.",
        TRUST_E_BAD_DIGEST: "The digital signature of the object did not verify.",
        ERROR_AUTHENTICODE_TRUST_NOT_ESTABLISHED: (
            "The publisher of an Authenticode(tm) signed catalog was not established as trusted."
        ),
        ERROR_FILE_HASH_NOT_IN_CATALOG: (
            "The hash for the file is not present in the specified catalog file. The file is likely corrupt or the"
            " victim of tampering."
        ),
    }
)
_LONGEST_CHAIN = 8


def check_package(registry: Registry, files: Mapping[str, bytes], catalog_name: str, now: float) -> Signer:
    """Refuse a package that Windows would refuse; returns who signed it.

    Args:
        registry: holds the certificate stores.
        files: content of every file of the package by name, the catalog among them.
        catalog_name: which of them is the catalog.
        now: the guest's time in seconds since the Unix epoch.

    Raises:
        SetupFailure: with the code of the first thing that is wrong.
    """
    catalog = _verified(files[catalog_name], catalog_name)
    assert catalog.signer is not None
    _check_chain(registry, catalog.signer, datetime.fromtimestamp(now, UTC))
    publishers = {
        certificates.thumbprint(each) for each in certificates.certificates(registry, "TrustedPublisher")
    }
    if catalog.signer.thumbprint not in publishers:
        # With a desktop Windows asks now; a session of WinRM or a service cannot be asked.
        raise SetupFailure(
            ERROR_AUTHENTICODE_TRUST_NOT_ESTABLISHED,
            f"'{catalog.signer.subject}' is not in TrustedPublisher.",
        )
    for name, data in files.items():
        if name != catalog_name and not _vouched_for(catalog, data, name):
            raise SetupFailure(
                ERROR_FILE_HASH_NOT_IN_CATALOG, f"The hash of '{name}' is not in '{catalog_name}'."
            )
    return catalog.signer


def _verified(data: bytes, name: str) -> Catalog:
    try:
        return verify_catalog(data, name)
    except (CatalogError, UnsignedError) as error:
        raise SetupFailure(TRUST_E_NOSIGNATURE, error.message) from error
    except PackageError as error:
        raise SetupFailure(TRUST_E_BAD_DIGEST, error.message) from error


def _vouched_for(catalog: Catalog, data: bytes, name: str) -> bool:
    try:
        return catalog.member_for(data, name) is not None
    except PackageError:
        return False  # it begins as an image and is none


def _check_chain(registry: Registry, signer: Signer, moment: datetime) -> None:
    roots = {certificates.thumbprint(each): each for each in certificates.certificates(registry, "Root")}
    others = [x509.load_der_x509_certificate(encoded) for encoded in signer.certificates]
    others += [*certificates.certificates(registry, "CA"), *roots.values()]
    current = x509.load_der_x509_certificate(signer.certificate)
    if not signer.code_signing:
        raise SetupFailure(CERT_E_WRONG_USAGE, f"'{signer.subject}' is not for code signing.")
    for _ in range(_LONGEST_CHAIN):
        name = current.subject.rfc4514_string()
        if not current.not_valid_before_utc <= moment <= current.not_valid_after_utc:
            raise SetupFailure(CERT_E_EXPIRED, f"'{name}' is not valid on {moment:%Y-%m-%d}.")
        if certificates.thumbprint(current) in roots:
            return
        if current.issuer == current.subject:
            raise SetupFailure(CERT_E_UNTRUSTEDROOT, f"'{name}' is not in Root.")
        issuer = next((each for each in others if _issued(current, each)), None)
        if issuer is None:
            raise SetupFailure(CERT_E_CHAINING, f"The issuer of '{name}' was not found.")
        current = issuer
    raise SetupFailure(CERT_E_CHAINING, "The chain of certificates is too long.")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
