"""What MSBuild, the compiler and the kit's tools print when they fail: why, and what mends it. Plain data.

Sources: the tools' documented error codes (Microsoft Learn: MSBuild, MSVC, SignTool, Inf2Cat, InfVerif, NuGet) and the
figures of the Windows lab. Patterns follow codes where there are any, as texts are translated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ADD = '"%ProgramFiles(x86)%\\Microsoft Visual Studio\\Installer\\setup.exe" modify --installPath <path> --passive'
_ADD_DRIVER_KIT = (
    f"{_ADD} --add Component.Microsoft.Windows.DriverKit (Build Tools: "
    "Component.Microsoft.Windows.DriverKit.BuildTools)"
)
_ADD_SPECTRE = (
    f"{_ADD} --add Microsoft.VisualStudio.Component.VC.Runtimes.x86.x64.Spectre "
    "--add Microsoft.VisualStudio.Component.VC.Runtimes.ARM64.Spectre"
)


@dataclass(frozen=True, slots=True)
class Known:
    """One failure.

    `pattern` finds it in what was printed, whatever the case; `cause` reads after a colon, `cure` is an imperative;
    `seen` is what a person reads in the document.
    """

    id: str
    pattern: str
    cause: str
    cure: str
    seen: str

    def fits(self, output: str) -> bool:
        """Whether it shows in what a tool printed."""
        return re.search(self.pattern, output, re.IGNORECASE) is not None


KNOWN: tuple[Known, ...] = (
    Known(
        "msb4062",
        r"\bMSB4062\b.*DriverKit|DriverKit.*\bMSB4062\b",
        "Visual Studio and the WDK do not belong together: 18.x needs WDK 28000, 17.x needs 26100",
        "./inv doctor says which pair was found, and the command that installs the right WDK",
        "MSB4062 on Microsoft.DriverKit.Build.Tasks",
    ),
    Known(
        "task-x86",
        r"\bMSB4(018|062)\b.*(32-bit|BadImageFormat|incorrect format)",
        "the 32-bit MSBuild cannot load the WDK's 64-bit task libraries",
        "use MSBuild\\Current\\Bin\\amd64\\MSBuild.exe; the harness does where it is installed",
        "MSB4018 or MSB4062: a task library has an incorrect format",
    ),
    Known(
        "locked-task-library",
        r"(being used by another process|\bMSB(3021|3027|3491)\b).*(DriverKit|Task)"
        r"|(DriverKit|Tasks?\.\d+\.\d+\.dll).*being used by another process",
        "an MSBuild node that was kept from an earlier build holds the WDK's task libraries",
        "taskkill /F /IM MSBuild.exe, and build with /nodeReuse:false as the harness does",
        "the WDK's task libraries are being used by another process",
    ),
    Known(
        "msb8020-driver",
        r"\bMSB8020\b.*(WindowsKernelModeDriver|WindowsApplicationForDrivers)",
        "Visual Studio has no driver component, or the component is of another WDK",
        _ADD_DRIVER_KIT,
        "MSB8020: the build tools for WindowsKernelModeDriver10.0 cannot be found",
    ),
    Known(
        "msb8020",
        r"\bMSB8020\b(?!.*Windows(KernelMode|ApplicationFor)Driver)",
        "the compiler of the toolset that the project names is not installed: v143 is of Visual Studio 2022, v145 of "
        "2026",
        "./inv doctor names the component, and the command that adds it",
        "MSB8020: the build tools for v143 or v145 cannot be found",
    ),
    Known(
        "msb8036",
        r"\bMSB8036\b",
        "the Windows SDK of the WDK's build is not installed",
        "winget install --exact --id Microsoft.WindowsSDK.10.0.26100 (Visual Studio 2026: 10.0.28000)",
        "MSB8036: the Windows SDK version was not found",
    ),
    Known(
        "msb8037",
        r"\bMSB8037\b",
        "the SDK of this version has no desktop headers and libraries",
        "install the whole SDK: winget install --exact --id Microsoft.WindowsSDK.10.0.26100 (Visual Studio 2026: "
        "10.0.28000)",
        "MSB8037: the Windows SDK for desktop C++ apps was not found",
    ),
    Known(
        "msb8040",
        r"\bMSB8040\b",
        "the Spectre-mitigated libraries of this toolset and architecture are not installed",
        _ADD_SPECTRE,
        "MSB8040: Spectre-mitigated libraries are required",
    ),
    Known(
        "msb4019",
        r"\bMSB4019\b",
        "a file that the project imports is missing: Visual Studio has no C++ tools, or the packages are half restored",
        "remove driver\\packages and build again; if it stays, repair Visual Studio in its installer",
        "MSB4019: the imported project was not found",
    ),
    Known(
        "msb6001-path",
        r"\bMSB6001\b.*(already|Key in dictionary)",
        "the environment has the same variable twice, as 'Path' and 'PATH'",
        "start from a plain command window, not from one that another shell opened",
        "MSB6001: an item with the same key has already been added",
    ),
    Known(
        "c1083-fltkernel",
        r"\bC1083\b.*(fltKernel|ntifs|ntddk|wdm)\.h",
        "the headers of the WDK are not on the include path: the WDK is missing for this platform version",
        "./inv doctor says which WDK was found",
        "C1083: cannot open include file fltKernel.h",
    ),
    Known(
        "c1083-sdk",
        r"\bC1083\b.*(specstrings|sal|winapifamily|sdkddkver|windows)\.h",
        "the SDK of the WDK's build is missing or not whole",
        "install SDK and WDK of one build, ./inv doctor names the command",
        "C1083: cannot open include file windows.h or specstrings.h",
    ),
    Known(
        "c2220",
        r"\bC2220\b",
        "a warning of the compiler or of the code analysis is treated as an error",
        "mend the warning that is printed beside it; the driver builds without warnings",
        "C2220: the following warning is treated as an error",
    ),
    Known(
        "lnk1181-fltmgr",
        r"\bLNK1(181|104)\b.*fltMgr\.lib",
        "the WDK has no libraries for this architecture, or DDK_LIB_PATH is that of another WDK",
        "install the WDK anew, ./inv doctor names the command; for arm64 of NuGet restore Microsoft.Windows.WDK.arm64",
        "LNK1181: cannot open input file fltMgr.lib",
    ),
    Known(
        "lnk1104-crt",
        r"\bLNK1(181|104)\b.*(libcmt|BufferOverflow\w*|oldnames|msvcrt\w*)\.lib",
        "libraries of the compiler are missing for this architecture, or their Spectre-mitigated form",
        _ADD_SPECTRE,
        "LNK1104: cannot open libcmt.lib or BufferOverflowFastFailK.lib",
    ),
    Known(
        "lnk2019-flt",
        r"\bLNK20(19|01)\b.*(\b|__imp_)Flt[A-Z]\w+",
        "the filter manager's library is not linked",
        "add $(DDK_LIB_PATH)\\fltMgr.lib to AdditionalDependencies of driver\\downlink.vcxproj",
        "LNK2019: unresolved external symbol FltRegisterFilter",
    ),
    Known(
        "lnk2019",
        r"\bLNK20(19|01)\b(?!.*(\b|__imp_)Flt[A-Z])",
        "a function that is called is in no source file of the project and in no library",
        "list the new file in driver\\downlink.vcxproj, or add the library that exports the function",
        "LNK2019: unresolved external symbol",
    ),
    Known(
        "lnk1201-pdb",
        r"\b(LNK1201|C1041)\b|\bLNK1104\b.*\.(pdb|sys)\b",
        "the image or its symbols are open in another program, usually a debugger",
        "close the debugger, or end mspdbsrv.exe",
        "LNK1201 or LNK1104: the .pdb or the .sys cannot be written",
    ),
    Known(
        "path-too-long",
        r"path.{0,40} too long|PathTooLongException|must be less than 260 characters",
        "a path of the checkout or of the packages is longer than 259 characters",
        "move the checkout to a short path such as C:\\src\\downlink",
        "a path is too long: 260 characters",
    ),
    Known(
        "api-validator",
        r"ApiValidat(or|ion)\b.*(\bfailed\b|is not a (universal|windows)|error\s*:)|error\s*:.*ApiValidator",
        "the driver calls a function that is not allowed for its DriverTargetPlatform",
        "replace the call, or take DriverTargetPlatform 'Desktop' for this project",
        "ApiValidator: the driver is not a Universal or Windows Driver",
    ),
    Known(
        "stampinf-access",
        r"stampinf.*(access is denied|cannot open|could not (open|write)|failed to (open|write))",
        "the INF is read-only, open elsewhere, or not where the build put it",
        "close what holds the file and build again",
        "stampinf cannot write the INF",
    ),
    Known(
        "stampinf-syntax",
        r"stampinf.*(invalid|usage:|unrecognized|unknown (option|parameter))",
        "stampinf was given a date that is not mm/dd/yyyy or a version that is not four numbers",
        "correct the version and date in driver\\downlink_version.h",
        "stampinf: invalid date or version",
    ),
    Known(
        "infverif-samples",
        r"infverif.*(/samples|unknown (option|parameter|switch)|invalid (option|argument|switch))",
        "InfVerif of the WDK builds 25798 to 26100 is faulty: it lacks /samples",
        "leave the option out, or use a newer WDK",
        "InfVerif: the option /samples is not known",
    ),
    Known(
        "infverif-driver-store",
        r"\bERROR\s*\(?13(29|30)\b|\b13(29|30)\b.*isolat|DIRID 13\b|run from the driver store",
        "the driver does not run from the driver store, as sections for builds from 25952 on have to",
        "use DIRID 13 in [DefaultInstall.NT$ARCH$.10.0...25952], DIRID 12 only in the section for older builds",
        "InfVerif /w or /k: the driver does not run from the driver store",
    ),
    Known(
        "infverif-error",
        r"(?m)^\s*ERROR\s*\((?!13(29|30)\b)\d{4}\) in |INF is NOT VALID",
        "the INF breaks a rule that Windows enforces",
        "mend the lines that InfVerif names; ./inv build lints the INF on any host",
        "InfVerif: ERROR(1204) in downlink.inf, INF is NOT VALID",
    ),
    Known(
        "signtool-certificate",
        r"SignTool Error: (No certificates were found|.*cannot find the certificate|The specified .*could not be found)",
        "the test certificate is not in the store that signtool looks in, or it is expired",
        "remove .cache\\signing and build again: it is made and imported anew",
        "SignTool Error: No certificates were found that met all the given criteria",
    ),
    Known(
        "signtool-key",
        r"SignTool Error: .*(private key|keyset)|0x8009000[dD]|0x80090016|NTE_(NO_KEY|BAD_KEYSET)",
        "the private key of the test certificate is missing or belongs to another user",
        "remove .cache\\signing and build again as the user who signs",
        "SignTool: keyset does not exist, 0x80090016",
    ),
    Known(
        "signtool-timestamp",
        r"SignTool Error: .*(time ?stamp)",
        "the time stamp server could not be reached or refused",
        "leave the time stamp out: packages for tests need none",
        "SignTool Error: the specified timestamp server could not be reached",
    ),
    Known(
        "signtool-format",
        r"SignTool Error: .*(not recognized|format|0x800700C1)|SignTool Error: .*0x8009310B",
        "the file is no complete image or catalog: the build was broken off",
        "remove .cache\\build\\wdk and build again",
        "SignTool Error: this file format cannot be signed because it is not recognized",
    ),
    Known(
        "inf2cat-22-9-7",
        r"\b22\.9\.7\b",
        "StampInf took the local date and Inf2Cat compares with UTC: it bites east of Greenwich",
        "inf2cat /uselocaltime, or stamp a date in UTC",
        "Inf2Cat: 22.9.7, DriverVer set to a date in the future",
    ),
    Known(
        "inf2cat-22-9-1",
        r"\b22\.9\.1\b",
        "the INF copies a file that is not in the package's directory, or whose name differs",
        "compare [SourceDisksFiles] with the directory",
        "Inf2Cat: 22.9.1, a file of the INF is missing or not in the catalog",
    ),
    Known(
        "inf2cat-os",
        r"Inf2Cat.*(/os|operating system).*(invalid|not (valid|supported|recognized))|Parameter format not correct",
        "this Inf2Cat is older than one of the versions of Windows that are asked for",
        "use the Inf2Cat of WDK 26100 or later, ./inv doctor says which was found",
        "Inf2Cat: /os names a version that is not supported",
    ),
    Known(
        "inf2cat-signability",
        r"Signability test (failed|was not successful)|Signability test complete\.\s*Errors:\s*(?!\s*None)\S",
        "the package has an error that a catalog must not cover",
        "mend what stands below 'Errors:'",
        "Inf2Cat: Signability test failed",
    ),
    Known(
        "nuget-missing",
        r"'?nuget(\.exe)?'? is not recognized|no 'nuget\.exe'",
        "nuget.exe is not on PATH; the dotnet program cannot restore these packages",
        "winget install --exact --id Microsoft.NuGet",
        "nuget is not recognized as a command",
    ),
    Known(
        "nuget-network",
        r"\bNU1301\b|Unable to load the service index|remote name could not be resolved|NameResolutionFailure",
        "nuget.org cannot be reached from this host",
        "set HTTPS_PROXY, or copy driver\\packages from a host that has them",
        "NU1301: unable to load the service index",
    ),
    Known(
        "nuget-version",
        r"\bNU110[123]\b|Unable to find version '?10\.0\.",
        "the pinned version of the WDK is not published at the source that nuget asks",
        "nuget sources list; nuget.org must be among them",
        "NU1102: unable to find version 10.0.28000.1839 of package Microsoft.Windows.WDK.x64",
    ),
    Known(
        "disk-full",
        r"\b(C1085|LNK1140|LNK1318)\b|MSB\d{4}.*not enough space on the disk",
        "the disk is full",
        "remove .cache\\build\\wdk and old runs, ./inv clean",
        "C1085 or LNK1140: cannot write, the disk is full",
    ),
    Known(
        "compiler-error",
        r"\berror C(?!2220|1041|1083|1085)[12]\d{3}\b",
        "the source does not compile",
        "mend the first error that the compiler names",
        "error C2065 and other errors of the compiler",
    ),
)
"""Every failure that is known, the more special ones first: `explain` takes the first that fits."""


def explain(output: str) -> Known | None:
    """Why a tool failed, from what it printed; None if nobody knows."""
    return next((known for known in KNOWN if known.fits(output)), None)
