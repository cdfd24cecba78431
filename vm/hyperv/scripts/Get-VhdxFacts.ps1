#Requires -Version 5.1

<#
.SYNOPSIS
    Tell whether a virtual disk holds a generalised Windows that boots a Generation 2 machine.

.DESCRIPTION
    Mounts the disk read-only and dismounts it in every case.

.PARAMETER Path
    The VHDX file on this host.

.OUTPUTS
    One line of JSON: {"ok": true, "result": {...}} or {"ok": false, "error": {"code", "message", "hresult"}}.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$Path
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
    if (-not (Test-Path -LiteralPath $Path -PathType Leaf)) {
        throw ("file-missing: there is no file '{0}' on this host" -f $Path)
    }
    try {
        $disk = Get-VHD -Path $Path
    }
    catch {
        throw ("not-a-vhdx: '{0}' cannot be opened as a virtual disk: {1}" -f $Path, $_.Exception.Message)
    }
    if ($disk.Attached) {
        throw ("disk-in-use: '{0}' is attached to a machine or mounted" -f $Path)
    }
    $mount = Join-Path -Path ([System.IO.Path]::GetTempPath()) -ChildPath ('downlink-{0}' -f [guid]::NewGuid().ToString('n'))
    $null = New-Item -Path $mount -ItemType Directory
    $mounted = $null
    $access = $null
    try {
        $mounted = Mount-VHD -Path $Path -ReadOnly -NoDriveLetter -Passthru
        $number = $mounted.DiskNumber
        $style = [string](Get-Disk -Number $number).PartitionStyle
        $windows = $false
        $state = ''
        $build = ''
        $partitions = @(Get-Partition -DiskNumber $number | Where-Object -FilterScript { $_.Size -gt 4GB })
        foreach ($partition in $partitions) {
            Add-PartitionAccessPath -DiskNumber $number -PartitionNumber $partition.PartitionNumber -AccessPath $mount
            $access = $partition.PartitionNumber
            $kernel = Join-Path -Path $mount -ChildPath 'Windows\System32\ntoskrnl.exe'
            if (Test-Path -LiteralPath $kernel) {
                $windows = $true
                $build = [string](Get-Item -LiteralPath $kernel).VersionInfo.ProductVersion
                $stateFile = Join-Path -Path $mount -ChildPath 'Windows\Setup\State\State.ini'
                if (Test-Path -LiteralPath $stateFile) {
                    $line = @(Get-Content -LiteralPath $stateFile | Where-Object -FilterScript { $_ -like 'ImageState=*' })
                    if ($line.Count -gt 0) {
                        $state = ([string]$line[0]).Substring('ImageState='.Length).Trim()
                    }
                }
            }
            Remove-PartitionAccessPath -DiskNumber $number -PartitionNumber $partition.PartitionNumber -AccessPath $mount
            $access = $null
            if ($windows) {
                break
            }
        }
        $result = @{
            style      = $style.ToLowerInvariant()
            windows    = $windows
            state      = $state
            build      = $build
            size_mb    = [long][math]::Floor($disk.Size / 1MB)
            file_mb    = [long][math]::Floor($disk.FileSize / 1MB)
            parent     = [string]$disk.ParentPath
            read_only  = (Get-Item -LiteralPath $Path).IsReadOnly
        }
    }
    finally {
        if ($null -ne $access) {
            Remove-PartitionAccessPath -DiskNumber $number -PartitionNumber $access -AccessPath $mount -ErrorAction SilentlyContinue
        }
        if ($null -ne $mounted) {
            Dismount-VHD -Path $Path
        }
        Remove-Item -LiteralPath $mount -Force
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
