#Requires -Version 5.1

<#
.SYNOPSIS
    Make a Generation 2 machine without Secure Boot, with static memory and Standard checkpoints.

.DESCRIPTION
    Everything is removed again when a step fails. Data disks are added empty; the guest formats them.

.PARAMETER Name
    Name of the virtual machine.

.PARAMETER Mark
    What the notes of the virtual machine say about who made it.

.PARAMETER Directory
    Directory of this machine alone; Remove-Machine removes it.

.PARAMETER Disk
    The disk it boots from.

.PARAMETER SwitchName
    The switch; empty leaves the adapter unconnected.

.PARAMETER Cpus
    Virtual processors.

.PARAMETER MemoryMB
    Memory.

.PARAMETER DataDisks
    Number of small empty disks.

.PARAMETER KeepVirtualizationSecurity
    Offer the guest what VBS and HVCI need.

.OUTPUTS
    One line of JSON: {"ok": true, "result": {...}} or {"ok": false, "error": {"code", "message", "hresult"}}.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$Name,

    [Parameter(Mandatory = $true)]
    [ValidatePattern('^[0-9a-f]{32}$')]
    [string]$Mark,

    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$Directory,

    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$Disk,

    [string]$SwitchName = '',

    [ValidateRange(1, 64)]
    [int]$Cpus = 2,

    [ValidateRange(1024, 262144)]
    [int]$MemoryMB = 4096,

    [ValidateRange(0, 8)]
    [int]$DataDisks = 2,

    [switch]$KeepVirtualizationSecurity
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
    if ($null -ne (Find-Machine -Name $Name)) {
        throw ("vm-exists: there is a virtual machine '{0}' already" -f $Name)
    }
    $machine = $null
    $complete = $false
    $made = @()
    try {
        $machine = New-VM -Name $Name -Generation 2 -Path $Directory -VHDPath $Disk -MemoryStartupBytes ($MemoryMB * 1MB)
        Set-VM -VM $machine -Notes ('[downlink {0}]' -f $Mark)
        Set-VM -VM $machine -ProcessorCount $Cpus -StaticMemory -AutomaticCheckpointsEnabled $false -CheckpointType Standard
        # A guest that hangs at the host's shutdown must not hold it up, nor start by itself afterwards.
        Set-VM -VM $machine -AutomaticStartAction Nothing -AutomaticStopAction TurnOff
        Set-VMFirmware -VM $machine -EnableSecureBoot Off
        if (-not $KeepVirtualizationSecurity) {
            Set-VMSecurity -VM $machine -VirtualizationBasedSecurityOptOut $true
        }
        # By their numbers: the names of the services are translated.
        foreach ($service in Get-VMIntegrationService -VM $machine) {
            $number = ([string]$service.Id).Split('\')[-1]
            if ($number -eq '6C09BB55-D683-4DA0-8931-C9BF705F6480' -and -not $service.Enabled) {
                Enable-VMIntegrationService -VMIntegrationService $service
            }
        }
        if ($SwitchName) {
            Connect-VMNetworkAdapter -VMName $Name -SwitchName $SwitchName
        }
        for ($index = 1; $index -le $DataDisks; $index++) {
            $path = Join-Path -Path $Directory -ChildPath ('data{0}.vhdx' -f $index)
            $null = New-VHD -Path $path -Dynamic -SizeBytes 4GB
            $made += $path
            Add-VMHardDiskDrive -VM $machine -Path $path
        }
        $complete = $true
    }
    finally {
        if (-not $complete) {
            if ($null -ne $machine) {
                Remove-VM -VM $machine -Force
            }
            foreach ($path in $made) {
                Remove-Item -LiteralPath $path -Force
            }
        }
    }
    $result = @{
        id   = [string]$machine.Id
        name = $Name
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
