"""Each step of a build with the WDK: what its tool is asked for, and how each known failure reads."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.toolchain.source import DriverSource, read_version
from harness.toolchain.wdk import diagnostics, steps
from harness.toolchain.wdk.diagnostics import Diagnostic
from harness.toolchain.wdk.locate import locate
from harness.toolchain.wdk.steps import CatalogOrder, CompileOrder, StampOrder
from harness.toolchain.wdk.workshop import Workshop
from tests.harness.wdk_lab import MSBUILD_SAYS, Lab
from tests.harness.wdk_transcripts import Row, TranscriptProvider
from tests.harness.wdk_trees import KITS, VS2022, VS2026, Host
from vm.deadline import Deadline
from vm.errors import BuildError

DRIVER = Path(__file__).resolve().parents[2] / "driver"
PROJECT = r"[C:\src\driver\downlink.vcxproj]"
SOURCE = r"C:\src\driver\src\queue.c"


def workshop(directory: Path, *rows: Row, host: Host | None = None) -> Workshop:
    """Visual Studio 2026 with its WDK, whose tools answer these rows."""
    provider = (host or Host().studio(VS2026).kit(28000)).provider()
    provider.rows = [*rows, *provider.rows]
    logs = directory / "logs"
    logs.mkdir(exist_ok=True)
    kit = locate(DriverSource("downlink", DRIVER, ()), provider)
    return Workshop(provider, kit, logs, Deadline.after(seconds=60))


def order(directory: Path, **more: object) -> CompileOrder:
    plain = CompileOrder(
        DRIVER / "downlink.vcxproj", "downlink", "debug", "x64", directory / "bin", directory / "obj"
    )
    return replace(plain, **more)  # type: ignore[arg-type]


def msbuild(*lines: str, exit_code: int = 1) -> Row:
    return Row(
        "msbuild",
        (r"-property:OutDir=(?P<out>.+)",),
        exit_code,
        MSBUILD_SAYS + "\n".join(lines) + "\n",
        files={} if exit_code else {"{out}downlink.sys": "image", "{out}downlink.pdb": "symbols"},
    )


def calls(shop: Workshop, tool: str) -> list[tuple[str, ...]]:
    assert isinstance(shop.provider, TranscriptProvider)
    return [call.arguments for call in shop.provider.called(tool) if "-version" not in call.arguments]


def test_msbuild_compiles_and_links_and_nothing_else(tmp_path: Path) -> None:
    shop = workshop(tmp_path, msbuild(exit_code=0))

    made = steps.compile_driver(shop, order(tmp_path, architecture="arm64", configuration="release"))

    assert made.image == tmp_path / "bin" / "downlink.sys" and made.complaints == ()
    [asked] = calls(shop, "msbuild")
    assert asked[0] == str(DRIVER / "downlink.vcxproj")
    assert set(asked[1:]) == {
        "-noLogo",
        "-target:Rebuild",
        "-nodeReuse:false",
        "-warnaserror",
        "-verbosity:minimal",
        "-property:Configuration=Release",
        "-property:Platform=ARM64",
        "-property:SignMode=Off",
        "-property:EnableInf2cat=false",
        "-property:EnableInfVerif=false",
        "-property:DownlinkStampsInf=false",
        "-property:RunCodeAnalysis=false",
        "-property:DownlinkPackages=not-used\\",
        "-property:WindowsTargetPlatformVersion=10.0.28000.0",
        f"-property:OutDir={tmp_path / 'bin'}\\",
        f"-property:IntDir={tmp_path / 'obj'}\\",
        "-binaryLogger:LogFile=msbuild.binlog;ProjectImports=None",
        "-flp1:errorsonly;logfile=msbuild.err;encoding=utf-8",
        "-flp2:warningsonly;logfile=msbuild.wrn;encoding=utf-8",
    }
    assert isinstance(shop.provider, TranscriptProvider)
    call = shop.provider.called("msbuild")[-1]
    assert call.directory == shop.logs
    assert call.environment is not None and call.environment["VSLANG"] == "1033"
    kept = shop.log_path("msbuild").read_text("utf-8")
    assert "-target:Rebuild" in kept and "downlink.vcxproj ->" in kept and "exit code 0" in kept


def test_what_msbuild_takes_for_syntax_is_escaped_and_a_directory_with_blanks_is_one_argument(
    tmp_path: Path,
) -> None:
    shop = workshop(tmp_path)
    place = Path("C:\\my sources; 50%, new")

    options = steps.compile_options(shop, order(tmp_path, products=place))
    [out] = [option for option in options if option.startswith("-property:OutDir=")]

    assert out == "-property:OutDir=C:\\my sources%3B 50%25%2C new\\"
    # The last backslash is doubled before the quote, or it would escape it.
    assert subprocess.list2cmdline([out]) == '"-property:OutDir=C:\\my sources%3B 50%25%2C new\\\\"'


@pytest.mark.parametrize("nuget", [False, True])
def test_analysis_takes_the_drivers_rules_out_of_the_kit(tmp_path: Path, nuget: bool) -> None:
    host = Host().studio(VS2026).kit(28000)
    directory = r"c\CodeAnalysis" if nuget else "CodeAnalysis"
    host.tree[rf"{KITS}\{directory}\DriverRecommendedRules.ruleset"] = ""
    shop = workshop(tmp_path, host=host)

    options = steps.compile_options(shop, order(tmp_path, analyze=True))

    assert "-property:RunCodeAnalysis=true" in options and "-property:EnablePREfast=true" in options
    assert (
        rf"-property:CodeAnalysisRuleSet={KITS}\{directory}\DriverRecommendedRules.ruleset".replace(
            ",", "%2C"
        )
        in options
    )


def test_a_kit_without_the_rules_leaves_them_to_the_project(tmp_path: Path) -> None:
    options = steps.compile_options(workshop(tmp_path), order(tmp_path, analyze=True))

    assert not any("CodeAnalysisRuleSet" in option for option in options)


def test_the_compilers_own_reports_are_kept(tmp_path: Path) -> None:
    row = msbuild(exit_code=0)
    row.arguments = (*row.arguments, r"-property:IntDir=(?P<obj>.+)")
    row.files = {**row.files, "{obj}queue.nativecodeanalysis.xml": "<DEFECTS/>"}
    shop = workshop(tmp_path, row)

    steps.compile_driver(shop, order(tmp_path, analyze=True))

    assert (shop.logs / "queue.nativecodeanalysis.xml").read_text("utf-8") == "<DEFECTS/>"
    assert (shop.logs / "analysis.sarif").is_file()


FAILURES = {
    "wrong pair": (
        r"C:\Program Files (x86)\Windows Kits\10\build\10.0.26100.0\WindowsDriver.common.targets(2230,5): error MSB4062: "
        r'The "ValidateNTTargetVersion" task could not be loaded from the assembly C:\Program Files (x86)\Windows Kits'
        rf"\10\build\bin\Microsoft.DriverKit.Build.Tasks.18.0.dll. Could not load file or assembly {PROJECT}",
        "MSBuild could not build 'downlink': Visual Studio and the WDK do not belong together",
        "./inv doctor",
    ),
    "no component": (
        r"C:\VS\MSBuild\Microsoft\VC\v170\Microsoft.CppBuild.targets(456,5): error MSB8020: The build tools for "
        rf"WindowsKernelModeDriver10.0 (Platform Toolset = 'WindowsKernelModeDriver10.0') cannot be found. {PROJECT}",
        "MSBuild could not build 'downlink': Visual Studio has no driver component",
        "DriverKit",
    ),
    "no Spectre libraries": (
        r"C:\VS\MSBuild\Microsoft\VC\v170\Microsoft.CppBuild.targets(531,5): error MSB8040: Spectre-mitigated libraries "
        rf"are required for this project. Install them from the Visual Studio installer {PROJECT}",
        "MSBuild could not build 'downlink': the Spectre-mitigated libraries",
        "Spectre",
    ),
    "warning": (
        f"{SOURCE}(12,10): error C2220: the following warning is treated as an error {PROJECT}\n"
        f"{SOURCE}(12,10): warning C4189: 'unused': local variable is initialized but not referenced {PROJECT}",
        "MSBuild could not build 'downlink': a warning of the compiler or of the code analysis is treated as an error",
        "mend the warning",
    ),
    "unresolved symbol": (
        "queue.obj : error LNK2019: unresolved external symbol DownlinkMissing referenced in function DownlinkQueue "
        f"{PROJECT}\n"
        f"C:\\out\\downlink.sys : fatal error LNK1120: 1 unresolved externals {PROJECT}",
        "MSBuild could not build 'downlink': a function that is called is in no source file",
        "list the new file",
    ),
    "syntax error": (
        f"{SOURCE}(7,1): error C2065: 'Undefined': undeclared identifier {PROJECT}",
        "MSBuild could not build 'downlink': the source does not compile",
        "mend the first error",
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_of_msbuild_is_one_sentence_its_lines_and_the_log(tmp_path: Path, kind: str) -> None:
    said, sentence, cure = FAILURES[kind]
    shop = workshop(tmp_path, msbuild(*said.splitlines()))

    with pytest.raises(BuildError) as caught:
        steps.compile_driver(shop, order(tmp_path))

    error = caught.value
    assert error.message.startswith(sentence) and "\n" not in error.message
    assert error.hint is not None and cure in error.hint
    code = diagnostics.parse(said)[-1].code
    assert code in error.output and PROJECT not in error.output
    assert error.output.endswith(f"full log: {shop.logs / 'msbuild.log'}")
    assert said.splitlines()[-1] in shop.log_path("msbuild").read_text("utf-8")


def test_a_warning_that_breaks_the_build_is_shown_with_its_place(tmp_path: Path) -> None:
    shop = workshop(tmp_path, msbuild(*FAILURES["warning"][0].splitlines()))

    with pytest.raises(BuildError) as caught:
        steps.compile_driver(shop, order(tmp_path))

    shown = caught.value.output.splitlines()
    assert (
        shown[0] == f"{SOURCE}(12): warning C4189: 'unused': local variable is initialized but not referenced"
    )


def test_findings_that_the_compiler_reports_as_warnings_are_findings(tmp_path: Path) -> None:
    said = [
        f"{SOURCE}(3): error C2220: the following warning is treated as an error {PROJECT}",
        f"{SOURCE}(3): warning C28118: The current function is permitted to run at an IRQ level above {PROJECT}",
        rf"C:\VS\Microsoft.CppCommon.targets(703,5): error MSB6006: 'CL.exe' exited with code 2. {PROJECT}",
    ]
    shop = workshop(tmp_path, msbuild(*said))

    with pytest.raises(BuildError, match="code analysis of 'downlink' found one defect: C28118") as caught:
        steps.compile_driver(shop, order(tmp_path, analyze=True))

    assert str(shop.logs / "analysis.sarif") in (caught.value.hint or "")


def test_a_compile_error_beside_findings_is_a_compile_error(tmp_path: Path) -> None:
    said = [
        f"{SOURCE}(3): error C28118: The current function {PROJECT}",
        f"{SOURCE}(7,1): error C2065: 'Undefined': undeclared identifier {PROJECT}",
    ]

    with pytest.raises(BuildError, match="MSBuild could not build"):
        steps.compile_driver(workshop(tmp_path, msbuild(*said)), order(tmp_path, analyze=True))


def test_an_unknown_failure_shows_the_last_lines_and_the_exit_code(tmp_path: Path) -> None:
    shop = workshop(tmp_path, msbuild("the moon is in the wrong house", exit_code=5))

    with pytest.raises(BuildError) as caught:
        steps.compile_driver(shop, order(tmp_path))

    assert caught.value.message == "MSBuild could not build 'downlink', its exit code is 5"
    assert "the moon is in the wrong house" in caught.value.output
    assert caught.value.hint == f"see '{shop.logs / 'msbuild.log'}'"


def test_many_errors_are_cut_and_counted(tmp_path: Path) -> None:
    said = [
        f"{SOURCE}({line},1): error C2065: 'x{line}': undeclared identifier {PROJECT}" for line in range(40)
    ]

    with pytest.raises(BuildError) as caught:
        steps.compile_driver(workshop(tmp_path, msbuild(*said)), order(tmp_path))

    assert caught.value.output.count("C2065") == 12 and "... and 28 more" in caught.value.output


def test_warnings_of_a_good_build_are_summarised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = [
        f"LINK : warning LNK4210: .CRT section exists {PROJECT}",
        f"{SOURCE}(1): warning C4996: 'ExAllocatePool': deprecated {PROJECT}",
        f"{SOURCE}(2): warning C4996: 'ExFreePool': deprecated {PROJECT}",
    ]
    row = replace(msbuild(*said, exit_code=0))
    with caplog.at_level(logging.WARNING):
        made = steps.compile_driver(workshop(tmp_path, row), order(tmp_path))

    assert len(made.complaints) == 3
    assert caplog.messages == ["MSBuild: 3 warnings: C4996 (2), LNK4210"]


def test_an_image_of_another_name_is_missed(tmp_path: Path) -> None:
    row = msbuild(exit_code=0)
    row.files = {"{out}other.sys": "image"}

    with pytest.raises(BuildError, match=r"did not write 'downlink\.sys'") as caught:
        steps.compile_driver(workshop(tmp_path, row), order(tmp_path))

    assert "TargetName" in (caught.value.hint or "")


@pytest.fixture
def inf(tmp_path: Path) -> Path:
    """An INF in a directory of a package."""
    path = tmp_path / "package" / "downlink.inf"
    path.parent.mkdir()
    path.write_bytes((DRIVER / "downlink.inf").read_bytes())
    return path


def stamped(text: str, architecture: str = "amd64") -> str:
    return text.replace("$ARCH$", architecture).replace("DriverVer   =", "DriverVer =")


@pytest.mark.parametrize(("architecture", "name"), [("x64", "amd64"), ("arm64", "arm64")])
def test_stampinf_gets_the_date_and_version_of_the_header(
    tmp_path: Path, inf: Path, architecture: str, name: str
) -> None:
    version = read_version(DRIVER / "downlink_version.h")
    shop = workshop(
        tmp_path,
        Row("stampinf", files={str(inf): stamped(inf.read_text("utf-8"), name)}, stdout="Stamping\n"),
    )

    steps.stamp_inf(shop, StampOrder(inf, version, architecture))

    assert calls(shop, "stampinf") == [
        ("-f", str(inf), "-d", version.date, "-v", version.numbers, "-a", name, "-c", "downlink.cat")
    ]


@pytest.mark.parametrize(
    ("old", "new"), [("11/21/2026", "01/01/2020"), ("0.1.0.0", "9.9.9.9"), ("NTamd64", "NT$ARCH$")]
)
def test_an_inf_that_is_not_stamped_as_asked_is_refused(
    tmp_path: Path, inf: Path, old: str, new: str
) -> None:
    version = read_version(DRIVER / "downlink_version.h")
    text = stamped(inf.read_text("utf-8"))
    assert old in text
    shop = workshop(tmp_path, Row("stampinf", files={str(inf): text.replace(old, new)}))

    with pytest.raises(BuildError, match="stampinf did not put"):
        steps.stamp_inf(shop, StampOrder(inf, version, "x64"))


def test_stampinf_that_fails_says_why(tmp_path: Path, inf: Path) -> None:
    said = "Stampinf: could not write downlink.inf: Access is denied."
    shop = workshop(tmp_path, Row("stampinf", exit_code=1, stderr=said))

    with pytest.raises(BuildError) as caught:
        steps.stamp_inf(shop, StampOrder(inf, read_version(DRIVER / "downlink_version.h"), "x64"))

    assert caught.value.message.startswith("stampinf could not stamp 'downlink.inf': the INF is read-only")
    assert said in caught.value.output and "stampinf.log" in caught.value.output


MODES = [
    (22621, ("/u",)),
    (25797, ("/u",)),
    (25798, ("/w", "/wbuild", "10.0.25952")),
    (26100, ("/w", "/wbuild", "10.0.25952")),
    (28000, ("/w", "/wbuild", "10.0.25952")),
    (0, ("/w", "/wbuild", "10.0.25952")),
]


@pytest.mark.parametrize(("build", "mode"), MODES)
def test_infverif_applies_the_rules_that_its_version_has(build: int, mode: tuple[str, ...]) -> None:
    assert steps.infverif_mode(build, stamped((DRIVER / "downlink.inf").read_text("utf-8"))) == mode


def test_isolation_is_asked_for_from_the_first_build_with_sections_of_its_own() -> None:
    text = "[DefaultInstall.NTarm64.10.0...25952]\n[DefaultInstall.NTarm64.10.0...22000]\n[DefaultInstall.NTarm64]\n"

    assert steps.infverif_mode(28000, text) == ("/w", "/wbuild", "10.0.22000")
    assert steps.infverif_mode(28000, "[DefaultInstall.NTarm64]\n") == ("/w",)


INFVERIF = (
    "Running in Verbose",
    "ERROR(1330) in C:\\package\\downlink.inf, line 61: File 'downlink.sys' in [SourceDisksFiles] is not isolated.",
    "INF is NOT VALID",
)


def test_an_inf_that_infverif_refuses_breaks_the_build(tmp_path: Path, inf: Path) -> None:
    shop = workshop(tmp_path, Row("infverif", exit_code=1, stdout="\n".join(INFVERIF)))

    with pytest.raises(BuildError) as caught:
        steps.verify_inf(shop, inf)

    assert caught.value.message.startswith("InfVerif /w")
    assert "ERROR(1330)" in caught.value.output and "infverif.log" in caught.value.output


def test_an_infverif_that_is_known_to_be_wrong_warns_and_says_so(
    tmp_path: Path, inf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop = workshop(
        tmp_path,
        Row("infverif", exit_code=1, stdout="\n".join(INFVERIF)),
        host=Host().studio(VS2022).kit(26100),
    )

    verdict = steps.verify_inf(shop, inf)

    assert not verdict.accepted
    [said] = caplog.messages
    assert "WDK build 26100 is known to be wrong at times" in said and "ERROR(1330)" in said


def test_an_inf_that_is_accepted_is_accepted(tmp_path: Path, inf: Path) -> None:
    inf.write_text(stamped(inf.read_text("utf-8")), encoding="utf-8")
    shop = workshop(tmp_path, Row("infverif", stdout="INF is VALID"))

    assert steps.verify_inf(shop, inf).accepted
    assert calls(shop, "infverif") == [("/v", "/w", "/wbuild", "10.0.25952", str(inf))]


def test_pages_are_hashed_in_images_and_not_in_catalogs(tmp_path: Path) -> None:
    shop = workshop(tmp_path, Row("signtool", repeat=True))
    image, catalog = tmp_path / "downlink.sys", tmp_path / "downlink.cat"

    steps.sign(shop, image, "AB" * 20, pages=True)
    steps.sign(shop, catalog, "AB" * 20, pages=False)

    common = ("/s", "My", "/sha1", "AB" * 20)
    assert calls(shop, "signtool") == [
        ("sign", "/v", "/fd", "sha256", "/ph", *common, str(image)),
        ("sign", "/v", "/fd", "sha256", *common, str(catalog)),
    ]


def test_signtool_without_the_certificate_says_what_to_do(tmp_path: Path) -> None:
    said = "SignTool Error: No certificates were found that met all the given criteria."
    shop = workshop(tmp_path, Row("signtool", exit_code=1, stderr=said))

    with pytest.raises(BuildError) as caught:
        steps.sign(shop, tmp_path / "downlink.sys", "AB" * 20, pages=True)

    assert caught.value.message.startswith(
        "signtool could not sign 'downlink.sys': the test certificate is not"
    )
    assert said in caught.value.output and "signtool-sys.log" in caught.value.output


@pytest.mark.parametrize(
    ("build", "architecture", "systems"),
    [
        (28000, "x64", "10_X64,10_VB_X64,10_CO_X64,10_NI_X64,10_GE_X64"),
        (28000, "arm64", "10_VB_ARM64,10_CO_ARM64,10_NI_ARM64,10_GE_ARM64"),
        (22621, "x64", "10_X64,10_VB_X64,10_CO_X64,10_NI_X64"),
    ],
)
def test_a_catalog_is_for_the_systems_that_the_kit_knows(build: int, architecture: str, systems: str) -> None:
    assert ",".join(steps.catalog_systems(build, architecture)) == systems


def test_inf2cat_gets_the_directory_of_the_package_and_local_time(tmp_path: Path, inf: Path) -> None:
    shop = workshop(tmp_path, Row("inf2cat", files={str(inf.parent / "downlink.cat"): "catalog"}))

    made = steps.make_catalog(shop, CatalogOrder(inf.parent, inf, "x64"))

    assert made == inf.parent / "downlink.cat"
    assert calls(shop, "inf2cat") == [
        (
            f"/driver:{inf.parent}",
            "/os:10_X64,10_VB_X64,10_CO_X64,10_NI_X64,10_GE_X64",
            "/uselocaltime",
            "/verbose",
        )
    ]


def test_inf2cat_that_takes_the_date_for_a_future_one_says_so(tmp_path: Path, inf: Path) -> None:
    said = (
        "Signability test failed.\n\nErrors:\n22.9.7: DriverVer set to incorrect date (must be postdated to 4/21/2009 for "
        "newest OS) in \\downlink.inf\n\nWarnings:\nNone\n"
    )
    shop = workshop(tmp_path, Row("inf2cat", exit_code=-2 & 0xFFFFFFFF, stdout=said))

    with pytest.raises(BuildError) as caught:
        steps.make_catalog(shop, CatalogOrder(inf.parent, inf, "x64"))

    assert caught.value.message.startswith(
        "Inf2Cat could not make 'downlink.cat': StampInf took the local date"
    )
    assert "22.9.7: DriverVer set to incorrect date" in caught.value.output


def test_an_inf2cat_that_writes_nothing_is_not_believed(tmp_path: Path, inf: Path) -> None:
    with pytest.raises(BuildError, match=r"did not write 'downlink\.cat'"):
        steps.make_catalog(workshop(tmp_path, Row("inf2cat")), CatalogOrder(inf.parent, inf, "x64"))


def test_an_inf_without_a_catalog_gets_none(tmp_path: Path, inf: Path) -> None:
    inf.write_text(inf.read_text("utf-8").replace("CatalogFile = downlink.cat", ""), encoding="utf-8")
    shop = workshop(tmp_path)

    assert steps.make_catalog(shop, CatalogOrder(inf.parent, inf, "x64")) is None
    assert calls(shop, "inf2cat") == []


def test_nuget_without_a_network_is_named_before_anything_is_built(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    said = "NU1301: Unable to load the service index for source https://api.nuget.org/v3/index.json."
    lab.host = Host().studio(VS2026).nuget()
    lab.host.rows.append(Row("nuget", ("restore", r"packages\.config"), 1, stderr=said))

    with pytest.raises(BuildError) as caught:
        lab.build(route="nuget")

    assert "nuget.org cannot be reached" in caught.value.render()
    assert not (lab.place / "wdk").exists()


def test_complaints_are_read_in_every_form_that_the_tools_have() -> None:
    log = "\r\n".join(
        [
            f"  1>{SOURCE}(12,5): error C2065: 'x': undeclared identifier {PROJECT}",
            f"  1>{SOURCE}(12,5): error C2065: 'x': undeclared identifier {PROJECT}",
            f"LINK : fatal error LNK1181: cannot open input file 'fltMgr.lib' {PROJECT}",
            "MSBUILD : error MSB1009: Project file does not exist.",
            f"{SOURCE}(1): Warning C6011: Dereferencing NULL pointer.",
            "  downlink.vcxproj -> C:\\src\\error C1: nothing\\downlink.sys",
            "Build succeeded.",
        ]
    )

    assert diagnostics.parse(log) == (
        Diagnostic("error", "C2065", "'x': undeclared identifier", SOURCE, 12, 5),
        Diagnostic("error", "LNK1181", "cannot open input file 'fltMgr.lib'", "LINK"),
        Diagnostic("error", "MSB1009", "Project file does not exist.", "MSBUILD"),
        Diagnostic("warning", "C6011", "Dereferencing NULL pointer.", SOURCE, 1),
    )


@pytest.mark.parametrize(
    ("code", "found"),
    [("C6011", True), ("C26451", True), ("C28182", True), ("C30030", True), ("C4189", False)],
)
def test_findings_of_analysis_are_told_from_warnings_of_the_compiler(code: str, found: bool) -> None:
    assert Diagnostic("warning", code, "", "a.c").of_analysis is found
