"""The WDK of NuGet: what is pinned, and fetching it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from harness.toolchain.wdk.messages import explain
from harness.toolchain.wdk.provider import Provider
from vm.deadline import Deadline
from vm.errors import BuildError

log = logging.getLogger(__name__)

DIRECTORY = "packages"
"""Where packages are restored to, in the driver's directory; `Directory.Build.props` imports them from there."""
RESTORE_SECONDS = 900.0
"""For `nuget restore`: about 1 GB of packages."""


def command(directory: Path, file: str) -> str:
    """The command that fetches the packages, for people."""
    return f'cd "{directory}" && nuget restore {file} -PackagesDirectory {DIRECTORY}'


def read_pins(provider: Provider, path: Path) -> dict[str, str]:
    """Packages and their versions of a packages.config.

    Raises:
        BuildError: there is none, or it is none.
    """
    try:
        root = ElementTree.fromstring(provider.read_text(path))
        found = {each.attrib["id"]: each.attrib["version"] for each in root.iter("package")}
    except (OSError, ElementTree.ParseError, KeyError) as error:
        raise BuildError(f"'{path.name}' pins no WDK: {error}", hint=f"see '{path}'") from error
    return found


def pin(pins: Mapping[str, str], package: str, file: str) -> str:
    """The version of one package.

    Raises:
        BuildError: the file does not pin it.
    """
    if package not in pins:
        raise BuildError(f"'{file}' does not pin '{package}'", hint=f"add the package to driver/{file}")
    return pins[package]


def restore(
    provider: Provider,
    directory: Path,
    file: str,
    missing: Sequence[str],
    environment: Mapping[str, str],
    deadline: Deadline,
) -> None:
    """Fetch the packages of `file` in the driver's directory; `missing` are the ones that must be there then.

    Raises:
        BuildError: there is no nuget.exe, it fails, or it leaves one out.
    """
    nuget = provider.find("nuget.exe")
    if nuget is None:
        raise BuildError(
            f"the packages of '{file}' are not restored, and there is no 'nuget.exe'",
            hint="winget install --exact --id Microsoft.NuGet",
        )
    log.info("restoring %d packages of '%s'", len(missing), file)
    result = provider.run(
        nuget,
        ["restore", file, "-PackagesDirectory", DIRECTORY, "-NonInteractive"],
        directory=directory,
        environment=environment,
        deadline=deadline.sooner(seconds=RESTORE_SECONDS),
    )
    if result.exit_code:
        known = explain(result.output)
        raise BuildError(
            f"'nuget restore {file}' failed with exit code {result.exit_code}"
            + (f": {known.cause}" if known else ""),
            output=result.output,
            hint=known.cure if known else command(directory, file),
        )
    left = [name for name in missing if not provider.glob(directory / DIRECTORY, f"{name}.*")]
    if left:
        raise BuildError(
            f"'nuget restore {file}' ended well but left out '{left[0]}'", hint=command(directory, file)
        )
