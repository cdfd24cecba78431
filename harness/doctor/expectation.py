"""What a guest is measured against: one driver, one machine, and the certificate of this checkout. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from harness.config import DriverConfig
from harness.doctor.subject import Subject
from harness.doctor.toolchain import SigningCertificate, signing_certificate
from harness.package import Package
from vm.errors import PackageError
from vm.inf import install
from vm.inf.parser import read
from vm.machine import Abilities, DeploymentMode, Machine

VERIFIER_CHECKPOINT = "verifier"
"""The name of the checkpoint that is made with Driver Verifier on."""


@dataclass(frozen=True, slots=True)
class InstallSection:
    """One `[DefaultInstall…]` section: for which processor ("amd64", "arm64") and from which build of Windows on."""

    name: str
    architecture: str
    build: int


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
    sections: tuple[InstallSection, ...] = ()
    """Of the INF; empty if there is none that can be read."""
    by_inf: bool = False
    """The package is installed by its INF."""
    verified: str = ""
    """File name of the image that Driver Verifier has to check; empty if it need not."""
    witness: bool = False
    """The machine knows of crashes by itself, so that dumps of the guest matter less."""

    @classmethod
    def of(cls, subject: Subject, abilities: Abilities) -> Self:
        """What a run of the subject's driver needs. Raises `ConfigurationError` for a damaged certificate."""
        driver = subject.driver
        certificate = signing_certificate(subject)
        return cls(
            *(subject.machine.name, driver.service, driver.altitude, driver.inf.name, certificate),
            sections=install_sections(driver.inf),
            by_inf=abilities.deployment is DeploymentMode.PACKAGE,
            witness=abilities.witness,
        )

    @classmethod
    def of_package(
        cls, package: Package, driver: DriverConfig, machine: Machine, checkpoint: str | None = None
    ) -> Self:
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
            install_sections(package.directory / package.entry("inf").name),
            machine.abilities.deployment is DeploymentMode.PACKAGE,
            package.image.name if checkpoint == VERIFIER_CHECKPOINT else "",
            machine.abilities.witness,
        )


def install_sections(path: Path) -> tuple[InstallSection, ...]:
    """What an INF has for which Windows; in a source INF `$ARCH$` stands for both processors."""
    try:
        data = path.read_bytes()
    except OSError:
        return ()
    found = {
        InstallSection(each.section.name, architecture, each.build)
        for architecture in ("amd64", "arm64")
        for each in install.for_architecture(read(data, architecture), architecture)
    }
    return tuple(sorted(found, key=lambda each: (each.architecture, each.build)))
