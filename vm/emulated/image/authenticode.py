"""Authenticode signatures inside PE files: the digest of an image and the check of an embedded signature. Whether the
signer is trusted is not decided here: the certificate store and the clock belong to the machine that loads."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from vm.emulated.image import der
from vm.emulated.image.headers import Directory, Headers, read_headers
from vm.errors import PackageError

# Values of WIN_CERTIFICATE and object identifiers of "Windows Authenticode Portable Executable Signature Format".
WIN_CERT_REVISION_2_0 = 0x0200
WIN_CERT_TYPE_PKCS_SIGNED_DATA = 0x0002
SPC_INDIRECT_DATA = "1.3.6.1.4.1.311.2.1.4"
SPC_PE_IMAGE_DATA = "1.3.6.1.4.1.311.2.1.15"
SPC_SP_OPUS_INFO = "1.3.6.1.4.1.311.2.1.12"
SPC_STATEMENT_TYPE = "1.3.6.1.4.1.311.2.1.11"
SIGNED_DATA = "1.2.840.113549.1.7.2"
CONTENT_TYPE = "1.2.840.113549.1.9.3"
MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
HASH_NAMES = {
    "1.3.14.3.2.26": "sha1",
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
ALIGNMENT = 8

_WIN_CERTIFICATE = struct.Struct("<IHH")
_ALGORITHMS: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
# What reading a damaged certificate or PKCS #7 structure raises; cryptography's own classes derive from Exception.
_UNREADABLE = (
    ValueError,
    KeyError,
    IndexError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_SIGN_AGAIN = "sign the image again; a signed image must not be changed afterwards"


class SignatureError(PackageError):
    """The image carries no signature or one that does not hold; the message says which."""


@dataclass(frozen=True, slots=True)
class SignatureInfo:
    """An embedded signature that holds: the digest is that of the image and the signer's key signed it.

    Attributes:
        algorithm: name of the digest as hashlib knows it.
        digest: the Authenticode digest of the image.
        certificate: DER of the signer's certificate.
        certificates: DER of every certificate in the signature, the signer's included.
        thumbprint: SHA-1 of the signer's certificate in upper-case hexadecimal, as Windows shows it.
        self_signed: whether the certificate is its own issuer.
        code_signing: whether its extended key usage allows code signing.
        description: program name from SpcSpOpusInfo, empty when there is none.
    """

    algorithm: str
    digest: bytes
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
        SignatureError: no signature, not readable, digest differs, or not made by the enclosed certificate.
        PackageError: not a PE file.
    """
    headers = read_headers(data, name)
    length = unsigned_length(data, headers, name)
    if length == len(data):
        raise SignatureError(
            f"'{name}' is not signed.", hint="sign it; './inv build' does so with the test certificate"
        )
    blob = _first_signature(data[length:], name)
    try:
        signed = _SignedData.parse(blob)
    except _UNREADABLE as error:
        raise SignatureError(f"The signature of '{name}' is not readable.", hint=_SIGN_AGAIN) from error

    actual = _digest(data, headers, length, signed.algorithm)
    if not hmac.compare_digest(actual, signed.image_digest):
        raise SignatureError(
            f"'{name}' was changed after it was signed: its {signed.algorithm} digest is {actual.hex()}, the signature "
            f"is for {signed.image_digest.hex()}.",
            hint=_SIGN_AGAIN,
        )
    content_digest = hashlib.new(signed.signer_algorithm, signed.content).digest()
    if signed.content_type != SPC_INDIRECT_DATA or not hmac.compare_digest(
        content_digest, signed.message_digest
    ):
        raise SignatureError(
            f"The signed attributes of '{name}' do not belong to its digest.", hint=_SIGN_AGAIN
        )
    if not _made_by(signed):
        raise SignatureError(f"The signature of '{name}' was not made by its certificate.", hint=_SIGN_AGAIN)
    try:
        return _info(signed)
    except _UNREADABLE as error:
        raise SignatureError(f"The certificate in '{name}' is not readable.", hint=_SIGN_AGAIN) from error


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


@dataclass(frozen=True, slots=True)
class _SignedData:
    """What of the PKCS #7 SignedData matters."""

    algorithm: str
    image_digest: bytes
    content: bytes
    content_type: str
    message_digest: bytes
    signer_algorithm: str
    signed_attributes: bytes
    signature: bytes
    certificate: x509.Certificate
    certificates: tuple[bytes, ...]
    description: str

    @classmethod
    def parse(cls, blob: bytes) -> _SignedData:
        """Raises ValueError, KeyError or IndexError for whatever is not an Authenticode signature."""
        kind, wrapped = der.decode(blob).expect(der.SEQUENCE).children()
        if kind.oid() != SIGNED_DATA:
            raise ValueError("not SignedData")
        (signed,) = wrapped.expect(der.context(0, constructed=True)).children()
        _, _, content_info, *sets, signer_infos = signed.expect(der.SEQUENCE).children()
        content_type, wrapped_content = content_info.children()
        if content_type.oid() != SPC_INDIRECT_DATA:
            raise ValueError("not SpcIndirectDataContent")
        (content,) = wrapped_content.children()
        _, digest_info = content.expect(der.SEQUENCE).children()
        image_algorithm, image_digest = digest_info.children()

        (stored,) = [each for each in sets if each.tag == der.context(0, constructed=True)]
        certificates = tuple(each.encoded for each in stored.children())
        (signer,) = signer_infos.expect(der.SET).children()
        _, identity, signer_algorithm, attributes, _, signature, *_ = signer.children()
        values = _attributes(attributes.expect(der.context(0, constructed=True)))
        issuer, serial = identity.children()
        return cls(
            algorithm=HASH_NAMES[image_algorithm.children()[0].oid()],
            image_digest=image_digest.expect(der.OCTET_STRING).contents,
            content=content.contents,
            content_type=values[CONTENT_TYPE].oid(),
            message_digest=values[MESSAGE_DIGEST].expect(der.OCTET_STRING).contents,
            signer_algorithm=HASH_NAMES[signer_algorithm.children()[0].oid()],
            # Stored as [0] IMPLICIT, signed as the SET OF that it is (RFC 2315, 9.3).
            signed_attributes=bytes((der.SET,)) + attributes.encoded[1:],
            signature=signature.expect(der.OCTET_STRING).contents,
            certificate=_signer_certificate(certificates, issuer.encoded, serial.integer()),
            certificates=certificates,
            description=_description(values.get(SPC_SP_OPUS_INFO)),
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


def _made_by(signed: _SignedData) -> bool:
    algorithm = _ALGORITHMS[signed.signer_algorithm]
    try:
        key = signed.certificate.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signed.signature, signed.signed_attributes, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signed.signature, signed.signed_attributes, ec.ECDSA(algorithm))
        else:
            return False
    except (InvalidSignature, *_UNREADABLE):
        return False
    return True


def _info(signed: _SignedData) -> SignatureInfo:
    certificate = signed.certificate
    encoded = certificate.public_bytes(Encoding.DER)
    return SignatureInfo(
        algorithm=signed.algorithm,
        digest=signed.image_digest,
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        certificate=encoded,
        certificates=signed.certificates,
        thumbprint=hashlib.sha1(encoded, usedforsecurity=False).hexdigest().upper(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        self_signed=certificate.issuer == certificate.subject,
        code_signing=_allows_code_signing(certificate),
        description=signed.description,
    )


def _allows_code_signing(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CODE_SIGNING in usages
