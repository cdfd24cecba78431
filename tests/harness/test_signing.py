"""Authenticode signatures: made here, checked by this project and by verifiers that are not its own."""

from __future__ import annotations

import io
import re
import shutil
import struct
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from harness.signing import (
    SignatureError,
    SigningIdentity,
    authenticode_digest,
    image_is_signed,
    load_or_create_identity,
    sign_image,
    strip_signature,
    verify_embedded,
)
from vm.emulated.image import der
from vm.emulated.image.checksum import pe_checksum
from vm.emulated.image.headers import read_headers
from vm.errors import PackageError

OSSLSIGNCODE = shutil.which("osslsigncode")
needs_osslsigncode = pytest.mark.skipif(
    OSSLSIGNCODE is None, reason="osslsigncode is not installed on this host"
)


def made_image(code_bytes: int = 1003, machine: int = 0x8664) -> bytes:
    """A small native PE32+ image with one section; its length is not a multiple of eight on purpose."""
    raw = bytes(range(256)) * (code_bytes // 256) + bytes(code_bytes % 256)
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    file_header = struct.pack("<HHIIIHH", machine, 1, 0x66000000, 0, 0, 240, 0x22)
    optional = struct.pack("<HBBIIIII", 0x20B, 14, 0, len(raw), 0, 0, 0x1000, 0x1000)
    optional += struct.pack(
        "<QIIHHHHHHIIII", 0x140000000, 0x1000, 0x200, 10, 0, 0, 0, 10, 0, 0, 0x3000, 0x200, 0
    )
    optional += struct.pack("<HHQQQQII", 1, 0x1E0, 0x100000, 0x1000, 0x100000, 0x1000, 0, 16) + bytes(128)
    section = struct.pack("<8sIIIIIIHHI", b".text", len(raw), 0x1000, len(raw), 0x200, 0, 0, 0, 0, 0x60000020)
    return (dos + b"PE\0\0" + file_header + optional + section).ljust(0x200, b"\0") + raw


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> SigningIdentity:
    return load_or_create_identity(tmp_path_factory.mktemp("signing"))


@pytest.fixture(scope="module")
def signify() -> Any:
    """The package signify. Its dependency oscrypto 1.3.0 does not recognise the version of an OpenSSL whose last
    number has two digits (wbond/oscrypto#78), so its pattern is mended while it is imported."""
    search = re.search

    def search_versions(pattern: Any, text: Any, flags: int = 0) -> Any:
        mended = pattern.replace(r"\d\.\d\.\d[", r"\d+\.\d+\.\d+[") if isinstance(pattern, str) else pattern
        return search(mended, text, flags)

    with mock.patch.object(re, "search", search_versions):
        import oscrypto.errors

        try:
            import signify.authenticode
            import signify.x509
        except oscrypto.errors.LibraryNotFoundError:
            pytest.skip("signify needs the shared library of OpenSSL, which this host does not have")
    return signify


@pytest.fixture
def signed(identity: SigningIdentity) -> bytes:
    return sign_image(made_image(), identity, description="Downlink")


def test_a_signed_image_says_who_signed_it(signed: bytes, identity: SigningIdentity):
    info = verify_embedded(signed)
    assert info.subject == f"CN={identity.subject}" == info.issuer
    assert info.certificate == identity.certificate_der and info.certificates == (identity.certificate_der,)
    assert info.thumbprint == identity.thumbprint
    assert info.self_signed and info.code_signing
    assert info.description == "Downlink"
    assert info.valid_at(datetime.now(UTC)) and not info.valid_at(datetime.now(UTC) + timedelta(days=365 * 6))


def test_signing_adds_nothing_but_the_signature(signed: bytes):
    plain = made_image()
    headers = read_headers(plain, "x")
    offset, size = read_headers(signed, "x").directories[4]
    assert offset % 8 == 0 and size % 8 == 0 and offset + size == len(signed)
    restored = bytearray(signed[: len(plain)])
    restored[headers.checksum_offset : headers.checksum_offset + 4] = bytes(4)
    restored[headers.security_directory_offset : headers.security_directory_offset + 8] = bytes(8)
    assert bytes(restored) == plain
    assert signed[len(plain) : offset] == bytes(offset - len(plain))


def test_the_checksum_is_right_after_signing(signed: bytes):
    headers = read_headers(signed, "x")
    assert headers.checksum == pe_checksum(signed, headers.checksum_offset) != 0


def test_the_digest_is_the_same_before_and_after_signing(signed: bytes):
    for algorithm in ("sha1", "sha256", "sha384"):
        assert authenticode_digest(made_image(), algorithm) == authenticode_digest(signed, algorithm)
    assert authenticode_digest(signed) == verify_embedded(signed).digest


def test_signing_again_gives_the_same_bytes_and_a_second_signature_replaces_the_first(
    signed: bytes, identity: SigningIdentity, tmp_path: Path
):
    assert sign_image(made_image(), identity, description="Downlink") == signed
    assert sign_image(signed, identity, description="Downlink") == signed
    other = load_or_create_identity(tmp_path)
    replaced = sign_image(signed, other)
    assert verify_embedded(replaced).thumbprint == other.thumbprint != identity.thumbprint
    assert verify_embedded(replaced).certificates == (other.certificate_der,)


def test_stripping_gives_the_image_without_a_signature(signed: bytes):
    stripped = strip_signature(signed)
    assert image_is_signed(signed) and not image_is_signed(stripped)
    assert authenticode_digest(stripped) == authenticode_digest(signed)
    assert strip_signature(stripped) is stripped


def test_an_arm64_image_is_signed_too(identity: SigningIdentity):
    assert verify_embedded(sign_image(made_image(machine=0xAA64), identity)).self_signed


def test_every_byte_that_the_signature_covers_is_protected(signed: bytes):
    headers = read_headers(signed, "x")
    offset, _ = headers.directories[4]
    free = set(range(headers.checksum_offset, headers.checksum_offset + 4))
    free |= set(range(headers.security_directory_offset, headers.security_directory_offset + 8))
    for position in (*range(64, 0x200, 3), *range(0x200, offset, 97), offset - 1):
        changed = bytearray(signed)
        changed[position] ^= 0x40
        if position in free:
            continue
        with pytest.raises(PackageError):
            verify_embedded(bytes(changed))


def test_a_changed_byte_of_code_is_reported_with_both_digests(signed: bytes):
    changed = bytearray(signed)
    changed[0x300] ^= 1
    with pytest.raises(SignatureError, match="was changed after it was signed") as refusal:
        verify_embedded(bytes(changed), "downlink.sys")
    assert verify_embedded(signed).digest.hex() in refusal.value.message
    assert "downlink.sys" in refusal.value.message and refusal.value.hint


def test_a_changed_byte_anywhere_in_the_signature_is_found(signed: bytes, identity: SigningIdentity):
    offset, _ = read_headers(signed, "x").directories[4]
    end = offset + 8 + len(der.decode(signed[offset + 8 :]).encoded)
    unprotected = 0
    for position in range(offset + 8, end):
        changed = bytearray(signed)
        changed[position] ^= 0x01
        try:
            info = verify_embedded(bytes(changed))
        except SignatureError:
            continue
        # Only what PKCS #7 itself leaves open: version numbers, the algorithm list, a certificate's own signature.
        assert info.digest == verify_embedded(signed).digest
        assert x509.load_der_x509_certificate(info.certificate).public_key() == (
            x509.load_der_x509_certificate(identity.certificate_der).public_key()
        )
        unprotected += 1
    assert unprotected < (end - offset) // 2


def test_a_digest_signed_for_another_image_is_found(identity: SigningIdentity):
    one, other = sign_image(made_image(), identity), made_image(1256)
    table = one[read_headers(one, "x").directories[4][0] :]
    padded = bytearray(other + bytes(-len(other) % 8))
    headers = read_headers(other, "x")
    struct.pack_into("<II", padded, headers.security_directory_offset, len(padded), len(table))
    with pytest.raises(SignatureError, match="was changed after it was signed"):
        verify_embedded(bytes(padded) + table)


def test_a_digest_replaced_to_fit_a_changed_image_is_found(signed: bytes):
    changed = bytearray(signed)
    changed[0x300] ^= 1
    forged = bytes(changed).replace(authenticode_digest(signed), authenticode_digest(bytes(changed)), 1)
    with pytest.raises(SignatureError, match="signed attributes"):
        verify_embedded(forged)


def test_bytes_behind_the_signature_are_refused(signed: bytes):
    with pytest.raises(SignatureError, match="8 bytes behind its certificate table"):
        verify_embedded(signed + b"appended")


def test_an_unsigned_image_is_called_unsigned():
    with pytest.raises(SignatureError, match=r"'x\.sys' is not signed"):
        verify_embedded(made_image(), "x.sys")


@pytest.mark.parametrize("cut", [1, 8, 500])
def test_a_cut_off_signature_is_refused(signed: bytes, cut: int):
    with pytest.raises(SignatureError, match="cut off or misplaced"):
        verify_embedded(signed[:-cut])


def test_what_is_no_image_cannot_be_signed(identity: SigningIdentity):
    with pytest.raises(PackageError, match=r"'notes\.txt' is not a PE image"):
        sign_image(b"hello", identity, name="notes.txt")


def test_signify_accepts_the_signature(signify: Any, signed: bytes, identity: SigningIdentity):
    assert _signify(signify, signed, identity) == "OK"


def test_signify_rejects_a_changed_byte_of_code(signify: Any, signed: bytes, identity: SigningIdentity):
    changed = bytearray(signed)
    changed[0x300] ^= 1
    assert _signify(signify, bytes(changed), identity) == "INVALID_DIGEST"


def test_signify_rejects_a_signer_it_does_not_trust(signify: Any, signed: bytes, tmp_path: Path):
    assert _signify(signify, signed, load_or_create_identity(tmp_path)) == "CERTIFICATE_ERROR"


@needs_osslsigncode
def test_osslsigncode_accepts_the_signature(signed: bytes, identity: SigningIdentity, tmp_path: Path):
    result = _osslsigncode(signed, identity, tmp_path)
    assert result.returncode == 0, result.stdout
    assert "Signature verification: ok" in result.stdout
    assert "Text description: Downlink" in result.stdout
    assert "MISMATCH" not in result.stdout  # the checksum


@needs_osslsigncode
def test_osslsigncode_rejects_a_changed_byte_of_code(
    signed: bytes, identity: SigningIdentity, tmp_path: Path
):
    changed = bytearray(signed)
    changed[0x300] ^= 1
    result = _osslsigncode(bytes(changed), identity, tmp_path)
    assert result.returncode != 0
    assert "MISMATCH" in result.stdout


@needs_osslsigncode
@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384"])
def test_what_osslsigncode_signed_is_accepted(tmp_path: Path, algorithm: str):
    key, certificate = _foreign_certificate()
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "in.sys").write_bytes(made_image())
    _run(tmp_path, "sign", "-h", algorithm, "-ph", "-certs", "cert.pem", "-key", "key.pem", "-n", "Foreign",
         "-in", "in.sys", "-out", "out.sys")  # fmt: skip
    info = verify_embedded((tmp_path / "out.sys").read_bytes())
    assert (info.algorithm, info.description, info.subject) == (algorithm, "Foreign", "CN=Foreign Signer")
    assert info.digest == authenticode_digest(made_image(), algorithm)


def test_the_structure_is_what_the_authenticode_paper_says(signed: bytes, identity: SigningIdentity):
    offset, size = read_headers(signed, "x").directories[4]
    length, revision, kind = struct.unpack_from("<IHH", signed, offset)
    assert (length, revision, kind) == (size, 0x0200, 0x0002)
    content = cms.ContentInfo.load(signed[offset + 8 : offset + length].rstrip(b"\0"))["content"]
    assert content["version"].native == "v1"
    (signer,) = content["signer_infos"]
    assert signer["signature_algorithm"]["algorithm"].native == "rsassa_pkcs1v15"
    types = [attribute["type"].dotted for attribute in signer["signed_attrs"]]
    assert sorted(types) == sorted(
        ["1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4", "1.3.6.1.4.1.311.2.1.11", "1.3.6.1.4.1.311.2.1.12"]
    )
    encoded = [attribute.dump() for attribute in signer["signed_attrs"]]
    assert encoded == sorted(encoded)
    assert not signer["unsigned_attrs"]


def _signify(signify: Any, image: bytes, trusted: SigningIdentity) -> str:
    store = signify.x509.CertificateStore(
        [signify.x509.Certificate.from_der(trusted.certificate_der)], trusted=True
    )
    result, _ = signify.authenticode.AuthenticodeFile.from_stream(io.BytesIO(image)).explain_verify(
        trusted_certificate_store=store
    )
    return str(result.name)


def _osslsigncode(
    image: bytes, identity: SigningIdentity, directory: Path
) -> subprocess.CompletedProcess[str]:
    certificate = x509.load_der_x509_certificate(identity.certificate_der)
    (directory / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "image.sys").write_bytes(image)
    return _run(directory, "verify", "-CAfile", "ca.pem", "-in", "image.sys", check=False)


def _run(directory: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    assert OSSLSIGNCODE is not None
    return subprocess.run(
        [OSSLSIGNCODE, *arguments], cwd=directory, check=check, capture_output=True, text=True, timeout=60
    )


def _foreign_certificate() -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Foreign Signer")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=9))
        .sign(key, hashes.SHA256())
    )
    return key, certificate
