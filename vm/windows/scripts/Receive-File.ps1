#Requires -Version 5.1
<#
.SYNOPSIS
Writes what comes on standard input, byte for byte, to a file, and gives it its name when it is complete.
.DESCRIPTION
Bytes go to '<Path>.part'. When that has the expected length, its SHA-256 is compared and it becomes the file. What ends
earlier stays as '.part', so that the rest can be appended later. Standard input is read raw: the script must never
mention the automatic variable for piped input, or PowerShell would read standard input itself, as text.
.PARAMETER Path
Full path of the file; missing directories are made, an older file is replaced.
.PARAMETER Length
Bytes of the whole file.
.PARAMETER Sha256
SHA-256 of the whole file in hexadecimal.
.PARAMETER Append
Go on with what is in '.part' already.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidatePattern('^[A-Za-z]:\\')]
    [string]$Path,

    [Parameter(Mandatory = $true)]
    [ValidateRange(0, 1099511627776)]
    [long]$Length,

    [Parameter(Mandatory = $true)]
    [ValidatePattern('^[0-9A-Fa-f]{64}$')]
    [string]$Sha256,

    [switch]$Append
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'

function Write-Answer {
    param(
        [Parameter(Mandatory = $true)]
        [hashtable]$Answer
    )
    $json = ConvertTo-Json -InputObject $Answer -Depth 4 -Compress
    # Standard output has the code page of the console; ASCII means the same in all of them.
    $evaluator = [System.Text.RegularExpressions.MatchEvaluator] {
        param([System.Text.RegularExpressions.Match]$Found)
        '\u{0:x4}' -f [int][char]$Found.Value
    }
    [Console]::Out.WriteLine([regex]::Replace($json, '[^\x20-\x7e]', $evaluator))
}

function Receive-Input {
    param([string]$Part, [bool]$Further)

    $mode = [System.IO.FileMode]::Create
    if ($Further) {
        $mode = [System.IO.FileMode]::Append
    }
    $source = [Console]::OpenStandardInput()
    $target = New-Object System.IO.FileStream $Part, $mode, ([System.IO.FileAccess]::Write)
    try {
        $source.CopyTo($target, 262144)
        $target.Flush($true)
    }
    finally {
        $target.Dispose()
    }
}

$code = ''
try {
    $part = "$Path.part"
    $null = [System.IO.Directory]::CreateDirectory([System.IO.Path]::GetDirectoryName($Path))
    Receive-Input -Part $part -Further $Append.IsPresent
    $arrived = (New-Object System.IO.FileInfo $part).Length
    $complete = $arrived -eq $Length
    if ($arrived -gt $Length) {
        [System.IO.File]::Delete($part)
        $code = 'too-long'
        throw "'$Path' got $arrived bytes instead of $Length"
    }
    if ($complete) {
        $seen = (Get-FileHash -LiteralPath $part -Algorithm SHA256).Hash
        if ($seen -ne $Sha256) {
            [System.IO.File]::Delete($part)
            $code = 'content-differs'
            throw "'$Path' is not what was sent: its SHA-256 is $seen"
        }
        if ([System.IO.File]::Exists($Path)) {
            [System.IO.File]::Delete($Path)
        }
        [System.IO.File]::Move($part, $Path)
    }
    Write-Answer -Answer @{ ok = $true; result = @{ length = $arrived; complete = $complete } }
    exit 0
}
catch {
    $failed = $_.Exception
    if ($failed.InnerException) {
        $failed = $failed.InnerException
    }
    if (-not $code) {
        switch ($failed.HResult) {
            -2147024784 {
                $code = 'disk-full'
            }
            -2147024891 {
                $code = 'access-denied'
            }
            -2147024864 {
                $code = 'in-use'
            }
            default {
                $code = 'not-written'
            }
        }
    }
    Write-Answer -Answer @{ ok = $false; error = @{ code = $code; message = $failed.Message; hresult = $failed.HResult } }
    exit 1
}
