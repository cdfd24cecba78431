"""Embeds Authenticode signatures into PE files. Deterministic: the same image and identity give the same bytes,
because there is no signing time and PKCS #1 v1.5 has no randomness."""

from __future__ import annotations

import struct
from hashlib import sha256 as sha256_of

from harness.signing.identity import SigningIdentity
from vm.emulated.image import der
from vm.emulated.image.authenticode import (
    ALIGNMENT,
    CONTENT_TYPE,
    MESSAGE_DIGEST,
    SIGNED_DATA,
    SPC_INDIRECT_DATA,
    SPC_PE_IMAGE_DATA,
    SPC_SP_OPUS_INFO,
    SPC_STATEMENT_TYPE,
    WIN_CERT_REVISION_2_0,
    WIN_CERT_TYPE_PKCS_SIGNED_DATA,
    authenticode_digest,
    image_is_signed,
    unsigned_length,
)
from vm.emulated.image.checksum import pe_checksum
from vm.emulated.image.headers import Directory, Headers, read_headers
from vm.errors import PackageError

__all__ = ["image_is_signed", "sign_image", "strip_signature"]

_SHA256 = "2.16.840.1.101.3.4.2.1"
_RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
_INDIVIDUAL_CODE_SIGNING = "1.3.6.1.4.1.311.2.1.21"


def sign_image(
    data: bytes, identity: SigningIdentity, *, description: str = "", name: str = "image"
) -> bytes:
    """The PE file `data` with a SHA-256 Authenticode signature; an older signature is replaced.

    Args:
        description: program name shown by Windows; empty for none.
        name: what messages call the image.

    Raises:
        PackageError: not a PE file, has no place for a signature, or carries bytes behind its certificate table.
    """
    image = bytearray(strip_signature(data, name=name))
    image += bytes(-len(image) % ALIGNMENT)
    signature = _signed_data(authenticode_digest(bytes(image), name=name), identity, description)
    length = 8 + len(signature)
    padding = -length % ALIGNMENT
    headers = read_headers(bytes(image), name)
    struct.pack_into("<II", image, headers.security_directory_offset, len(image), length + padding)
    image += struct.pack("<IHH", length + padding, WIN_CERT_REVISION_2_0, WIN_CERT_TYPE_PKCS_SIGNED_DATA)
    image += signature + bytes(padding)
    return _with_checksum(image, headers)


def strip_signature(data: bytes, *, name: str = "image") -> bytes:
    """The PE file without its certificate table, checksum corrected; `data` itself when it has none.

    Raises:
        PackageError: as `sign_image`.
    """
    headers = read_headers(data, name)
    if headers.directory_count <= Directory.SECURITY:
        raise PackageError(
            f"'{name}' has no place in its headers for a signature.",
            hint="link it with all sixteen data directories",
        )
    if not headers.directories[Directory.SECURITY][1]:
        return data
    image = bytearray(data[: unsigned_length(data, headers, name)])
    struct.pack_into("<II", image, headers.security_directory_offset, 0, 0)
    return _with_checksum(image, headers)


def _with_checksum(image: bytearray, headers: Headers) -> bytes:
    struct.pack_into("<I", image, headers.checksum_offset, pe_checksum(bytes(image), headers.checksum_offset))
    return bytes(image)


def _signed_data(digest: bytes, identity: SigningIdentity, description: str) -> bytes:
    """ContentInfo with SignedData version 1 as "Windows Authenticode Portable Executable Signature Format" has it."""
    content = _indirect_data(digest)
    content_info = _sequence(der.encode_oid(SPC_INDIRECT_DATA), _explicit(0, content))
    sha256 = _algorithm(_SHA256)
    attributes = _signed_attributes(der.decode(content).contents, description)
    signer = _sequence(
        der.encode_integer(1),
        _sequence(identity.issuer_name, der.encode_integer(identity.serial_number)),
        sha256,
        der.encode_set_of(attributes, der.context(0, constructed=True)),
        _algorithm(_RSA_ENCRYPTION),
        der.encode(der.OCTET_STRING, identity.sign_sha256(der.encode_set_of(attributes))),
    )
    signed = _sequence(
        der.encode_integer(1),
        der.encode_set_of([sha256]),
        content_info,
        _explicit(0, identity.certificate_der),
        der.encode_set_of([signer]),
    )
    return _sequence(der.encode_oid(SIGNED_DATA), _explicit(0, signed))


def _indirect_data(digest: bytes) -> bytes:
    # SpcPeImageData with empty flags and file [0] -> [2] -> [0] "", byte for byte what signtool writes.
    empty_file = _explicit(0, _explicit(2, der.encode(der.context(0, constructed=False))))
    image_data = _sequence(der.encode(der.BIT_STRING, b"\0"), empty_file)
    return _sequence(
        _sequence(der.encode_oid(SPC_PE_IMAGE_DATA), image_data),
        _sequence(_algorithm(_SHA256), der.encode(der.OCTET_STRING, digest)),
    )


def _signed_attributes(content: bytes, description: str) -> list[bytes]:
    # The digest covers the contents of SpcIndirectDataContent without its tag and length (PKCS #7, RFC 2315, 9.3).
    name = der.encode(der.context(0, constructed=False), description.encode("utf-16-be"))
    opus = _sequence(_explicit(0, name)) if description else _sequence()
    return [
        _attribute(CONTENT_TYPE, der.encode_oid(SPC_INDIRECT_DATA)),
        _attribute(SPC_STATEMENT_TYPE, _sequence(der.encode_oid(_INDIVIDUAL_CODE_SIGNING))),
        _attribute(SPC_SP_OPUS_INFO, opus),
        _attribute(MESSAGE_DIGEST, der.encode(der.OCTET_STRING, sha256_of(content).digest())),
    ]


def _attribute(kind: str, value: bytes) -> bytes:
    return _sequence(der.encode_oid(kind), der.encode(der.SET, value))


def _algorithm(identifier: str) -> bytes:
    return _sequence(der.encode_oid(identifier), der.encode(der.NULL))


def _sequence(*members: bytes) -> bytes:
    return der.encode(der.SEQUENCE, *members)


def _explicit(number: int, value: bytes) -> bytes:
    return der.encode(der.context(number, constructed=True), value)
