"""Every PowerShell file passes the lint, and the lint sees what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lint import powershell
from tests.lint.powershell_source import Source

ROOT = Path(__file__).resolve().parents[2]
FILES = [path.relative_to(ROOT).as_posix() for path in powershell.files(ROOT)]

GOOD = r"""#Requires -Version 5.1
<#
.SYNOPSIS
Starts a machine.
.PARAMETER Name
Its name.
.PARAMETER Force
Turn it off first.
.PARAMETER PasswordNeverExpires
A switch is no secret.
.PARAMETER Checkpoint
Which ones.
.PARAMETER Seconds
How long.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidatePattern('^[A-Za-z]:\\')]
    [string]$Name,

    [switch]$Force,

    [switch]$PasswordNeverExpires,

    [ValidateSet('clean', 'verifier')]
    [string[]]$Checkpoint = @('clean'),

    [int]$Seconds
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false

function Get-Setting {
    param([string]$Path)
    bcdedit.exe /enum $Path
    if ($LASTEXITCODE -ne 0) {
        throw 'bcdedit failed'
    }
}

try {
    $secret = [Console]::In.ReadToEnd() | ConvertFrom-Json
    $list = New-Object System.Collections.Generic.List[string]
    $list.Add($secret.password)
    $count = 0
    $count++
    Get-Setting -Path "$env:SystemRoot\x" | Out-Null
    Get-ChildItem -LiteralPath 'C:\Downlink\results' |
        Where-Object { $_.Name -eq $Name } |
        Set-Content -LiteralPath "$env:TEMP\names.txt"
    if ($Force) {
        Stop-VM -Name $Name
    }
    else {
        $null = Start-VM -Name $Name
    }
    [Console]::Out.WriteLine((@{ ok = $true; result = @{ count = $count } } | ConvertTo-Json -Compress -Depth 8))
    exit 0
}
catch {
    $failure = @{ code = 'failed'; message = $_.Exception.Message; hresult = $_.Exception.HResult }
    [Console]::Out.WriteLine((@{ ok = $false; error = $failure } | ConvertTo-Json -Compress -Depth 8))
    exit 1
}
"""

GOOD_WITH_A_FUNCTION = GOOD[: GOOD.index("try {")] + (
    """function Complete-Script {
    param([hashtable]$Answer, [int]$Code)
    [Console]::Out.WriteLine((ConvertTo-Json -InputObject $Answer -Compress -Depth 8))
    exit $Code
}

$answer = @{ ok = $true; result = $null }
try {
    Start-VM -Name $Name
}
catch {
    $answer = @{ ok = $false; error = "$_" }
}
if ($answer.ok) {
    Complete-Script -Answer $answer -Code 0
}
elseif ($Force) {
    exit 1
}
else {
    Complete-Script -Answer $answer -Code 1
}
"""
)

GOOD_WITH_A_PRINTER = (
    GOOD.replace(
        "function Get-Setting {",
        "function Write-Answer {\n    param([hashtable]$Answer)\n    $json = ConvertTo-Json -InputObject $Answer -Depth 8"
        " -Compress\n    [Console]::Out.WriteLine($json)\n}\n\nfunction Get-Setting {",
    )
    .replace("[Console]::Out.WriteLine((@{ ok = $true;", "Write-Answer -Answer (@{ ok = $true;")
    .replace("[Console]::Out.WriteLine((@{ ok = $false;", "Write-Answer -Answer (@{ ok = $false;")
    .replace(" | ConvertTo-Json -Compress -Depth 8))", ")")
)

BAD = [
    ("syntax", "    $count = 0\n", "    $count = (0\n"),
    ("syntax", "exit 1\n}", "exit 1\n"),
    ("ascii", "Starts a machine.", "Starts a m\u00e4chine."),
    ("requires", "#Requires -Version 5.1", "#Requires -RunAsAdministrator"),
    ("help", "Starts a machine.", ""),
    ("help", ".PARAMETER Name\nIts name.\n", ""),
    ("help", ".PARAMETER Name\n", ".PARAMETER Nome\n"),
    ("cmdlet-binding", "[CmdletBinding()]\n", ""),
    ("parameter-type", "    [string]$Name", "    $Name"),
    ("parameter-type", "    [string]$Name", "    [object]$Name"),
    ("parameter-type", "    [int]$Seconds", "    $Seconds"),
    ("parameter-type", "    [int]$Seconds", "    [object]$Seconds"),
    ("help", ".PARAMETER Seconds\nHow long.\n", ""),
    ("secret-parameter", "    [int]$Seconds", "    [string]$ApiToken"),
    ("parameter-type", "param([string]$Path)", "param($Path)"),
    ("secret-parameter", "[switch]$PasswordNeverExpires", "[string]$AdminPassword"),
    ("secret-parameter", "[switch]$PasswordNeverExpires", "[pscredential]$Who"),
    ("secret-parameter", "[switch]$PasswordNeverExpires", "[System.Security.SecureString]$Who"),
    ("strict-mode", "Set-StrictMode -Version Latest\n", ""),
    ("strict-mode", "Set-StrictMode -Version Latest\n", "Set-StrictMode -Version 1.0\n"),
    ("strict-mode", "Set-StrictMode -Version Latest\n", "Stop-VM\nSet-StrictMode -Version Latest\n"),
    ("preference", "$ErrorActionPreference = 'Stop'\n", ""),
    ("preference", "$ErrorActionPreference = 'Stop'\n", "$ErrorActionPreference = 'Continue'\n"),
    ("preference", "$ProgressPreference = 'SilentlyContinue'\n", ""),
    ("alias", "Where-Object", "?"),
    ("alias", "Where-Object", "where"),
    ("alias", "Stop-VM -Name", "sc -Name"),
    ("write-host", "Stop-VM -Name $Name", "Write-Host $Name"),
    ("invoke-expression", "Stop-VM -Name $Name", "Invoke-Expression $Name"),
    ("backtick", "Stop-VM -Name $Name", "Stop-VM `\n        -Name $Name"),
    ("drive", r'"$env:TEMP\names.txt"', r'"D:\names.txt"'),
    ("drive", r'"$env:TEMP\names.txt"', r"E:\names.txt"),
    ("drive", r"'C:\Downlink\results'", r"'C:\Users\me'"),
    ("powershell-7", "$count = 0", "$count = $Force ? 1 : 0"),
    ("powershell-7", "$count = 0", "$count = $Name ?? 0"),
    ("powershell-7", "$count = 0", "$count ??= 0"),
    ("powershell-7", "Stop-VM -Name $Name", "Stop-VM -Name $Name && Start-VM -Name $Name"),
    ("powershell-7", "ConvertFrom-Json\n", "ConvertFrom-Json -AsHashtable\n"),
    ("powershell-7", "if ($Force)", "if ($IsWindows)"),
    ("try", "function Get-Setting {", "try {\n    Stop-VM\n}\nfunction Get-Setting {"),
    ("empty-catch", "    $count++\n", "    try {\n        Stop-VM\n    }\n    catch {\n    }\n"),
    ("global", "    $count++\n", "    $global:count = 1\n"),
    ("exit-code", "    if ($LASTEXITCODE -ne 0) {\n        throw 'bcdedit failed'\n    }\n", ""),
    ("native-stderr", "bcdedit.exe /enum $Path", "bcdedit.exe /enum $Path 2>&1"),
    ("native-stderr", "bcdedit.exe /enum $Path", "& bcdedit.exe /enum $Path 2>$null"),
    ("answer", "ok = $false", "fine = $false"),
    ("answer", "ok = $true", "ok = $false"),
    ("answer-form", "$count } } | ConvertTo-Json -Compress", "$count } } | ConvertTo-Json"),
    (
        "answer-form",
        "$count } } | ConvertTo-Json -Compress -Depth 8",
        "$count } } | ConvertTo-Json -Compress",
    ),
    ("answer-encoding", "[Console]::OutputEncoding", "$encoding"),
    ("answer-encoding", "[Console]::OutputEncoding", "# [Console]::OutputEncoding"),
    ("one-answer", "    exit 0\n", "    Stop-VM\n    exit 0\n"),
    (
        "one-answer",
        "    exit 0\n",
        "    if ($Force) {\n        $count++\n        exit 0\n    }\n    exit 1\n",
    ),
    ("stray-output", "| Out-Null", ""),
    ("stray-output", "$null = Start-VM -Name $Name", "Get-VM -Name $Name"),
    ("stray-output", "$null = Start-VM -Name $Name", "'started'"),
    ("stray-output", "$null = Start-VM -Name $Name", "$Name"),
    ("stray-output", "$null = Start-VM -Name $Name", "pnputil.exe /add-driver $Name"),
    ("command", "    else {", "    els {"),
    ("command", "$count = 0", "$count = = 0"),
    ("command", "bcdedit.exe /enum", "bcdedit /enum"),
    ("command", "Stop-VM -Name", "Stop_VM -Name"),
    ("exit", "    exit 1\n", "    exit 7\n"),
    ("exit", "    exit 1\n", "    exit -1\n"),
    ("exit", "    exit 1\n", ""),
    ("exit", "    exit 1\n", "    exit\n"),
    ("exit", "    exit 0\n", "    return\n"),
    ("one-answer", "    exit 1\n", "    [Console]::WriteLine(1)\n    $count++\n    exit 1\n"),
    (
        "one-answer",
        "    exit 0\n",
        "    foreach ($one in 1) {\n        [Console]::WriteLine('x')\n    }\n    exit 0\n",
    ),
]


def rules(text: str, name: str = "Start-Machine.ps1") -> list[str]:
    return [found.rule for found in powershell.complaints(Source(name, text.encode()))]


@pytest.mark.parametrize(
    "text", [GOOD, GOOD.replace("\n", "\r\n"), GOOD_WITH_A_FUNCTION, GOOD_WITH_A_PRINTER]
)
def test_a_script_that_keeps_the_rules_passes(text: str) -> None:
    assert powershell.complaints(Source("Start-Machine.ps1", text.encode())) == []


@pytest.mark.parametrize(("rule", "old", "new"), BAD)
def test_a_script_that_breaks_one_rule_is_told_which(rule: str, old: str, new: str) -> None:
    assert GOOD.count(old), "the sample has changed"

    assert rule in rules(GOOD.replace(old, new))


def test_a_function_that_prints_is_followed_by_an_exit_where_it_is_called() -> None:
    assert rules(GOOD_WITH_A_PRINTER.replace("    exit 0\n", "    $count++\n    exit 0\n")) == ["one-answer"]


def test_the_code_may_be_chosen_after_the_answer() -> None:
    assert rules(GOOD.replace("    exit 0\n", "    if ($Force) {\n        exit 0\n    }\n    exit 1\n")) == []


def test_every_rule_has_a_bad_sample() -> None:
    everywhere = "".join(
        (ROOT / "tests" / "lint" / f"powershell_{part}.py").read_text(encoding="utf-8")
        for part in ("form", "style", "answer")
    )
    named = {rule for rule, _, _ in BAD}

    assert all(f'"{rule}"' in everywhere for rule in named)
    assert {function.__name__ for function in powershell.RULES} == {
        function.__name__ for function in powershell.RULES if _seen(function)
    }


def test_a_complaint_names_the_line() -> None:
    text = GOOD.replace("Stop-VM -Name $Name", "Write-Host $Name")
    line = text.splitlines().index("        Write-Host $Name") + 1

    assert [found.line for found in powershell.complaints(Source("a.ps1", text.encode()))] == [line]


def test_a_broken_file_is_told_its_syntax_and_nothing_else() -> None:
    assert set(rules("function {{{")) == {"syntax"}


def test_a_module_needs_no_answer() -> None:
    module = (
        "Set-StrictMode -Version Latest\n$ErrorActionPreference = 'Stop'\n\n"
        "function Get-One {\n    param([string]$Name)\n    return $Name\n}\n"
    )

    assert rules(module, "Machine.psm1") == []
    assert "parameter-type" in rules(module.replace("[string]", ""), "Machine.psm1")


@pytest.mark.parametrize(
    "name", FILES or [pytest.param("", marks=pytest.mark.skip(reason="there are no scripts"))]
)
def test_every_powershell_file_of_the_project_passes(name: str) -> None:
    found = powershell.complaints(Source.read(ROOT / name, ROOT))

    assert not found, "\n".join(f"{name}:{each.line}: {each.rule}: {each.message}" for each in found)


def _seen(function: object) -> bool:
    """True when at least one bad sample makes this rule complain."""
    return any(
        any(True for _ in function(Source("a.ps1", GOOD.replace(old, new).encode())))  # type: ignore[operator]
        for _, old, new in BAD
    )
