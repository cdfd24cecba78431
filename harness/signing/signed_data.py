"""Makes PKCS #7 SignedData as Windows' tools do: the same for an image's digest and for a catalog's list of hashes.

Deterministic: there is no signing time and PKCS #1 v1.5 has no randomness.
"""

from __future__ import annotations

from hashlib import sha256 as sha256_of

from harness.signing.identity import SigningIdentity
from vm.emulated.image import der
from vm.emulated.image.authenticode import SPC_STATEMENT_TYPE
from vm.emulated.image.signed_data import CONTENT_TYPE, MESSAGE_DIGEST, SIGNED_DATA, SPC_SP_OPUS_INFO

SHA256 = "2.16.840.1.101.3.4.2.1"
_RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
_INDIVIDUAL_CODE_SIGNING = "1.3.6.1.4.1.311.2.1.21"


def signed_data(
    content_type: str, content: bytes, identity: SigningIdentity, *, description: str = ""
) -> bytes:
    """ContentInfo with SignedData version 1 over `content`, with SHA-256.

    Args:
        content_type: object identifier of the content.
        content: the content in DER, with its tag and length.
        description: program name that Windows shows; empty for none.
    """
    sha256 = algorithm(SHA256)
    attributes = _signed_attributes(content_type, der.decode(content).contents, description)
    signer = der.sequence(
        der.encode_integer(1),
        der.sequence(identity.issuer_name, der.encode_integer(identity.serial_number)),
        sha256,
        der.encode_set_of(attributes, der.context(0, constructed=True)),
        algorithm(_RSA_ENCRYPTION),
        der.encode(der.OCTET_STRING, identity.sign_sha256(der.encode_set_of(attributes))),
    )
    signed = der.sequence(
        der.encode_integer(1),
        der.encode_set_of([sha256]),
        der.sequence(der.encode_oid(content_type), der.explicit(0, content)),
        der.explicit(0, identity.certificate_der),
        der.encode_set_of([signer]),
    )
    return der.sequence(der.encode_oid(SIGNED_DATA), der.explicit(0, signed))


def attribute(kind: str, *values: bytes) -> bytes:
    """An attribute: its object identifier and the SET OF its values."""
    return der.sequence(der.encode_oid(kind), der.encode_set_of(values))


def algorithm(identifier: str) -> bytes:
    """An AlgorithmIdentifier without parameters, which PKCS #7 writes as NULL."""
    return der.sequence(der.encode_oid(identifier), der.encode(der.NULL))


def _signed_attributes(content_type: str, content: bytes, description: str) -> list[bytes]:
    # The digest covers the content without its tag and length (PKCS #7, RFC 2315, 9.3).
    name = der.encode(der.context(0, constructed=False), description.encode("utf-16-be"))
    opus = der.sequence(der.explicit(0, name)) if description else der.sequence()
    return [
        attribute(CONTENT_TYPE, der.encode_oid(content_type)),
        attribute(SPC_STATEMENT_TYPE, der.sequence(der.encode_oid(_INDIVIDUAL_CODE_SIGNING))),
        attribute(SPC_SP_OPUS_INFO, opus),
        attribute(MESSAGE_DIGEST, der.encode(der.OCTET_STRING, sha256_of(content).digest())),
    ]
