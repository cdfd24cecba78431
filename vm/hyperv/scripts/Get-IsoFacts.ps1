#Requires -Version 5.1

<#
.SYNOPSIS
    Tell which editions of Windows an ISO holds.

.DESCRIPTION
    Mounts the file read-only, reads sources\install.wim or install.esd, and dismounts it in every case.

.PARAMETER Path
    The ISO file on this host.

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
        $image = Mount-DiskImage -ImagePath $Path -StorageType ISO -Access ReadOnly -PassThru
    }
    catch {
        throw ("not-an-iso: '{0}' cannot be opened as an ISO: {1}" -f $Path, $_.Exception.Message)
    }
    try {
        $volume = $image | Get-Volume
        if ($null -eq $volume -or -not $volume.DriveLetter) {
            throw ("not-an-iso: '{0}' holds no file system" -f $Path)
        }
        $install = $null
        foreach ($candidate in 'install.wim', 'install.esd') {
            $file = '{0}:\sources\{1}' -f $volume.DriveLetter, $candidate
            if (Test-Path -LiteralPath $file) {
                $install = $file
                break
            }
        }
        if ($null -eq $install) {
            throw ("no-install-image: '{0}' holds neither sources\install.wim nor sources\install.esd" -f $Path)
        }
        $editions = @(Get-WindowsImage -ImagePath $install | ForEach-Object -Process {
                $detail = Get-WindowsImage -ImagePath $install -Index $_.ImageIndex
                @{
                    index        = [int]$detail.ImageIndex
                    name         = [string]$detail.ImageName
                    edition      = [string]$detail.EditionId
                    # 9 is x64, 12 is ARM64 (DISM).
                    architecture = [int]$detail.Architecture
                    version      = [string]$detail.Version
                    languages    = @($detail.Languages | ForEach-Object -Process { ([string]$_).Split(' ')[0] })
                    bytes        = [long]$detail.ImageSize
                }
            })
        $result = @{
            install  = [System.IO.Path]::GetFileName($install)
            editions = $editions
        }
    }
    finally {
        $null = Dismount-DiskImage -ImagePath $Path
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
