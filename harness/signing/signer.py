"""Embeds Authenticode signatures into PE files. Deterministic: the same image and identity give the same bytes,
because there is no signing time and PKCS #1 v1.5 has no randomness."""

from __future__ import annotations

import struct

from harness.signing.identity import SigningIdentity
from harness.signing.signed_data import SHA256, algorithm, attribute, signed_data
from vm.emulated.image import der
from vm.emulated.image.authenticode import (
    ALIGNMENT,
    SPC_INDIRECT_DATA,
    SPC_PE_IMAGE_DATA,
    WIN_CERT_REVISION_2_0,
    WIN_CERT_TYPE_PKCS_SIGNED_DATA,
    authenticode_digest,
    image_is_signed,
    unsigned_length,
)
from vm.emulated.image.checksum import pe_checksum
from vm.emulated.image.headers import Directory, Headers, read_headers
from vm.emulated.image.page_hashes import CLASS_ID, PAGE_HASHES_2, page_hashes
from vm.errors import PackageError

__all__ = ["image_is_signed", "sign_image", "strip_signature"]


def sign_image(
    data: bytes,
    identity: SigningIdentity,
    *,
    description: str = "",
    name: str = "image",
    hash_pages: bool = False,
) -> bytes:
    """The PE file `data` with a SHA-256 Authenticode signature; an older signature is replaced.

    Args:
        description: program name shown by Windows; empty for none.
        name: what messages call the image.
        hash_pages: whether every page gets a digest of its own, as by `signtool /ph`.

    Raises:
        PackageError: not a PE file, has no place for a signature, or carries bytes behind its certificate table.
    """
    image = bytearray(strip_signature(data, name=name))
    image += bytes(-len(image) % ALIGNMENT)
    signature = signed_data(
        SPC_INDIRECT_DATA,
        indirect_data(
            authenticode_digest(bytes(image), name=name),
            page_hashes(bytes(image), name) if hash_pages else None,
        ),
        identity,
        description=description,
    )
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


def indirect_data(digest: bytes, hashes: bytes | None = None) -> bytes:
    """SpcIndirectDataContent of an image with that SHA-256 digest.

    Args:
        hashes: its page hashes; None leaves them out.
    """
    # SpcPeImageData with empty flags; without page hashes its file is [0] -> [2] -> [0] "", byte for byte what
    # signtool writes.
    file = (
        der.explicit(2, der.encode(der.context(0, constructed=False)))
        if hashes is None
        else _serialised(hashes)
    )
    image_data = der.sequence(der.encode(der.BIT_STRING, b"\0"), der.explicit(0, file))
    return der.sequence(
        der.sequence(der.encode_oid(SPC_PE_IMAGE_DATA), image_data),
        der.sequence(algorithm(SHA256), der.encode(der.OCTET_STRING, digest)),
    )


def _serialised(hashes: bytes) -> bytes:
    """SpcLink [1] with a SpcSerializedObject that holds page hashes."""
    content = der.encode_set_of([attribute(PAGE_HASHES_2, der.encode(der.OCTET_STRING, hashes))])
    return der.encode(
        der.context(1, constructed=True),
        der.encode(der.OCTET_STRING, CLASS_ID),
        der.encode(der.OCTET_STRING, content),
    )
