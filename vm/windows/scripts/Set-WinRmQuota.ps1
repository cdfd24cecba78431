#Requires -Version 5.1
<#
.SYNOPSIS
    Raises the quotas of this guest's WinRM service to what a run needs; never lowers one.
.DESCRIPTION
    Shells that are open keep the old quotas; new ones get the new ones. The service is not restarted.
.PARAMETER EnvelopeKb
    MaxEnvelopeSizekb: the largest message, in KiB.
.PARAMETER TimeoutMs
    MaxTimeoutms: the longest that one operation may take, in milliseconds.
.PARAMETER Shells
    MaxShellsPerUser.
.PARAMETER Processes
    MaxProcessesPerShell.
.PARAMETER MemoryMb
    MaxMemoryPerShellMB, in MiB.
.EXAMPLE
    powershell -File Set-WinRmQuota.ps1
#>
[CmdletBinding()]
param(
    [ValidateRange(32, 8192)]
    [int] $EnvelopeKb = 500,

    [ValidateRange(500, 1800000)]
    [int] $TimeoutMs = 60000,

    [ValidateRange(1, 1000)]
    [int] $Shells = 50,

    [ValidateRange(1, 1000)]
    [int] $Processes = 25,

    [ValidateRange(128, 65536)]
    [int] $MemoryMb = 2048
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false

try {
    $changed = @()
    $wanted = [ordered] @{
        'MaxEnvelopeSizekb'          = $EnvelopeKb
        'MaxTimeoutms'               = $TimeoutMs
        'Shell\MaxShellsPerUser'     = $Shells
        'Shell\MaxProcessesPerShell' = $Processes
        'Shell\MaxMemoryPerShellMB'  = $MemoryMb
    }
    foreach ($name in $wanted.Keys) {
        $path = "WSMan:\localhost\$name"
        $found = [long] (Get-Item -Path $path).Value
        # 0 and the largest number stand for no limit.
        if ($found -ne 0 -and $found -lt $wanted[$name]) {
            $null = Set-Item -Path $path -Value $wanted[$name] -Force -WarningAction SilentlyContinue
            $changed += $name.Split('\')[-1]
        }
    }
    [ordered] @{
        ok     = $true
        result = [ordered] @{
            changed = $changed
        }
    } | ConvertTo-Json -Depth 3 -Compress
    exit 0
} catch {
    [ordered] @{
        ok    = $false
        error = [ordered] @{
            code    = 'quota-not-set'
            message = $_.Exception.Message
            hresult = $_.Exception.HResult
        }
    } | ConvertTo-Json -Depth 3 -Compress
    exit 1
}
