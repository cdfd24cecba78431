"""From a driver of harness.toml to its signed package: build, sign, pack; nothing is done twice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from harness import inf, package, signing, toolchain
from harness.config import CONFIGURATIONS, TOOLCHAINS, Configuration, DriverConfig, check_choice
from harness.package import DriverIdentity, Package
from harness.signing import SigningIdentity
from harness.toolchain import BuildResult
from harness.toolchain.stale import write_atomically
from vm.deadline import Deadline
from vm.errors import BuildError, ConfigurationError, PackageError
from vm.inf import install as installing
from vm.inf import read as read_inf

log = logging.getLogger(__name__)

Builder = Callable[[toolchain.DriverSource, toolchain.Configuration, Path, str, SigningIdentity], BuildResult]
"""Sources, configuration, directory of all builds, architecture, and who signs where the toolchain does that."""

BUILD_SECONDS = 300
"""For a build by 'zig'; one by 'wdk' has a limit of its own."""


@dataclass(frozen=True, slots=True)
class BuildChoices:
    """How a driver is built; `analyze` and `wdk` (where the kit comes from) are of the toolchain 'wdk' only."""

    toolchain: str = "zig"
    analyze: bool = False
    wdk: str | None = None


def prepare(
    settings: Configuration,
    driver: str | None,
    toolchain_name: str | None,
    configuration: str | None,
    architecture: str | None = None,
    *,
    analyze: bool = False,
    wdk: str | None = None,
) -> Callable[[], Package]:
    """The build that was chosen, checked now and done when it is called.

    Args:
        settings: harness.toml.
        driver, toolchain_name, configuration: None = what harness.toml says.
        architecture: "x64" (also if None) or "arm64".
        analyze: whether the toolchain 'wdk' runs code analysis, too.
        wdk: where the toolchain 'wdk' gets its kit: "ewdk", "vs" or "nuget"; None = the first that has one.

    Raises:
        ConfigurationError: one of them is not known, or not for this toolchain.
        BuildError: this host cannot run the toolchain.
    """
    chosen = settings.driver(driver)
    how = BuildChoices(
        check_choice("toolchain", toolchain_name or settings.toolchain, TOOLCHAINS), analyze, wdk
    )
    _check_toolchain(how)
    build = check_choice("configuration", configuration or settings.configuration, CONFIGURATIONS)
    target = check_choice("architecture", architecture or toolchain.ARCHITECTURES[0], toolchain.ARCHITECTURES)
    return lambda: build_package(settings.root, chosen, cast(Literal["debug", "release"], build), target, how)


def _check_toolchain(how: BuildChoices) -> None:
    """Refuse what cannot be before anything is done.

    Raises:
        ConfigurationError: an option of the toolchain 'wdk' was given to another one, or has an unknown value.
        BuildError: this host cannot run the toolchain.
    """
    if how.toolchain != "wdk":
        for option, given in (("--analyze", how.analyze), ("--wdk", how.wdk is not None)):
            if given:
                raise ConfigurationError(
                    f"'{option}' is an option of the toolchain 'wdk', and this build is one of '{how.toolchain}'",
                    hint=f"add --toolchain wdk, on Windows, or leave out {option}",
                )
        return
    # Imported here: a host that builds with zig pays nothing for it.
    from harness.toolchain.wdk.build import require_windows
    from harness.toolchain.wdk.kit import ROUTES

    if how.wdk is not None:
        check_choice("way to the WDK", how.wdk, ROUTES)
    require_windows()


def build_package(
    root: Path,
    driver: DriverConfig,
    configuration: Literal["debug", "release"],
    architecture: str = "x64",
    how: BuildChoices | None = None,
    builder: Builder | None = None,
) -> Package:
    """The package in `out/<configuration>/`, made anew if the sources or the certificate have changed.

    One for another architecture than x64 lies in `out/<configuration>-<architecture>/`.

    Args:
        root: the checkout.
        driver: what is built.
        configuration, architecture: for what.
        how: by which toolchain; None = by zig.
        builder: what builds; None = the toolchain that `how` names.

    Raises:
        BuildError: it does not compile or link, or its INF breaks a rule.
        PackageError: what was built is no driver.
    """
    source = toolchain.DriverSource.at(driver.sources)
    identity = signing.load_or_create_identity(root / ".cache" / "signing")
    build = builder or _builder(how or BuildChoices())
    result = build(source, configuration, root / ".cache" / "build", architecture, identity)
    if result.inf is not None:
        check_inf(result.inf, architecture)
    certificate = root / ".cache" / "signing" / f"{result.name}.cer"
    if not certificate.exists() or certificate.read_bytes() != identity.certificate_der:
        certificate.write_bytes(identity.certificate_der)
    output = toolchain.directory_name(configuration, architecture)
    names = DriverIdentity(driver.service, driver.instance, driver.altitude)
    current = _current(root / "out" / output, result, names, identity)
    if current is not None:
        return current
    image = _signed_image(result, identity)
    catalog = result.catalog or _write_catalog(result, image, identity, root / ".cache" / "signing" / output)
    return package.write_package(
        result,
        root / "out" / output,
        signed_image=image,
        certificate=certificate,
        catalog=catalog,
        identity=names,
        repository=root,
        experimental=_experimental(result),
    )


def _builder(how: BuildChoices) -> Builder:
    """The toolchain of that name, with its options."""
    if how.toolchain == "wdk":
        from harness.toolchain.wdk.build import build as build_with_wdk

        return lambda source, configuration, out, architecture, identity: build_with_wdk(
            source,
            configuration,
            out,
            identity,
            architecture=architecture,
            route=how.wdk,
            analyze=how.analyze,
        )
    return lambda source, configuration, out, architecture, _: toolchain.build(
        source,
        configuration,
        out,
        architecture=architecture,
        deadline=Deadline.after(seconds=BUILD_SECONDS),
    )


def _signed_image(result: BuildResult, identity: SigningIdentity) -> bytes:
    """The image that is packed: what the toolchain signed, else signed here."""
    if result.signed_image is not None:
        return result.signed_image.read_bytes()
    return signing.sign_image(result.image.read_bytes(), identity, name=result.image.name)


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


def _catalog(result: BuildResult, image: bytes, identity: SigningIdentity) -> tuple[str, bytes] | None:
    """Name and content of the catalog over the image and the INF; None without an INF that names one."""
    if result.inf is None:
        return None
    content = result.inf.read_bytes()
    name = installing.catalog_file(read_inf(content), inf.ARCHITECTURES[result.architecture])
    if not name:
        return None
    files = {result.image.name: image, result.inf.name: content}
    return name, signing.make_catalog(files, identity, result.architecture)


def _write_catalog(
    result: BuildResult, image: bytes, identity: SigningIdentity, directory: Path
) -> Path | None:
    made = _catalog(result, image, identity)
    if made is None:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / made[0]
    write_atomically(path, made[1])  # another process may build the same
    return path


def _experimental(result: BuildResult) -> tuple[str, ...]:
    """What of a package made without Windows no Windows has accepted yet; nothing of what the WDK's own tools made."""
    if result.signed_image is not None:
        return ()
    return ("signature", "catalog") if result.inf is not None else ("signature",)


def _current(
    directory: Path, result: BuildResult, names: DriverIdentity, identity: SigningIdentity
) -> Package | None:
    """The package that is there if it is of exactly this build, these names and this certificate."""
    try:
        found = package.load_package(directory)
        packed = found.path("certificate")
        packed_inf = found.path("inf")
        catalog = found.path("catalog")
    except PackageError:
        return None
    manifest = found.manifest
    same = (
        found.signed
        and manifest.driver == names
        and manifest.toolchain == result.toolchain
        and manifest.unsigned_sha256 == result.unsigned_sha256
        and manifest.configuration == result.configuration
        and manifest.architecture == result.architecture
        and dict(manifest.versions) == dict(result.versions)
        and packed is not None
        and packed.read_bytes() == identity.certificate_der
        and _same_content(packed_inf, result.inf)
        and _same_content(found.path("symbols"), result.symbols)
        and (result.signed_image is None or _same_content(found.image, result.signed_image))
        and manifest.experimental == tuple(sorted(_experimental(result)))
        and _wanted_catalog(result, found.image, identity)
        == ((catalog.name, catalog.read_bytes()) if catalog is not None else None)
    )
    return found if same else None


def _wanted_catalog(result: BuildResult, packed: Path, identity: SigningIdentity) -> tuple[str, bytes] | None:
    """Name and content of the catalog that a package of this build has, if it has one."""
    if result.signed_image is None:
        # Made anew, because that takes a millisecond: it depends on nothing but the files and the certificate.
        return _catalog(result, packed.read_bytes(), identity)
    if result.catalog is None:
        return None
    return result.catalog.name, result.catalog.read_bytes()


def _same_content(one: Path | None, other: Path | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.read_bytes() == other.read_bytes()
