#Requires -Version 5.1

<#
.SYNOPSIS
    Make the directory of a machine, with a mark that lets Remove-Machine remove it.

.DESCRIPTION
    Refuses a directory that is there already.

.PARAMETER Mark
    What the notes of the virtual machine say about who made it.

.PARAMETER Directory
    The directory to make.

.OUTPUTS
    One line of JSON: {"ok": true, "result": {...}} or {"ok": false, "error": {"code", "message", "hresult"}}.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidatePattern('^[0-9a-f]{32}$')]
    [string]$Mark,

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
    if (Test-Path -LiteralPath $Directory) {
        throw ("directory-exists: '{0}' is there already" -f $Directory)
    }
    $null = New-Item -Path $Directory -ItemType Directory
    [System.IO.File]::WriteAllText((Join-Path -Path $Directory -ChildPath 'downlink.mark'), $Mark)
    $result = @{
        directory = $Directory
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
