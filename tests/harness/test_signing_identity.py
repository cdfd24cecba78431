"""The test certificate of a checkout: made once, kept private, renewed in time."""

from __future__ import annotations

import logging
import os
import pickle
import stat
import subprocess
import sys
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

import harness.signing.identity as identity_module
from harness.signing import SigningIdentity, load_or_create_identity
from vm.errors import ConfigurationError

posix_only = pytest.mark.skipif(os.name != "posix", reason="file modes exist on POSIX hosts only")


def test_the_second_call_gives_the_same_identity(tmp_path: Path):
    assert load_or_create_identity(tmp_path / "signing") == load_or_create_identity(tmp_path / "signing")


def test_two_checkouts_have_different_subjects_and_keys(tmp_path: Path):
    one, other = load_or_create_identity(tmp_path / "a"), load_or_create_identity(tmp_path / "b")
    assert one.subject != other.subject and one.subject.startswith("Downlink Test ")
    assert one.sign_sha256(b"x") != other.sign_sha256(b"x")


def test_the_certificate_is_for_code_signing_and_lasts_five_years(tmp_path: Path):
    certificate = x509.load_der_x509_certificate(load_or_create_identity(tmp_path).certificate_der)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CODE_SIGNING]
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert certificate.signature_hash_algorithm is not None
    assert certificate.signature_hash_algorithm.name == "sha256"
    assert certificate.issuer == certificate.subject
    certificate.verify_directly_issued_by(certificate)
    now = datetime.now(UTC)
    assert certificate.not_valid_before_utc <= now - timedelta(hours=23)
    assert now + timedelta(days=5 * 365) < certificate.not_valid_after_utc < now + timedelta(days=5 * 365 + 3)


@posix_only
def test_only_the_owner_can_read_the_key_whatever_the_umask_is(tmp_path: Path):
    before = os.umask(0)
    try:
        load_or_create_identity(tmp_path / "signing")
    finally:
        os.umask(before)
    (file,) = (tmp_path / "signing").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@posix_only
def test_a_key_that_others_can_read_is_refused(tmp_path: Path):
    load_or_create_identity(tmp_path)
    (tmp_path / "identity.pem").chmod(0o644)
    with pytest.raises(ConfigurationError, match="read by other users") as refusal:
        load_or_create_identity(tmp_path)
    assert "chmod 600" in (refusal.value.hint or "")


def test_processes_that_start_together_agree_on_one_identity(tmp_path: Path):
    program = (
        "import sys, pathlib; from harness.signing import load_or_create_identity;"
        "print(load_or_create_identity(pathlib.Path(sys.argv[1])).thumbprint)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    thumbprints = {process.communicate(timeout=60)[0] for process in processes}
    assert len(thumbprints) == 1 and all(len(each.strip()) == 40 for each in thumbprints)
    assert [each.name for each in (tmp_path / "s").iterdir()] == ["identity.pem"]


def test_the_identity_that_came_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make = identity_module._new_pem
    rivals: list[SigningIdentity] = []

    def make_slowly(moment: datetime) -> bytes:
        monkeypatch.setattr(identity_module, "_new_pem", make)
        rivals.append(load_or_create_identity(tmp_path))  # another process, meanwhile
        return make(moment)

    monkeypatch.setattr(identity_module, "_new_pem", make_slowly)
    assert load_or_create_identity(tmp_path) == rivals[0]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def link(source: Path, target: Path) -> None:
        raise PermissionError("operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert load_or_create_identity(tmp_path) == load_or_create_identity(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["identity.pem"]


def test_nothing_of_the_key_is_in_its_repr_and_it_cannot_be_pickled(tmp_path: Path):
    identity = load_or_create_identity(tmp_path)
    assert "key" not in repr(identity).lower() and identity.subject in repr(identity)
    with pytest.raises(TypeError, match="not serialised"):
        pickle.dumps(identity)


@pytest.mark.parametrize("damage", ["empty", "no certificate", "no key", "garbled key", "other key"])
def test_a_damaged_file_is_refused_without_showing_the_key(tmp_path: Path, damage: str):
    load_or_create_identity(tmp_path)
    path = tmp_path / "identity.pem"
    text = path.read_text()
    certificate, key = text[: text.index("-----BEGIN PRIVATE")], text[text.index("-----BEGIN PRIVATE") :]
    load_or_create_identity(tmp_path / "other")
    other = (tmp_path / "other" / "identity.pem").read_text()
    path.write_text(
        {
            "empty": "",
            "no certificate": key,
            "no key": certificate,
            "garbled key": certificate + key.replace("MII", "XXX"),
            "other key": certificate + other[other.index("-----BEGIN PRIVATE") :],
        }[damage]
    )
    with pytest.raises(ConfigurationError, match="does not hold a certificate and its RSA key") as refusal:
        load_or_create_identity(tmp_path)
    shown = "".join(traceback.format_exception(refusal.value)) + refusal.value.render()
    assert not any(line in shown for line in key.splitlines()[1:-1])
    assert "delete the file" in refusal.value.render()


def test_a_certificate_that_expires_soon_is_replaced_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    old = load_or_create_identity(tmp_path)
    assert load_or_create_identity(tmp_path, now=old.not_after - timedelta(days=31)) == old
    with caplog.at_level(logging.WARNING):
        new = load_or_create_identity(tmp_path, now=old.not_after - timedelta(days=29))
    assert new.thumbprint != old.thumbprint and new.not_after > old.not_after + timedelta(days=4 * 365)
    assert old.subject in caplog.text and new.subject in caplog.text
    assert isinstance(new, SigningIdentity)
    assert load_or_create_identity(tmp_path, now=old.not_after) == new
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "identity.pem").stat().st_mode) == 0o600


def test_a_certificate_from_the_future_is_refused_as_a_wrong_clock(tmp_path: Path):
    identity = load_or_create_identity(tmp_path)
    with pytest.raises(ConfigurationError, match="valid only from") as refusal:
        load_or_create_identity(tmp_path, now=identity.not_before - timedelta(days=2))
    assert "set the clock" in refusal.value.render()


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        load_or_create_identity(tmp_path / "file" / "signing")
