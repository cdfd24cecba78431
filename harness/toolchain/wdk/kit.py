"""A kit that was found: Visual Studio or Build Tools, WDK and SDK, with the paths of the tools. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

Route = Literal["ewdk", "vs", "nuget"]
ROUTES: tuple[Route, ...] = ("ewdk", "vs", "nuget")
"""Where a kit may come from, in the order in which it is looked for."""

TOOLS = ("stampinf", "infverif", "signtool", "inf2cat")
"""The kit's own tools that a build calls after MSBuild."""

_NAMES: Mapping[Route, str] = {
    "ewdk": "EWDK",
    "vs": "installed WDK",
    "nuget": "WDK of NuGet",
}


def version_numbers(version: str) -> tuple[int, ...]:
    """A version as numbers to be compared; () if it is none."""
    parts = version.strip().split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


@dataclass(frozen=True, slots=True)
class Kit:
    """What a driver is built with on Windows.

    Args:
        route: where it comes from.
        root: directory that holds the WDK: the EWDK's `Program Files\\Windows Kits\\10`, the installed one's, or the
            directory of the WDK's NuGet package.
        msbuild: MSBuild.exe.
        visual_studio: installation version of Visual Studio, e.g. "18.0.11205.157"; "" if it was not told.
        installation: directory of Visual Studio or of the Build Tools.
        msbuild_version: version of MSBuild, e.g. "18.0.5.56406"; its first number decides about the pair.
        wdk_version: e.g. "10.0.28000.1839"; of an installed one only "10.0.28000.0" may be known.
        sdk_version: of the SDK that goes with it, in the same form.
        tools: path of each of `TOOLS`.
        environment: all variables for MSBuild and the tools.
        properties: properties for MSBuild (`/p:NAME=VALUE`) that this route needs.
        driver_kit: whether the driver component of Visual Studio was seen; None if it could not be told.
    """

    route: Route
    root: PurePath
    msbuild: PurePath
    visual_studio: str
    installation: PurePath
    msbuild_version: str
    wdk_version: str
    sdk_version: str
    tools: Mapping[str, PurePath]
    environment: Mapping[str, str] = field(repr=False)
    properties: Mapping[str, str] = field(default_factory=dict)
    driver_kit: bool | None = None

    def tool(self, name: str) -> PurePath:
        """The path of one of the kit's tools ("stampinf") or of "msbuild".

        Raises:
            KeyError: it is none of `TOOLS`.
        """
        return self.msbuild if name == "msbuild" else self.tools[name]

    def describe(self) -> str:
        """One line for the log and for people."""
        studio = f"Visual Studio {self.visual_studio}, " if self.visual_studio else ""
        return (
            f"{_NAMES[self.route]} {self.wdk_version} in '{self.root}', {studio}"
            f"MSBuild {self.msbuild_version}, SDK {self.sdk_version}"
        )

    def versions(self) -> dict[str, str]:
        """Versions for the manifest, as those of any toolchain."""
        found = {
            "msbuild": self.msbuild_version,
            "visual-studio": self.visual_studio,
            "wdk": self.wdk_version,
            "sdk": self.sdk_version,
        }
        return {name: version for name, version in found.items() if version}
