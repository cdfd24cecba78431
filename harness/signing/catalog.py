"""Makes security catalogs: version 2, SHA-256 members, as Inf2Cat writes them for Windows 10 and later.

Deterministic: the same files and identity give the same bytes. No Windows has accepted such a catalog yet; see the
`experimental` of a package's manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from harness.signing.identity import SigningIdentity
from harness.signing.signed_data import SHA256, algorithm, attribute, signed_data
from harness.signing.signer import indirect_data
from vm.emulated.image import der
from vm.emulated.image.authenticode import SPC_INDIRECT_DATA
from vm.emulated.image.catalog import (
    CATALOG_LIST,
    CATALOG_MEMBER_2,
    CERTIFICATE_TRUST_LIST,
    FLAT_INFO,
    IMAGE_INFO,
    MEMBER_INFO_2,
    NAME_VALUE,
    SPC_LINK,
    is_image,
    member_digest,
)
from vm.emulated.image.page_hashes import page_hashes
from vm.errors import PackageError

_OS_NAMES = {
    "x64": "_v100_X64,Server_v100_X64",
    "arm64": "_v100_ARM64_RS3,Server_v100_ARM64",
}
"""The attribute OS: Windows 10 and later as client and as server, in the names that published catalogs have."""
_OS_ATTRIBUTE = "2:10.0"
"""Platform 2 (Windows NT), version 10.0 and later."""
# CRYPTCAT_ATTR_AUTHENTICATED | CRYPTCAT_ATTR_NAMEASCII | CRYPTCAT_ATTR_DATAASCII of mscat.h.
_FLAGS = 0x10010001
_IDENTIFIER_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    encoded: bytes


def make_catalog(
    files: Mapping[str, bytes],
    identity: SigningIdentity,
    architecture: str = "x64",
    *,
    hash_pages: bool = False,
) -> bytes:
    """The signed catalog of a driver package.

    In effect from the day on which the certificate is: a guest whose clock lags behind takes it all the same, and the
    bytes do not depend on when it was made.

    Args:
        files: content by file name: the image as it is signed, and the INF as it is stamped.
        architecture: "x64" or "arm64".
        hash_pages: whether images have page hashes in it, as by Inf2Cat's `/pageHashes`, which is not its default.

    Raises:
        PackageError: there are no files, two have the same content, or an image is none.
    """
    if not files:
        raise PackageError("a catalog of no files vouches for nothing")
    entries = sorted(
        (_entry(name, data, hash_pages) for name, data in files.items()), key=lambda each: each.digest
    )
    if len({entry.digest for entry in entries}) != len(entries):
        raise PackageError("two files of the package have the same content, a catalog cannot tell them apart")
    members = [entry.encoded for entry in entries]
    identifier = hashlib.sha256(b"".join(members) + identity.certificate_der).digest()[:_IDENTIFIER_BYTES]
    trust_list = der.sequence(
        der.sequence(der.encode_oid(CATALOG_LIST)),
        der.encode(der.OCTET_STRING, identifier),
        _utc_time(identity.not_before),
        algorithm(CATALOG_MEMBER_2),
        der.sequence(*members),
        der.explicit(0, der.sequence(_extension("OS", _OS_NAMES[architecture]))),
    )
    return signed_data(CERTIFICATE_TRUST_LIST, trust_list, identity)


def _entry(name: str, data: bytes, hash_pages: bool) -> _Entry:
    digest = member_digest(data, name)
    image = is_image(data)
    hashes = page_hashes(data, name) if image and hash_pages else None
    attributes = [
        attribute(NAME_VALUE, _name_value("File", name.lower())),
        attribute(NAME_VALUE, _name_value("OSAttr", _OS_ATTRIBUTE)),
        attribute(SPC_INDIRECT_DATA, indirect_data(digest, hashes) if image else _flat_data(digest)),
        attribute(MEMBER_INFO_2, der.encode(IMAGE_INFO if image else FLAT_INFO)),
    ]
    return _Entry(digest, der.sequence(der.encode(der.OCTET_STRING, digest), der.encode_set_of(attributes)))


def _flat_data(digest: bytes) -> bytes:
    """SpcIndirectDataContent of a file that is no image: an empty link, and the digest of its bytes."""
    link = der.explicit(2, der.encode(der.context(0, constructed=False)))
    return der.sequence(
        der.sequence(der.encode_oid(SPC_LINK), link),
        der.sequence(algorithm(SHA256), der.encode(der.OCTET_STRING, digest)),
    )


def _name_value(name: str, value: str) -> bytes:
    return der.sequence(
        der.encode(der.BMP_STRING, name.encode("utf-16-be")),
        der.encode_integer(_FLAGS),
        der.encode(der.OCTET_STRING, (value + "\0").encode("utf-16-le")),
    )


def _extension(name: str, value: str) -> bytes:
    return der.sequence(der.encode_oid(NAME_VALUE), der.encode(der.OCTET_STRING, _name_value(name, value)))


def _utc_time(moment: datetime) -> bytes:
    return der.encode(der.UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode("ascii"))
