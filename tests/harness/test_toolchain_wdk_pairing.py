"""What does not belong together is refused before MSBuild runs, and named with the command that installs the right one."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from harness.toolchain.wdk import pairing
from harness.toolchain.wdk.examine import examine
from harness.toolchain.wdk.kit import Kit, version_numbers
from harness.toolchain.wdk.locate import locate
from tests.harness.wdk_transcripts import Row, TranscriptProvider
from tests.harness.wdk_trees import (
    BUILD_TOOLS,
    CHECKOUT,
    INSTALLER,
    VS2022,
    VS2026,
    Host,
    driver,
    restore,
)
from vm.errors import BuildError
from vm.findings import Finding, Severity

NAMESPACE = "{http://schemas.microsoft.com/developer/msbuild/2003}"


def kit_of(host: Host, directory: Path) -> tuple[Kit, TranscriptProvider]:
    provider = host.provider()
    return locate(driver(directory), provider), provider


def refusal(kit: Kit, provider: TranscriptProvider, *architectures: str) -> BuildError:
    with pytest.raises(BuildError) as caught:
        pairing.check(kit, provider, architectures or ("x64", "arm64"))
    return caught.value


def version(of: Kit, msbuild: str, wdk: str, sdk: str = "") -> Kit:
    return replace(of, msbuild_version=msbuild, wdk_version=wdk, sdk_version=sdk or wdk)


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Kit, TranscriptProvider]:
    return kit_of(Host().studio(VS2022).kit(26100), tmp_path)


@pytest.mark.parametrize(
    ("msbuild", "wdk"),
    [
        ("18.0.5.56406", "10.0.28000.1839"),
        ("18.0.5.56406", "10.0.28000.2526"),
        ("18.0.5.56406", "10.0.28000.0"),
        ("18.3.1.2", "10.0.29000.1"),
        ("19.0.0.0", "10.0.28000.1839"),
        ("17.14.23.42201", "10.0.26100.6584"),
        ("17.14.23.42201", "10.0.26100.0"),
        ("17.11.2.1", "10.0.26100.4204"),
    ],
)
def test_what_belongs_together_passes(plain: tuple[Kit, TranscriptProvider], msbuild: str, wdk: str) -> None:
    assert list(pairing.mismatches(version(plain[0], msbuild, wdk))) == []


@pytest.mark.parametrize(
    ("msbuild", "wdk", "command"),
    [
        ("18.0.5.56406", "10.0.26100.6584", "Microsoft.WindowsWDK.10.0.28000"),
        ("18.0.5.56406", "10.0.28000.1721", "Microsoft.WindowsWDK.10.0.28000"),
        ("17.14.23.42201", "10.0.28000.1839", "Microsoft.WindowsWDK.10.0.26100"),
        ("17.14.23.42201", "10.0.22621.5193", "Microsoft.WindowsWDK.10.0.26100"),
        ("17.14.23.42201", "", "Microsoft.WindowsWDK.10.0.26100"),
    ],
)
def test_a_wrong_pair_is_refused_with_what_would_happen_and_the_right_command(
    plain: tuple[Kit, TranscriptProvider], msbuild: str, wdk: str, command: str
) -> None:
    error = refusal(version(plain[0], msbuild, wdk), plain[1])
    assert "does not belong to MSBuild" in error.message and "MSB4062" in error.message
    assert command in (error.hint or "")


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ("nuget", "nuget restore packages.config"),
        ("ewdk", "mount the EWDK of build 28000"),
        ("vs", "winget install"),
    ],
)
def test_each_way_has_its_own_cure(plain: tuple[Kit, TranscriptProvider], route: str, said: str) -> None:
    kit = replace(version(plain[0], "18.0.5.56406", "10.0.26100.0"), route=route)
    assert said in (refusal(kit, plain[1]).hint or "")


@pytest.mark.parametrize("msbuild", ["16.11.2.50704", "15.9.21.664", "", "Current"])
def test_a_visual_studio_that_is_too_old_is_refused(
    plain: tuple[Kit, TranscriptProvider], msbuild: str
) -> None:
    assert "too old for drivers" in refusal(version(plain[0], msbuild, "10.0.26100.0"), plain[1]).message


@pytest.mark.parametrize("sdk", ["10.0.22621.0", "10.0.28000.0", ""])
def test_an_sdk_of_another_build_is_refused(plain: tuple[Kit, TranscriptProvider], sdk: str) -> None:
    kit = replace(plain[0], sdk_version=sdk)
    error = refusal(kit, plain[1])
    assert "of different builds" in error.message
    assert error.hint == "winget install --exact --id Microsoft.WindowsSDK.10.0.26100"


def test_another_revision_of_the_sdk_is_no_other_build(plain: tuple[Kit, TranscriptProvider]) -> None:
    kit = replace(plain[0], wdk_version="10.0.26100.6584", sdk_version="10.0.26100.1742")
    assert list(pairing.mismatches(kit)) == []


@pytest.mark.parametrize(
    ("path", "component"),
    [
        (VS2022, "Component.Microsoft.Windows.DriverKit"),
        (BUILD_TOOLS, "Component.Microsoft.Windows.DriverKit.BuildTools"),
    ],
)
def test_a_missing_driver_component_is_named_as_this_product_calls_it(
    tmp_path: Path, path: str, component: str
) -> None:
    error = refusal(*kit_of(Host().studio(path, kit=False).kit(26100), tmp_path))
    assert "MSB8020" in error.message
    assert error.hint == (
        rf'"{INSTALLER}\setup.exe" modify --installPath "{path}" --add {component} --passive --norestart'
    )


def test_a_driver_toolset_that_the_extension_of_the_wdk_brought_is_as_good(tmp_path: Path) -> None:
    host = Host().studio(VS2022, kit=False).kit(26100)
    toolsets = rf"{VS2022}\MSBuild\Microsoft\VC\v170\Platforms\x64\PlatformToolsets"
    host.tree[rf"{toolsets}\v143\Toolset.props"] = ""
    assert "MSB8020" in refusal(*kit_of(host, tmp_path)).message
    host.tree[rf"{toolsets}\WindowsKernelModeDriver10.0\Toolset.props"] = ""
    pairing.check(*kit_of(host, tmp_path))


@pytest.mark.parametrize(
    ("there", "architecture", "component"),
    [("arm64", "x64", "x86.x64.Spectre"), ("x64", "arm64", "ARM64.Spectre")],
)
def test_missing_spectre_libraries_are_named_by_architecture(
    tmp_path: Path, there: str, architecture: str, component: str
) -> None:
    kit, provider = kit_of(Host().studio(VS2022, spectre=(there,)).kit(26100), tmp_path)
    pairing.check(kit, provider, (there,))
    error = refusal(kit, provider, architecture)
    assert f"the Spectre libraries for {architecture} are missing" in error.message
    assert "MSB8040" in error.message
    assert f"--add Microsoft.VisualStudio.Component.VC.Runtimes.{component} " in (error.hint or "")


def test_spectre_libraries_of_another_toolset_do_not_count(tmp_path: Path) -> None:
    host = Host().studio(VS2022, spectre=()).kit(26100)
    host.tree[rf"{VS2022}\VC\Tools\MSVC\14.38.33130\lib\spectre\x64\libcmt.lib"] = ""
    kit, provider = kit_of(host, tmp_path)
    assert "Spectre" in refusal(kit, provider, "x64").message


def test_the_named_toolset_counts_and_not_the_newest(tmp_path: Path) -> None:
    host = Host().studio(VS2022, spectre=("x64",)).kit(26100)
    host.tree[rf"{VS2022}\VC\Tools\MSVC\14.99.1\lib\arm64\libcmt.lib"] = ""
    kit, provider = kit_of(host, tmp_path)
    pairing.check(kit, provider, ("x64",))


def test_without_a_named_toolset_the_newest_counts(tmp_path: Path) -> None:
    host = Host().studio(VS2022, spectre=()).kit(26100).without("default.txt")
    tools = rf"{VS2022}\VC\Tools\MSVC\14.100.1"
    host.tree |= {rf"{tools}\lib\x64\libcmt.lib": "", rf"{tools}\lib\spectre\x64\libcmt.lib": ""}
    kit, provider = kit_of(host, tmp_path)
    pairing.check(kit, provider, ("x64",))


def test_a_missing_compiler_is_named_and_its_libraries_are_not(tmp_path: Path) -> None:
    host = Host().studio(VS2022).kit(26100).without(r"lib\arm64\libcmt.lib")
    error = refusal(*kit_of(host, tmp_path))
    assert "the compiler for arm64 is missing" in error.message
    assert "--add Microsoft.VisualStudio.Component.VC.Tools.ARM64 " in (error.hint or "")
    assert error.causes == ()


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    host = Host().studio(VS2022, kit=False, spectre=()).kit(26100)
    error = refusal(*kit_of(host, tmp_path))
    assert "driver component" in error.message
    assert [("x64" in str(each), "arm64" in str(each)) for each in error.causes] == [
        (True, False),
        (False, True),
    ]


def test_libraries_of_the_ewdk_are_its_own_affair(tmp_path: Path) -> None:
    pairing.check(*kit_of(Host().ewdk(26100), tmp_path))


def test_the_rules_are_those_of_the_project_and_its_pins() -> None:
    root = ElementTree.parse(CHECKOUT / "driver" / "Directory.Build.props").getroot()
    [newer, older] = [(each.text or "").strip() for each in root.iter(f"{NAMESPACE}DownlinkWdkVersion")]
    for pair, wanted in ((pairing.VS2026, newer), (pairing.VS2022, older)):
        assert version_numbers(wanted) >= version_numbers(pair.wdk)
        assert version_numbers(wanted)[:3] == version_numbers(pair.wdk)[:3]
        assert pair.platform in [each.text for each in root.iter(f"{NAMESPACE}WindowsTargetPlatformVersion")]
        text = (CHECKOUT / "driver" / pair.packages).read_text(encoding="utf-8")
        assert f'version="{wanted}"' in text


# What the doctor says of the same hosts.


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    found = {each.check: each for each in findings}
    assert len(found) <= len(findings)
    return found


def test_the_doctor_finds_a_whole_kit_and_says_why_the_others_were_not_taken(tmp_path: Path) -> None:
    found = by_check(examine(Host().studio(VS2022).kit(26100).provider(), driver(tmp_path)))
    assert {name.removeprefix("toolchain.wdk"): each.severity for name, each in found.items()} == {
        ".ewdk": Severity.NOTE,
        "": Severity.OK,
        ".pair": Severity.OK,
        ".sdk": Severity.OK,
        ".driver-kit": Severity.OK,
        ".compiler": Severity.OK,
        ".spectre": Severity.OK,
        ".tools": Severity.OK,
    }
    assert all(not each.mend for each in found.values())
    assert "infverif.exe" in found["toolchain.wdk.tools"].found
    assert "v143" in found["toolchain.wdk.compiler"].found


@pytest.mark.parametrize(
    ("host", "check", "mend"),
    [
        (Host().studio(VS2022, kit=False).kit(26100), "driver-kit", "Component.Microsoft.Windows.DriverKit"),
        (Host().studio(VS2022, spectre=("x64",)).kit(26100), "spectre", "VC.Runtimes.ARM64.Spectre"),
        (Host().studio(VS2022).kit(26100).without(r"lib\x64\libcmt.lib"), "compiler", "VC.Tools.x86.x64"),
    ],
    ids=["driver component", "Spectre", "compiler"],
)
def test_the_doctor_names_each_missing_part_and_its_mend(
    tmp_path: Path, host: Host, check: str, mend: str
) -> None:
    findings = examine(host.provider(), driver(tmp_path))
    [wrong] = [each for each in findings if each.severity is Severity.ERROR]
    assert wrong.check == f"toolchain.wdk.{check}"
    assert wrong.found and wrong.wanted and mend in wrong.mend
    # Nothing is said of the libraries of a compiler that is not there.
    assert ("toolchain.wdk.spectre" in by_check(findings)) == (check != "compiler")
    assert [each.severity for each in findings if each.check == "toolchain.wdk"] == [Severity.OK]


def test_the_doctor_says_why_there_is_no_kit_with_one_error_and_its_mend(tmp_path: Path) -> None:
    findings = examine(Host().provider(), driver(tmp_path))
    assert [each.severity for each in findings] == [Severity.NOTE, Severity.NOTE, Severity.ERROR]
    assert findings[-1].mend.startswith("winget install")
    assert all(not each.mend for each in findings[:-1])


def test_the_doctor_restores_nothing(tmp_path: Path) -> None:
    provider = Host().studio(VS2026).nuget().provider()
    findings = examine(provider, driver(tmp_path))
    assert provider.called("nuget") == []
    assert "nuget restore" in findings[-1].mend
    restore(tmp_path, "10.0.28000.1839")
    assert by_check(examine(provider, driver(tmp_path)))["toolchain.wdk"].severity is Severity.OK


def test_the_doctor_has_a_note_for_a_host_that_is_no_windows() -> None:
    [finding] = examine(TranscriptProvider(is_windows=False))
    assert (finding.check, finding.severity, finding.mend) == ("toolchain.wdk", Severity.NOTE, "")
    assert "need Windows" in finding.found


def test_a_visual_studio_installer_that_is_broken_is_a_finding(tmp_path: Path) -> None:
    host = Host(tree={rf"{INSTALLER}\vswhere.exe": ""}).kit(26100)
    provider = host.provider()
    provider.rows[:2] = []
    provider.rows.insert(0, _broken_vswhere())
    assert examine(provider, driver(tmp_path))[-1].severity is Severity.ERROR


def _broken_vswhere() -> Row:
    return Row("vswhere", (), 0, "nonsense", repeat=True)
