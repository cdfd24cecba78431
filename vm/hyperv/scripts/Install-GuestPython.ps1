#Requires -Version 5.1

<#
.SYNOPSIS
    Install Python and the wheels of the suites in a guest, without the Internet.

.DESCRIPTION
    From C:\Downlink\sources, where Set-DiskContent has put them; removes that directory afterwards. The
    secret on standard input: {"username", "password"}.

.PARAMETER Name
    Name of the virtual machine.

.PARAMETER Mark
    What the notes of the virtual machine say about who made it.

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
    [string]$Mark
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
        Set-StrictMode -Version Latest
        $ErrorActionPreference = 'Stop'
        $ProgressPreference = 'SilentlyContinue'
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
        $sources = 'C:\Downlink\sources'
        $target = '{0}\Python' -f $env:SystemDrive
        $python = Join-Path -Path $target -ChildPath 'python.exe'
        if (-not (Test-Path -LiteralPath $python)) {
            $packages = @(Get-ChildItem -LiteralPath $sources -File | Where-Object -FilterScript { $_.Name -like 'python.*.nupkg' -or $_.Name -like 'python-3*-amd64.exe' } | Sort-Object -Property Name -Descending)
            if ($packages.Count -eq 0) {
                throw 'python-missing: the sources hold neither python.*.nupkg nor python-3*-amd64.exe'
            }
            if ($packages[0].Extension -eq '.exe') {
                $arguments = '/quiet InstallAllUsers=1 TargetDir={0} Include_launcher=0 Include_test=0 Shortcuts=0' -f $target
                $process = Start-Process -FilePath $packages[0].FullName -ArgumentList $arguments -Wait -PassThru
                if ($process.ExitCode -ne 0) {
                    throw ('python-failed: the installer ended with exit code {0}' -f $process.ExitCode)
                }
            }
            else {
                $archive = Join-Path -Path $env:TEMP -ChildPath 'python.zip'
                $unpacked = Join-Path -Path $env:TEMP -ChildPath 'python-package'
                Copy-Item -LiteralPath $packages[0].FullName -Destination $archive -Force
                Expand-Archive -LiteralPath $archive -DestinationPath $unpacked -Force
                Move-Item -LiteralPath (Join-Path -Path $unpacked -ChildPath 'tools') -Destination $target
                Remove-Item -LiteralPath $unpacked -Recurse -Force
                Remove-Item -LiteralPath $archive -Force
            }
        }
        $tool = Invoke-Tool -Program $python -Arguments '-m', 'ensurepip'
        if ($tool.code -ne 0) {
            throw ('python-failed: ensurepip ended with exit code {0}: {1}' -f $tool.code, $tool.text)
        }
        $wheels = Join-Path -Path $sources -ChildPath 'wheels'
        $tool = Invoke-Tool -Program $python -Arguments '-m', 'pip', 'install', '--no-index', '--no-warn-script-location', '--find-links', $wheels, 'pytest', 'hypothesis'
        if ($tool.code -ne 0) {
            throw ('python-failed: pip ended with exit code {0}: {1}' -f $tool.code, $tool.text)
        }
        $tool = Invoke-Tool -Program $python -Arguments '-c', 'import sys, pytest, hypothesis; print(sys.version.split()[0])'
        if ($tool.code -ne 0) {
            throw ('python-failed: the wheels cannot be imported: {0}' -f $tool.text)
        }
        $path = [Environment]::GetEnvironmentVariable('Path', 'Machine')
        if (-not $path.ToLowerInvariant().Contains(('{0};' -f $target).ToLowerInvariant())) {
            [Environment]::SetEnvironmentVariable('Path', ('{0};{0}\Scripts;{1}' -f $target, $path), 'Machine')
        }
        if (Test-Path -LiteralPath $sources) {
            Remove-Item -LiteralPath $sources -Recurse -Force
        }
        ConvertTo-Json -Compress -Depth 5 -InputObject @{
            version = $tool.text
        }
    }
    $result = Invoke-InGuest -Machine $machine -Secret $secret -Action $action
    $answer = @{
        ok     = $true
        result = $result
    }
}
catch {
    $answer = Get-Refusal -Record $_
}
Write-Answer -Answer $answer
