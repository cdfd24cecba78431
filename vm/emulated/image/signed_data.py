"""PKCS #7 SignedData as Windows signs images and catalogs with it: read, and checked against the enclosed certificate.

What is signed (an image's digest, a list of hashes) belongs to the caller, and so does whether the signer is trusted.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, fields
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from vm.emulated.image import der
from vm.errors import PackageError

SIGNED_DATA = "1.2.840.113549.1.7.2"
CONTENT_TYPE = "1.2.840.113549.1.9.3"
MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
SPC_SP_OPUS_INFO = "1.3.6.1.4.1.311.2.1.12"
HASH_NAMES = {
    "1.3.14.3.2.26": "sha1",
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
UNREADABLE = (
    ValueError,
    KeyError,
    IndexError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What reading a damaged certificate or PKCS #7 structure raises; cryptography's own classes derive from Exception."""

_ALGORITHMS: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


class SignatureError(PackageError):
    """There is no signature or one that does not hold; the message says which."""


class UnsignedError(SignatureError):
    """There is no signature at all."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed.

    Attributes:
        certificate: DER of the signer's certificate.
        certificates: DER of every certificate in the signature, the signer's included.
        thumbprint: SHA-1 of the signer's certificate in upper-case hexadecimal, as Windows shows it.
        self_signed: whether the certificate is its own issuer.
        code_signing: whether its extended key usage allows code signing.
        description: program name from SpcSpOpusInfo, empty when there is none.
    """

    subject: str
    issuer: str
    certificate: bytes
    certificates: tuple[bytes, ...]
    thumbprint: str
    not_before: datetime
    not_after: datetime
    self_signed: bool
    code_signing: bool
    description: str

    def valid_at(self, moment: datetime) -> bool:
        """Whether the certificate's validity covers `moment` (time zone aware)."""
        return self.not_before <= moment <= self.not_after

    def values(self) -> dict[str, object]:
        """Its attributes by name, for a dataclass that extends it."""
        return {field.name: getattr(self, field.name) for field in fields(Signer)}


@dataclass(frozen=True, slots=True)
class SignedData:
    """What of the PKCS #7 SignedData matters; it has exactly one signer."""

    content: der.Node
    """The signed content, with its tag."""
    content_type: str
    """As the signed attributes state it."""
    message_digest: bytes
    algorithm: str
    """Digest algorithm of the signer as hashlib knows it."""
    signed_attributes: bytes
    signature: bytes
    certificate: x509.Certificate
    certificates: tuple[bytes, ...]
    description: str

    @classmethod
    def parse(cls, encoded: bytes, content_type: str) -> SignedData:
        """Read a ContentInfo whose content has the type `content_type`; bytes behind it are left alone.

        Raises:
            one of UNREADABLE: it is no such thing.
        """
        kind, wrapped = der.decode(encoded).expect(der.SEQUENCE).children()
        if kind.oid() != SIGNED_DATA:
            raise ValueError("not SignedData")
        (signed,) = wrapped.expect(der.context(0, constructed=True)).children()
        _, _, content_info, *sets, signer_infos = signed.expect(der.SEQUENCE).children()
        found_type, wrapped_content = content_info.expect(der.SEQUENCE).children()
        if found_type.oid() != content_type:
            raise ValueError(f"content of the type {found_type.oid()}")
        (content,) = wrapped_content.expect(der.context(0, constructed=True)).children()
        (stored,) = [each for each in sets if each.tag == der.context(0, constructed=True)]
        certificates = tuple(each.encoded for each in stored.children())
        (signer,) = signer_infos.expect(der.SET).children()
        _, identity, algorithm, attributes, _, signature, *_ = signer.children()
        values = _attributes(attributes.expect(der.context(0, constructed=True)))
        issuer, serial = identity.children()
        return cls(
            content=content,
            content_type=values[CONTENT_TYPE].oid(),
            message_digest=values[MESSAGE_DIGEST].expect(der.OCTET_STRING).contents,
            algorithm=HASH_NAMES[algorithm.children()[0].oid()],
            # Stored as [0] IMPLICIT, signed as the SET OF that it is (RFC 2315, 9.3).
            signed_attributes=bytes((der.SET,)) + attributes.encoded[1:],
            signature=signature.expect(der.OCTET_STRING).contents,
            certificate=_signer_certificate(certificates, issuer.encoded, serial.integer()),
            certificates=certificates,
            description=_description(values.get(SPC_SP_OPUS_INFO)),
        )

    def covers(self, content_type: str) -> bool:
        """Whether the signed attributes are those of the content, and the content is of that type."""
        # The digest covers the contents of the content without its tag and length (RFC 2315, 9.3).
        digest = hashlib.new(self.algorithm, self.content.contents).digest()
        return self.content_type == content_type and hmac.compare_digest(digest, self.message_digest)

    def made_by_certificate(self) -> bool:
        """Whether the key of the signer's certificate made the signature."""
        algorithm = _ALGORITHMS[self.algorithm]
        try:
            key = self.certificate.public_key()
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(self.signature, self.signed_attributes, padding.PKCS1v15(), algorithm)
            elif isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(self.signature, self.signed_attributes, ec.ECDSA(algorithm))
            else:
                return False
        except (InvalidSignature, *UNREADABLE):
            return False
        return True

    def signer(self) -> Signer:
        """Who signed. Raises one of UNREADABLE for a damaged certificate."""
        certificate = self.certificate
        encoded = certificate.public_bytes(Encoding.DER)
        return Signer(
            subject=certificate.subject.rfc4514_string(),
            issuer=certificate.issuer.rfc4514_string(),
            certificate=encoded,
            certificates=self.certificates,
            thumbprint=hashlib.sha1(encoded, usedforsecurity=False).hexdigest().upper(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            self_signed=certificate.issuer == certificate.subject,
            code_signing=_allows_code_signing(certificate),
            description=self.description,
        )


def _attributes(attributes: der.Node) -> dict[str, der.Node]:
    found: dict[str, der.Node] = {}
    for attribute in attributes.children():
        kind, values = attribute.children()
        if kind.oid() in found:
            raise ValueError("an attribute occurs twice")
        found[kind.oid()] = values.expect(der.SET).children()[0]
    return found


def _signer_certificate(certificates: tuple[bytes, ...], issuer: bytes, serial: int) -> x509.Certificate:
    for encoded in certificates:
        certificate = x509.load_der_x509_certificate(encoded)
        if certificate.serial_number == serial and certificate.issuer.public_bytes() == issuer:
            return certificate
    raise ValueError("the signer's certificate is not enclosed")


def _description(opus: der.Node | None) -> str:
    for member in opus.children() if opus else ():
        if member.tag == der.context(0, constructed=True):
            (text,) = member.children()
            wide = text.tag == der.context(0, constructed=False)
            return text.contents.decode("utf-16-be" if wide else "ascii")
    return ""


def _allows_code_signing(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CODE_SIGNING in usages
