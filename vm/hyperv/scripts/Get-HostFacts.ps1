#Requires -Version 5.1

<#
.SYNOPSIS
    Tell what this Hyper-V host has and what the caller may do on it.

.DESCRIPTION
    Refuses nothing: a missing module, service, switch or right is an answer. Sizes are in MB.

.PARAMETER SwitchName
    Name of the virtual switch to look for.

.PARAMETER Directory
    Directory for disks; its drive is looked at, it need not exist.

.PARAMETER MachineName
    Name of a virtual machine to look for.

.OUTPUTS
    One line of JSON: {"ok": true, "result": {...}} or {"ok": false, "error": {"code", "message", "hresult"}}.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$SwitchName,

    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$Directory,

    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$MachineName
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
    $identity = [System.Security.Principal.WindowsIdentity]::GetCurrent()
    $principal = New-Object -TypeName System.Security.Principal.WindowsPrincipal -ArgumentList $identity
    $administrator = $principal.IsInRole([System.Security.Principal.WindowsBuiltInRole]::Administrator)
    # Hyper-V Administrators, by its number: its name is translated.
    $group = New-Object -TypeName System.Security.Principal.SecurityIdentifier -ArgumentList 'S-1-5-32-578'
    $hyperVAdministrator = $principal.IsInRole($group)
    $module = $null -ne (Get-Module -ListAvailable -Name 'Hyper-V')
    $service = Get-Service -Name 'vmms' -ErrorAction SilentlyContinue
    $vmms = 'missing'
    if ($null -ne $service) {
        $vmms = ([string]$service.Status).ToLowerInvariant()
    }
    $system = Get-CimInstance -ClassName Win32_OperatingSystem
    $computer = Get-CimInstance -ClassName Win32_ComputerSystem
    $drive = [System.IO.Path]::GetPathRoot($Directory)
    $freeDisk = -1
    if ($drive -and (Test-Path -LiteralPath $drive)) {
        $information = New-Object -TypeName System.IO.DriveInfo -ArgumentList $drive
        $freeDisk = [long][math]::Floor($information.AvailableFreeSpace / 1MB)
    }
    $switch = @{
        present = $false
    }
    $machine = @{
        present = $false
    }
    if ($module -and $vmms -eq 'running' -and ($administrator -or $hyperVAdministrator)) {
        $foundSwitch = @(Get-VMSwitch | Where-Object -FilterScript { $_.Name -eq $SwitchName })
        if ($foundSwitch.Count -gt 0) {
            $adapter = 'vEthernet ({0})' -f $SwitchName
            $addresses = @(Get-NetIPAddress -AddressFamily IPv4 -ErrorAction SilentlyContinue | Where-Object -FilterScript { $_.InterfaceAlias -eq $adapter })
            $switch = @{
                present   = $true
                type      = ([string]$foundSwitch[0].SwitchType).ToLowerInvariant()
                addresses = @($addresses | ForEach-Object -Process { '{0}/{1}' -f $_.IPAddress, $_.PrefixLength })
            }
        }
        $foundMachine = Find-Machine -Name $MachineName
        if ($null -ne $foundMachine) {
            $machine = @{
                present = $true
                notes   = [string]$foundMachine.Notes
                state   = ([string]$foundMachine.State).ToLowerInvariant()
            }
        }
    }
    $result = @{
        computer            = [Environment]::MachineName
        build               = [string]$system.Version
        administrator       = $administrator
        hyperv_administrator = $hyperVAdministrator
        module              = $module
        vmms                = $vmms
        processors          = [int]$computer.NumberOfLogicalProcessors
        memory_free_mb      = [long][math]::Floor($system.FreePhysicalMemory / 1KB)
        memory_total_mb     = [long][math]::Floor($computer.TotalPhysicalMemory / 1MB)
        disk_free_mb        = $freeDisk
        switch              = $switch
        machine             = $machine
        utc                 = [DateTime]::UtcNow.ToString('o')
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
