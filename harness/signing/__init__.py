"""Test signing in pure Python: the certificate of this checkout, and images and catalogs signed with it."""

from harness.signing.catalog import make_catalog
from harness.signing.identity import SigningIdentity, load_or_create_identity
from harness.signing.signer import image_is_signed, sign_image, strip_signature
from vm.emulated.image.authenticode import SignatureError, SignatureInfo, authenticode_digest, verify_embedded

__all__ = [
    "SignatureError",
    "SignatureInfo",
    "SigningIdentity",
    "authenticode_digest",
    "image_is_signed",
    "load_or_create_identity",
    "make_catalog",
    "sign_image",
    "strip_signature",
    "verify_embedded",
]
