"""The steps of a build with the WDK, each one function around one tool: compile, stamp, verify the INF, sign, catalogue.

MSBuild compiles and links, nothing else (SignMode Off): what it would do besides is done here, so that the certificate
has one place and every stamp is the same on every host. A step that fails says why in one sentence, shows the tool's own
lines, and names the file with the rest. Options: Windows lab, C.2 and C.5; the documentation of each tool.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import inf as inf_lint
from harness.toolchain.source import Configuration, DriverVersion
from harness.toolchain.wdk import diagnostics
from harness.toolchain.wdk.diagnostics import Diagnostic
from harness.toolchain.wdk.workshop import Workshop, cut
from vm.errors import BuildError
from vm.inf import install as installing
from vm.inf import read as read_inf

log = logging.getLogger(__name__)

PLATFORMS: Mapping[str, str] = {"x64": "x64", "arm64": "ARM64"}
"""What MSBuild calls an architecture."""

RULE_SET = "DriverRecommendedRules.ruleset"

INFVERIF_UNRELIABLE = range(25798, 26101)
"""Builds of the WDK whose InfVerif is known to report what is none (Windows lab, C.2): its findings are warnings."""

_ECHOES = ("C2220", "LNK1218", "MSB6006")
"""Errors that repeat others: "the following warning is treated as an error", "CL.exe exited with code 2"."""
_TOOL_SECONDS = 120.0
"""For one of the kit's small tools; they take a second or two."""
_CATALOG_SYSTEMS = ("10_VB", "10_CO", "10_NI", "10_GE")
"""For Inf2Cat: Windows 10 2004, 11 21H2, 11 22H2, 11 24H2; both families of the INF's sections are among them."""
_SYSTEM_SINCE: Mapping[str, int] = {"10_NI": 22621, "10_GE": 26100}
"""The first build of the WDK whose Inf2Cat knows the system."""


@dataclass(frozen=True, slots=True)
class CompileOrder:
    """What MSBuild is to make: `name`.sys and `name`.pdb in `products`, with everything in between in `objects`."""

    project: Path
    name: str
    configuration: Configuration
    architecture: str
    products: Path
    objects: Path
    analyze: bool = False


@dataclass(frozen=True, slots=True)
class Compiled:
    """An unsigned image with its symbols, and what compiler, linker and analysis complained about."""

    image: Path
    symbols: Path
    complaints: tuple[Diagnostic, ...]


@dataclass(frozen=True, slots=True)
class StampOrder:
    """An INF that is to get its date, version, architecture and catalog's name, in place."""

    inf: Path
    version: DriverVersion
    architecture: str


@dataclass(frozen=True, slots=True)
class InfVerdict:
    """What InfVerif said. `accepted` is False only where its word does not count; `mode` is what it was asked by."""

    mode: tuple[str, ...]
    accepted: bool


@dataclass(frozen=True, slots=True)
class CatalogOrder:
    """A directory with exactly the files of a package, whose INF names the catalog to make."""

    directory: Path
    inf: Path
    architecture: str


def compile_driver(shop: Workshop, order: CompileOrder) -> Compiled:
    """Compile and link, all of it anew; with code analysis if `order.analyze`.

    Raises:
        BuildError: a source does not compile, the image does not link, or analysis found something.
        DeadlineExceededError: MSBuild did not end in time.
    """
    for directory in (order.products, order.objects):
        directory.mkdir(parents=True, exist_ok=True)
    result = shop.run(
        "msbuild",
        [str(order.project), *compile_options(shop, order)],
        log_name="msbuild",
        seconds=shop.deadline.remaining,
        directory=shop.logs,
    )
    complaints = diagnostics.parse(result.output)
    findings = [complaint for complaint in complaints if complaint.of_analysis]
    if order.analyze:
        _keep_analysis(shop, order, findings)
    if result.exit_code != 0:
        errors = _causes(complaints)
        if findings and all(error.of_analysis for error in errors):
            raise BuildError(
                f"code analysis of '{order.name}' found {_count(findings, 'defect')}: {diagnostics.summary(findings)}",
                output="\n".join(
                    [
                        *cut([finding.render() for finding in findings]),
                        f"full log: {shop.log_path('msbuild')}",
                    ],
                ),
                hint=f"all findings are in '{shop.logs / 'analysis.sarif'}'",
            )
        raise shop.failure(
            f"MSBuild could not build '{order.name}'", result, "msbuild", [error.render() for error in errors]
        )
    image, symbols = (order.products / f"{order.name}{suffix}" for suffix in (".sys", ".pdb"))
    for made in (image, symbols):
        if not made.is_file():
            raise BuildError(
                f"MSBuild succeeded and did not write '{made.name}'",
                output=f"full log: {shop.log_path('msbuild')}",
                hint=f"its TargetName has to be '{order.name}', see '{order.project}'",
            )
    warnings = [complaint for complaint in complaints if complaint.severity == "warning"]
    if warnings:
        log.warning("MSBuild: %s: %s", _count(warnings, "warning"), diagnostics.summary(warnings))
    return Compiled(image, symbols, complaints)


def compile_options(shop: Workshop, order: CompileOrder) -> list[str]:
    """The options for MSBuild. Its logs have relative names: they lie in its working directory."""
    properties = {
        "Configuration": order.configuration.capitalize(),
        "Platform": PLATFORMS[order.architecture],
        **shop.kit.properties,
        "SignMode": "Off",
        "EnableInf2cat": "false",
        # Its task is the wrong bitness for MSBuild in some kits; the steps below stamp and verify the INF.
        "EnableInfVerif": "false",
        "DownlinkStampsInf": "false",
        "OutDir": f"{order.products}\\",
        "IntDir": f"{order.objects}\\",
        "RunCodeAnalysis": "true" if order.analyze else "false",
    }
    if order.analyze:
        properties |= {"EnablePREfast": "true"}
        rules = _rule_set(shop)
        if rules is not None:
            properties["CodeAnalysisRuleSet"] = rules
    return [
        "-noLogo",
        "-target:Rebuild",
        "-nodeReuse:false",
        "-warnaserror",
        "-verbosity:minimal",
        *(f"-property:{name}={_escaped(value)}" for name, value in properties.items()),
        "-binaryLogger:LogFile=msbuild.binlog;ProjectImports=None",
        "-flp1:errorsonly;logfile=msbuild.err;encoding=utf-8",
        "-flp2:warningsonly;logfile=msbuild.wrn;encoding=utf-8",
    ]


def stamp_inf(shop: Workshop, order: StampOrder) -> None:
    """Stamp with an explicit date and version: the same everywhere, and never in the future of anybody's clock.

    Raises:
        BuildError: stampinf says no, or the INF is not stamped afterwards.
    """
    name = inf_lint.ARCHITECTURES[order.architecture]
    catalog = installing.catalog_file(read_inf(order.inf.read_bytes()), name)
    result = shop.run(
        "stampinf",
        [
            *("-f", str(order.inf)),
            *("-d", order.version.date),
            *("-v", order.version.numbers),
            *("-a", name),
            *(("-c", catalog) if catalog else ()),
        ],
        log_name="stampinf",
        seconds=_TOOL_SECONDS,
        directory=order.inf.parent,
    )
    if result.exit_code != 0:
        raise shop.failure(f"stampinf could not stamp '{order.inf.name}'", result, "stampinf")
    text = _inf_text(order.inf)
    wanted = rf"(?im)^\s*DriverVer\s*=\s*{re.escape(order.version.date)}\s*,\s*{re.escape(order.version.numbers)}\s*$"
    if not re.search(wanted, text) or "$ARCH$" in text.upper():
        raise shop.failure(
            f"stampinf did not put {order.version.date}, {order.version.numbers} and {name} into '{order.inf.name}'",
            result,
            "stampinf",
        )


def verify_inf(shop: Workshop, inf: Path) -> InfVerdict:
    """Have InfVerif look at a stamped INF, by the rules that this WDK can apply to it.

    Raises:
        BuildError: it breaks a rule, and the word of this InfVerif counts.
    """
    mode = infverif_mode(shop.wdk_build, _inf_text(inf))
    result = shop.run(
        "infverif", ["/v", *mode, str(inf)], log_name="infverif", seconds=_TOOL_SECONDS, directory=inf.parent
    )
    if result.exit_code == 0:
        return InfVerdict(mode, accepted=True)
    failure = shop.failure(f"InfVerif {' '.join(mode)} refuses '{inf.name}'", result, "infverif")
    if shop.wdk_build not in INFVERIF_UNRELIABLE:
        raise failure
    log.warning(
        "%s; the InfVerif of WDK build %d is known to be wrong at times, so this does not stop the build: %s",
        failure.message,
        shop.wdk_build,
        failure.output.replace("\n", "; "),
    )
    return InfVerdict(mode, accepted=False)


def infverif_mode(wdk_build: int, text: str) -> tuple[str, ...]:
    """The rules to verify by: those for Windows Drivers (/w), from the build on for which the INF has sections of its own.

    Older kits judge by the rules for universal drivers (/u): /wbuild came with those of 2023, and without it the sections
    for older systems would have to be isolated, too, which they must not be (Windows lab, C.2 and C.3).
    """
    if wdk_build and wdk_build < INFVERIF_UNRELIABLE.start:
        return ("/u",)
    builds = re.findall(r"(?im)^\s*\[DefaultInstall\.NT\w+\.(\d+)\.(\d+)\.\d*\.\d*\.(\d+)\]", text)
    if not builds:
        return ("/w",)
    major, minor, build = min((int(major), int(minor), int(build)) for major, minor, build in builds)
    return ("/w", "/wbuild", f"{major}.{minor}.{build}")


def sign(shop: Workshop, file: Path, thumbprint: str, *, pages: bool) -> None:
    """Sign in place with a certificate of this user's store; `pages` hashes every page of an image, too.

    No time stamp: that would need a network, and a test certificate is judged by the clock anyway.

    Raises:
        BuildError: signtool says no.
    """
    log_name = f"signtool-{file.suffix.lstrip('.')}"
    result = shop.run(
        "signtool",
        [
            "sign",
            "/v",
            "/fd",
            "sha256",
            *(["/ph"] if pages else []),
            "/s",
            "My",
            "/sha1",
            thumbprint,
            str(file),
        ],
        log_name=log_name,
        seconds=_TOOL_SECONDS,
        directory=file.parent,
    )
    if result.exit_code != 0:
        raise shop.failure(f"signtool could not sign '{file.name}'", result, log_name)


def make_catalog(shop: Workshop, order: CatalogOrder) -> Path | None:
    """Make the unsigned catalog over the files of a package; None if the INF names none.

    Raises:
        BuildError: Inf2Cat finds that the package cannot be signed.
    """
    name = installing.catalog_file(
        read_inf(order.inf.read_bytes()), inf_lint.ARCHITECTURES[order.architecture]
    )
    if not name:
        return None
    result = shop.run(
        "inf2cat",
        [
            f"/driver:{order.directory}",
            f"/os:{','.join(catalog_systems(shop.wdk_build, order.architecture))}",
            "/uselocaltime",
            "/verbose",
        ],
        log_name="inf2cat",
        seconds=_TOOL_SECONDS,
        directory=order.directory,
    )
    catalog = order.directory / name
    if result.exit_code != 0:
        raise shop.failure(f"Inf2Cat could not make '{name}'", result, "inf2cat")
    if not catalog.is_file():
        raise shop.failure(f"Inf2Cat succeeded and did not write '{name}'", result, "inf2cat")
    return catalog


def catalog_systems(wdk_build: int, architecture: str) -> tuple[str, ...]:
    """What Inf2Cat is asked for: the systems that the INF is for, as far as this kit knows them."""
    suffix = PLATFORMS[architecture].upper()
    known = [name for name in _CATALOG_SYSTEMS if not wdk_build or wdk_build >= _SYSTEM_SINCE.get(name, 0)]
    # The first Windows 10; on Arm64 the sections without a version need 1709, so the list begins later there.
    first = ["10_X64"] if architecture == "x64" else []
    return (*first, *(f"{name}_{suffix}" for name in known))


def _rule_set(shop: Workshop) -> str | None:
    """Path of the drivers' rule set in the kit; None leaves it to the project."""
    for place in ("CodeAnalysis", "c/CodeAnalysis"):
        path = shop.kit.root / place / RULE_SET
        if shop.provider.exists(path):
            return str(path)
    return None


def _keep_analysis(shop: Workshop, order: CompileOrder, findings: Sequence[Diagnostic]) -> None:
    """Keep the compiler's own reports and one SARIF log of all findings, also when there are none."""
    for report in sorted([*order.objects.rglob("*.nativecodeanalysis.xml"), *order.objects.rglob("*.sarif")]):
        shutil.copyfile(report, shop.logs / report.name)
    text = diagnostics.sarif(findings, "MSVC code analysis", shop.kit.msbuild_version)
    (shop.logs / "analysis.sarif").write_text(text, encoding="utf-8")
    log.info("code analysis: %s", diagnostics.summary(findings) or "no findings")


def _causes(complaints: Sequence[Diagnostic]) -> list[Diagnostic]:
    """What broke a build: its errors, without those that only say that there was one."""
    # The compiler says C2220 once, and the warning that it stands for remains a warning.
    promoted = any(complaint.code == "C2220" for complaint in complaints)
    return [
        complaint
        for complaint in complaints
        if complaint.code not in _ECHOES and (promoted or complaint.severity == "error")
    ]


def _count(things: Sequence[object], noun: str) -> str:
    return f"one {noun}" if len(things) == 1 else f"{len(things)} {noun}s"


def _inf_text(path: Path) -> str:
    data = path.read_bytes()
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")


def _escaped(value: str) -> str:
    """A property's value with what MSBuild would take for syntax written as %XX."""
    return re.sub(r"[%;,]", lambda match: f"%{ord(match[0]):02X}", value)
