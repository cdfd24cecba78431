#Requires -Version 5.1

<#
.SYNOPSIS
    Make a read-only parent disk from one edition on an ISO.

.DESCRIPTION
    Applies the image to a new GPT disk and makes it bootable for UEFI. The disk gets its name when it is
    complete; what is left of a failed attempt is removed.

.PARAMETER Iso
    The ISO file on this host.

.PARAMETER Index
    Number of the edition, as Get-IsoFacts tells it.

.PARAMETER Target
    The disk to make.

.PARAMETER SizeGB
    Size of the disk as the guest sees it; the file grows as needed.

.OUTPUTS
    One line of JSON: {"ok": true, "result": {...}} or {"ok": false, "error": {"code", "message", "hresult"}}.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$Iso,

    [Parameter(Mandatory = $true)]
    [ValidateRange(1, 99)]
    [int]$Index,

    [Parameter(Mandatory = $true)]
    [ValidatePattern('\.vhdx$')]
    [string]$Target,

    [ValidateRange(32, 2048)]
    [int]$SizeGB = 64
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

function Invoke-Tool {
    [OutputType([hashtable])]
    param(
        [string]$Program,
        [array]$Arguments
    )
    # What a program writes to standard error is no error by itself.
    $ErrorActionPreference = 'Continue'
    $output = & $Program $Arguments 2>&1
    @{
        code = $LASTEXITCODE
        text = ($output | Out-String).Trim()
    }
}

try {
    Assert-HyperV
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    if (Test-Path -LiteralPath $Target) {
        throw ("file-exists: '{0}' is there already" -f $Target)
    }
    $null = New-Item -Path ([System.IO.Path]::GetDirectoryName($Target)) -ItemType Directory -Force
    $draft = $Target -replace '\.vhdx$', '.part.vhdx'
    if (Test-Path -LiteralPath $draft) {
        Remove-Item -LiteralPath $draft -Force
    }
    $image = $null
    $mounted = $null
    $complete = $false
    try {
        $image = Mount-DiskImage -ImagePath $Iso -StorageType ISO -Access ReadOnly -PassThru
        $source = '{0}:\sources\install.wim' -f ($image | Get-Volume).DriveLetter
        if (-not (Test-Path -LiteralPath $source)) {
            $source = $source -replace '\.wim$', '.esd'
        }
        $null = New-VHD -Path $draft -Dynamic -SizeBytes ($SizeGB * 1GB)
        $mounted = Mount-VHD -Path $draft -Passthru
        $number = $mounted.DiskNumber
        $null = Initialize-Disk -Number $number -PartitionStyle GPT -PassThru
        # A basic partition first: Format-Volume refuses the type that the firmware wants to see in the end.
        $system = New-Partition -DiskNumber $number -Size 260MB -GptType '{ebd0a0a2-b9e5-4433-87c0-68b6b72699c7}' -AssignDriveLetter
        $null = Format-Volume -Partition $system -FileSystem FAT32 -NewFileSystemLabel 'System' -Confirm:$false
        $windows = New-Partition -DiskNumber $number -UseMaximumSize -AssignDriveLetter
        $null = Format-Volume -Partition $windows -FileSystem NTFS -NewFileSystemLabel 'Windows' -Confirm:$false
        $root = '{0}:\' -f $windows.DriveLetter
        $null = Expand-WindowsImage -ImagePath $source -Index $Index -ApplyPath $root
        $tool = Invoke-Tool -Program 'bcdboot.exe' -Arguments ('{0}Windows' -f $root), '/s', ('{0}:' -f $system.DriveLetter), '/f', 'UEFI'
        if ($tool.code -ne 0) {
            throw ('bcdboot-failed: bcdboot ended with exit code {0}: {1}' -f $tool.code, $tool.text)
        }
        Set-Partition -DiskNumber $number -PartitionNumber $system.PartitionNumber -GptType '{c12a7328-f81f-11d2-ba4b-00a0c93ec93b}'
        Dismount-VHD -Path $draft
        $mounted = $null
        Move-Item -LiteralPath $draft -Destination $Target
        Set-ItemProperty -LiteralPath $Target -Name IsReadOnly -Value $true
        $complete = $true
    }
    finally {
        if ($null -ne $mounted) {
            Dismount-VHD -Path $draft
        }
        if ($null -ne $image) {
            $null = Dismount-DiskImage -ImagePath $Iso
        }
        if (-not $complete -and (Test-Path -LiteralPath $draft)) {
            Remove-Item -LiteralPath $draft -Force
        }
    }
    $result = @{
        path    = $Target
        file_mb = [long][math]::Floor((Get-Item -LiteralPath $Target).Length / 1MB)
        seconds = [math]::Round($clock.Elapsed.TotalSeconds, 3)
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
