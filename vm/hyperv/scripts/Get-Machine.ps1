#Requires -Version 5.1

<#
.SYNOPSIS
    Tell the state of a machine: power, heartbeat, addresses, firmware, checkpoints.

.DESCRIPTION
    A machine that is not there is an answer, not an error.

.PARAMETER Name
    Name of the virtual machine.

.PARAMETER Mark
    What the notes of our machine say; empty answers that it is not ours.

.OUTPUTS
    One line of JSON: {"ok": true, "result": {...}} or {"ok": false, "error": {"code", "message", "hresult"}}.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$Name,

    [string]$Mark = ''
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
    $machine = Find-Machine -Name $Name
    if ($null -eq $machine) {
        $result = @{
            present = $false
        }
    }
    else {
        $firmware = $null
        if ($machine.Generation -eq 2) {
            $firmware = Get-VMFirmware -VM $machine
        }
        $secureBoot = $false
        if ($null -ne $firmware) {
            $secureBoot = [string]$firmware.SecureBoot -eq 'On'
        }
        $checkpoints = @(Get-VMSnapshot -VM $machine | Sort-Object -Property CreationTime | ForEach-Object -Process {
                @{
                    name    = [string]$_.Name
                    created = $_.CreationTime.ToUniversalTime().ToString('o')
                    type    = ([string]$_.SnapshotType).ToLowerInvariant()
                    parent  = [string]$_.ParentSnapshotName
                }
            })
        $addresses = @(Get-VMNetworkAdapter -VM $machine | ForEach-Object -Process { $_.IPAddresses })
        $adapters = @(Get-VMNetworkAdapter -VM $machine | ForEach-Object -Process { [string]$_.SwitchName })
        $result = @{
            present     = $true
            own         = $Mark -ne '' -and ([string]$machine.Notes).Contains('[downlink {0}]' -f $Mark)
            id          = [string]$machine.Id
            state       = ([string]$machine.State).ToLowerInvariant()
            # Merging disks after a checkpoint was deleted, and other work of the host.
            operation   = [string]$machine.SecondaryStatus
            status      = [string]$machine.Status
            heartbeat   = ([string]$machine.Heartbeat).ToLowerInvariant()
            uptime_s    = [math]::Round($machine.Uptime.TotalSeconds, 1)
            addresses   = @($addresses)
            switches    = @($adapters)
            generation  = [int]$machine.Generation
            secure_boot = $secureBoot
            checkpoint_type = ([string]$machine.CheckpointType).ToLowerInvariant()
            automatic_checkpoints = [bool]$machine.AutomaticCheckpointsEnabled
            memory_mb   = [long][math]::Floor($machine.MemoryStartup / 1MB)
            cpus        = [int]$machine.ProcessorCount
            checkpoints = $checkpoints
        }
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
