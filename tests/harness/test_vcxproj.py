"""The WDK project: the same sources, defines and version as the cross build, and what a driver has to be built with."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from harness.toolchain import zig
from harness.toolchain.source import read_version

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "driver"
NAMESPACE = "{http://schemas.microsoft.com/developer/msbuild/2003}"
CONFIGURATIONS = {f"{name}|{platform}" for name in ("Debug", "Release") for platform in ("x64", "ARM64")}

# Set by the WDK's own targets, from the target version and the platform.
BY_THE_WDK = {"_WIN32_WINNT", "WINVER", "NTDDI_VERSION", "_AMD64_", "AMD64", "_ARM64_", "ARM64"}
# Works around a header of mingw-w64 that the WDK does not have.
FOR_MINGW = {"__INTRINSIC_DEFINED_InterlockedBitTestAndSet", "__INTRINSIC_DEFINED_InterlockedBitTestAndReset"}

Element = ElementTree.Element


@pytest.fixture(scope="module")
def project() -> Element:
    return ElementTree.parse(DRIVER / "downlink.vcxproj").getroot()


def included(project: Element, item: str) -> list[str]:
    return [
        element.attrib["Include"].replace("\\", "/")
        for element in project.iter(f"{NAMESPACE}{item}")
        if "Include" in element.attrib
    ]


def values(project: Element, name: str) -> list[str]:
    return [(element.text or "").strip() for element in project.iter(f"{NAMESPACE}{name}")]


def test_every_source_and_header_is_listed_exactly_once(project: Element) -> None:
    sources = sorted(f"src/{path.name}" for path in (DRIVER / "src").glob("*.c"))
    headers = sorted(f"src/{path.name}" for path in (DRIVER / "src").glob("*.h"))

    assert sorted(included(project, "ClCompile")) == sources, (
        "add or remove a <ClCompile> line in downlink.vcxproj"
    )
    assert sorted(included(project, "ClInclude")) == sorted(
        [*headers, "downlink_protocol.h", "downlink_version.h"]
    ), "add or remove a <ClInclude> line in downlink.vcxproj"


def test_every_file_that_the_project_names_exists(project: Element) -> None:
    for item in ("ClCompile", "ClInclude", "ResourceCompile", "Inf", "None"):
        for name in included(project, item):
            assert (DRIVER / name).is_file(), name


def test_both_configurations_of_both_platforms_are_there(project: Element) -> None:
    assert set(included(project, "ProjectConfiguration")) == CONFIGURATIONS
    for element in project.iter(f"{NAMESPACE}ProjectConfiguration"):
        name = f"{element.findtext(f'{NAMESPACE}Configuration')}|{element.findtext(f'{NAMESPACE}Platform')}"
        assert element.attrib["Include"] == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ConfigurationType", "Driver"),
        ("DriverType", "WDM"),
        ("PlatformToolset", "WindowsKernelModeDriver10.0"),
        ("TargetVersion", "Windows10"),
        ("Driver_SpectreMitigation", "Spectre"),
        ("SignMode", "Off"),
        ("EnableInf2cat", "false"),
        ("WarningLevel", "Level4"),
        ("TreatWarningAsError", "true"),
        ("TreatLinkerWarningAsErrors", "true"),
        ("EnablePREfast", "$(RunCodeAnalysis)"),
        ("RunCodeAnalysis", "true"),
        ("CodeAnalysisRuleSet", "DriverRecommendedRules.ruleset"),
        ("ControlFlowGuard", "Guard"),
        ("FileDigestAlgorithm", "sha256"),
        ("TargetName", "downlink"),
    ],
)
def test_a_driver_is_built_with(project: Element, name: str, value: str) -> None:
    assert values(project, name) == [value]


def test_compiler_and_linker_get_the_kernels_options_and_the_filter_manager(project: Element) -> None:
    [compiler, linker, arm64] = values(project, "AdditionalOptions")
    assert {"/kernel", "/Brepro"} <= set(compiler.split())
    assert {"/guard:cf", "/Brepro"} <= set(linker.split())
    assert "/volatile:ms" in arm64.split()
    assert values(project, "AdditionalDependencies") == [
        "%(AdditionalDependencies);$(DDK_LIB_PATH)\\fltMgr.lib"
    ]


def test_the_defines_are_those_of_the_cross_build(project: Element) -> None:
    common = dict(definition.split("=", 1) for definition in zig._DEFINITIONS)
    assert set(common) <= BY_THE_WDK | FOR_MINGW, "define it in downlink.vcxproj, too"
    assert common["_WIN32_WINNT"] == values(project, "_NT_TARGET_VERSION")[0] == common["WINVER"]
    for architecture in zig._ARCHITECTURES.values():
        assert {definition.split("=")[0] for definition in architecture.definitions} <= BY_THE_WDK

    wanted = {
        name: {flag[2:] for flag in flags if flag.startswith("-D")}
        for name, flags in zig._CONFIGURATIONS.items()
    }
    found = {}
    for group in project.iter(f"{NAMESPACE}ItemDefinitionGroup"):
        for element in group.iter(f"{NAMESPACE}PreprocessorDefinitions"):
            match = re.fullmatch(r"'\$\(Configuration\)' == '(\w+)'", group.attrib["Condition"])
            assert match and element.text
            found[match[1].lower()] = set(element.text.split(";")) - {"%(PreprocessorDefinitions)"}
    assert found == wanted


def test_the_include_directory_is_that_of_the_cross_build(project: Element) -> None:
    for text in values(project, "AdditionalIncludeDirectories"):
        assert text == "$(MSBuildProjectDirectory);%(AdditionalIncludeDirectories)"


def test_version_and_date_are_those_of_the_version_header(project: Element) -> None:
    version = read_version(DRIVER / "downlink_version.h")
    header = (DRIVER / "downlink_version.h").read_text(encoding="utf-8")

    assert values(project, "TimeStamp") == [version.numbers]
    assert values(project, "DateStamp") == [version.date]
    assert f'DOWNLINK_VERSION_STRING "{version.numbers}"' in header
    assert included(project, "ResourceCompile") == ["downlink.rc"]
    assert included(project, "Inf") == ["downlink.inf"]
    assert '#include "downlink_version.h"' in (DRIVER / "downlink.rc").read_text(encoding="utf-8")


def test_the_solution_holds_the_project_in_all_configurations(project: Element) -> None:
    text = (DRIVER / "downlink.sln").read_text(encoding="utf-8-sig")
    [guid] = values(project, "ProjectGuid")

    assert f'"downlink", "downlink.vcxproj", "{guid}"' in text
    for name in CONFIGURATIONS:
        assert f"\t\t{name} = {name}\n" in text
        for kind in ("ActiveCfg", "Build.0"):
            assert f"\t\t{guid}.{name}.{kind} = {name}\n" in text


def packages(name: str) -> dict[str, str]:
    root = ElementTree.parse(DRIVER / name).getroot()
    return {package.attrib["id"]: package.attrib["version"] for package in root.iter("package")}


@pytest.mark.parametrize("name", ["packages.config", "packages.vs2022.config"])
def test_sdk_and_wdk_are_pinned_to_one_build(name: str) -> None:
    found = packages(name)

    assert set(found) == {
        "Microsoft.Windows.SDK.CPP",
        "Microsoft.Windows.SDK.CPP.x64",
        "Microsoft.Windows.SDK.CPP.arm64",
        "Microsoft.Windows.WDK.x64",
        "Microsoft.Windows.WDK.arm64",
    }
    assert len(set(found.values())) == 1
    assert re.fullmatch(r"10\.0\.\d+\.\d+", next(iter(found.values())))


def test_each_visual_studio_gets_the_wdk_that_its_packages_file_pins() -> None:
    root = ElementTree.parse(DRIVER / "Directory.Build.props").getroot()
    choices = [
        (element.attrib["Condition"], (element.text or "").strip())
        for element in root.iter(f"{NAMESPACE}DownlinkWdkVersion")
    ]
    [(newer, for_newer), (_, otherwise)] = choices

    assert "VersionGreaterThanOrEquals('$(MSBuildAssemblyVersion)', '18.0')" in newer
    assert {for_newer} == set(packages("packages.config").values())
    assert {otherwise} == set(packages("packages.vs2022.config").values())
    # The target platform is named for both builds.
    for version in (for_newer, otherwise):
        build = version.rsplit(".", 1)[0]
        assert any(
            f"StartsWith('{build}.')" in element.attrib["Condition"] and element.text == f"{build}.0"
            for element in root.iter(f"{NAMESPACE}WindowsTargetPlatformVersion")
        )


def test_a_package_is_imported_only_where_it_was_restored() -> None:
    root = ElementTree.parse(DRIVER / "Directory.Build.props").getroot()
    imports = list(root.iter(f"{NAMESPACE}Import"))

    assert len(imports) == 3
    for element in imports:
        assert element.attrib["Condition"] == f"Exists('{element.attrib['Project']}')"
