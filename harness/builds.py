"""From a driver of harness.toml to its signed package: build, sign, pack; nothing is done twice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

from harness import inf, package, signing, toolchain
from harness.config import CONFIGURATIONS, TOOLCHAINS, Configuration, DriverConfig, check_choice
from harness.package import DriverIdentity, Package
from harness.toolchain import BuildResult
from vm.deadline import Deadline
from vm.errors import BuildError, PackageError

log = logging.getLogger(__name__)

BUILD_SECONDS = 300


def prepare(
    settings: Configuration,
    driver: str | None,
    toolchain_name: str | None,
    configuration: str | None,
    architecture: str | None = None,
) -> Callable[[], Package]:
    """The build that was chosen, checked now and done when it is called.

    Args:
        settings: harness.toml.
        driver, toolchain_name, configuration: None = what harness.toml says.
        architecture: "x64" (also if None) or "arm64".

    Raises:
        ConfigurationError: one of them is not known.
    """
    chosen = settings.driver(driver)
    check_choice("toolchain", toolchain_name or settings.toolchain, TOOLCHAINS)
    build = check_choice("configuration", configuration or settings.configuration, CONFIGURATIONS)
    target = check_choice("architecture", architecture or toolchain.ARCHITECTURES[0], toolchain.ARCHITECTURES)
    return lambda: build_package(settings.root, chosen, cast(Literal["debug", "release"], build), target)


def build_package(
    root: Path,
    driver: DriverConfig,
    configuration: Literal["debug", "release"],
    architecture: str = "x64",
) -> Package:
    """The package in `out/<configuration>/`, made anew if the sources or the certificate have changed.

    One for another architecture than x64 lies in `out/<configuration>-<architecture>/`.

    Raises:
        BuildError: it does not compile or link, or its INF breaks a rule.
        PackageError: what was built is no driver.
    """
    result = toolchain.build(
        toolchain.DriverSource.at(driver.sources),
        configuration,
        root / ".cache" / "build",
        architecture=architecture,
        deadline=Deadline.after(seconds=BUILD_SECONDS),
    )
    if result.inf is not None:
        check_inf(result.inf, architecture)
    identity = signing.load_or_create_identity(root / ".cache" / "signing")
    certificate = root / ".cache" / "signing" / f"{result.name}.cer"
    if not certificate.exists() or certificate.read_bytes() != identity.certificate_der:
        certificate.write_bytes(identity.certificate_der)
    directory = root / "out" / toolchain.directory_name(configuration, architecture)
    names = DriverIdentity(driver.service, driver.instance, driver.altitude)
    current = _current(directory, result, names, identity.certificate_der)
    if current is not None:
        return current
    return package.write_package(
        result,
        directory,
        signed_image=signing.sign_image(result.image.read_bytes(), identity, name=result.image.name),
        certificate=certificate,
        identity=names,
        repository=root,
    )


def check_inf(path: Path, architecture: str) -> None:
    """Lint a stamped INF; warnings go to the log.

    Raises:
        BuildError: it breaks a rule; `output` has every finding.
    """
    findings = inf.lint(path, architecture)
    errors = [finding for finding in findings if finding.severity is inf.Severity.ERROR]
    if errors:
        rules = "one rule" if len(errors) == 1 else f"{len(errors)} rules"
        raise BuildError(
            f"'{path.name}' breaks {rules} for INFs of minifilters, Windows would refuse it or not load the driver",
            output="\n".join(finding.render(path.name) for finding in findings),
            hint=f"see '{errors[0].source}'",
        )
    for finding in findings:
        log.warning("%s", finding.render(path.name))


def _current(
    directory: Path, result: BuildResult, names: DriverIdentity, certificate: bytes
) -> Package | None:
    """The package that is there if it is of exactly this build, these names and this certificate."""
    try:
        found = package.load_package(directory)
        packed = found.path("certificate")
        inf = found.path("inf")
    except PackageError:
        return None
    manifest = found.manifest
    same = (
        found.signed
        and manifest.driver == names
        and manifest.unsigned_sha256 == result.unsigned_sha256
        and manifest.configuration == result.configuration
        and manifest.architecture == result.architecture
        and dict(manifest.versions) == dict(result.versions)
        and packed is not None
        and packed.read_bytes() == certificate
        and _same_content(inf, result.inf)
        and _same_content(found.path("symbols"), result.symbols)
    )
    return found if same else None


def _same_content(one: Path | None, other: Path | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.read_bytes() == other.read_bytes()
