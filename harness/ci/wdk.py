"""The WDK that is pinned against the one that is published: what is newer, and the pins moved to it.

A line of the WDK is the third number of its version (28000, 26100): within a line the newest is wanted; a new line
goes with a new Visual Studio, and is somebody's decision.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.ci.systems import Annotation, Level, System
from harness.console import Console
from vm.errors import ConfigurationError, DownlinkError

PACKAGES = ("driver/packages.config", "driver/packages.vs2022.config")
PROPS = "driver/Directory.Build.props"
INDEX = "https://api.nuget.org/v3-flatcontainer/{package}/index.json"
"""All versions of a package (NuGet Server API, "Package content", "Enumerate package versions")."""
SECONDS = 60

_PIN = re.compile(r'<package id="(?P<id>Microsoft\.Windows\.[\w.]+)" version="(?P<version>[\d.]+)"')
_STABLE = re.compile(r"\d+(\.\d+){3}")

Versions = Callable[[str], Iterable[str]]
"""Published versions of a package by its id."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One version that a file asks for, and what is published beside it; "" = nothing newer."""

    file: str
    version: str
    newer: str
    newer_line: str


def look(root: Path, versions: Versions | None = None) -> list[Pin]:
    """What every file pins, against what is published of all packages in it.

    Raises:
        ConfigurationError: a file does not pin all of its packages to one version.
        DownlinkError: the published versions cannot be asked for.
    """
    ask = versions or published
    found = [_look(root, file, ask) for file in PACKAGES]
    # What is new for an older Visual Studio may be what another file pins already.
    newest = max(_number(pin.version)[2] for pin in found)
    return [
        pin if pin.newer_line and _number(pin.newer_line)[2] > newest else replace(pin, newer_line="")
        for pin in found
    ]


def bump(root: Path, pins: Iterable[Pin]) -> list[str]:
    """Move the pins that have something newer, in every file that names the version; returns the files changed."""
    changed = []
    for pin in pins:
        if not pin.newer:
            continue
        for name in (pin.file, PROPS):
            path = root / name
            text = path.read_text(encoding="utf-8")
            moved = text.replace(pin.version, pin.newer)
            if moved != text:
                path.write_text(moved, encoding="utf-8", newline="\n")
                changed.append(name)
    return sorted(set(changed))


def tell(console: Console, system: System | None, pins: Iterable[Pin]) -> None:
    """Show the pins; set the outputs `newer` ("true" or "false") and `versions` of this step."""
    found = list(pins)
    for pin in found:
        state = f"{pin.newer} is published" if pin.newer else "is the newest of its line"
        console.line(f"{pin.file}: {pin.version}: {state}")
    if system is None:
        return
    newer = [pin.newer for pin in found if pin.newer]
    for name, value in (("newer", "true" if newer else "false"), ("versions", "-".join(newer))):
        for line in system.output(name, value):
            console.line(line)
    for pin in found:
        if pin.newer:
            message = f"{pin.version} is pinned, {pin.newer} is published"
            console.line(system.annotation(Annotation(Level.WARNING, "a newer WDK", message, pin.file)))
    for line in sorted({pin.newer_line for pin in found if pin.newer_line}):
        message = f"{line} is published; it belongs to another Visual Studio, so it is not taken by itself"
        console.line(system.annotation(Annotation(Level.NOTICE, "a new line of the WDK", message)))


def published(package: str) -> list[str]:
    """Versions of a package on nuget.org."""
    url = INDEX.format(package=package.lower())
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as response:
            found = json.load(response)["versions"]
    except (OSError, ValueError, KeyError, urllib.error.URLError) as error:
        raise DownlinkError(
            f"the published versions of '{package}' cannot be asked for: {error}", hint=f"look at {url}"
        ) from error
    return [str(version) for version in found]


def _look(root: Path, file: str, ask: Versions) -> Pin:
    found = list(_PIN.finditer((root / file).read_text(encoding="utf-8")))
    pinned = {match["version"] for match in found}
    if len(pinned) != 1:
        raise ConfigurationError(f"'{file}' must pin all packages to one version, not to {len(pinned)}")
    version = pinned.pop()
    # SDK and WDK have to be of the same build, so only what all packages have counts.
    common = set.intersection(
        *({name for name in ask(match["id"]) if _STABLE.fullmatch(name)} for match in found)
    )
    ordered = sorted(common, key=_number)
    line = _number(version)[2]
    newer = [name for name in ordered if _number(name) > _number(version) and _number(name)[2] == line]
    lines = [name for name in ordered if _number(name)[2] > line]
    return Pin(file, version, newer[-1] if newer else "", lines[-1] if lines else "")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
