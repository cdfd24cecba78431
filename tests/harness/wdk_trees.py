"""Windows hosts with a kit, made up: directories as the installers of Visual Studio, WDK, EWDK and NuGet lay them out.

Written from documentation, from listings in public projects and from the Windows lab figures; not recorded on Windows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.toolchain.source import DriverSource
from tests.harness.wdk_transcripts import Row, TranscriptProvider

CHECKOUT = Path(__file__).resolve().parents[2]
X86 = r"C:\Program Files (x86)"
INSTALLER = rf"{X86}\Microsoft Visual Studio\Installer"
KITS = rf"{X86}\Windows Kits\10"
VS2022 = r"C:\Program Files\Microsoft Visual Studio\2022\Enterprise"
VS2026 = r"C:\Program Files\Microsoft Visual Studio\18\Community"
BUILD_TOOLS = rf"{X86}\Microsoft Visual Studio\2022\BuildTools"
MSBUILD = {VS2022: "17.14.23.42201", VS2026: "18.0.5.56406", BUILD_TOOLS: "17.14.23.42201"}
TOOLSETS = {VS2022: "14.44.35207", VS2026: "14.50.35717", BUILD_TOOLS: "14.44.35207"}
PACKAGES = (
    "Microsoft.Windows.SDK.CPP",
    "Microsoft.Windows.SDK.CPP.x64",
    "Microsoft.Windows.SDK.CPP.arm64",
    "Microsoft.Windows.WDK.x64",
    "Microsoft.Windows.WDK.arm64",
)


def instance(path: str, **more: Any) -> dict[str, Any]:
    """One installation as `vswhere -format json` tells it."""
    product = "BuildTools" if path == BUILD_TOOLS else path.rpartition("\\")[2]
    return {
        "instanceId": f"{len(path):08x}",
        "installDate": "2026-06-10T08:31:00Z",
        "installationName": "VisualStudio/" + MSBUILD[path],
        "installationPath": path,
        "installationVersion": "18.0.11205.157" if path == VS2026 else "17.14.36705.20",
        "productId": f"Microsoft.VisualStudio.Product.{product}",
        "productPath": rf"{path}\Common7\IDE\devenv.exe",
        "state": 4294967295,
        "isComplete": True,
        "isLaunchable": True,
        "isPrerelease": False,
        "isRebootRequired": False,
        "displayName": f"Visual Studio {product} {'2026' if path == VS2026 else '2022'}",
        "channelId": "VisualStudio.18.Release" if path == VS2026 else "VisualStudio.17.Release",
        **more,
    }


@dataclass
class Host:
    """A Windows host to be furnished; `provider` is what stands for it then."""

    tree: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(
        default_factory=lambda: {
            "ProgramFiles": r"C:\Program Files",
            "ProgramFiles(x86)": X86,
            "Path": r"C:\Windows\System32;C:\tools",
        }
    )
    studios: list[dict[str, Any]] = field(default_factory=list)
    with_kit: set[str] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)

    def studio(
        self, path: str, *, kit: bool = True, spectre: tuple[str, ...] = ("x64", "arm64"), **more: Any
    ) -> Host:
        """Add a Visual Studio with both compilers."""
        self.studios.append(instance(path, **more))
        if kit:
            self.with_kit.add(path)
        self.tree[rf"{INSTALLER}\vswhere.exe"] = ""
        self.compiler(path, spectre)
        return self

    def compiler(self, path: str, spectre: tuple[str, ...] = ("x64", "arm64")) -> None:
        """MSBuild, and compilers for both architectures."""
        tools = rf"{path}\VC\Tools\MSVC\{TOOLSETS.get(path, '14.44.35207')}"
        self.tree[rf"{path}\MSBuild\Current\Bin\MSBuild.exe"] = ""
        self.tree[rf"{path}\MSBuild\Current\Bin\amd64\MSBuild.exe"] = ""
        self.tree[rf"{path}\VC\Auxiliary\Build\Microsoft.VCToolsVersion.default.txt"] = (
            TOOLSETS.get(path, "14.44.35207") + "\n"
        )
        for architecture in ("x64", "arm64"):
            self.tree[rf"{tools}\lib\{architecture}\libcmt.lib"] = ""
        for architecture in spectre:
            self.tree[rf"{tools}\lib\spectre\{architecture}\libcmt.lib"] = ""

    def kit(self, build: int, *, root: str = KITS, sdk: bool = True, wdk: bool = True) -> Host:
        """Add an installed WDK and SDK."""
        version = f"10.0.{build}.0"
        if sdk:
            self.tree[rf"{root}\Include\{version}\um\Windows.h"] = ""
            self.tree[rf"{root}\bin\{version}\x64\signtool.exe"] = ""
        if wdk:
            self.tree[rf"{root}\Include\{version}\km\fltKernel.h"] = ""
            self.tree[rf"{root}\bin\{version}\x64\stampinf.exe"] = ""
            self.tree[rf"{root}\bin\{version}\x86\Inf2Cat.exe"] = ""
            self.tree[rf"{root}\Tools\{version}\x64\infverif.exe"] = ""
        return self

    def ewdk(self, build: int, drive: str = "E:") -> Host:
        """The window that the EWDK's LaunchBuildEnv.cmd opens."""
        installation = rf"{drive}\Program Files\Microsoft Visual Studio\2022\BuildTools"
        root = rf"{drive}\Program Files\Windows Kits\10"
        self.compiler(installation, ())
        self.kit(build, root=root)
        self.variables |= {
            "EnterpriseWDK": "True",
            "BuildLab": "ge_release_svc_prod1.250904-1728",
            "WDKContentRoot": root + "\\",
            "VSINSTALLDIR": installation + "\\",
        }
        return self

    def nuget(self) -> Host:
        """nuget.exe on PATH."""
        self.tree[r"C:\tools\nuget.exe"] = ""
        return self

    def without(self, *ends: str) -> Host:
        """Remove the files whose paths end like this."""
        for end in ends:
            found = [path for path in self.tree if path.lower().endswith(end.lower())]
            assert found, end
            for path in found:
                del self.tree[path]
        return self

    def provider(self, msbuild: str | None = None) -> TranscriptProvider:
        """The host; `msbuild` is the version that every MSBuild tells."""
        asks = ("-all", "-format", "json", "-utf8", "-products", r"\*")
        kits = [each for each in self.studios if each["installationPath"] in self.with_kit]
        rows = [
            Row(
                "vswhere",
                (*asks, "-requiresAny", "-requires", ".*DriverKit"),
                0,
                json.dumps(kits),
                repeat=True,
            ),
            Row("vswhere", asks, 0, json.dumps(self.studios), repeat=True),
            Row(
                "reg",
                ("query", r"HKLM\\.*\\Installed Roots", "KitsRoot10"),
                1,
                stderr="ERROR: The system was unable to find the specified registry key or value.",
                repeat=True,
            ),
        ]
        provider = VersionedProvider(self.tree, self.variables, [*self.rows, *rows])
        provider.told = msbuild
        return provider


class VersionedProvider(TranscriptProvider):
    """Answers `MSBuild -version` by the installation that is asked."""

    told: str | None = None

    def run(self, tool: Any, arguments: Any, **options: Any) -> Any:
        if list(arguments) == ["-version", "-noLogo"]:
            version = self.told or next(
                (number for path, number in MSBUILD.items() if str(tool).startswith(path)), "17.14.23.42201"
            )
            row = Row("msbuild", ("-version", "-noLogo"), 0, f"{version}\n")
            self.rows.insert(0, row)
            try:
                return super().run(tool, arguments, **options)
            finally:
                self.rows.remove(row)
        return super().run(tool, arguments, **options)


def driver(directory: Path) -> DriverSource:
    """A driver in a directory of its own, with the pins of this checkout."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("packages.config", "packages.vs2022.config"):
        text = (CHECKOUT / "driver" / name).read_text(encoding="utf-8")
        (directory / name).write_text(text, encoding="utf-8")
    return DriverSource("downlink", directory, ())


def restore(directory: Path, version: str, *names: str) -> None:
    """Packages as `nuget restore` lays them out."""
    build = version.rpartition(".")[0] + ".0"
    for name in names or PACKAGES:
        content = directory / "packages" / f"{name}.{version}" / "c"
        for path in {
            "Microsoft.Windows.WDK.x64": (
                f"bin/{build}/x64/stampinf.exe",
                f"bin/{build}/x86/inf2cat.exe",
                f"tools/{build}/x64/infverif.exe",
            ),
            "Microsoft.Windows.SDK.CPP": (f"bin/{build}/x64/signtool.exe",),
        }.get(name, ("empty.txt",)):
            (content / path).parent.mkdir(parents=True, exist_ok=True)
            (content / path).touch()
