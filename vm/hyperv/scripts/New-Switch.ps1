#Requires -Version 5.1

<#
.SYNOPSIS
    Make an internal switch with a fixed address for this host.

.DESCRIPTION
    The addresses of the Default Switch change with every start of the host, therefore a switch of our own.
    What is made is removed again when a later step of this script fails.

.PARAMETER Name
    Name of the switch.

.PARAMETER HostAddress
    Address of this host on the switch.

.PARAMETER PrefixLength
    Length of the network prefix.

.PARAMETER Nat
    Let guests reach other networks through this host.

.OUTPUTS
    One line of JSON: {"ok": true, "result": {...}} or {"ok": false, "error": {"code", "message", "hresult"}}.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$Name,

    [Parameter(Mandatory = $true)]
    [ValidatePattern('^[0-9]{1,3}(\.[0-9]{1,3}){3}$')]
    [string]$HostAddress,

    [ValidateRange(8, 30)]
    [int]$PrefixLength = 24,

    [switch]$Nat
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

function Assert-HyperV {
    if ($null -eq (Get-Module -ListAvailable -Name 'Hyper-V')) {
        throw 'hyperv-missing: the PowerShell module Hyper-V is not installed on this host'
    }
    $service = Get-Service -Name 'vmms' -ErrorAction SilentlyContinue
    if ($null -eq $service) {
        throw 'hyperv-missing: the service vmms is not installed on this host'
    }
    if ($service.Status -ne 'Running') {
        throw ('vmms-stopped: the service vmms is {0}' -f $service.Status)
    }
    # Now, because functions below name its types.
    Import-Module -Name 'Hyper-V'
}

function Find-Machine {
    [OutputType('Microsoft.HyperV.PowerShell.VirtualMachine')]
    param(
        [Parameter(Mandatory = $true)]
        [string]$Name
    )
    # Get-VM -Name would take wildcards.
    $found = @(Get-VM | Where-Object -FilterScript { $_.Name -eq $Name })
    if ($found.Count -gt 1) {
        throw ("vm-ambiguous: there are {0} virtual machines '{1}'" -f $found.Count, $Name)
    }
    if ($found.Count -eq 1) {
        $found[0]
    }
}

try {
    Assert-HyperV
    if (@(Get-VMSwitch | Where-Object -FilterScript { $_.Name -eq $Name }).Count -gt 0) {
        throw ("switch-exists: there is a switch '{0}' already" -f $Name)
    }
    $taken = @(Get-NetIPAddress -AddressFamily IPv4 -ErrorAction SilentlyContinue | Where-Object -FilterScript { $_.IPAddress -eq $HostAddress })
    if ($taken.Count -gt 0) {
        throw ("address-taken: '{0}' has the address {1}" -f $taken[0].InterfaceAlias, $HostAddress)
    }
    $complete = $false
    $null = New-VMSwitch -Name $Name -SwitchType Internal -Notes '[downlink switch]'
    try {
        $adapter = 'vEthernet ({0})' -f $Name
        $null = New-NetIPAddress -InterfaceAlias $adapter -IPAddress $HostAddress -PrefixLength $PrefixLength
        if ($Nat) {
            $bytes = ([System.Net.IPAddress]$HostAddress).GetAddressBytes()
            for ($bit = $PrefixLength; $bit -lt 32; $bit++) {
                $index = [int][math]::Floor($bit / 8)
                $bytes[$index] = $bytes[$index] -band (255 - (128 -shr ($bit % 8)))
            }
            $network = New-Object -TypeName System.Net.IPAddress -ArgumentList (, $bytes)
            $null = New-NetNat -Name $Name -InternalIPInterfaceAddressPrefix ('{0}/{1}' -f $network, $PrefixLength)
        }
        $complete = $true
    }
    finally {
        if (-not $complete) {
            Remove-VMSwitch -Name $Name -Force
        }
    }
    $result = @{
        name    = $Name
        address = $HostAddress
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
