"""Whether Visual Studio, WDK and SDK belong together, known before MSBuild runs and fails in an odd place.

The rules are the figures of the Windows lab: MSBuild 18 and later need WDK 10.0.28000.1839 or later and build with
toolset v145; MSBuild 17 needs WDK 10.0.26100 and builds with v143. The SDK is of the WDK's build. A wrong pair would
fail with MSB4062, a missing driver component with MSB8020, missing Spectre libraries with MSB8040.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PureWindowsPath

from harness.toolchain.source import ARCHITECTURES
from harness.toolchain.wdk.kit import Kit, version_numbers
from harness.toolchain.wdk.provider import Provider
from harness.toolchain.wdk.studio import DRIVER_KIT, INSTALL, add_command
from vm.errors import BuildError


@dataclass(frozen=True, slots=True)
class Pair:
    """What goes with one Visual Studio. `wdk` is the oldest version of its line that does."""

    studio: str
    toolset: str
    wdk: str
    packages: str
    """The file that pins it for NuGet."""

    @property
    def line(self) -> int:
        """Third number of the WDK's version: its build."""
        return version_numbers(self.wdk)[2]

    @property
    def platform(self) -> str:
        """WindowsTargetPlatformVersion."""
        return f"10.0.{self.line}.0"

    @property
    def install(self) -> str:
        """The commands that install WDK and SDK."""
        return (
            f"winget install --exact --id Microsoft.WindowsSDK.10.0.{self.line} && "
            f"winget install --exact --id Microsoft.WindowsWDK.10.0.{self.line}"
        )


VS2022 = Pair("Visual Studio 2022", "v143", "10.0.26100.6584", "packages.vs2022.config")
VS2026 = Pair("Visual Studio 2026", "v145", "10.0.28000.1839", "packages.config")

SPECTRE: Mapping[str, str] = {
    "x64": "Microsoft.VisualStudio.Component.VC.Runtimes.x86.x64.Spectre",
    "arm64": "Microsoft.VisualStudio.Component.VC.Runtimes.ARM64.Spectre",
}
"""Components of Visual Studio with the Spectre-mitigated libraries, of the newest toolset."""

COMPILERS: Mapping[str, str] = {
    "x64": "Microsoft.VisualStudio.Component.VC.Tools.x86.x64",
    "arm64": "Microsoft.VisualStudio.Component.VC.Tools.ARM64",
}
"""Components of Visual Studio with compiler and libraries for a target."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that does not fit: `part` names it for the doctor, `cure` is a command; `would` is what MSBuild says."""

    part: str
    sentence: str
    wanted: str
    cure: str
    would: str = ""


def pair_for(msbuild_version: str) -> Pair | None:
    """What goes with this MSBuild; None if it is too old for any WDK that builds x64 and Arm64."""
    numbers = version_numbers(msbuild_version)
    if not numbers or numbers[0] < 17:
        return None
    return VS2026 if numbers[0] >= 18 else VS2022


def mismatches(kit: Kit) -> Iterator[Problem]:
    """What is wrong with the versions of a kit, worst first."""
    pair = pair_for(kit.msbuild_version)
    if pair is None:
        yield Problem(
            "visual-studio",
            f"MSBuild {kit.msbuild_version} is too old for drivers",
            "17.11 or later",
            INSTALL,
        )
        return
    found = version_numbers(kit.wdk_version)
    if not _fits(found, pair):
        yield Problem(
            "pair",
            f"WDK {kit.wdk_version or 'of unknown version'} does not belong to MSBuild {kit.msbuild_version}",
            f"{pair.studio} builds with WDK {pair.wdk}{' or later' if pair is VS2026 else ''}",
            _install(kit, pair),
            "MSB4062",
        )
    if version_numbers(kit.sdk_version)[:3] != found[:3]:
        yield Problem(
            "sdk",
            f"SDK {kit.sdk_version or 'none'} and WDK {kit.wdk_version} are of different builds",
            f"SDK {_build(found) or pair.platform}",
            _install(kit, pair)
            if kit.route == "nuget"
            else f"winget install --exact --id Microsoft.WindowsSDK.{_build(found) or f'10.0.{pair.line}'}",
            "MSB8036",
        )


def problems(
    kit: Kit, provider: Provider, architectures: tuple[str, ...] = ARCHITECTURES
) -> Iterator[Problem]:
    """Everything that would fail a build of these architectures, worst first."""
    yield from mismatches(kit)
    if kit.driver_kit is False:
        component = DRIVER_KIT[1] if "buildtools" in str(kit.installation).lower() else DRIVER_KIT[0]
        yield Problem(
            "driver-kit",
            f"Visual Studio in '{kit.installation}' has no driver component",
            component,
            add_command(provider, kit.installation, component),
            "MSB8020",
        )
    if kit.route == "ewdk":
        # It is one image: compilers and libraries cannot be added to it.
        return
    toolset = toolset_directory(kit, provider)
    for architecture in architectures:
        if toolset is None or not provider.exists(toolset / "lib" / architecture):
            yield _missing(kit, provider, "compiler", f"compiler for {architecture}", COMPILERS[architecture])
        elif not provider.exists(toolset / "lib" / "spectre" / architecture):
            yield _missing(
                kit, provider, "spectre", f"Spectre libraries for {architecture}", SPECTRE[architecture]
            )


def check(kit: Kit, provider: Provider, architectures: tuple[str, ...] = ARCHITECTURES) -> None:
    """Refuse a kit that would fail a build of these architectures.

    Raises:
        BuildError: the first problem, with the command that mends it; the others are its causes.
    """
    found = list(problems(kit, provider, architectures))
    if not found:
        return
    first, *others = found
    would = f"; MSBuild would fail with {first.would}" if first.would else ""
    raise BuildError(
        f"{first.sentence}: wanted is {first.wanted}{would}",
        hint=first.cure,
        causes=[BuildError(f"{each.sentence}: wanted is {each.wanted}", hint=each.cure) for each in others],
    )


def toolset_directory(kit: Kit, provider: Provider) -> PureWindowsPath | None:
    """The directory of the compiler that MSBuild takes by default: the one that is named, else the newest."""
    root = PureWindowsPath(kit.installation) / "VC"
    try:
        named = provider.read_text(
            root / "Auxiliary" / "Build" / "Microsoft.VCToolsVersion.default.txt"
        ).strip()
    except OSError:
        named = ""
    if named and provider.exists(root / "Tools" / "MSVC" / named):
        return root / "Tools" / "MSVC" / named
    found = provider.glob(root / "Tools" / "MSVC", "*")
    newest = max(found, key=lambda each: version_numbers(each.name), default=None)
    return None if newest is None else PureWindowsPath(newest)


def _fits(wdk: tuple[int, ...], pair: Pair) -> bool:
    wanted = version_numbers(pair.wdk)
    if len(wdk) < 3:
        return False
    if pair is VS2022:
        # Later builds bring task libraries for MSBuild 18 only; earlier revisions of this one work.
        return wdk[:3] == wanted[:3]
    # Of an installed kit only the directory's name is known, which ends with 0.
    return wdk[:3] >= wanted[:3] if wdk[3:] in ((), (0,)) else wdk >= wanted


def _install(kit: Kit, pair: Pair) -> str:
    if kit.route == "nuget":
        return f"nuget restore {pair.packages} -PackagesDirectory packages"
    if kit.route == "ewdk":
        return f"mount the EWDK of build {pair.line} and run its LaunchBuildEnv.cmd"
    return pair.install


def _missing(kit: Kit, provider: Provider, part: str, what: str, component: str) -> Problem:
    return Problem(
        part,
        f"the {what} are missing in '{kit.installation}'"
        if part == "spectre"
        else f"the {what} is missing in '{kit.installation}'",
        component,
        add_command(provider, kit.installation, component),
        "MSB8040" if part == "spectre" else "MSB8020",
    )


def _build(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version[:3]))
