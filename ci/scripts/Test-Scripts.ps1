#Requires -Version 5.1
<#
.SYNOPSIS
Parses PowerShell files with PowerShell's own parser and looks at them with PSScriptAnalyzer.

.DESCRIPTION
The result has "powershell" and "analyzer", the versions that looked, and "complaints": a list of objects with "file",
"line", "rule", "severity" and "message". A file that does not parse is not analyzed.

.PARAMETER ListPath
A text file with one path per line.

.PARAMETER SettingsPath
The settings of PSScriptAnalyzer.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$ListPath,

    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$SettingsPath
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'

function Write-Answer {
    param(
        [hashtable]$Answer
    )

    # The console's code page is not ours to choose: everything outside of ASCII is escaped.
    $json = ConvertTo-Json -InputObject $Answer -Compress -Depth 6
    $escape = {
        param([System.Text.RegularExpressions.Match]$Found)
        '\u{0:x4}' -f [int][char]$Found.Value
    }
    [Console]::Out.WriteLine([regex]::Replace($json, '[^\x20-\x7e]', $escape))
}

function Get-ParseComplaint {
    param(
        [string]$Path
    )

    $tokens = $null
    $problems = $null
    $null = [System.Management.Automation.Language.Parser]::ParseFile($Path, [ref]$tokens, [ref]$problems)
    foreach ($problem in $problems) {
        @{
            file     = $Path
            line     = $problem.Extent.StartLineNumber
            rule     = $problem.ErrorId
            severity = 'ParseError'
            message  = $problem.Message
        }
    }
}

function Get-AnalyzerComplaint {
    param(
        [string]$Path,
        [string]$Settings
    )

    foreach ($record in @(Invoke-ScriptAnalyzer -Path $Path -Settings $Settings)) {
        @{
            file     = $Path
            line     = $record.Line
            rule     = $record.RuleName
            severity = [string]$record.Severity
            message  = $record.Message
        }
    }
}

try {
    $code = 'no-analyzer'
    Import-Module -Name 'PSScriptAnalyzer' -MinimumVersion '1.21.0'
    $module = Get-Module -Name 'PSScriptAnalyzer'

    $code = 'not-analyzed'
    $complaints = New-Object -TypeName 'System.Collections.Generic.List[hashtable]'
    foreach ($path in @(Get-Content -LiteralPath $ListPath | Where-Object { $_ })) {
        $found = @(Get-ParseComplaint -Path $path)
        if ($found.Count -eq 0) {
            $found = @(Get-AnalyzerComplaint -Path $path -Settings $SettingsPath)
        }
        foreach ($complaint in $found) {
            $complaints.Add($complaint)
        }
    }

    Write-Answer -Answer @{
        ok     = $true
        result = @{
            powershell = [string]$PSVersionTable.PSVersion
            analyzer   = [string]$module.Version
            complaints = $complaints.ToArray()
        }
    }
    exit 0
}
catch {
    Write-Answer -Answer @{
        ok    = $false
        error = @{
            code    = $code
            message = $_.Exception.Message
            hresult = $_.Exception.HResult
        }
    }
    exit 1
}
