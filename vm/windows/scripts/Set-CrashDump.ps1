#Requires -Version 5.1
<#
.SYNOPSIS
    Has this guest keep a kernel dump after a bugcheck and restart by itself.
.DESCRIPTION
    Without AlwaysKeepMemoryDump a client outside of a domain deletes its dump when less than 25 GB are free.
    Windows reads these values when it crashes; no restart is needed.
.EXAMPLE
    powershell -File Set-CrashDump.ps1
#>
[CmdletBinding()]
param()

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false

try {
    $key = 'HKLM:\SYSTEM\CurrentControlSet\Control\CrashControl'
    $wanted = [ordered] @{
        CrashDumpEnabled     = 2
        AlwaysKeepMemoryDump = 1
        AutoReboot           = 1
        Overwrite            = 1
    }
    foreach ($name in $wanted.Keys) {
        Set-ItemProperty -Path $key -Name $name -Value $wanted[$name] -Type DWord
    }
    [ordered] @{
        ok     = $true
        result = $wanted
    } | ConvertTo-Json -Depth 3 -Compress
    exit 0
} catch {
    [ordered] @{
        ok    = $false
        error = [ordered] @{
            code    = 'crash-dump-not-set'
            message = $_.Exception.Message
            hresult = $_.Exception.HResult
        }
    } | ConvertTo-Json -Depth 3 -Compress
    exit 1
}
