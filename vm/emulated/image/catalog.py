"""Security catalogs: read strictly, their signature checked, files looked up in them. Pure functions on bytes.

A catalog is a PKCS #7 SignedData over a certificate trust list whose entries are hashes of files. Layout: the
structures of mscat.h and wintrust.h; versions 1 (tag = hash in hexadecimal, SHA-1) and 2 (tag = raw hash, SHA-256).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

from vm.emulated.image import der
from vm.emulated.image.authenticode import SPC_INDIRECT_DATA, SPC_PE_IMAGE_DATA, authenticode_digest
from vm.emulated.image.signed_data import (
    HASH_NAMES,
    UNREADABLE,
    SignatureError,
    SignedData,
    Signer,
    UnsignedError,
)
from vm.errors import PackageError

CERTIFICATE_TRUST_LIST = "1.3.6.1.4.1.311.10.1"
CATALOG_LIST = "1.3.6.1.4.1.311.12.1.1"
CATALOG_MEMBER_1 = "1.3.6.1.4.1.311.12.1.2"
CATALOG_MEMBER_2 = "1.3.6.1.4.1.311.12.1.3"
NAME_VALUE = "1.3.6.1.4.1.311.12.2.1"
MEMBER_INFO_1 = "1.3.6.1.4.1.311.12.2.2"
MEMBER_INFO_2 = "1.3.6.1.4.1.311.12.2.3"
SPC_LINK = "1.3.6.1.4.1.311.2.1.25"

IMAGE_INFO = der.context(0, constructed=False)
"""Tag of the member information of version 2 for PE images; flat files have `FLAT_INFO`."""
FLAT_INFO = der.context(2, constructed=False)

_BUILD_AGAIN = "make the catalog again; nothing in a package may be changed afterwards"


class CatalogError(PackageError):
    """This is no catalog: it is cut off, has bytes behind it, or is not built as catalogs are."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file that a catalog vouches for.

    Attributes:
        tag: what the member is found by: the raw digest (version 2), or its text (version 1).
        algorithm: name of the digest as hashlib knows it.
        digest: of the file; for images the Authenticode digest.
        image: whether it is a PE image.
        values: name and value attributes, such as "File" and "OSAttr".
    """

    tag: bytes
    algorithm: str
    digest: bytes
    image: bool
    values: Mapping[str, str]

    @property
    def file(self) -> str:
        """Name of the file, empty if the catalog does not say it."""
        return self.values.get("File", "")


@dataclass(frozen=True, slots=True)
class Catalog:
    """A catalog that was read.

    Attributes:
        version: 1 or 2.
        identifier: its list identifier.
        effective: since when it is in effect.
        values: name and value attributes of the whole, such as "OS".
        signer: who signed it; None as long as `verify_catalog` has not said so.
    """

    version: int
    identifier: bytes
    effective: datetime
    members: tuple[Member, ...]
    values: Mapping[str, str]
    signer: Signer | None = None

    def member_for(self, data: bytes, name: str) -> Member | None:
        """The member that vouches for a file with this content, None if there is none.

        As Windows looks files up: a PE image by its Authenticode digest, everything else by the digest of its bytes.
        """
        for algorithm in sorted({member.algorithm for member in self.members}):
            digest = member_digest(data, name, algorithm)
            for member in self.members:
                if member.algorithm == algorithm and member.digest == digest:
                    return member
        return None


def is_image(data: bytes) -> bool:
    """Whether a file counts as a PE image in a catalog: it begins as one."""
    return data[:2] == b"MZ"


def member_digest(data: bytes, name: str, algorithm: str = "sha256") -> bytes:
    """The digest by which a catalog knows a file.

    Raises:
        PackageError: it begins as a PE image and is none.
    """
    if is_image(data):
        return authenticode_digest(data, algorithm, name)
    return hashlib.new(algorithm, data, usedforsecurity=False).digest()


def read_catalog(data: bytes, name: str = "catalog") -> Catalog:
    """Read a catalog; its signature is not looked at, and it need not have one.

    Raises:
        CatalogError: it is none.
    """
    try:
        encoded = der.decode_all(data)
        _, wrapped = encoded.expect(der.SEQUENCE).children()
        (signed,) = wrapped.expect(der.context(0, constructed=True)).children()
        _, _, content_info, *_ = signed.expect(der.SEQUENCE).children()
        kind, content = content_info.expect(der.SEQUENCE).children()
        if kind.oid() != CERTIFICATE_TRUST_LIST:
            raise ValueError(f"the content is of the type {kind.oid()}")
        (trust_list,) = content.expect(der.context(0, constructed=True)).children()
        return _trust_list(trust_list)
    except UNREADABLE as error:
        raise CatalogError(f"'{name}' is no catalog: {error}", hint=_BUILD_AGAIN) from error


def verify_catalog(data: bytes, name: str = "catalog") -> Catalog:
    """Read a catalog and check that the enclosed certificate signed it. Whether that is trusted is not decided here.

    Raises:
        CatalogError: it is no catalog.
        UnsignedError: it is not signed.
        SignatureError: the signature does not hold.
    """
    catalog = read_catalog(data, name)
    if not _has_signer(data):
        raise UnsignedError(f"'{name}' is not signed.", hint="sign it; './inv build' does so")
    try:
        signed = SignedData.parse(data, CERTIFICATE_TRUST_LIST)
        signer = signed.signer()
    except UNREADABLE as error:
        raise SignatureError(f"The signature of '{name}' is not readable.", hint=_BUILD_AGAIN) from error
    if not signed.covers(CERTIFICATE_TRUST_LIST):
        raise SignatureError(f"'{name}' was changed after it was signed.", hint=_BUILD_AGAIN)
    if not signed.made_by_certificate():
        raise SignatureError(f"The signature of '{name}' was not made by its certificate.", hint=_BUILD_AGAIN)
    return Catalog(
        catalog.version, catalog.identifier, catalog.effective, catalog.members, catalog.values, signer
    )


def _has_signer(data: bytes) -> bool:
    _, wrapped = der.decode(data).children()
    return bool(wrapped.children()[0].children()[-1].contents)


def _trust_list(node: der.Node) -> Catalog:
    usage, identifier, effective, algorithm, *rest = node.expect(der.SEQUENCE).children()
    if [each.oid() for each in usage.expect(der.SEQUENCE).children()] != [CATALOG_LIST]:
        raise ValueError("its list is not one of a catalog")
    kind = algorithm.expect(der.SEQUENCE).children()[0].oid()
    if kind not in (CATALOG_MEMBER_1, CATALOG_MEMBER_2):
        raise ValueError(f"its members are of the type {kind}")
    version = 1 if kind == CATALOG_MEMBER_1 else 2
    # A list without entries leaves its SEQUENCE out; the extensions are optional as well.
    members = rest.pop(0).children() if rest and rest[0].tag == der.SEQUENCE else []
    extensions = rest.pop(0) if rest and rest[0].tag == der.context(0, constructed=True) else None
    if rest:
        raise ValueError(f"a value with the tag {rest[0].tag:#04x} too many in its list")
    read = tuple(_member(each, version) for each in members)
    if len({member.tag for member in read}) != len(read):
        raise ValueError("two members have the same tag")
    return Catalog(
        version=version,
        identifier=identifier.expect(der.OCTET_STRING).contents,
        effective=_moment(effective),
        members=read,
        values=MappingProxyType(_extensions(extensions)),
    )


def _member(node: der.Node, version: int) -> Member:
    tag, attributes = node.expect(der.SEQUENCE).children()
    values: dict[str, str] = {}
    indirect: der.Node | None = None
    for attribute in attributes.expect(der.SET).children():
        kind, contents = attribute.expect(der.SEQUENCE).children()
        for content in contents.expect(der.SET).children():
            if kind.oid() == NAME_VALUE:
                name, value = _name_value(content)
                values[name] = value
            elif kind.oid() == SPC_INDIRECT_DATA:
                if indirect is not None:
                    raise ValueError("a member has two digests")
                indirect = content
    if indirect is None:
        raise ValueError("a member has no digest")
    subject, digest_info = indirect.expect(der.SEQUENCE).children()
    algorithm, digest = digest_info.expect(der.SEQUENCE).children()
    member = Member(
        tag=tag.expect(der.OCTET_STRING).contents,
        algorithm=HASH_NAMES[algorithm.children()[0].oid()],
        digest=digest.expect(der.OCTET_STRING).contents,
        image=subject.expect(der.SEQUENCE).children()[0].oid() == SPC_PE_IMAGE_DATA,
        values=MappingProxyType(values),
    )
    if len(member.digest) != hashlib.new(member.algorithm, usedforsecurity=False).digest_size:
        raise ValueError(f"a digest of {len(member.digest)} bytes for {member.algorithm}")
    if version == 2 and member.tag != member.digest:
        raise ValueError("the tag of a member is not its digest")
    return member


def _extensions(extensions: der.Node | None) -> dict[str, str]:
    if extensions is None:
        return {}
    (listed,) = extensions.children()
    values: dict[str, str] = {}
    for extension in listed.expect(der.SEQUENCE).children():
        kind, *_, content = extension.expect(der.SEQUENCE).children()
        if kind.oid() == NAME_VALUE:
            name, value = _name_value(der.decode_all(content.expect(der.OCTET_STRING).contents))
            values[name] = value
    return values


def _name_value(node: der.Node) -> tuple[str, str]:
    """CatalogNameValue: its name, and its value without the terminator."""
    name, flags, value = node.expect(der.SEQUENCE).children()
    flags.integer()
    text = value.expect(der.OCTET_STRING).contents.decode("utf-16-le")
    return name.expect(der.BMP_STRING).contents.decode("utf-16-be"), text.removesuffix("\0")


def _moment(node: der.Node) -> datetime:
    text = node.expect(der.UTC_TIME).contents.decode("ascii")
    return datetime.strptime(text, "%y%m%d%H%M%SZ").replace(tzinfo=UTC)
