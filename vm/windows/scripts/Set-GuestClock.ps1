#Requires -Version 5.1
<#
.SYNOPSIS
    Sets this guest's clock, at once and by whatever step it takes.
.DESCRIPTION
    A guest that was restored from a checkpoint has the time of the checkpoint, and the time service refuses big jumps.
    The time zone stays as it is.
.PARAMETER UtcTicks
    The time to set, in .NET ticks (100 ns since 0001-01-01) in UTC.
.EXAMPLE
    powershell -File Set-GuestClock.ps1 -UtcTicks 639000000000000000
#>
[CmdletBinding()]
param(
    # From 2020 to 2100: what is outside is a mistake.
    [Parameter(Mandatory = $true)]
    [ValidateRange(637134336000000000, 662380416000000000)]
    [long] $UtcTicks
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false

try {
    $before = [DateTime]::UtcNow
    $wanted = New-Object -TypeName System.DateTime -ArgumentList $UtcTicks, ([DateTimeKind]::Utc)
    $null = Set-Date -Date $wanted.ToLocalTime()
    [ordered] @{
        ok     = $true
        result = [ordered] @{
            beforeTicks = $before.Ticks
            afterTicks  = [DateTime]::UtcNow.Ticks
        }
    } | ConvertTo-Json -Depth 3 -Compress
    exit 0
} catch {
    [ordered] @{
        ok    = $false
        error = [ordered] @{
            code    = 'clock-not-set'
            message = $_.Exception.Message
            hresult = $_.Exception.HResult
        }
    } | ConvertTo-Json -Depth 3 -Compress
    exit 1
}
