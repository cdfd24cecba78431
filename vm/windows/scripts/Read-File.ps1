#Requires -Version 5.1
<#
.SYNOPSIS
Reads a part of a file that may still be written to.
.PARAMETER Path
Full path of the file.
.PARAMETER Offset
Where to begin, in bytes.
.PARAMETER Count
How many bytes at most; 0 tells the size only.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidatePattern('^[A-Za-z]:\\')]
    [string]$Path,

    [ValidateRange(0, 1099511627776)]
    [long]$Offset = 0,

    [ValidateRange(0, 16777216)]
    [int]$Count = 0
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

function Read-Part {
    param([System.IO.FileStream]$Stream)

    $buffer = New-Object byte[] $Count
    $null = $Stream.Seek($Offset, [System.IO.SeekOrigin]::Begin)
    $taken = 0
    while ($taken -lt $Count) {
        $more = $Stream.Read($buffer, $taken, $Count - $taken)
        if ($more -le 0) {
            break
        }
        $taken += $more
    }
    return [Convert]::ToBase64String($buffer, 0, $taken)
}

try {
    $found = @{ exists = $false; size = 0; data = '' }
    if ([System.IO.File]::Exists($Path)) {
        $share = [System.IO.FileShare]'ReadWrite, Delete'
        $access = [System.IO.FileAccess]::Read
        $stream = New-Object System.IO.FileStream $Path, ([System.IO.FileMode]::Open), $access, $share
        try {
            $found.exists = $true
            $found.size = $stream.Length
            if ($Count -gt 0) {
                $found.data = Read-Part -Stream $stream
            }
        }
        finally {
            $stream.Dispose()
        }
    }
    Write-Answer -Answer @{ ok = $true; result = $found }
    exit 0
}
catch {
    $failed = $_.Exception
    if ($failed.InnerException) {
        $failed = $failed.InnerException
    }
    $code = 'not-read'
    if ($failed.HResult -eq -2147024891) {
        $code = 'access-denied'
    }
    Write-Answer -Answer @{ ok = $false; error = @{ code = $code; message = $failed.Message; hresult = $failed.HResult } }
    exit 1
}
