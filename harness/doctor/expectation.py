"""What a guest is measured against: one driver, one machine, and the certificate of this checkout. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from harness.config import DriverConfig
from harness.doctor.subject import Subject
from harness.doctor.toolchain import SigningCertificate, signing_certificate
from harness.package import Package
from vm.errors import PackageError
from vm.machine import Machine


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a run needs of a guest."""

    machine: str
    service: str
    altitude: str
    inf: str
    """File name of the INF, as its package has it."""
    certificate: SigningCertificate | None = None
    """None before the first build."""
    architecture: str = ""
    """Of the package: "x64" or "arm64"; empty if there is none yet."""
    witness: bool = False
    """The machine knows of crashes by itself, so that dumps of the guest matter less."""

    @classmethod
    def of(cls, subject: Subject, *, witness: bool) -> Self:
        """What a run of the subject's driver needs. Raises `ConfigurationError` for a damaged certificate."""
        driver = subject.driver
        certificate = signing_certificate(subject)
        return cls(
            *(subject.machine.name, driver.service, driver.altitude, driver.inf.name, certificate),
            witness=witness,
        )

    @classmethod
    def of_package(cls, package: Package, driver: DriverConfig, machine: Machine) -> Self:
        """What a run of this package needs. Raises `PackageError` for one without a certificate that can be read."""
        path = package.directory / package.entry("certificate").name
        try:
            certificate = SigningCertificate.parse(path.read_bytes())
        except (OSError, ValueError) as error:
            raise PackageError(
                f"the certificate '{path.name}' of the package cannot be read",
                hint="./inv clean, then ./inv build",
            ) from error
        return cls(
            *(machine.name, driver.service, driver.altitude, driver.inf.name, certificate),
            package.manifest.architecture,
            machine.abilities.witness,
        )
