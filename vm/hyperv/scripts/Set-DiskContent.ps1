#Requires -Version 5.1

<#
.SYNOPSIS
    Put the answer file and the offline sources on a disk that has not booted yet.

.DESCRIPTION
    The password in the answer file is for the first boot only; Set-GuestAccount replaces it and removes the
    file. The secret on standard input: {"username", "password"}.

.PARAMETER Path
    The disk of the machine.

.PARAMETER Sources
    Directory with the offline sources; empty for none.

.PARAMETER ComputerName
    Name of the guest.

.PARAMETER Locale
    Formats and keyboard.

.PARAMETER Language
    Language of the image.

.OUTPUTS
    One line of JSON: {"ok": true, "result": {...}} or {"ok": false, "error": {"code", "message", "hresult"}}.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidateNotNullOrEmpty()]
    [string]$Path,

    [string]$Sources = '',

    [Parameter(Mandatory = $true)]
    [ValidatePattern('^[A-Za-z0-9-]{1,15}$')]
    [string]$ComputerName,

    [ValidatePattern('^[A-Za-z]{2,3}(-[A-Za-z0-9]+)*$')]
    [string]$Locale = 'en-US',

    [ValidatePattern('^[A-Za-z]{2,3}(-[A-Za-z0-9]+)*$')]
    [string]$Language = 'en-US'
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

function Get-OwnMachine {
    [OutputType('Microsoft.HyperV.PowerShell.VirtualMachine')]
    param(
        [Parameter(Mandatory = $true)]
        [string]$Name,

        [Parameter(Mandatory = $true)]
        [string]$Mark
    )
    $machine = Find-Machine -Name $Name
    if ($null -eq $machine) {
        throw ("vm-not-found: there is no virtual machine '{0}'" -f $Name)
    }
    if (-not ([string]$machine.Notes).Contains('[downlink {0}]' -f $Mark)) {
        throw ("vm-foreign: the virtual machine '{0}' was not made by this checkout" -f $Name)
    }
    $machine
}

function Read-Secret {
    [OutputType([pscustomobject])]
    param()
    $text = [Console]::In.ReadToEnd()
    if (-not $text.Trim()) {
        throw 'secret-missing: the script needs the guest''s user name and password on standard input'
    }
    ConvertFrom-Json -InputObject $text
}

function Invoke-InGuest {
    [OutputType([pscustomobject])]
    param(
        [Parameter(Mandatory = $true)]
        [Microsoft.HyperV.PowerShell.VirtualMachine]$Machine,

        [Parameter(Mandatory = $true)]
        [pscustomobject]$Secret,

        [Parameter(Mandatory = $true)]
        [scriptblock]$Action,

        [array]$Values = @()
    )
    if ($Machine.State -ne 'Running') {
        throw ("vm-not-running: the virtual machine '{0}' is {1}" -f $Machine.Name, $Machine.State)
    }
    $password = ConvertTo-SecureString -String $Secret.password -AsPlainText -Force
    # The local account whatever the computer is called.
    $account = '.\{0}' -f $Secret.username
    $credential = New-Object -TypeName System.Management.Automation.PSCredential -ArgumentList $account, $password
    $text = Invoke-Command -VMId $Machine.Id -Credential $credential -ScriptBlock $Action -ArgumentList $Values
    # Actions answer with one string, so that nothing that remoting adds to objects gets into the answer.
    ConvertFrom-Json -InputObject ([string](@($text)[-1]))
}

try {
    Assert-HyperV
        $secret = Read-Secret
        $name = [System.Security.SecurityElement]::Escape([string]$secret.username)
        $word = [System.Security.SecurityElement]::Escape([string]$secret.password)
        $component = 'processorArchitecture="amd64" publicKeyToken="31bf3856ad364e35" language="neutral" versionScope="nonSxS"'
        $answers = @"
<?xml version="1.0" encoding="utf-8"?>
<unattend xmlns="urn:schemas-microsoft-com:unattend" xmlns:wcm="http://schemas.microsoft.com/WMIConfig/2002/State">
  <settings pass="specialize">
    <component name="Microsoft-Windows-Shell-Setup" $component>
      <ComputerName>$ComputerName</ComputerName>
      <TimeZone>UTC</TimeZone>
    </component>
    <component name="Microsoft-Windows-Deployment" $component>
      <RunSynchronous>
        <RunSynchronousCommand wcm:action="add">
          <Order>1</Order>
          <Path>reg add HKLM\SYSTEM\CurrentControlSet\Control\BitLocker /v PreventDeviceEncryption /t REG_DWORD /d 1 /f</Path>
        </RunSynchronousCommand>
      </RunSynchronous>
    </component>
  </settings>
  <settings pass="oobeSystem">
    <component name="Microsoft-Windows-International-Core" $component>
      <InputLocale>$Locale</InputLocale>
      <SystemLocale>$Locale</SystemLocale>
      <UILanguage>$Language</UILanguage>
      <UserLocale>$Locale</UserLocale>
    </component>
    <component name="Microsoft-Windows-Shell-Setup" $component>
      <OOBE>
        <HideEULAPage>true</HideEULAPage>
        <HideLocalAccountScreen>true</HideLocalAccountScreen>
        <HideOEMRegistrationScreen>true</HideOEMRegistrationScreen>
        <HideOnlineAccountScreens>true</HideOnlineAccountScreens>
        <HideWirelessSetupInOOBE>true</HideWirelessSetupInOOBE>
        <ProtectYourPC>3</ProtectYourPC>
      </OOBE>
      <UserAccounts>
        <AdministratorPassword>
          <Value>$word</Value>
          <PlainText>true</PlainText>
        </AdministratorPassword>
        <LocalAccounts>
          <LocalAccount wcm:action="add">
            <Name>$name</Name>
            <Group>Administrators</Group>
            <Password>
              <Value>$word</Value>
              <PlainText>true</PlainText>
            </Password>
          </LocalAccount>
        </LocalAccounts>
      </UserAccounts>
    </component>
  </settings>
</unattend>
"@
        $mount = Join-Path -Path ([System.IO.Path]::GetTempPath()) -ChildPath ('downlink-{0}' -f [guid]::NewGuid().ToString('n'))
        $null = New-Item -Path $mount -ItemType Directory
        $mounted = $null
        $access = $null
        $copied = 0
        $found = $false
        try {
            $mounted = Mount-VHD -Path $Path -NoDriveLetter -Passthru
            $number = $mounted.DiskNumber
            foreach ($partition in @(Get-Partition -DiskNumber $number | Where-Object -FilterScript { $_.Size -gt 4GB })) {
                Add-PartitionAccessPath -DiskNumber $number -PartitionNumber $partition.PartitionNumber -AccessPath $mount
                $access = $partition.PartitionNumber
                if (Test-Path -LiteralPath (Join-Path -Path $mount -ChildPath 'Windows\System32\ntoskrnl.exe')) {
                    $found = $true
                    $panther = Join-Path -Path $mount -ChildPath 'Windows\Panther'
                    $null = New-Item -Path $panther -ItemType Directory -Force
                    $utf8 = New-Object -TypeName System.Text.UTF8Encoding -ArgumentList $false
                    [System.IO.File]::WriteAllText((Join-Path -Path $panther -ChildPath 'Unattend.xml'), $answers, $utf8)
                    if ($Sources) {
                        $target = Join-Path -Path $mount -ChildPath 'Downlink\sources'
                        $null = New-Item -Path $target -ItemType Directory -Force
                        Copy-Item -Path (Join-Path -Path $Sources -ChildPath '*') -Destination $target -Recurse -Force
                        $copied = @(Get-ChildItem -LiteralPath $target -File -Recurse).Count
                    }
                }
                Remove-PartitionAccessPath -DiskNumber $number -PartitionNumber $partition.PartitionNumber -AccessPath $mount
                $access = $null
                if ($found) {
                    break
                }
            }
            if (-not $found) {
                throw ("no-windows: no partition of '{0}' holds a Windows" -f $Path)
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
        $result = @{
            files = $copied
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
