#Requires -Version 5.1

<#
.SYNOPSIS
    Open WinRM in a guest: HTTP with sealed NTLM, and HTTPS with a certificate of its own.

.DESCRIPTION
    Answers with the certificate, which the host pins. Raises the quotas that long suites run into. The secret
    on standard input: {"username", "password"}.

.PARAMETER Name
    Name of the virtual machine.

.PARAMETER Mark
    What the notes of the virtual machine say about who made it.

.PARAMETER Address
    The address that the certificate is for.

.PARAMETER HttpPort
    Port of the HTTP listener.

.PARAMETER HttpsPort
    Port of the HTTPS listener.

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
    [ValidatePattern('^[0-9]{1,3}(\.[0-9]{1,3}){3}$')]
    [string]$Address,

    [ValidateRange(1, 65535)]
    [int]$HttpPort = 5985,

    [ValidateRange(1, 65535)]
    [int]$HttpsPort = 5986
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
    $machine = Get-OwnMachine -Name $Name -Mark $Mark
    $action = {
        param(
            [string]$Address,
            [int]$HttpPort,
            [int]$HttpsPort
        )
        Set-StrictMode -Version Latest
        $ErrorActionPreference = 'Stop'
        $ProgressPreference = 'SilentlyContinue'
        Set-Service -Name 'WinRM' -StartupType Automatic
        $null = Enable-PSRemoting -SkipNetworkProfileCheck -Force
        # Local administrators besides the built-in one would get a filtered token over the network.
        Set-ItemProperty -LiteralPath 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System' -Name 'LocalAccountTokenFilterPolicy' -Value 1 -Type DWord
        foreach ($old in @(Get-ChildItem -LiteralPath 'Cert:\LocalMachine\My' | Where-Object -FilterScript { $_.FriendlyName -eq 'Downlink WinRM' })) {
            Remove-Item -LiteralPath $old.PSPath -Force
        }
        $request = @{
            Subject           = 'CN={0}' -f $Address
            FriendlyName      = 'Downlink WinRM'
            CertStoreLocation = 'Cert:\LocalMachine\My'
            KeyAlgorithm      = 'RSA'
            KeyLength         = 2048
            HashAlgorithm     = 'SHA256'
            KeyExportPolicy   = 'NonExportable'
            KeyUsage          = 'DigitalSignature', 'KeyEncipherment', 'CertSign'
            # A restored guest may live in the past for a moment.
            NotBefore         = (Get-Date).AddDays(-2)
            NotAfter          = (Get-Date).AddYears(10)
            TextExtension     = @(
                ('2.5.29.17={0}text{1}IPAddress={2}&DNS={3}' -f '{', '}', $Address, [Environment]::MachineName),
                '2.5.29.37={text}1.3.6.1.5.5.7.3.1',
                '2.5.29.19={critical}{text}ca=true&pathlength=0'
            )
        }
        $certificate = New-SelfSignedCertificate @request
        foreach ($listener in @(Get-ChildItem -LiteralPath 'WSMan:\localhost\Listener' | Where-Object -FilterScript { $_.Keys -contains 'Transport=HTTPS' })) {
            Remove-Item -LiteralPath $listener.PSPath -Recurse -Force
        }
        $null = New-Item -Path 'WSMan:\localhost\Listener' -Transport HTTPS -Address '*' -Port $HttpsPort -CertificateThumbPrint $certificate.Thumbprint -Force
        foreach ($listener in @(Get-ChildItem -LiteralPath 'WSMan:\localhost\Listener' | Where-Object -FilterScript { $_.Keys -contains 'Transport=HTTP' })) {
            Set-Item -LiteralPath ('WSMan:\localhost\Listener\{0}\Port' -f $listener.Name) -Value $HttpPort -Force
        }
        Set-Item -LiteralPath 'WSMan:\localhost\Service\AllowUnencrypted' -Value $false -Force
        Set-Item -LiteralPath 'WSMan:\localhost\Service\Auth\Negotiate' -Value $true -Force
        $quotas = [ordered]@{
            'MaxEnvelopeSizekb'           = 8192
            'MaxTimeoutms'                = 1800000
            'Shell\MaxMemoryPerShellMB'   = 2048
            'Shell\MaxShellsPerUser'      = 50
            'Shell\MaxProcessesPerShell'  = 100
        }
        foreach ($quota in $quotas.Keys) {
            Set-Item -LiteralPath ('WSMan:\localhost\{0}' -f $quota) -Value $quotas[$quota] -Force -WarningAction SilentlyContinue
        }
        Remove-NetFirewallRule -Name 'Downlink-WinRM' -ErrorAction SilentlyContinue
        $null = New-NetFirewallRule -Name 'Downlink-WinRM' -DisplayName 'Downlink WinRM' -Direction Inbound -Protocol TCP -LocalPort $HttpPort, $HttpsPort -Action Allow -Profile Any
        Remove-NetFirewallRule -Name 'Downlink-Ping' -ErrorAction SilentlyContinue
        $null = New-NetFirewallRule -Name 'Downlink-Ping' -DisplayName 'Downlink ping' -Direction Inbound -Protocol ICMPv4 -IcmpType 8 -Action Allow -Profile Any
        ConvertTo-Json -Compress -Depth 5 -InputObject @{
            certificate = [Convert]::ToBase64String($certificate.RawData)
            thumbprint  = [string]$certificate.Thumbprint
        }
    }
    $result = Invoke-InGuest -Machine $machine -Secret $secret -Action $action -Values @($Address, $HttpPort, $HttpsPort)
    $answer = @{
        ok     = $true
        result = $result
    }
}
catch {
    $answer = Get-Refusal -Record $_
}
Write-Answer -Answer $answer
