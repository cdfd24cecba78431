#Requires -Version 5.1

<#
.SYNOPSIS
    List the offline sources that a guest is prepared from.

.DESCRIPTION
    Looks for a Python package (python*.nupkg or python-*.exe), OpenSSH (OpenSSH-Win64*.zip or .msi) and
    wheels.

.PARAMETER Directory
    Directory on this host with the sources.

.OUTPUTS
    One line of JSON: {"ok": true, "result": {...}} or {"ok": false, "error": {"code", "message", "hresult"}}.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$Directory
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'

function Write-Answer {
    param(
        [Parameter(Mandatory = $true)]
        [hashtable]$Answer
    )
    $json = ConvertTo-Json -InputObject $Answer -Depth 8 -Compress
    # Standard output has the code page of the console; ASCII means the same in all of them.
    $evaluator = [System.Text.RegularExpressions.MatchEvaluator] {
        param([System.Text.RegularExpressions.Match]$Found)
        '\u{0:x4}' -f [int][char]$Found.Value
    }
    [Console]::Out.WriteLine([regex]::Replace($json, '[^\x20-\x7e]', $evaluator))
    exit [int](-not $Answer.ok)
}

function Get-Refusal {
    param(
        [Parameter(Mandatory = $true)]
        [System.Management.Automation.ErrorRecord]$Record
    )
    $exception = $Record.Exception
    $message = [string]$exception.Message
    $identifier = [string]$Record.FullyQualifiedErrorId
    $type = $exception.GetType().Name
    $code = 'failed'
    # A refusal of our own, also one from within a guest, begins with its code.
    if ($message -cmatch '(?s)^([a-z0-9]+(?:-[a-z0-9]+)+): (.+)$') {
        $code = $Matches[1]
        $message = $Matches[2]
    }
    elseif ($identifier -like 'OutOfMemory*' -or $message -like '*0x800705AA*') {
        $code = 'out-of-memory'
    }
    elseif ($exception.HResult -eq -2147024784 -or $message -like '*0x80070070*') {
        $code = 'disk-full'
    }
    elseif ($identifier -like 'AccessDenied*' -or $message -like '*0x80070005*' -or $exception -is [System.UnauthorizedAccessException]) {
        $code = 'access-denied'
    }
    elseif ($message -like '*credential is invalid*') {
        $code = 'credential-invalid'
    }
    elseif ($type -eq 'PSDirectException' -or $type -eq 'PSRemotingTransportException') {
        $code = 'guest-not-ready'
    }
    @{
        ok    = $false
        error = @{
            code    = $code
            message = $message.Trim()
            hresult = $exception.HResult
        }
    }
}

try {
    if (-not (Test-Path -LiteralPath $Directory -PathType Container)) {
        throw ("sources-missing: there is no directory '{0}' on this host" -f $Directory)
    }
    $python = @(Get-ChildItem -LiteralPath $Directory -File | Where-Object -FilterScript { $_.Name -like 'python.*.nupkg' -or $_.Name -like 'python-3*-amd64.exe' })
    $ssh = @(Get-ChildItem -LiteralPath $Directory -File | Where-Object -FilterScript { $_.Name -like 'OpenSSH-Win64*' })
    $wheels = @()
    $wheelDirectory = Join-Path -Path $Directory -ChildPath 'wheels'
    if (Test-Path -LiteralPath $wheelDirectory -PathType Container) {
        $wheels = @(Get-ChildItem -LiteralPath $wheelDirectory -File -Filter '*.whl')
    }
    $bytes = (@(Get-ChildItem -LiteralPath $Directory -File -Recurse) | Measure-Object -Property Length -Sum).Sum
    $result = @{
        python = @($python | ForEach-Object -Process { $_.Name })
        ssh    = @($ssh | ForEach-Object -Process { $_.Name })
        wheels = @($wheels | ForEach-Object -Process { $_.Name })
        bytes  = [long]$bytes
    }
    $answer = @{
        ok     = $true
        result = $result
    }
}
catch {
    $answer = Get-Refusal -Record $_
}
Write-Answer -Answer $answer
