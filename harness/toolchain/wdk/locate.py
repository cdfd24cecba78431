"""Finds the kit: the EWDK's environment, Visual Studio with the installed WDK, or the WDK of NuGet, in this order.

A kit counts as found when it is whole and its versions belong together; what was wrong with the others is told.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath, PureWindowsPath

from harness.toolchain.source import DriverSource
from harness.toolchain.wdk import nuget, pairing
from harness.toolchain.wdk.kit import ROUTES, TOOLS, Kit, Route, version_numbers
from harness.toolchain.wdk.provider import Provider, WindowsProvider
from harness.toolchain.wdk.studio import (
    INSTALL,
    Studio,
    find_msbuild,
    installed_studios,
    msbuild_version,
    program_files,
)
from vm.deadline import Deadline
from vm.errors import BuildError, ConfigurationError

log = logging.getLogger(__name__)

_WDK = "Microsoft.Windows.WDK"
_SDK = "Microsoft.Windows.SDK.CPP"
_TOOL_FILES: Mapping[str, str] = {name: f"{name}.exe" for name in TOOLS}
_HOSTS = ("x64", "x86")
"""Which build of a tool is taken first; inf2cat is only there for x86."""
_NOWHERE = "not-used\\"


def locate(
    source: DriverSource,
    provider: Provider | None = None,
    route: str | None = None,
    *,
    deadline: Deadline | None = None,
    restore: bool = True,
) -> Kit:
    """The kit that this driver is built with; it and what else was looked at go to the log.

    Args:
        source: the driver; the packages of NuGet are pinned in, and restored to, its directory.
        provider: Windows; None = this host.
        route: one of `ROUTES`, None = the first that has a kit.
        deadline: for all of it.
        restore: whether missing packages may be fetched by `nuget restore`; the doctor must not.

    Raises:
        ConfigurationError: there is no such route.
        BuildError: there is no kit; the causes say why, route by route, and the hint is the command that installs one.
    """
    windows = provider or WindowsProvider()
    if route is not None and route not in ROUTES:
        known = ", ".join(f"'{name}'" for name in ROUTES)
        raise ConfigurationError(f"'{route}' is no way to the WDK, there are {known}", hint="leave out --wdk")
    if not windows.is_windows:
        raise BuildError(
            "the toolchain 'wdk' needs Windows: MSBuild and the WDK do not run on this host",
            hint="./inv build --toolchain zig",
        )
    found = survey(source, windows, route, deadline=deadline, restore=restore)
    if found.kit is not None:
        log.info("kit: %s", found.kit.describe())
        return found.kit
    reasons = list(found.reasons.values())
    raise BuildError(
        f"there is no WDK to build '{source.name}' with"
        + (f" by way of '{route}'" if route else " on this host"),
        hint=_hint(reasons),
        causes=reasons,
    )


@dataclass(frozen=True, slots=True)
class Survey:
    """What a look for a kit came to: the kit, and why the routes before it have none."""

    kit: Kit | None
    reasons: Mapping[Route, BuildError]


def survey(
    source: DriverSource,
    provider: Provider,
    route: str | None = None,
    *,
    deadline: Deadline | None = None,
    restore: bool = False,
) -> Survey:
    """Look for a kit; see `locate`, which raises where there is none."""
    search = _Search(source, provider, deadline or Deadline.never(), restore)
    reasons: dict[Route, BuildError] = {}
    for name in ROUTES:
        if route not in (None, name):
            continue
        try:
            kit = search.find(name)
            _refuse_mismatch(kit)
        except BuildError as error:
            log.info("no kit by '%s': %s", name, error.message)
            reasons[name] = error
            continue
        return Survey(kit, reasons)
    return Survey(None, reasons)


_MEDDLING = frozenset(
    {"CL", "_CL_", "LINK", "_LINK_", "PRIVATE_DRIVER_PACKAGE", "STAMPINF_DATE", "STAMPINF_VERSION"}
)
"""Variables that the tools read beside their command lines: further options of compiler and linker, and for stampinf the
present time in place of the date and version that it was told."""


class _Search:
    """One look for a kit; what Visual Studio told is remembered between the routes."""

    def __init__(self, source: DriverSource, provider: Provider, deadline: Deadline, restore: bool) -> None:
        self._source = source
        self._provider = provider
        self._deadline = deadline
        self._restore = restore
        self._studios: tuple[Studio, ...] | None = None
        self._versions: dict[PurePath, str] = {}

    def find(self, route: Route) -> Kit:
        """The kit by one route.

        Raises:
            BuildError: there is none; one sentence why, and what would install it.
        """
        ways: Mapping[Route, Callable[[], Kit]] = {
            "ewdk": self._ewdk,
            "vs": self._visual_studio,
            "nuget": self._nuget,
        }
        return ways[route]()

    def _ewdk(self) -> Kit:
        variables = self._provider.environment
        if not (variables.get("BuildLab") or variables.get("EnterpriseWDK")):
            raise BuildError("this is no command window of the EWDK: 'BuildLab' is not set")
        hint = "start this command from the window that the EWDK's LaunchBuildEnv.cmd opens"
        content, installed = variables.get("WDKContentRoot"), variables.get("VSINSTALLDIR")
        if not content or not installed:
            missing = "VSINSTALLDIR" if content else "WDKContentRoot"
            raise BuildError(f"the EWDK's environment is not whole: '{missing}' is not set", hint=hint)
        installation = PureWindowsPath(installed)
        msbuild = find_msbuild(self._provider, installation) or self._provider.find("MSBuild.exe")
        if msbuild is None:
            raise BuildError(f"there is no MSBuild in the EWDK's '{installation}'", hint=hint)
        version = self._version(msbuild)
        return self._installed(
            "ewdk",
            PureWindowsPath(content),
            installation,
            msbuild,
            version,
            studio_version="",
            driver_kit=True,
        )

    def _visual_studio(self) -> Kit:
        root = self._kits_root()
        if root is None:
            raise BuildError(
                "no WDK is installed: 'Windows Kits\\10' is not there", hint=pairing.VS2022.install
            )
        reasons: list[BuildError] = []
        # The first installation that has a WDK of its own; else the first one's reason.
        for studio, msbuild in self._usable():
            version = self._version(msbuild)
            try:
                kit = self._installed(
                    "vs", root, studio.path, msbuild, version, studio.version, studio.driver_kit
                )
                _refuse_mismatch(kit)
            except BuildError as error:
                reasons.append(error)
                continue
            return kit
        raise reasons[0]

    def _nuget(self) -> Kit:
        studio, msbuild = next(iter(self._usable()))
        version = self._version(msbuild)
        pair = pairing.pair_for(version)
        if pair is None:
            raise BuildError(f"MSBuild {version} of {studio.describe()} is too old for the WDK of NuGet")
        packages = self._source.directory / nuget.DIRECTORY
        pinned = nuget.read_pins(self._provider, self._source.directory / pair.packages)
        wdk, sdk = nuget.pin(pinned, f"{_WDK}.x64", pair.packages), nuget.pin(pinned, _SDK, pair.packages)
        missing = [name for name in pinned if not self._provider.exists(packages / f"{name}.{pinned[name]}")]
        if missing:
            self._fetch(pair.packages, missing)
        roots = [packages / f"{_WDK}.x64.{wdk}" / "c", packages / f"{_SDK}.{sdk}" / "c"]
        return Kit(
            route="nuget",
            root=roots[0].parent,
            msbuild=msbuild,
            visual_studio=studio.version,
            installation=studio.path,
            msbuild_version=version,
            wdk_version=wdk,
            sdk_version=sdk,
            tools=self._tools(roots, f"10.0.{version_numbers(wdk)[2]}.0"),
            environment=self._variables(),
            properties={"DownlinkPackages": f"{packages}\\", "DownlinkWdkVersion": wdk},
            driver_kit=studio.driver_kit,
        )

    def _installed(
        self,
        route: Route,
        root: PureWindowsPath,
        installation: PureWindowsPath,
        msbuild: PurePath,
        version: str,
        studio_version: str,
        driver_kit: bool,
    ) -> Kit:
        """A kit of a directory `Windows Kits\\10`: the WDK that goes with this MSBuild, else its newest."""
        builds = self._builds(root, "km/fltkernel.h")
        if not builds:
            raise BuildError(
                f"'{root}' has no WDK: no 'Include\\10.0.*\\km\\fltKernel.h'",
                hint=(pairing.pair_for(version) or pairing.VS2022).install,
            )
        pair = pairing.pair_for(version)
        wdk = pair.platform if pair is not None and pair.platform in builds else builds[-1]
        sdks = self._builds(root, "um/windows.h")
        sdk = wdk if wdk in sdks else (sdks[-1] if sdks else "")
        return Kit(
            route=route,
            root=root,
            msbuild=msbuild,
            visual_studio=studio_version,
            installation=installation,
            msbuild_version=version,
            wdk_version=wdk,
            sdk_version=sdk,
            tools=self._tools([root], wdk),
            environment=self._variables(),
            # Restored packages must not come before the kit that was chosen.
            properties={"DownlinkPackages": _NOWHERE, "WindowsTargetPlatformVersion": wdk},
            driver_kit=driver_kit,
        )

    def _fetch(self, file: str, missing: list[str]) -> None:
        if not self._restore:
            raise BuildError(
                f"the packages of '{file}' are not restored: {missing[0]}",
                hint=nuget.command(self._source.directory, file),
            )
        nuget.restore(
            self._provider, self._source.directory, file, missing, self._variables(), self._deadline
        )

    def _usable(self) -> Iterable[tuple[Studio, PurePath]]:
        """Installations that have MSBuild, the best first; at least one."""
        if self._studios is None:
            self._studios = installed_studios(self._provider, self._deadline)
        found = [
            (studio, msbuild)
            for studio in self._studios
            if (msbuild := find_msbuild(self._provider, studio.path)) is not None
        ]
        if not found:
            raise BuildError(
                "no Visual Studio and no Build Tools with MSBuild are installed",
                hint=INSTALL,
            )
        return found

    def _version(self, msbuild: PurePath) -> str:
        if msbuild not in self._versions:
            self._versions[msbuild] = msbuild_version(self._provider, msbuild, self._deadline)
        return self._versions[msbuild]

    def _kits_root(self) -> PureWindowsPath | None:
        """`Windows Kits\\10`: where the registry says, else where it usually is."""
        usual = program_files(self._provider) / "Windows Kits" / "10"
        if self._provider.exists(usual / "Include"):
            return usual
        key = r"HKLM\SOFTWARE\Microsoft\Windows Kits\Installed Roots"
        result = self._provider.run(
            "reg.exe",
            ["query", key, "/v", "KitsRoot10", "/reg:32"],
            deadline=self._deadline.sooner(seconds=30),
        )
        told = re.search(r"(?m)^\s*KitsRoot10\s+REG_SZ\s+(.+?)\s*$", result.stdout)
        if result.exit_code or told is None:
            return None
        root = PureWindowsPath(told[1])
        return root if self._provider.exists(root / "Include") else None

    def _builds(self, root: PureWindowsPath, header: str) -> list[str]:
        """Versions of a kit's directory that have a header, the newest last."""
        found = [
            entry.name
            for entry in self._provider.glob(root / "Include", "10.0.*")
            if self._provider.exists(entry / header)
        ]
        return sorted(found, key=version_numbers)

    def _tools(self, roots: Iterable[PurePath], version: str) -> dict[str, PurePath]:
        """Paths of the kit's tools.

        Raises:
            BuildError: one is missing.
        """
        roots = list(roots)
        pattern = f"10.0.{version_numbers(version)[2]}.*"
        places = [
            place
            for root in roots
            for parent in (root / "bin", root / "Tools", root / "tools")
            for place in (*reversed(self._provider.glob(parent, pattern)), parent)
        ]
        found: dict[str, PurePath] = {}
        for name, file in _TOOL_FILES.items():
            candidates = [place / host / file for host in _HOSTS for place in places]
            path = next((each for each in candidates if self._provider.exists(each)), None)
            if path is None:
                raise BuildError(
                    f"the kit in '{roots[0]}' has no '{file}' for version {version}",
                    hint=f"install WDK and SDK of build {version} anew",
                )
            found[name] = path
        return found

    def _variables(self) -> dict[str, str]:
        """Variables for MSBuild and the tools.

        English messages in UTF-8 (MSBuild takes both from DOTNET_CLI_UI_LANGUAGE, the compiler English from VSLANG),
        and no MSBuild node that stays and holds the WDK's task libraries. What would change a build behind the back of its
        command line is left out.
        """
        told = {"DOTNET_CLI_UI_LANGUAGE": "en", "VSLANG": "1033", "MSBUILDDISABLENODEREUSE": "1"}
        kept = {
            name: value
            for name, value in self._provider.environment.items()
            if name.upper() not in told and name.upper() not in _MEDDLING
        }
        return kept | told


def _refuse_mismatch(kit: Kit) -> None:
    for problem in pairing.mismatches(kit):
        raise BuildError(f"{problem.sentence}: wanted is {problem.wanted}", hint=problem.cure)


def _hint(reasons: list[BuildError]) -> str:
    """The install command of the last route that knows one: the later ones ask for less."""
    hints = [reason.hint for reason in reasons if reason.hint]
    return hints[-1] if hints else pairing.VS2022.install
