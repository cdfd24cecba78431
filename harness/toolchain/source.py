"""What a toolchain is given and what it gives back: plain data, the same for every toolchain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vm.errors import BuildError

Configuration = Literal["debug", "release"]

ARCHITECTURES = ("x64", "arm64")
"""What toolchains build for, the default first."""

ToolchainVersions = Mapping[str, str]
"""Tool name to version, e.g. {"ziglang": "0.17.0", "clang": "22.1.8"}."""

_VERSION = re.compile(r'^#define[ \t]+\w*VERSION_([A-Z]+)[ \t]+"?([^"\n]+?)"?[ \t]*$', re.MULTILINE)


def directory_name(configuration: str, architecture: str) -> str:
    """Name of the directory for what is built: "debug", "release-arm64"; the default architecture goes without saying."""
    return configuration if architecture == ARCHITECTURES[0] else f"{configuration}-{architecture}"


@dataclass(frozen=True, slots=True)
class DriverSource:
    """A driver's sources on disk.

    Args:
        name: base name of the image, e.g. "downlink".
        directory: the directory that file names in symbols are relative to; also an include directory.
        sources: C files, absolute or relative to the working directory.
        includes: further include directories, searched in order.
        inf: INF to be stamped and put beside the image.
        version_header: header with `…VERSION_NUMBERS`, `…VERSION_DATE` and so on: stamps the INF, makes the version
            resource.
        cross: directory with the headers and export lists for builds without the WDK.
    """

    name: str
    directory: Path
    sources: tuple[Path, ...]
    includes: tuple[Path, ...] = ()
    inf: Path | None = None
    version_header: Path | None = None
    cross: Path | None = None

    @classmethod
    def at(cls, directory: Path) -> DriverSource:
        """The driver in a directory laid out as `driver/` is: one INF, which names it; C files in `src/`.

        Raises:
            BuildError: there is not exactly one INF, or no C file.
        """
        directory = directory.resolve()
        infs = sorted(directory.glob("*.inf"))
        if len(infs) != 1:
            found = ", ".join(f"'{inf.name}'" for inf in infs) or "none"
            raise BuildError(
                f"'{directory}' must contain exactly one INF, found {found}",
                hint="the INF's name is the driver's name",
            )
        sources = tuple(sorted((directory / "src").glob("*.c")))
        if not sources:
            raise BuildError(f"'{directory / 'src'}' contains no C file")
        name = infs[0].stem
        version_header = directory / f"{name}_version.h"
        cross = directory / "cross"
        return cls(
            name=name,
            directory=directory,
            sources=sources,
            inf=infs[0],
            version_header=version_header if version_header.is_file() else None,
            cross=cross if cross.is_dir() else None,
        )


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What one build produced. Paths are absolute; `compiled` lists the translation units that were not up to date.

    A toolchain with signing tools of its own also hands over `signed_image` and `catalog`; `image` is the image as it
    was linked, and `unsigned_sha256` its hash.
    """

    name: str
    configuration: Configuration
    architecture: str
    toolchain: str
    versions: ToolchainVersions
    image: Path
    symbols: Path
    inf: Path | None
    unsigned_sha256: str
    compiled: tuple[str, ...]
    linked: bool
    seconds: float
    signed_image: Path | None = None
    catalog: Path | None = None


@dataclass(frozen=True, slots=True)
class DriverVersion:
    """Version of a driver, as it goes into its INF and its version resource."""

    numbers: str
    """Four numbers, e.g. "0.1.0.0"."""
    date: str
    """mm/dd/yyyy, the form that DriverVer wants."""
    company: str = ""
    product: str = ""
    description: str = ""
    copyright: str = ""


def read_version(header: Path) -> DriverVersion:
    """Read the version macros (`…VERSION_NUMBERS`, `…VERSION_DATE`, `…VERSION_COMPANY`, …) of a version header.

    Raises:
        BuildError: numbers or date are missing or have the wrong form.
    """
    found = {match[1]: match[2] for match in _VERSION.finditer(header.read_text(encoding="utf-8"))}
    numbers = found.get("NUMBERS", "").replace(",", ".").replace(" ", "")
    date = found.get("DATE", "")
    if not re.fullmatch(r"\d{1,5}(\.\d{1,5}){3}", numbers) or not re.fullmatch(r"\d\d/\d\d/\d{4}", date):
        raise BuildError(
            f"'{header}' does not define a version of four numbers and a date mm/dd/yyyy",
            hint="it needs '#define …VERSION_NUMBERS 0,1,0,0' and '#define …VERSION_DATE \"01/31/2026\"'",
        )
    return DriverVersion(
        numbers,
        date,
        found.get("COMPANY", ""),
        found.get("PRODUCT", ""),
        found.get("DESCRIPTION", ""),
        found.get("COPYRIGHT", ""),
    )


def stamp_inf(text: str, version: DriverVersion, architecture: str) -> str:
    """Put version, date and architecture into an INF, as the WDK's stampinf does.

    `$ARCH$` becomes the INF's name of the architecture, the DriverVer directive of `[Version]` is replaced.

    Raises:
        BuildError: the INF has no DriverVer directive.
    """
    stamped, count = re.subn(
        r"(?im)^(\s*DriverVer\s*=).*$",
        lambda match: f"{match[1]} {version.date},{version.numbers}",
        text.replace("$ARCH$", {"x64": "amd64", "arm64": "arm64"}[architecture]),
    )
    if count != 1:
        raise BuildError(f"the INF has {count} DriverVer directives, it must have exactly one")
    return stamped
