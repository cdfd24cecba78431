"""The kit is found by each way, the better way comes first, and where there is none the reasons and the cure are told."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest

from harness.toolchain.source import DriverSource
from harness.toolchain.wdk.kit import Kit
from harness.toolchain.wdk.locate import locate
from harness.toolchain.wdk.provider import Variables
from tests.harness.wdk_transcripts import TRANSCRIPTS, Row, TranscriptProvider
from tests.harness.wdk_trees import (
    BUILD_TOOLS,
    INSTALLER,
    KITS,
    PACKAGES,
    VS2022,
    VS2026,
    Host,
    driver,
    restore,
)
from vm.errors import BuildError, ConfigurationError

WDK2022 = "10.0.26100.6584"
WDK2026 = "10.0.28000.1839"


@pytest.fixture
def source(tmp_path: Path) -> DriverSource:
    return driver(tmp_path / "driver")


def refused(source: DriverSource, host: Host, route: str | None = None) -> BuildError:
    with pytest.raises(BuildError) as caught:
        locate(source, host.provider(), route)
    return caught.value


def reasons(error: BuildError) -> list[str]:
    return [str(cause) for cause in error.causes]


def test_an_installed_wdk_is_found_with_the_visual_studio_that_goes_with_it(source: DriverSource) -> None:
    kit = locate(source, Host().studio(VS2022).kit(26100).provider())
    assert kit.route == "vs"
    assert kit.root == PureWindowsPath(KITS)
    assert kit.msbuild == PureWindowsPath(VS2022, "MSBuild", "Current", "Bin", "amd64", "MSBuild.exe")
    assert kit.versions() == {
        "msbuild": "17.14.23.42201",
        "visual-studio": "17.14.36705.20",
        "wdk": "10.0.26100.0",
        "sdk": "10.0.26100.0",
    }
    assert kit.tools == {
        "stampinf": PureWindowsPath(KITS, "bin", "10.0.26100.0", "x64", "stampinf.exe"),
        "signtool": PureWindowsPath(KITS, "bin", "10.0.26100.0", "x64", "signtool.exe"),
        "inf2cat": PureWindowsPath(KITS, "bin", "10.0.26100.0", "x86", "inf2cat.exe"),
        "infverif": PureWindowsPath(KITS, "Tools", "10.0.26100.0", "x64", "infverif.exe"),
    }
    assert kit.driver_kit is True
    assert "installed WDK 10.0.26100.0" in kit.describe() and "17.14.23.42201" in kit.describe()


def test_packages_that_lie_around_do_not_come_before_the_kit_that_was_chosen(source: DriverSource) -> None:
    kit = locate(source, Host().studio(VS2022).kit(26100).provider())
    assert kit.properties == {
        "DownlinkPackages": "not-used\\",
        "WindowsTargetPlatformVersion": "10.0.26100.0",
    }


def test_what_changes_a_build_behind_its_command_line_is_left_out(source: DriverSource) -> None:
    host = Host().studio(VS2022).kit(26100)
    host.variables |= {"_cl_": "/Od", "Link": "/debug", "PRIVATE_DRIVER_PACKAGE": "1", "CLASSPATH": "x"}
    variables = Variables(locate(source, host.provider()).environment)
    assert not {"_CL_", "LINK", "PRIVATE_DRIVER_PACKAGE"} & {name.upper() for name in variables}
    assert variables["CLASSPATH"] == "x"


def test_msbuild_speaks_english_in_utf8_and_leaves_no_node_behind(source: DriverSource) -> None:
    host = Host().studio(VS2022).kit(26100)
    host.variables |= {"VsLang": "1031", "Temp": r"C:\t"}
    kit = locate(source, host.provider())
    variables = Variables(kit.environment)
    assert (variables["VSLANG"], variables["DOTNET_CLI_UI_LANGUAGE"]) == ("1033", "en")
    assert variables["MSBUILDDISABLENODEREUSE"] == "1" and variables["TEMP"] == r"C:\t"
    assert len(variables) == len(kit.environment), "a variable is there twice"
    assert r"C:\t" not in repr(kit)


@pytest.mark.parametrize(("path", "build"), [(VS2022, 26100), (VS2026, 28000)])
def test_of_two_wdks_the_one_that_goes_with_visual_studio_is_taken(
    source: DriverSource, path: str, build: int
) -> None:
    kit = locate(source, Host().studio(path).kit(28000).kit(26100).provider())
    assert (kit.wdk_version, kit.sdk_version) == (f"10.0.{build}.0", f"10.0.{build}.0")


def test_of_two_visual_studios_the_one_that_goes_with_the_wdk_is_taken(source: DriverSource) -> None:
    kit = locate(source, Host().studio(VS2026).studio(VS2022).kit(26100).provider())
    assert kit.installation == PureWindowsPath(VS2022)


def test_the_newest_visual_studio_is_taken_where_both_have_their_wdk(source: DriverSource) -> None:
    kit = locate(source, Host().studio(VS2022).studio(VS2026).kit(26100).kit(28000).provider())
    assert kit.installation == PureWindowsPath(VS2026)


def test_the_visual_studio_with_the_driver_component_is_taken_before_a_newer_one(
    source: DriverSource,
) -> None:
    kit = locate(source, Host().studio(VS2026, kit=False).studio(VS2022).kit(26100).kit(28000).provider())
    assert kit.installation == PureWindowsPath(VS2022)


def test_a_half_installed_visual_studio_is_taken_last(source: DriverSource) -> None:
    host = Host().studio(VS2026, isComplete=False).studio(VS2022, kit=False).kit(26100).kit(28000)
    assert locate(source, host.provider()).installation == PureWindowsPath(VS2022)


def test_the_build_tools_are_a_visual_studio_too(source: DriverSource) -> None:
    assert locate(source, Host().studio(BUILD_TOOLS).kit(26100).provider()).installation == PureWindowsPath(
        BUILD_TOOLS
    )


def test_a_kit_in_another_directory_is_found_by_the_registry(source: DriverSource) -> None:
    host = Host().studio(VS2022).kit(26100, root=r"D:\Kits\10")
    host.rows.append(
        Row(
            "reg",
            (r"HKLM\\SOFTWARE\\Microsoft\\Windows Kits\\Installed Roots", "KitsRoot10", "/reg:32"),
            0,
            "\nHKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft\\Windows Kits\\Installed Roots\n"
            "    KitsRoot10    REG_SZ    D:\\Kits\\10\\\n\n",
        )
    )
    provider = host.provider()
    assert locate(source, provider).root == PureWindowsPath(r"D:\Kits\10")


def test_the_environment_of_the_ewdk_comes_first(source: DriverSource) -> None:
    kit = locate(source, Host().studio(VS2026).kit(28000).ewdk(26100).provider())
    assert kit.route == "ewdk"
    assert kit.root == PureWindowsPath(r"E:\Program Files\Windows Kits\10")
    assert kit.msbuild.is_relative_to(PureWindowsPath("E:\\"))
    assert kit.environment["BuildLab"] and kit.driver_kit is True


@pytest.mark.parametrize("missing", ["WDKContentRoot", "VSINSTALLDIR"])
def test_an_ewdk_window_that_is_not_whole_says_what_is_missing(source: DriverSource, missing: str) -> None:
    host = Host().ewdk(26100)
    del host.variables[missing]
    error = refused(source, host, "ewdk")
    assert reasons(error) == [f"the EWDK's environment is not whole: '{missing}' is not set"]
    assert "LaunchBuildEnv.cmd" in (error.hint or "")


@pytest.mark.parametrize(("path", "version"), [(VS2022, WDK2022), (VS2026, WDK2026)])
def test_the_wdk_of_nuget_is_the_one_that_is_pinned_for_this_visual_studio(
    source: DriverSource, path: str, version: str
) -> None:
    restore(source.directory, version)
    kit = locate(source, Host().studio(path).provider())
    assert (kit.route, kit.wdk_version, kit.sdk_version) == ("nuget", version, version)
    packages = source.directory / "packages"
    assert kit.root == packages / f"Microsoft.Windows.WDK.x64.{version}"
    assert kit.properties == {"DownlinkPackages": f"{packages}\\", "DownlinkWdkVersion": version}
    assert {name: tool.name for name, tool in kit.tools.items()} == {
        "stampinf": "stampinf.exe",
        "infverif": "infverif.exe",
        "signtool": "signtool.exe",
        "inf2cat": "inf2cat.exe",
    }


def test_packages_that_are_missing_are_restored(source: DriverSource) -> None:
    host = Host().studio(VS2026).nuget()
    files = {f"packages/{name}.{WDK2026}/c/none.txt": "" for name in PACKAGES}
    build = "10.0.28000.0"
    wdk = f"packages/Microsoft.Windows.WDK.x64.{WDK2026}/c"
    files |= {
        f"{wdk}/bin/{build}/x64/stampinf.exe": "",
        f"{wdk}/bin/{build}/x86/inf2cat.exe": "",
        f"{wdk}/tools/{build}/x64/infverif.exe": "",
        f"packages/Microsoft.Windows.SDK.CPP.{WDK2026}/c/bin/{build}/x64/signtool.exe": "",
    }
    host.rows.append(
        Row("nuget", ("restore", r"packages\.config", "-PackagesDirectory", "packages"), 0, files=files)
    )
    provider = host.provider()
    kit = locate(source, provider, "nuget")
    assert kit.wdk_version == WDK2026
    [call] = provider.called("nuget")
    assert call.directory == source.directory and "-NonInteractive" in call.arguments


def test_one_package_that_is_missing_is_enough_to_restore(source: DriverSource) -> None:
    restore(source.directory, WDK2026, *PACKAGES[:-1])
    error = refused(source, Host().studio(VS2026), "nuget")
    assert "there is no 'nuget.exe'" in reasons(error)[0]
    assert error.hint == "winget install --exact --id Microsoft.NuGet"


def test_nothing_is_restored_where_nothing_may_change(source: DriverSource) -> None:
    with pytest.raises(BuildError) as caught:
        locate(source, Host().studio(VS2026).nuget().provider(), "nuget", restore=False)
    assert "are not restored" in reasons(caught.value)[0]
    assert "nuget restore packages.config -PackagesDirectory packages" in (caught.value.hint or "")


def test_a_restore_that_fails_says_why(source: DriverSource) -> None:
    host = Host().studio(VS2026).nuget()
    host.rows.append(
        Row(
            "nuget",
            ("restore",),
            1,
            stderr="Unable to load the service index for source https://x/index.json.",
        )
    )
    error = refused(source, host, "nuget")
    assert reasons(error) == [
        "'nuget restore packages.config' failed with exit code 1: nuget.org cannot be reached from this host"
    ]
    assert "HTTPS_PROXY" in (error.hint or "")


def test_a_restore_that_ends_well_and_brings_nothing_is_no_success(source: DriverSource) -> None:
    host = Host().studio(VS2026).nuget()
    host.rows.append(Row("nuget", ("restore",), 0))
    assert "left out 'Microsoft.Windows.SDK.CPP'" in reasons(refused(source, host, "nuget"))[0]


def test_a_wrong_pair_is_passed_over_for_the_next_way(source: DriverSource) -> None:
    restore(source.directory, WDK2026)
    kit = locate(source, Host().studio(VS2026).kit(26100).provider())
    assert (kit.route, kit.wdk_version) == ("nuget", WDK2026)


def test_a_wrong_pair_by_the_way_that_was_asked_for_is_refused_with_the_right_one(
    source: DriverSource,
) -> None:
    error = refused(source, Host().studio(VS2026).kit(26100), "vs")
    assert "WDK 10.0.26100.0 does not belong to MSBuild 18.0.5.56406" in reasons(error)[0]
    assert "winget install --exact --id Microsoft.WindowsWDK.10.0.28000" in (error.hint or "")


def test_a_bare_host_is_told_why_by_every_way_and_one_command(source: DriverSource) -> None:
    error = refused(source, Host())
    assert error.message == "there is no WDK to build 'downlink' with on this host"
    assert reasons(error) == [
        "this is no command window of the EWDK: 'BuildLab' is not set",
        "no WDK is installed: 'Windows Kits\\10' is not there",
        "Visual Studio is not installed: there is no 'vswhere.exe'",
    ]
    assert (error.hint or "").startswith("winget install --exact --id Microsoft.VisualStudio.2022.BuildTools")
    assert "DriverKit.BuildTools" in (error.hint or "")
    assert error.render().count("because:") == 3


def test_an_sdk_alone_is_no_wdk(source: DriverSource) -> None:
    error = refused(source, Host().studio(VS2022).kit(26100, wdk=False), "vs")
    assert "has no WDK" in reasons(error)[0]
    assert "Microsoft.WindowsWDK.10.0.26100" in (error.hint or "")


@pytest.mark.parametrize("tool", ["stampinf", "infverif", "signtool", "inf2cat"])
def test_a_kit_without_one_of_its_tools_is_refused(source: DriverSource, tool: str) -> None:
    error = refused(source, Host().studio(VS2022).kit(26100).without(f"{tool}.exe"), "vs")
    assert f"no '{tool}.exe' for version 10.0.26100.0" in reasons(error)[0]


def test_a_tool_of_another_build_of_the_kit_is_not_taken(source: DriverSource) -> None:
    host = Host().studio(VS2022).kit(26100).without("infverif.exe")
    host.tree[rf"{KITS}\Tools\10.0.22621.0\x64\infverif.exe"] = ""
    assert "no 'infverif.exe'" in reasons(refused(source, host, "vs"))[0]


def test_the_64_bit_msbuild_is_needed_only_where_it_is(source: DriverSource) -> None:
    host = Host().studio(VS2022).kit(26100).without(r"amd64\MSBuild.exe")
    assert locate(source, host.provider()).msbuild == PureWindowsPath(
        VS2022, "MSBuild", "Current", "Bin", "MSBuild.exe"
    )


def test_a_visual_studio_without_msbuild_is_none(source: DriverSource) -> None:
    host = Host().studio(VS2022).kit(26100).without(r"\MSBuild.exe")
    assert "no Visual Studio and no Build Tools with MSBuild" in reasons(refused(source, host, "vs"))[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row("vswhere", (), 1, stderr="Error 0x57: unknown parameter"), "exit code 1"),
        (Row("vswhere", (), 0, "Visual Studio Locator version 1"), "does not answer as documented"),
        (Row("vswhere", (), 0, '{"instanceId": 1}'), "no list of installations"),
        (Row("vswhere", (), 0, '[{"instanceId": "a"}]', repeat=True), "without 'installationVersion'"),
    ],
    ids=["fails", "no JSON", "no list", "half an installation"],
)
def test_an_answer_of_vswhere_that_is_none_is_told(source: DriverSource, row: Row, said: str) -> None:
    host = Host(tree={rf"{INSTALLER}\vswhere.exe": ""}, rows=[row]).kit(26100)
    assert said in reasons(refused(source, host, "vs"))[0]


def test_a_msbuild_that_does_not_run_is_told(source: DriverSource) -> None:
    provider = Host().studio(VS2022).kit(26100).provider(msbuild="The system cannot execute it")
    with pytest.raises(BuildError) as caught:
        locate(source, provider, "vs")
    assert "does not tell its version" in reasons(caught.value)[0]


def test_pins_that_cannot_be_read_are_told(source: DriverSource) -> None:
    (source.directory / "packages.config").write_text("<packages>", encoding="utf-8")
    assert "'packages.config' pins no WDK" in reasons(refused(source, Host().studio(VS2026), "nuget"))[0]


def test_a_way_that_nobody_knows_is_refused(source: DriverSource) -> None:
    with pytest.raises(
        ConfigurationError, match="'winget' is no way to the WDK, there are 'ewdk', 'vs', 'nuget'"
    ):
        locate(source, Host().provider(), "winget")


def test_a_host_that_is_no_windows_is_one_sentence(source: DriverSource) -> None:
    provider = Host().provider()
    provider._is_windows = False
    with pytest.raises(BuildError, match="needs Windows") as caught:
        locate(source, provider)
    assert caught.value.hint == "./inv build --toolchain zig"
    assert provider.calls == []


def test_what_was_found_and_why_not_the_others_is_logged(
    source: DriverSource, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        kit: Kit = locate(source, Host().studio(VS2022).kit(26100).provider())
    assert "no kit by 'ewdk': this is no command window of the EWDK" in caplog.text
    assert f"kit: {kit.describe()}" in caplog.text


def test_an_ewdk_whose_parts_do_not_belong_together_is_passed_over(source: DriverSource) -> None:
    host = Host().studio(VS2022).kit(26100).ewdk(28000)
    assert locate(source, host.provider()).route == "vs"
    assert "WDK 10.0.28000.0 does not belong to MSBuild 17" in reasons(refused(source, host, "ewdk"))[0]


def test_pins_that_do_not_belong_to_visual_studio_are_refused(source: DriverSource) -> None:
    path = source.directory / "packages.config"
    path.write_text(path.read_text(encoding="utf-8").replace(WDK2026, WDK2022), encoding="utf-8")
    restore(source.directory, WDK2022)
    assert "does not belong to MSBuild 18" in reasons(refused(source, Host().studio(VS2026), "nuget"))[0]


def test_a_host_out_of_a_transcript_has_its_kit(source: DriverSource) -> None:
    provider = TranscriptProvider.load("host-vs2022")
    assert locate(source, provider).route == "vs"
    provider.finish()


def test_a_restore_without_network_names_the_network_not_the_version(source: DriverSource) -> None:
    provider = TranscriptProvider.load("nuget-offline")
    with pytest.raises(BuildError) as caught:
        locate(source, provider)
    assert "nuget.org cannot be reached" in reasons(caught.value)[-1]
    assert "HTTPS_PROXY" in (caught.value.hint or "")
    provider.finish()


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_transcript_can_be_read_and_says_where_it_comes_from(path: Path) -> None:
    assert TranscriptProvider.load(path.stem).rows
