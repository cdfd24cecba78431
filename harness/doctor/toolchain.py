"""What builds and signs drivers: zig, the test certificate, and the WDK where it is."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib import import_module, util

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from harness.doctor.subject import Check, Subject, fine, note, trouble
from vm.errors import ConfigurationError
from vm.findings import Finding, Severity

TOOL_SECONDS = 20
EXPIRES_SOON = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class SigningCertificate:
    """The public half of the identity that packages are signed with; `thumbprint` as Windows shows it, lower case."""

    subject: str
    thumbprint: str
    not_before: datetime
    not_after: datetime
    der: bytes

    @classmethod
    def parse(cls, data: bytes) -> SigningCertificate:
        """A certificate in PEM (a key may stand beside it) or DER; ValueError if it is neither."""
        pem = b"-----BEGIN" in data
        certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
        der = certificate.public_bytes(Encoding.DER)
        # Not a security decision: the thumbprint is an identifier.
        thumbprint = hashlib.sha1(der, usedforsecurity=False).hexdigest()
        return cls(
            certificate.subject.rfc4514_string(),
            thumbprint,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            der,
        )


_WDK = "harness.toolchain.wdk"


def zig(_: Subject) -> Iterator[Finding]:
    """The compiler out of the wheel really runs."""
    command = [sys.executable, "-m", "ziglang", "version"]
    symptom = ("toolchain.zig", Severity.ERROR, "host-packages")
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TOOL_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield trouble(*symptom, str(error), "zig runs")
        return
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        yield trouble(*symptom, said[-1] if said else f"exit status {done.returncode}", "zig runs")
    else:
        yield fine("toolchain.zig", f"zig {done.stdout.strip()}")


def certificate(subject: Subject) -> Iterator[Finding]:
    """The test certificate of this checkout; a build makes and renews it, looking at it does not."""
    found = signing_certificate(subject)
    if found is None:
        yield fine("toolchain.certificate", "none yet, the first build makes it")
        return
    now = datetime.now(UTC)
    said = f"{found.subject}, valid until {found.not_after:%Y-%m-%d}"
    if now < found.not_before:
        said = f"{found.subject}, valid from {found.not_before:%Y-%m-%d}"
        yield trouble(
            "toolchain.certificate", Severity.ERROR, "host-signing-future", said, "valid at present"
        )
    elif now + EXPIRES_SOON >= found.not_after:
        yield trouble(
            "toolchain.certificate", Severity.WARNING, "host-signing-expired", said, "valid for a month"
        )
    else:
        yield fine("toolchain.certificate", said)


def wdk(subject: Subject) -> Iterator[Finding]:
    """Visual Studio, WDK and SDK: their versions and whether they belong together."""
    if sys.platform != "win32" and subject.configuration.toolchain != "wdk":
        return
    if util.find_spec(_WDK) is None:
        yield note("toolchain.wdk", "this checkout has no toolchain 'wdk'")
        return
    # Imported here: a host that builds with zig pays nothing for it.
    for each in import_module(_WDK).examine():
        # A Windows host that builds with zig needs no kit, but may want to know what it would lack.
        needed = subject.configuration.toolchain == "wdk" or each.severity is not Severity.ERROR
        yield each if needed else replace(each, severity=Severity.NOTE)


def signing_certificate(subject: Subject) -> SigningCertificate | None:
    """The test certificate of the checkout; None before the first build.

    Raises:
        ConfigurationError: the file is damaged.
    """
    for path in sorted((subject.root / ".cache" / "signing").glob("*.pem")):
        try:
            return SigningCertificate.parse(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the test certificate '{path}' cannot be read",
                hint="remove .cache/signing, then ./inv build",
            ) from error
    return None


QUICK: tuple[Check, ...] = (certificate,)
ALL: tuple[Check, ...] = (zig, certificate, wdk)
