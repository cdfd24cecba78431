"""The test certificate of a checkout: made on first use, kept beside the other caches, never committed. The private
key never leaves this module in readable form."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vm.errors import ConfigurationError

VALIDITY = timedelta(days=5 * 365 + 1)
RENEW_BEFORE = timedelta(days=30)
_CLOCK_TOLERANCE = timedelta(days=1)
_KEY_BITS = 2048
_PFX_ROUNDS = 2000
"""Its password is random, 256 bits, and forgotten at once: more rounds would protect nothing."""
_FILE_NAME = "identity.pem"
_RENEW_HINT = "delete the file; the next build makes a new certificate, which the next deployment trusts"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SigningIdentity:
    """A code-signing certificate with its private key.

    Attributes:
        certificate_der: the certificate as a `.cer` file holds it.
        subject: its common name.
        thumbprint: SHA-1 of the certificate in upper-case hexadecimal, as Windows shows it.
    """

    certificate_der: bytes = field(repr=False)
    subject: str
    thumbprint: str
    not_before: datetime
    not_after: datetime
    serial_number: int
    issuer_name: bytes = field(repr=False)
    _key: rsa.RSAPrivateKey = field(repr=False, compare=False)

    def sign_sha256(self, data: bytes) -> bytes:
        """RSA PKCS #1 v1.5 signature over the SHA-256 of `data`; the same every time."""
        return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def pkcs12(self, password: str) -> bytes:
        """Certificate and key in a PFX, encrypted with `password` (PBES2, AES-256), for a store of Windows."""
        protection = (
            serialization.PrivateFormat.PKCS12.encryption_builder()
            .kdf_rounds(_PFX_ROUNDS)
            .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
            .hmac_hash(hashes.SHA256())
            .build(password.encode())
        )
        certificate = x509.load_der_x509_certificate(self.certificate_der)
        return pkcs12.serialize_key_and_certificates(
            self.subject.encode(), self._key, certificate, None, protection
        )

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a signing identity is not serialised: it holds a private key")


def load_or_create_identity(directory: Path, *, now: datetime | None = None) -> SigningIdentity:
    """The identity kept in `directory`, made there when there is none or when it expires within 30 days.

    Args:
        directory: for example `.cache/signing`; made when missing. Must not be under version control.
        now: the time to judge validity by (time zone aware); the clock when None.

    Raises:
        ConfigurationError: the file is damaged, readable by others, or not valid yet.
    """
    moment = now or datetime.now(UTC)
    path = directory / _FILE_NAME
    _make_private_directory(directory)
    try:
        identity = _load(path)
    except FileNotFoundError:
        _publish(path, _new_pem(moment), replace=False)
        identity = _load(path)  # of several processes that made one, all use the one that came first
        _log.info("made the test certificate '%s' (%s)", identity.subject, identity.thumbprint)
    if moment < identity.not_before:
        raise ConfigurationError(
            f"The test certificate '{identity.subject}' is valid only from {identity.not_before:%Y-%m-%d}, and the "
            f"clock says {moment:%Y-%m-%d}.",
            hint=f"set the clock; if it is right, delete '{path}'",
        )
    if moment > identity.not_after - RENEW_BEFORE:
        _publish(path, _new_pem(moment), replace=True)
        renewed = _load(path)
        _log.warning(
            "the test certificate '%s' expires on %s; '%s' replaces it, machines get it with the next deployment",
            identity.subject,
            identity.not_after.date(),
            renewed.subject,
        )
        return renewed
    return identity


def _make_private_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The directory '{directory}' for the test certificate cannot be made ({error.strerror}).",
            hint="check the permissions of its parent directory",
        ) from error


def _load(path: Path) -> SigningIdentity:
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(
            f"The key file '{path}' cannot be read ({error.strerror}).",
            hint=f"make yourself the owner of '{path}'",
        ) from error
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigurationError(
            f"The key file '{path}' can be read by other users.", hint=f"run: chmod 600 '{path}'"
        )
    try:
        key = serialization.load_pem_private_key(pem, password=None)
        certificate = x509.load_pem_x509_certificate(pem)
    except (ValueError, TypeError) as error:
        raise _damaged(path) from error
    if not isinstance(key, rsa.RSAPrivateKey) or certificate.public_key() != key.public_key():
        raise _damaged(path)
    encoded = certificate.public_bytes(serialization.Encoding.DER)
    common_name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return SigningIdentity(
        certificate_der=encoded,
        subject=str(common_name[0].value) if common_name else certificate.subject.rfc4514_string(),
        thumbprint=hashlib.sha1(encoded, usedforsecurity=False).hexdigest().upper(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        serial_number=certificate.serial_number,
        issuer_name=certificate.issuer.public_bytes(),
        _key=key,
    )


def _damaged(path: Path) -> ConfigurationError:
    return ConfigurationError(f"'{path}' does not hold a certificate and its RSA key.", hint=_RENEW_HINT)


def _new_pem(moment: datetime) -> bytes:
    """Key and certificate in one PEM text, so that they can never be mismatched halves of two attempts."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Downlink Test {secrets.token_hex(4)}")])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    public_key = key.public_key()
    begin = (moment - _CLOCK_TOLERANCE).replace(microsecond=0)  # guests' clocks lag behind after a restore
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _CLOCK_TOLERANCE + VALIDITY)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _publish(path: Path, content: bytes, *, replace: bool) -> None:
    """Put `content` at `path` so that nobody ever sees a part of it or a moment with a wider mode.

    Without `replace` an existing file wins: another process was faster, and its identity is the checkout's.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            _link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links (FAT, some network shares)
        if not path.exists():
            temporary.replace(path)
