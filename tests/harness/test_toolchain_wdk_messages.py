"""Failures of MSBuild and the kit's tools: each is known by what it prints, and taken for nothing else.

The texts follow the documentation of the tools and public bug reports; none was recorded on a Windows of this project.
"""

from __future__ import annotations

import re

import pytest

from harness.symptoms import all_symptoms, by_id
from harness.symptoms.advice import advise
from harness.toolchain.wdk.messages import KNOWN, Known, explain
from vm.errors import BuildError

CPP = r"C:\Program Files\Microsoft Visual Studio\2022\Enterprise\MSBuild\Microsoft\VC\v170"
KIT = r"C:\Program Files (x86)\Windows Kits\10\build\10.0.28000.0\WindowsDriver.common.targets"

OUTPUTS: dict[str, tuple[str, ...]] = {
    "msb4062": (
        rf'{KIT}(198,5): error MSB4062: The "ValidateNTTargetVersion" task could not be loaded from the assembly '
        r"C:\Program Files (x86)\Windows Kits\10\build\10.0.28000.0\bin\Microsoft.DriverKit.Build.Tasks.18.0.dll. "
        "Could not load file or assembly 'Microsoft.Build.Utilities.Core, Version=18.0.0.0'",
    ),
    "task-x86": (
        rf'{KIT}(198,5): error MSB4018: The "ValidateNTTargetVersion" task failed unexpectedly. '
        "System.BadImageFormatException: An attempt was made to load a program with an incorrect format.",
    ),
    "locked-task-library": (
        'error MSB3021: Unable to copy file "a" to "Microsoft.DriverKit.Build.Tasks.17.0.dll". The process cannot '
        "access the file because it is being used by another process.",
        "error MSB3027: Could not copy Microsoft.DriverKit.Build.Tasks.17.0.dll. Exceeded retry count of 10.",
    ),
    "msb8020-driver": (
        rf"{CPP}\Microsoft.CppBuild.targets(457,5): error MSB8020: The build tools for WindowsKernelModeDriver10.0 "
        "(Platform Toolset = 'WindowsKernelModeDriver10.0') cannot be found.",
        "error MSB8020: Die Buildtools fuer WindowsApplicationForDrivers10.0 wurden nicht gefunden.",
    ),
    "msb8020": (
        rf"{CPP}\Microsoft.CppBuild.targets(457,5): error MSB8020: The build tools for v145 (Platform Toolset = "
        "'v145') cannot be found.",
    ),
    "msb8036": (
        rf"{CPP}\Microsoft.CppBuild.targets(489,5): error MSB8036: The Windows SDK version 10.0.28000.0 was not found.",
    ),
    "msb8037": (
        "error MSB8037: The Windows SDK version 10.0.26100.0 for desktop C++ ARM64 apps was not found.",
    ),
    "msb8040": (
        rf"{CPP}\Microsoft.CppBuild.targets(511,5): error MSB8040: Spectre-mitigated libraries are required for "
        "this project. Install them from the Visual Studio installer (Individual components tab) for any toolsets "
        "and architectures being used. Learn more: https://aka.ms/Ofhn4c",
        "error MSB8040: この プロジェクトには Spectre 対応のライブラリが必要です。",
    ),
    "msb4019": (
        r'error MSB4019: The imported project "C:\Microsoft.Cpp.Default.props" was not found. Confirm that the '
        "expression is correct.",
    ),
    "msb6001-path": (
        'error MSB6001: Invalid command line switch for "CL.exe". System.ArgumentException: Item has already been '
        "added. Key in dictionary: 'Path'  Key being added: 'PATH'",
    ),
    "c1083-fltkernel": (
        r"src\downlink.h(7,10): fatal error C1083: Cannot open include file: 'fltKernel.h': No such file or directory",
    ),
    "c1083-sdk": (
        r"km\ntdef.h(11,10): fatal error C1083: Cannot open include file: 'specstrings.h': No such file or directory",
    ),
    "c2220": (
        r"src\queue.c(41,9): error C2220: the following warning is treated as an error",
        r"src\queue.c(41): error C2220: the following warning is treated as an error" + "\n"
        r"src\queue.c(41): warning C28182: Dereferencing NULL pointer.",
    ),
    "lnk1181-fltmgr": (
        r"LINK : fatal error LNK1181: cannot open input file 'C:\Kits\10\lib\10.0.26100.0\km\arm64\fltMgr.lib'",
        r"LINK : fatal error LNK1104: cannot open file 'fltmgr.lib'",
    ),
    "lnk1104-crt": (
        "LINK : fatal error LNK1104: cannot open file 'libcmt.lib'",
        "LINK : fatal error LNK1181: cannot open input file 'BufferOverflowFastFailK.lib'",
    ),
    "lnk2019-flt": (
        "driver.obj : error LNK2019: unresolved external symbol FltRegisterFilter referenced in function DriverEntry",
        "driver.obj : error LNK2001: unresolved external symbol __imp_FltUnregisterFilter",
    ),
    "lnk2019": (
        "driver.obj : error LNK2019: unresolved external symbol DownlinkStart referenced in function DriverEntry",
    ),
    "lnk1201-pdb": (
        r"LINK : fatal error LNK1201: error writing to program database 'C:\x\downlink.pdb'; check for insufficient "
        "disk space, invalid path, or insufficient privilege",
        r"LINK : fatal error LNK1104: cannot open file 'C:\x\downlink.sys'",
    ),
    "path-too-long": (
        'error MSB3491: Could not write lines to file "a". The specified path, file name, or both are too long.',
        "System.IO.PathTooLongException: The specified path is too long.",
    ),
    "api-validator": (
        "ApiValidation : error : ApiValidator.exe: Driver located at downlink.sys is NOT a Universal Driver",
    ),
    "stampinf-access": (r"StampInf: error: Failed to open file C:\x\downlink.inf",),
    "stampinf-syntax": ("stampinf : error : Invalid date 2026-11-21",),
    "infverif-samples": ("infverif.exe: Unknown option /samples",),
    "infverif-driver-store": (
        r"ERROR(1330) in C:\x\downlink.inf, line 30: DefaultInstall section is not isolated: DIRID 12 is used",
    ),
    "infverif-error": (
        r"ERROR(1204) in C:\x\downlink.inf, line 8: Missing or invalid PnpLockdown value",
        "Running in Verbose\nValidating downlink.inf\nINF is NOT VALID",
    ),
    "signtool-certificate": ("SignTool Error: No certificates were found that met all the given criteria.",),
    "signtool-key": (
        "SignTool Error: An unexpected internal error has occurred.\nError information: 0x80090016",
        "SignTool Error: No private key is available.",
    ),
    "signtool-timestamp": (
        "SignTool Error: The specified timestamp server either could not be reached or returned an invalid response.",
    ),
    "signtool-format": ("SignTool Error: This file format cannot be signed because it is not recognized.",),
    "inf2cat-22-9-7": (
        "Signability test failed.\n\nErrors:\n22.9.7: DriverVer set to a date in the future (postdated DriverVer "
        r"not allowed) in \downlink.inf.",
    ),
    "inf2cat-22-9-1": (r"Errors:" + "\n" + r"22.9.1: downlink.sys in [SourceDisksFiles] is missing",),
    "inf2cat-os": (
        "Parameter format not correct.\nInf2Cat /driver:x /os:10_25H2_X64",
        "Inf2Cat: the operating system 10_25H2_X64 is not recognized",
    ),
    "inf2cat-signability": ("Signability test failed.\n\nErrors:\n22.9.4: Missing directive",),
    "nuget-missing": (
        "'nuget' is not recognized as an internal or external command,\noperable program or batch file.",
    ),
    "nuget-network": (
        "error NU1301: Unable to load the service index for source https://api.nuget.org/v3/index.json.",
        "The remote name could not be resolved: 'api.nuget.org'",
    ),
    "nuget-version": (
        "Unable to find version '10.0.28000.1839' of package 'Microsoft.Windows.WDK.x64'.",
        "error NU1102: Unable to find package Microsoft.Windows.WDK.x64 with version (>= 10.0.28000.1839)",
    ),
    "disk-full": (
        "fatal error C1085: Cannot write compiler generated file: '': No space",
        "LINK : fatal error LNK1140: exceeded program database limit",
    ),
    "compiler-error": (r"src\queue.c(12,5): error C2065: 'Entry': undeclared identifier",),
}
"""What is printed, by the failure that it is."""

CASES = [(identifier, output) for identifier, outputs in OUTPUTS.items() for output in outputs]


@pytest.mark.parametrize(("identifier", "output"), CASES, ids=[case[0] for case in CASES])
def test_what_is_printed_is_explained(identifier: str, output: str) -> None:
    known = explain(f"Build started.\n{output}\nBuild FAILED.\n")
    assert known is not None and known.id == identifier


@pytest.mark.parametrize(("identifier", "output"), CASES, ids=[case[0] for case in CASES])
def test_case_and_line_ends_do_not_matter(identifier: str, output: str) -> None:
    known = explain(output.upper().replace("\n", "\r\n"))
    assert known is not None and known.id == identifier


def test_every_failure_has_an_output_that_shows_it() -> None:
    assert set(OUTPUTS) == {known.id for known in KNOWN}
    assert len({known.id for known in KNOWN}) == len(KNOWN)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "Build succeeded.\n    0 Warning(s)\n    0 Error(s)\n\nTime Elapsed 00:00:12.34",
        "Signability test complete.\n\nErrors:\nNone\n\nWarnings:\nNone\n\nCatalog generation complete.",
        "Done Adding Additional Store\nSuccessfully signed: downlink.sys",
        "INF is VALID",
        "Stamping downlink.inf\nInfVerif.exe /w downlink.inf",
        r"C:\Kits\10\bin\10.0.26100.0\x64\stampinf.exe -f downlink.inf -a amd64 -d 11/21/2026 -v 0.1.0.0",
        "warning C4100: unreferenced parameter",
        r"inf2cat.exe /driver:C:\x /os:10_X64,10_NI_X64 /uselocaltime",
        "there were 1330 files",
        "ApiValidation: All binaries in downlink are compliant, 0 errors",
    ],
)
def test_what_is_no_failure_is_explained_by_nothing(output: str) -> None:
    assert explain(output) is None


def test_the_most_special_failure_wins() -> None:
    both = f"{OUTPUTS['compiler-error'][0]}\n{OUTPUTS['msb8040'][0]}"
    known = explain(both)
    assert known is not None and known.id == "msb8040"


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.id)
def test_a_cure_is_one_thing_to_do(known: Known) -> None:
    row = by_id(f"wdk-{known.id}")
    assert (row.cause, row.cure, row.seen) == (known.cause, known.cure, known.seen)
    assert not re.search(r"[.!]$|\n", row.cure)


def test_the_table_of_symptoms_has_no_second_row_for_them() -> None:
    for identifier in ("msb4062", "msb8020-driver", "msb8040", "inf2cat-22-9-7", "inf2cat-22-9-1"):
        rows = [row.id for row in all_symptoms() if row.fits(OUTPUTS[identifier][0])]
        wanted = [f"wdk-{identifier}"]
        # The signability test names itself beside its reason.
        assert [row for row in rows if row != "wdk-inf2cat-signability"] == wanted


@pytest.mark.parametrize("identifier", ["msb8040", "msb4062", "signtool-certificate", "nuget-missing"])
def test_an_error_with_such_an_output_gets_the_hint(identifier: str) -> None:
    error = BuildError("'msbuild' failed with exit code 1", output=OUTPUTS[identifier][0])
    advise(error)
    assert error.hint == by_id(f"wdk-{identifier}").cure
