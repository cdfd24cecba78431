"""Authenticode signatures inside PE files: the digest of an image and the check of an embedded signature. Whether the
signer is trusted is not decided here: the certificate store and the clock belong to the machine that loads."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Any

from vm.emulated.image import der
from vm.emulated.image.headers import Directory, Headers, read_headers
from vm.emulated.image.signed_data import (
    HASH_NAMES,
    UNREADABLE,
    SignatureError,
    SignedData,
    Signer,
    UnsignedError,
)

__all__ = [
    "ALIGNMENT",
    "SignatureError",
    "SignatureInfo",
    "authenticode_digest",
    "image_is_signed",
    "unsigned_length",
    "verify_embedded",
]

# Values of WIN_CERTIFICATE and object identifiers of "Windows Authenticode Portable Executable Signature Format".
WIN_CERT_REVISION_2_0 = 0x0200
WIN_CERT_TYPE_PKCS_SIGNED_DATA = 0x0002
SPC_INDIRECT_DATA = "1.3.6.1.4.1.311.2.1.4"
SPC_PE_IMAGE_DATA = "1.3.6.1.4.1.311.2.1.15"
SPC_STATEMENT_TYPE = "1.3.6.1.4.1.311.2.1.11"
ALIGNMENT = 8

_WIN_CERTIFICATE = struct.Struct("<IHH")
_SIGN_AGAIN = "sign the image again; a signed image must not be changed afterwards"


@dataclass(frozen=True, slots=True)
class SignatureInfo(Signer):
    """An embedded signature that holds: the digest is that of the image and the signer's key signed it.

    Attributes:
        algorithm: name of the digest as hashlib knows it.
        digest: the Authenticode digest of the image.
    """

    algorithm: str
    digest: bytes


def image_is_signed(data: bytes, name: str = "image") -> bool:
    """Whether the PE file has a certificate table. Raises PackageError when it is no PE file."""
    return read_headers(data, name).directories[Directory.SECURITY][1] > 0


def authenticode_digest(data: bytes, algorithm: str = "sha256", name: str = "image") -> bytes:
    """The digest of a PE file without its checksum, its certificate table and the pointer to that table.

    An unsigned file counts as padded with zeros to a multiple of eight, because that is how it gets signed; so the
    digest is the same before and after signing.

    Args:
        algorithm: a name that hashlib knows.

    Raises:
        PackageError: not a PE file, or the certificate table is not the end of the file.
    """
    headers = read_headers(data, name)
    return _digest(data, headers, unsigned_length(data, headers, name), algorithm)


def unsigned_length(data: bytes, headers: Headers, name: str) -> int:
    """How many bytes of the file come before its certificate table; all of them when there is none.

    Raises:
        SignatureError: the table is cut off, or bytes that no signature protects follow it.
    """
    offset, size = headers.directories[Directory.SECURITY]
    if not size:
        return len(data)
    if offset < headers.security_directory_offset + 8 or offset % ALIGNMENT or offset + size > len(data):
        raise SignatureError(
            f"The certificate table of '{name}' is cut off or misplaced.",
            hint="build and sign the image again",
        )
    if offset + size != len(data):
        raise SignatureError(
            f"'{name}' has {len(data) - offset - size} bytes behind its certificate table, which no signature protects.",
            hint="build and sign the image again",
        )
    return offset


def verify_embedded(data: bytes, name: str = "image") -> SignatureInfo:
    """Check the signature embedded in the PE file `data`, called `name` in messages.

    Checks that the digest in the signature is that of the image, that the signed attributes cover it, and that the
    key of the enclosed certificate made the signature. Of several signatures the first is taken, as the kernel does.

    Raises:
        UnsignedError: no signature.
        SignatureError: not readable, digest differs, or not made by the enclosed certificate.
        PackageError: not a PE file.
    """
    headers = read_headers(data, name)
    length = unsigned_length(data, headers, name)
    if length == len(data):
        raise UnsignedError(
            f"'{name}' is not signed.", hint="sign it; './inv build' does so with the test certificate"
        )
    blob = _first_signature(data[length:], name)
    try:
        signed = SignedData.parse(blob, SPC_INDIRECT_DATA)
        algorithm, expected = _indirect_digest(signed.content)
    except UNREADABLE as error:
        raise SignatureError(f"The signature of '{name}' is not readable.", hint=_SIGN_AGAIN) from error

    actual = _digest(data, headers, length, algorithm)
    if not hmac.compare_digest(actual, expected):
        raise SignatureError(
            f"'{name}' was changed after it was signed: its {algorithm} digest is {actual.hex()}, the signature "
            f"is for {expected.hex()}.",
            hint=_SIGN_AGAIN,
        )
    if not signed.covers(SPC_INDIRECT_DATA):
        raise SignatureError(
            f"The signed attributes of '{name}' do not belong to its digest.", hint=_SIGN_AGAIN
        )
    if not signed.made_by_certificate():
        raise SignatureError(f"The signature of '{name}' was not made by its certificate.", hint=_SIGN_AGAIN)
    try:
        values: dict[str, Any] = signed.signer().values()
    except UNREADABLE as error:
        raise SignatureError(f"The certificate in '{name}' is not readable.", hint=_SIGN_AGAIN) from error
    return SignatureInfo(**values, algorithm=algorithm, digest=expected)


def _indirect_digest(content: der.Node) -> tuple[str, bytes]:
    """Algorithm and digest of an SpcIndirectDataContent."""
    _, digest_info = content.expect(der.SEQUENCE).children()
    algorithm, digest = digest_info.children()
    return HASH_NAMES[algorithm.children()[0].oid()], digest.expect(der.OCTET_STRING).contents


def _digest(data: bytes, headers: Headers, length: int, algorithm: str) -> bytes:
    digest = hashlib.new(algorithm)
    digest.update(data[: headers.checksum_offset])
    if headers.directory_count > Directory.SECURITY:
        digest.update(data[headers.checksum_offset + 4 : headers.security_directory_offset])
        digest.update(data[headers.security_directory_offset + 8 : length])
    else:
        digest.update(data[headers.checksum_offset + 4 : length])
    digest.update(bytes(-length % ALIGNMENT))
    return digest.digest()


def _first_signature(table: bytes, name: str) -> bytes:
    position = 0
    while position + _WIN_CERTIFICATE.size <= len(table):
        length, revision, kind = _WIN_CERTIFICATE.unpack_from(table, position)
        if length < _WIN_CERTIFICATE.size or position + length > len(table):
            break
        if revision == WIN_CERT_REVISION_2_0 and kind == WIN_CERT_TYPE_PKCS_SIGNED_DATA:
            return table[position + _WIN_CERTIFICATE.size : position + length]
        position += length + -length % ALIGNMENT
    raise SignatureError(
        f"The certificate table of '{name}' holds no Authenticode signature.", hint=_SIGN_AGAIN
    )
