"""`certutil`: hashes of files, certificate stores, and base64 in both directions."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography import x509

from vm.emulated.guest import certificates
from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.drive import WindowsPathError, break_hard_link
from vm.emulated.guest.status import hresult_of_win32, message_of_win32

_HASHES = {"md5": "MD5", "sha1": "SHA1", "sha256": "SHA256", "sha384": "SHA384", "sha512": "SHA512"}
_WIN32_NAMES = {
    2: "ERROR_FILE_NOT_FOUND",
    3: "ERROR_PATH_NOT_FOUND",
    5: "ERROR_ACCESS_DENIED",
    13: "ERROR_INVALID_DATA",
    15: "ERROR_INVALID_DRIVE",
    80: "ERROR_FILE_EXISTS",
    87: "ERROR_INVALID_PARAMETER",
    123: "ERROR_INVALID_NAME",
}
_NTE_NOT_FOUND = 0x80090011
_NTE_BAD_ALGID = 0x80090008
_CRYPT_E_ASN1_BADTAG = 0x8009310B
_CHUNK_BYTES = 1 << 20


class _FailedError(Exception):
    """The verb fails with this HRESULT and text."""

    def __init__(self, hresult: int, name: str, text: str) -> None:
        super().__init__(text)
        self.hresult = hresult
        self.name = name
        self.text = text


def certutil(call: Invocation) -> int:
    """Dispatch to a verb; the exit code of a failure is its HRESULT."""
    options = {word.casefold() for word in call.arguments if word.startswith(("-", "/"))}
    verb = next((name for name in _VERBS if f"-{name}" in options or f"/{name}" in options), None)
    if verb is None:
        call.out(
            "CertUtil: Unknown command"
            if call.arguments
            else "CertUtil: -dump command completed successfully."
        )
        return 0 if not call.arguments else hresult_of_win32(87)
    plain = [word for word in call.arguments if not word.startswith(("-", "/"))]
    force = bool({"-f", "/f"} & options)
    try:
        try:
            _VERBS[verb](call, plain, force)
        except WindowsPathError as error:
            raise _win32(error.code) from error
    except _FailedError as error:
        signed = error.hresult - (1 << 32)
        shown = error.name if error.name.startswith("WIN32") else f"{signed} {error.name}"
        call.out(f"CertUtil: -{verb} command FAILED: 0x{error.hresult:08x} ({shown})")
        call.out(f"CertUtil: {error.text}")
        return error.hresult
    call.out(f"CertUtil: -{verb} command completed successfully.")
    return 0


def _hashfile(call: Invocation, words: list[str], force: bool) -> None:
    if not 1 <= len(words) <= 2:
        raise _win32(87)
    algorithm = words[1].casefold() if len(words) == 2 else "sha1"
    if algorithm not in _HASHES:
        raise _FailedError(_NTE_BAD_ALGID, "NTE_BAD_ALGID", "Invalid algorithm specified.")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with _input(call, words[0]).open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            digest.update(data)
            call.session.cancellation.check()
    call.out(f"{_HASHES[algorithm]} hash of {words[0]}:")
    call.out(digest.hexdigest())


def _addstore(call: Invocation, words: list[str], force: bool) -> None:
    if len(words) != 2:
        raise _win32(87)
    certificate = _certificate(_input(call, words[1]).read_bytes())
    call.out(_heading(words[0]))
    if certificate.issuer == certificate.subject:
        call.out("Signature matches Public Key")
    added = certificates.add(call.guest.registry, words[0], certificate)
    outcome = "added to" if added else "already in"
    call.out(f'Certificate "{_short_name(certificate)}" {outcome} store.')


def _delstore(call: Invocation, words: list[str], force: bool) -> None:
    if len(words) != 2:
        raise _win32(87)
    chosen = _chosen(call, words[0], words[1])
    call.out(_heading(words[0]))
    for index, certificate in chosen:
        call.out(f"Deleting Certificate {index}")
        certificates.remove(call.guest.registry, words[0], certificates.thumbprint(certificate))


def _store(call: Invocation, words: list[str], force: bool) -> None:
    name = words[0] if words else "CA"
    chosen = _chosen(call, name, words[1] if len(words) > 1 else None)
    call.out(_heading(name))
    for index, certificate in chosen:
        call.out(f"================ Certificate {index} ================")
        call.out(f"Serial Number: {certificate.serial_number:x}")
        call.out(f"Issuer: {certificate.issuer.rfc4514_string()}")
        call.out(f" NotBefore: {certificate.not_valid_before_utc:%m/%d/%Y %I:%M %p}")
        call.out(f" NotAfter: {certificate.not_valid_after_utc:%m/%d/%Y %I:%M %p}")
        call.out(f"Subject: {certificate.subject.rfc4514_string()}")
        if certificate.issuer == certificate.subject:
            call.out("Signature matches Public Key\nRoot Certificate: Subject matches Issuer")
        call.out(f"Cert Hash(sha1): {certificates.thumbprint(certificate).lower()}")
        call.out("No key provider information\nCannot find the certificate and private key for decryption.\n")


def _decode(call: Invocation, words: list[str], force: bool) -> None:
    text = _two_files(call, words, force)
    body = re.sub(rb"-----(BEGIN|END)[^-]*-----", b"", text)
    try:
        data = base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as error:
        raise _win32(13) from error
    if not data and text.strip():
        raise _win32(13)
    _write(call, words[1], data)
    call.out(f"Input Length = {len(text)}\nOutput Length = {len(data)}")


def _encode(call: Invocation, words: list[str], force: bool) -> None:
    data = _two_files(call, words, force)
    encoded = base64.b64encode(data)
    lines = [encoded[start : start + 64] for start in range(0, len(encoded), 64)]
    text = b"\r\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])
    _write(call, words[1], text)
    call.out(f"Input Length = {len(data)}\nOutput Length = {len(text)}")


_VERBS: Mapping[str, Callable[[Invocation, list[str], bool], None]] = {
    "hashfile": _hashfile,
    "addstore": _addstore,
    "delstore": _delstore,
    "store": _store,
    "decode": _decode,
    "encode": _encode,
}


def _two_files(call: Invocation, words: list[str], force: bool) -> bytes:
    if len(words) != 2:
        raise _win32(87)
    source = _input(call, words[0])
    target = call.guest.drive.host_path(words[1], directory=call.session.directory)
    if target.exists() and not force:
        raise _win32(80)
    return source.read_bytes()


def _write(call: Invocation, path: str, data: bytes) -> None:
    target = call.guest.drive.host_path(path, directory=call.session.directory)
    if target.is_dir():
        raise _win32(5)
    break_hard_link(target)
    call.guest.drive.charge(len(data))
    target.write_bytes(data)


def _input(call: Invocation, path: str) -> Path:
    found = call.guest.drive.existing(path, directory=call.session.directory)
    if found.is_dir():
        raise _win32(5)
    return found


def _certificate(data: bytes) -> x509.Certificate:
    try:
        return certificates.parse(data)
    except ValueError as error:
        raise _FailedError(
            _CRYPT_E_ASN1_BADTAG, "CRYPT_E_ASN1_BADTAG ASN: 267", "ASN1 bad tag value met."
        ) from error


def _chosen(call: Invocation, store: str, wanted: str | None) -> list[tuple[int, x509.Certificate]]:
    """Certificates by index, thumbprint, serial number or part of the subject's name; all if `wanted` is None."""
    every = list(enumerate(certificates.certificates(call.guest.registry, store)))
    if wanted is None:
        return every
    text = wanted.replace(" ", "").casefold()
    found = [
        (index, certificate)
        for index, certificate in every
        if text
        in (str(index), certificates.thumbprint(certificate).lower(), f"{certificate.serial_number:x}")
        or wanted.casefold() in _short_name(certificate).casefold()
    ]
    if not found:
        raise _FailedError(_NTE_NOT_FOUND, "NTE_NOT_FOUND", "Object was not found.")
    return found


def _short_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def _heading(store: str) -> str:
    friendly = certificates.FRIENDLY_NAMES.get(store.casefold())
    return f'{store} "{friendly}"' if friendly else store


def _win32(code: int) -> _FailedError:
    name = _WIN32_NAMES.get(code, "")
    return _FailedError(hresult_of_win32(code), f"WIN32: {code} {name}".rstrip(), message_of_win32(code))
