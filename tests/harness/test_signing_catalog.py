"""Catalogs: made here, read and checked by this project and by verifiers that are not its own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import pytest
from asn1crypto import algos, cms, core
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from harness.signing import SigningIdentity, load_or_create_identity, make_catalog, sign_image
from harness.signing.signed_data import algorithm, signed_data
from tests.harness.test_signing import (
    _run,
    identity,
    made_image,
    needs_osslsigncode,
    signify,
)
from vm.emulated.image import der
from vm.emulated.image.authenticode import authenticode_digest, verify_embedded
from vm.emulated.image.catalog import (
    CATALOG_LIST,
    CATALOG_MEMBER_1,
    CATALOG_MEMBER_2,
    CERTIFICATE_TRUST_LIST,
    CatalogError,
    read_catalog,
    verify_catalog,
)
from vm.emulated.image.page_hashes import PAGE_HASHES_2, page_hashes
from vm.emulated.image.signed_data import SignatureError
from vm.errors import PackageError

__all__ = ["identity", "signify"]

INF = b'[Version]\r\nSignature = "$Windows NT$"\r\n'


@pytest.fixture(scope="module")
def image(identity: SigningIdentity) -> bytes:
    return sign_image(made_image(), identity)


@pytest.fixture(scope="module")
def catalog(identity: SigningIdentity, image: bytes) -> bytes:
    return make_catalog({"Sample.sys": image, "sample.inf": INF}, identity)


class AnySet(core.SetOf):  # type: ignore[misc]
    _child_spec = core.Any


class AnySequence(core.SequenceOf):  # type: ignore[misc]
    _child_spec = core.Any


class Usage(core.SequenceOf):  # type: ignore[misc]
    _child_spec = core.ObjectIdentifier


class TrustedSubject(core.Sequence):  # type: ignore[misc]
    _fields: ClassVar = [("tag", core.OctetString), ("attributes", AnySet)]


class TrustedSubjects(core.SequenceOf):  # type: ignore[misc]
    _child_spec = TrustedSubject


class TrustList(core.Sequence):  # type: ignore[misc]
    """CertificateTrustList of the documentation of WinCrypt, as far as catalogs use it."""

    _fields: ClassVar = [
        ("usage", Usage),
        ("identifier", core.OctetString),
        ("effective", core.UTCTime),
        ("algorithm", algos.DigestAlgorithm),
        ("members", TrustedSubjects),
        ("extensions", AnySequence, {"explicit": 0}),
    ]


def unsigned(catalog: bytes) -> bytes:
    """The catalog as Inf2Cat leaves it: the same list, no certificate and no signer."""
    content = cms.ContentInfo.load(catalog)["content"]["encap_content_info"].dump()
    version = der.encode_integer(1)
    signed = der.sequence(version, der.encode(der.SET), content, der.encode(der.SET))
    return der.sequence(der.encode_oid("1.2.840.113549.1.7.2"), der.explicit(0, signed))


def test_a_catalog_vouches_for_the_image_by_its_authenticode_digest_and_for_the_inf_by_its_bytes(
    catalog: bytes, image: bytes
):
    found = verify_catalog(catalog)

    assert found.version == 2
    assert {member.file: member.image for member in found.members} == {
        "sample.sys": True,
        "sample.inf": False,
    }
    assert all(member.tag == member.digest and member.algorithm == "sha256" for member in found.members)
    assert {member.values["OSAttr"] for member in found.members} == {"2:10.0"}
    assert found.values == {"OS": "_v100_X64,Server_v100_X64"}
    for data, name in ((image, "sample.sys"), (made_image(), "sample.sys"), (INF, "sample.inf")):
        member = found.member_for(data, name)
        assert member is not None and member.file == name
    assert found.member_for(INF + b" ", "sample.inf") is None
    assert found.member_for(made_image(1004), "sample.sys") is None


def test_a_catalog_says_who_signed_it_and_is_in_effect_as_long_as_the_certificate(
    catalog: bytes, identity: SigningIdentity
):
    found = verify_catalog(catalog)

    assert found.signer is not None and found.signer.thumbprint == identity.thumbprint
    assert found.signer.code_signing and found.signer.self_signed
    assert found.effective == identity.not_before


def test_the_same_files_and_certificate_give_the_same_bytes_in_any_order(
    catalog: bytes, image: bytes, identity: SigningIdentity, tmp_path: Path
):
    assert make_catalog({"sample.inf": INF, "Sample.sys": image}, identity) == catalog
    assert make_catalog({"sample.inf": INF, "Sample.sys": image}, identity, "arm64") != catalog
    other = load_or_create_identity(tmp_path)
    assert make_catalog({"sample.inf": INF, "Sample.sys": image}, other) != catalog


def test_the_members_stand_in_the_order_of_their_hashes(identity: SigningIdentity):
    files = {f"{number}.inf": f"; {number}".encode() for number in range(12)}

    tags = [member.tag for member in verify_catalog(make_catalog(files, identity)).members]

    assert tags == sorted(tags) and len(tags) == 12


def test_nothing_and_twins_cannot_be_vouched_for(identity: SigningIdentity):
    with pytest.raises(PackageError, match="no files"):
        make_catalog({}, identity)
    with pytest.raises(PackageError, match="same content"):
        make_catalog({"a.inf": INF, "b.inf": INF}, identity)
    with pytest.raises(PackageError):
        make_catalog({"a.sys": b"MZ and nothing else"}, identity)


def test_an_unsigned_catalog_can_be_read_and_is_called_unsigned(catalog: bytes):
    bare = unsigned(catalog)

    assert read_catalog(bare).members == read_catalog(catalog).members
    with pytest.raises(SignatureError, match=r"'x\.cat' is not signed"):
        verify_catalog(bare, "x.cat")


def test_a_changed_byte_anywhere_is_found(catalog: bytes, identity: SigningIdentity):
    good = verify_catalog(catalog)
    accepted = []
    for position in range(len(catalog)):
        changed = bytearray(catalog)
        changed[position] ^= 0x01
        try:
            found = verify_catalog(bytes(changed))
        except PackageError:
            continue
        # Only what no signature of PKCS #7 covers may differ: the list of digest algorithms, a version, the
        # algorithm that says how the signature is made, and the certificate, which is trusted by its own hash.
        assert found.signer is not None
        assert found.members == good.members and found.identifier == good.identifier
        if found.signer.thumbprint == identity.thumbprint:
            accepted.append(position)
    assert len(accepted) < 60


@pytest.mark.parametrize("cut", [1, 2, 100, 700])
def test_a_catalog_that_is_cut_off_is_refused(catalog: bytes, cut: int):
    with pytest.raises(CatalogError, match=r"'x\.cat' is no catalog"):
        verify_catalog(catalog[:-cut], "x.cat")


def test_every_beginning_of_a_catalog_is_refused(catalog: bytes):
    for length in range(0, len(catalog), 7):
        with pytest.raises(CatalogError):
            verify_catalog(catalog[:length])


def test_bytes_behind_a_catalog_are_refused(catalog: bytes):
    with pytest.raises(CatalogError, match="1 bytes behind"):
        verify_catalog(catalog + b"\0")


def test_a_catalog_whose_hashes_were_exchanged_is_not_the_one_that_was_signed(catalog: bytes, image: bytes):
    old, new = authenticode_digest(image), authenticode_digest(made_image(1005))
    with pytest.raises(SignatureError, match="changed after it was signed"):
        verify_catalog(catalog.replace(old, new))


def test_a_tag_that_is_not_the_digest_is_no_member_of_version_2(catalog: bytes, image: bytes):
    old = der.encode(der.OCTET_STRING, authenticode_digest(image))
    with pytest.raises(CatalogError, match="tag of a member is not its digest"):
        read_catalog(catalog.replace(old, der.encode(der.OCTET_STRING, bytes(32)), 1))


def test_a_signature_over_something_else_is_no_catalog(image: bytes, identity: SigningIdentity):
    with pytest.raises(CatalogError, match="list is not one of a catalog"):
        read_catalog(_trust_list(identity, usage="1.3.6.1.4.1.311.10.3.30"))
    with pytest.raises(CatalogError, match="members are of the type"):
        read_catalog(_trust_list(identity, kind="1.3.14.3.2.26"))
    with pytest.raises(CatalogError, match="too many in its list"):
        read_catalog(_trust_list(identity, more=der.encode(der.NULL)))
    other = signed_data("1.2.840.113549.1.7.1", der.encode(der.OCTET_STRING, b"x"), identity)
    with pytest.raises(CatalogError, match="content is of the type"):
        read_catalog(other)


def test_a_catalog_of_version_1_is_read_too(identity: SigningIdentity):
    assert read_catalog(_trust_list(identity, kind=CATALOG_MEMBER_1)).version == 1


def test_signify_finds_both_files_in_the_catalog_and_accepts_its_signature(
    signify: Any, catalog: bytes, image: bytes, identity: SigningIdentity
):
    assert _signify(signify, image, catalog, identity) == "OK"
    assert _signify(signify, INF, catalog, identity) == "OK"


def test_signify_misses_what_was_changed_after_the_catalog_was_made(
    signify: Any, catalog: bytes, identity: SigningIdentity
):
    assert _signify(signify, INF + b"; changed", catalog, identity) == "NOT_SIGNED"
    assert _signify(signify, made_image(1010), catalog, identity) == "NOT_SIGNED"


def test_signify_rejects_a_catalog_that_was_changed_or_whose_signer_it_does_not_trust(
    signify: Any, catalog: bytes, identity: SigningIdentity, tmp_path: Path
):
    changed = catalog.replace("2:10.0".encode("utf-16-le"), "2:11.0".encode("utf-16-le"))
    assert changed != catalog
    assert _signify(signify, INF, changed, identity) == "INVALID_DIGEST"
    assert _signify(signify, INF, catalog, load_or_create_identity(tmp_path)) == "CERTIFICATE_ERROR"


@needs_osslsigncode
@pytest.mark.parametrize("signed", [False, True])
def test_osslsigncode_finds_the_image_in_the_catalog(
    catalog: bytes, image: bytes, identity: SigningIdentity, tmp_path: Path, signed: bool
):
    result = _osslsigncode(catalog, image if signed else made_image(), identity, tmp_path)

    assert result.returncode == 0, result.stdout
    assert "Signature verification: ok" in result.stdout
    assert "File is signed in catalog" in result.stdout


@needs_osslsigncode
def test_osslsigncode_misses_a_changed_image_and_rejects_a_changed_catalog(
    catalog: bytes, identity: SigningIdentity, tmp_path: Path
):
    assert _osslsigncode(catalog, made_image(1009), identity, tmp_path).returncode != 0
    changed = catalog.replace("_v100".encode("utf-16-le"), "_v101".encode("utf-16-le"))
    assert changed != catalog
    assert _osslsigncode(changed, made_image(), identity, tmp_path).returncode != 0


@needs_osslsigncode
def test_a_catalog_signed_by_osslsigncode_is_accepted(
    catalog: bytes, identity: SigningIdentity, tmp_path: Path
):
    pem = serialization.Encoding.PEM
    key = identity._key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(key)
    certificate = x509.load_der_x509_certificate(identity.certificate_der)
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "bare.cat").write_bytes(unsigned(catalog))
    _run(
        tmp_path,
        *("sign", "-h", "sha256", "-certs", "cert.pem", "-key", "key.pem"),
        *("-in", "bare.cat", "-out", "signed.cat"),
    )

    found = verify_catalog((tmp_path / "signed.cat").read_bytes())

    assert found.signer is not None and found.signer.thumbprint == identity.thumbprint
    assert found.members == read_catalog(catalog).members


def test_the_structure_is_that_of_a_certificate_trust_list(catalog: bytes, identity: SigningIdentity):
    info = cms.ContentInfo.load(catalog, strict=True)
    signed = info["content"]
    assert info["content_type"].native == "signed_data" and signed["version"].native == "v1"
    assert signed["encap_content_info"]["content_type"].dotted == CERTIFICATE_TRUST_LIST
    assert [each.chosen.dump() for each in signed["certificates"]] == [identity.certificate_der]
    (encoded_list,) = der.decode(signed["encap_content_info"].dump()).children()[1].children()
    trust_list = TrustList.load(encoded_list.encoded, strict=True)
    assert trust_list["usage"].native == [CATALOG_LIST]
    assert len(trust_list["identifier"].native) == 16
    assert trust_list["effective"].native == identity.not_before
    assert trust_list["algorithm"]["algorithm"].dotted == CATALOG_MEMBER_2
    assert len(trust_list["members"]) == 2 and len(trust_list["extensions"]) == 1
    for member in trust_list["members"]:
        encoded = [attribute.dump() for attribute in member["attributes"]]
        assert encoded == sorted(encoded) and len(encoded) == 4


def _trust_list(
    identity: SigningIdentity, *, usage: str = CATALOG_LIST, kind: str = CATALOG_MEMBER_2, more: bytes = b""
) -> bytes:
    content = der.sequence(
        der.sequence(der.encode_oid(usage)),
        der.encode(der.OCTET_STRING, bytes(16)),
        der.encode(der.UTC_TIME, b"260101000000Z"),
        algorithm(kind),
        more,
    )
    return signed_data(CERTIFICATE_TRUST_LIST, content, identity)


def _signify(signify: Any, data: bytes, catalog: bytes, trusted: SigningIdentity) -> str:
    from signify.authenticode.signed_file.flat import FlatFile

    store = signify.x509.CertificateStore(
        [signify.x509.Certificate.from_der(trusted.certificate_der)], trusted=True
    )
    stream = io.BytesIO(data)
    file = (
        signify.authenticode.AuthenticodeFile.from_stream(stream) if data[:2] == b"MZ" else FlatFile(stream)
    )
    file.add_catalog(io.BytesIO(catalog), check=True)
    result, _ = file.explain_verify(trusted_certificate_store=store, signature_types="catalog")
    return str(result.name)


def _osslsigncode(catalog: bytes, image: bytes, identity: SigningIdentity, directory: Path) -> Any:
    certificate = x509.load_der_x509_certificate(identity.certificate_der)
    (directory / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "x.sys").write_bytes(image)
    (directory / "x.cat").write_bytes(catalog)
    return _run(directory, "verify", "-catalog", "x.cat", "-CAfile", "ca.pem", "-in", "x.sys", check=False)


def hashes_in(signature: bytes) -> bytes:
    """The page hashes that a signature or a catalog encloses."""
    marker = der.encode_oid(PAGE_HASHES_2)
    at = signature.index(marker) + len(marker)
    (hashes,) = der.decode(signature[at:]).expect(der.SET).children()
    return hashes.expect(der.OCTET_STRING).contents


@needs_osslsigncode
@pytest.mark.parametrize("size", [1, 1003, 4096, 4097, 20000])
def test_page_hashes_are_those_that_osslsigncode_makes(identity: SigningIdentity, tmp_path: Path, size: int):
    pem = serialization.Encoding.PEM
    key = identity._key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(key)
    certificate = x509.load_der_x509_certificate(identity.certificate_der)
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "x.sys").write_bytes(made_image(size))
    _run(
        tmp_path,
        *("sign", "-h", "sha256", "-ph", "-certs", "cert.pem", "-key", "key.pem"),
        *("-in", "x.sys", "-out", "theirs.sys"),
    )
    theirs = (tmp_path / "theirs.sys").read_bytes()
    ours = sign_image(made_image(size), identity, hash_pages=True)

    assert hashes_in(ours) == hashes_in(theirs) == page_hashes(made_image(size)) == page_hashes(ours)
    assert verify_embedded(ours).thumbprint == verify_embedded(theirs).thumbprint == identity.thumbprint


@needs_osslsigncode
def test_osslsigncode_accepts_page_hashes_in_a_signature_and_in_a_catalog(
    identity: SigningIdentity, tmp_path: Path
):
    image = sign_image(made_image(9000), identity, hash_pages=True)
    catalog = make_catalog({"x.sys": image, "x.inf": INF}, identity, hash_pages=True)

    assert hashes_in(catalog) == page_hashes(image)
    assert verify_catalog(catalog).member_for(image, "x.sys") is not None
    result = _osslsigncode(catalog, image, identity, tmp_path)
    assert result.returncode == 0, result.stdout
    embedded = _run(tmp_path, "verify", "-CAfile", "ca.pem", "-in", "x.sys", check=False)
    assert embedded.returncode == 0 and "Page hash" in embedded.stdout and "MISMATCH" not in embedded.stdout


def test_signify_accepts_page_hashes(signify: Any, identity: SigningIdentity):
    image = sign_image(made_image(9000), identity, hash_pages=True)
    catalog = make_catalog({"x.sys": image, "x.inf": INF}, identity, hash_pages=True)

    assert _signify(signify, image, catalog, identity) == "OK"


def test_page_hashes_are_left_out_unless_they_are_asked_for(
    catalog: bytes, image: bytes, identity: SigningIdentity
):
    assert der.encode_oid(PAGE_HASHES_2) not in catalog + image
