"""Visual Studio and the Build Tools: which are installed, by vswhere, and the commands that change them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath, PureWindowsPath
from typing import Any

from harness.toolchain.wdk.kit import version_numbers
from harness.toolchain.wdk.provider import Provider
from vm.deadline import Deadline
from vm.errors import BuildError

TOOL_SECONDS = 60.0
"""For vswhere and `MSBuild -version`: a cold disk takes seconds."""

DRIVER_KIT = (
    "Component.Microsoft.Windows.DriverKit",
    "Component.Microsoft.Windows.DriverKit.BuildTools",
    "Microsoft.Windows.DriverKit",
)
"""Any of them is the driver component: of Visual Studio, of the Build Tools, and the extension below both."""

INSTALL = (
    "winget install --exact --id Microsoft.VisualStudio.2022.BuildTools --override "
    '"--passive --wait --add Microsoft.VisualStudio.Workload.VCTools --includeRecommended '
    "--add Component.Microsoft.Windows.DriverKit.BuildTools "
    '--add Microsoft.VisualStudio.Component.VC.Runtimes.x86.x64.Spectre"'
)
"""The command that installs the smallest Visual Studio that builds drivers for x64."""

_INSTALLER = PureWindowsPath("Microsoft Visual Studio", "Installer")
_BUILD_TOOLS = "Microsoft.VisualStudio.Product.BuildTools"


@dataclass(frozen=True, slots=True)
class Studio:
    """One installation. `version` is e.g. "18.0.11205.157"; `driver_kit`: it has the toolset for drivers."""

    identifier: str
    name: str
    version: str
    path: PureWindowsPath
    product: str
    driver_kit: bool
    complete: bool = True

    def describe(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version}"

    def add_command(self, provider: Provider, *components: str) -> str:
        """The command that adds components to this installation."""
        return add_command(provider, self.path, *components)

    @property
    def driver_component(self) -> str:
        """The identifier that the driver component has in this product: the other one is not found there."""
        return DRIVER_KIT[1] if self.product == _BUILD_TOOLS else DRIVER_KIT[0]


def program_files(provider: Provider) -> PureWindowsPath:
    """The directory of 32-bit programs, where the installer, vswhere and the kits lie."""
    variables = provider.environment
    named = variables.get("ProgramFiles(x86)") or variables.get("ProgramFiles")
    return PureWindowsPath(named or r"C:\Program Files (x86)")


def add_command(provider: Provider, installation: PurePath, *components: str) -> str:
    """The command that adds components to an installation of Visual Studio (it asks for elevation).

    Source: Microsoft Learn, "Use command-line parameters to install, update, and manage Visual Studio".
    """
    setup = program_files(provider) / _INSTALLER / "setup.exe"
    added = " ".join(f"--add {component}" for component in components)
    return f'"{setup}" modify --installPath "{installation}" {added} --passive --norestart'


def find_vswhere(provider: Provider) -> PurePath | None:
    """vswhere.exe, where the installer puts it, or on PATH."""
    installed = program_files(provider) / _INSTALLER / "vswhere.exe"
    return installed if provider.exists(installed) else provider.find("vswhere.exe")


def installed_studios(provider: Provider, deadline: Deadline | None = None) -> tuple[Studio, ...]:
    """All installations with the C++ build tools: those with the driver component first, then the newest.

    Raises:
        BuildError: there is no vswhere, or it does not answer as documented.
    """
    vswhere = find_vswhere(provider)
    if vswhere is None:
        raise BuildError(
            "Visual Studio is not installed: there is no 'vswhere.exe'",
            hint=INSTALL,
        )
    limit = (deadline or Deadline.never()).sooner(seconds=TOOL_SECONDS)
    listed = _ask(provider, vswhere, (), limit)
    with_kit = {
        str(each.get("instanceId"))
        for each in _ask(provider, vswhere, ("-requiresAny", "-requires", *DRIVER_KIT), limit)
    }
    found = [_with_toolset(provider, _studio(each, with_kit)) for each in listed]
    return tuple(
        sorted(found, key=lambda each: (each.complete, each.driver_kit, version_numbers(each.version)))[::-1]
    )


def find_msbuild(provider: Provider, installation: PurePath) -> PurePath | None:
    """MSBuild.exe of an installation: the 64-bit one, as the driver targets load 64-bit task libraries."""
    directory = installation / "MSBuild" / "Current" / "Bin"
    for candidate in (directory / "amd64" / "MSBuild.exe", directory / "MSBuild.exe"):
        if provider.exists(candidate):
            return candidate
    return None


def msbuild_version(provider: Provider, msbuild: PurePath, deadline: Deadline | None = None) -> str:
    """The version that MSBuild itself tells, e.g. "17.14.23.42201".

    Raises:
        BuildError: it does not run, or tells none.
    """
    limit = (deadline or Deadline.never()).sooner(seconds=TOOL_SECONDS)
    result = provider.run(msbuild, ["-version", "-noLogo"], deadline=limit)
    told = [line.strip() for line in result.stdout.splitlines() if len(version_numbers(line)) >= 3]
    if result.exit_code or not told:
        raise BuildError(
            f"'{msbuild}' does not tell its version (exit code {result.exit_code})",
            output=result.output,
            hint="repair this Visual Studio in the Visual Studio Installer",
        )
    return told[-1]


def _ask(
    provider: Provider, vswhere: PurePath, more: Sequence[str], deadline: Deadline
) -> list[dict[str, Any]]:
    # -prerelease: an Insiders build is a Visual Studio, too; it is only newer, and its version decides as ever.
    arguments = ["-all", "-prerelease", "-products", "*", *more, "-format", "json", "-utf8"]
    result = provider.run(vswhere, arguments, deadline=deadline)
    try:
        if result.exit_code:
            raise ValueError(f"exit code {result.exit_code}")
        answer = json.loads(result.stdout)
        if not isinstance(answer, list) or not all(isinstance(each, dict) for each in answer):
            raise ValueError("no list of installations")
    except ValueError as error:
        raise BuildError(
            f"'vswhere' does not answer as documented: {error}",
            output=result.output,
            hint="repair the Visual Studio Installer",
        ) from error
    return answer


def _with_toolset(provider: Provider, studio: Studio) -> Studio:
    """Told as having the driver toolset also where the WDK's extension brought it and no component is listed.

    MSBuild looks for nothing but this directory (MSB8020); `v170` is of Visual Studio 2022, `v180` of 2026.
    """
    versions = provider.glob(studio.path / "MSBuild" / "Microsoft" / "VC", "v*")
    toolset = PureWindowsPath("Platforms", "x64", "PlatformToolsets", "WindowsKernelModeDriver10.0")
    there = any(provider.exists(version / toolset) for version in versions)
    return replace(studio, driver_kit=studio.driver_kit or there)


def _studio(raw: dict[str, Any], with_kit: set[str]) -> Studio:
    try:
        return Studio(
            identifier=str(raw["instanceId"]),
            name=str(raw.get("displayName") or "Visual Studio"),
            version=str(raw["installationVersion"]),
            path=PureWindowsPath(str(raw["installationPath"])),
            product=str(raw.get("productId", "")),
            driver_kit=str(raw["instanceId"]) in with_kit,
            complete=bool(raw.get("isComplete", True)),
        )
    except KeyError as error:
        raise BuildError(
            f"'vswhere' does not answer as documented: an installation without {error}",
            hint="repair the Visual Studio Installer",
        ) from error
