#Requires -Version 5.1
<#
.SYNOPSIS
    Makes the networks of this guest private: on a public one the firewall keeps WinRM's default rule closed.
.EXAMPLE
    powershell -File Set-PrivateNetwork.ps1
#>
[CmdletBinding()]
param()

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false

try {
    $public = @(Get-NetConnectionProfile -NetworkCategory Public -ErrorAction SilentlyContinue)
    foreach ($network in $public) {
        Set-NetConnectionProfile -InterfaceIndex $network.InterfaceIndex -NetworkCategory Private
    }
    [ordered] @{
        ok     = $true
        result = [ordered] @{
            changed = $public.Count
        }
    } | ConvertTo-Json -Depth 3 -Compress
    exit 0
} catch {
    [ordered] @{
        ok    = $false
        error = [ordered] @{
            code    = 'network-not-set'
            message = $_.Exception.Message
            hresult = $_.Exception.HResult
        }
    } | ConvertTo-Json -Depth 3 -Compress
    exit 1
}
