"""What the doctor says about the kit: each part of it, and the command that mends it. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.toolchain.source import ARCHITECTURES, DriverSource
from harness.toolchain.wdk import pairing
from harness.toolchain.wdk.kit import Kit, Route
from harness.toolchain.wdk.locate import Survey, survey
from harness.toolchain.wdk.provider import Provider, WindowsProvider
from vm.deadline import Deadline
from vm.errors import BuildError, DownlinkError
from vm.findings import Finding, Severity

EXAMINE_SECONDS = 120.0

_CHECK = "toolchain.wdk"
_DRIVER = Path(__file__).resolve().parents[3] / "driver"


def examine(
    provider: Provider | None = None,
    source: DriverSource | None = None,
    architectures: tuple[str, ...] = ARCHITECTURES,
) -> list[Finding]:
    """The kit that a build would take, part by part; where there is none, each way to one and why it is closed.

    Args:
        provider: Windows; None = this host.
        source: the driver, which pins the WDK of NuGet; None = the one of this checkout.
        architectures: what is built for.
    """
    windows = provider or WindowsProvider()
    if not windows.is_windows:
        return [Finding(_CHECK, Severity.NOTE, "not looked for: MSBuild and the WDK need Windows")]
    try:
        found = survey(
            source or DriverSource.at(_DRIVER), windows, deadline=Deadline.after(seconds=EXAMINE_SECONDS)
        )
    except DownlinkError as error:
        return [Finding(_CHECK, Severity.ERROR, error.message, "a kit", error.hint or "./inv doctor")]
    if found.kit is None:
        return list(_nothing(found))
    return [*_others(found), *_parts(found.kit, windows, architectures)]


def _nothing(found: Survey) -> Iterator[Finding]:
    for route, reason in found.reasons.items():
        yield _route(route, reason, Severity.ERROR if route == list(found.reasons)[-1] else Severity.NOTE)


def _others(found: Survey) -> Iterator[Finding]:
    for route, reason in found.reasons.items():
        yield _route(route, reason, Severity.NOTE)


def _route(route: Route, reason: BuildError, severity: Severity) -> Finding:
    mend = (reason.hint or "") if severity is Severity.ERROR else ""
    return Finding(
        f"{_CHECK}.{route}", severity, reason.message, "a kit" if severity is Severity.ERROR else "", mend
    )


def _parts(kit: Kit, provider: Provider, architectures: tuple[str, ...]) -> Iterator[Finding]:
    yield Finding(_CHECK, Severity.OK, kit.describe())
    wrong = list(pairing.problems(kit, provider, architectures))
    pair = pairing.pair_for(kit.msbuild_version)
    fine = {
        "pair": f"MSBuild {kit.msbuild_version} and WDK {kit.wdk_version}",
        "sdk": f"SDK {kit.sdk_version}",
        "driver-kit": "part of the EWDK" if kit.route == "ewdk" else "the driver component is installed",
        "compiler": f"{pair.toolset if pair else ''} for {', '.join(architectures)}",
        "spectre": f"libraries for {', '.join(architectures)}",
    }
    for part, said in fine.items():
        trouble = [each for each in wrong if each.part == part]
        # Without a compiler nothing is known of its libraries.
        unknown = part == "spectre" and any(each.part == "compiler" for each in wrong)
        if not trouble and not unknown:
            yield Finding(f"{_CHECK}.{part}", Severity.OK, said)
        for each in trouble:
            yield Finding(f"{_CHECK}.{part}", Severity.ERROR, each.sentence, each.wanted, each.cure)
    yield Finding(f"{_CHECK}.tools", Severity.OK, ", ".join(sorted(str(path) for path in kit.tools.values())))
