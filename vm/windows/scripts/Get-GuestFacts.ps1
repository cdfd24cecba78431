#Requires -Version 5.1
<#
.SYNOPSIS
    Says everything about this guest that a run of a minifilter depends on, as one JSON object.
.DESCRIPTION
    Reads only; changes nothing. What cannot be read is null, so that one missing component does not hide the rest.
    Points in time are .NET ticks (100 ns since 0001-01-01) in UTC.
.PARAMETER Service
    Name of the driver's service; "" leaves the part "service" null.
.PARAMETER Inf
    Name of the driver's INF as its package has it; "" leaves the part "packages" empty.
.EXAMPLE
    powershell -File Get-GuestFacts.ps1 -Service Downlink -Inf downlink.inf
#>
[CmdletBinding()]
param(
    [ValidatePattern('^[\w-]*$')]
    [string] $Service = '',

    [string] $Inf = ''
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false

$Control = 'SYSTEM\CurrentControlSet\Control'
$CurrentVersion = 'SOFTWARE\Microsoft\Windows NT\CurrentVersion'
$MemoryManagement = "$Control\Session Manager\Memory Management"

function Get-Value {
    # A value of HKLM, $null if the key or the value is not there.
    param(
        [Parameter(Mandatory = $true)] [string] $Key,
        [Parameter(Mandatory = $true)] [string] $Name
    )

    $opened = [Microsoft.Win32.Registry]::LocalMachine.OpenSubKey($Key)
    if ($null -eq $opened) {
        return $null
    }
    try {
        # Without the comma a value of several strings would come back as single ones.
        return , $opened.GetValue($Name, $null, 'DoNotExpandEnvironmentNames')
    } finally {
        $opened.Dispose()
    }
}

function Test-Key {
    param([Parameter(Mandatory = $true)] [string] $Key)

    $opened = [Microsoft.Win32.Registry]::LocalMachine.OpenSubKey($Key)
    if ($null -eq $opened) {
        return $false
    }
    $opened.Dispose()
    return $true
}

function Get-SubKeyName {
    param([Parameter(Mandatory = $true)] [string] $Key)

    $opened = [Microsoft.Win32.Registry]::LocalMachine.OpenSubKey($Key)
    if ($null -eq $opened) {
        return
    }
    try {
        $opened.GetSubKeyNames()
    } finally {
        $opened.Dispose()
    }
}

function Get-Part {
    # The result of a block; $null if it throws. Parts are independent of each other.
    param([Parameter(Mandatory = $true)] [scriptblock] $Block)

    try {
        & $Block
    } catch {
        $null
    }
}

function ConvertTo-Flag {
    # $null stays $null; numbers become true or false.
    param([Nullable[int]] $Value)

    if ($null -eq $Value) {
        return $null
    }
    return [bool] $Value
}

function Invoke-Tool {
    # The lines that a tool prints. Its standard error must not become an exception, as 'Stop' would make it.
    param(
        [Parameter(Mandatory = $true)] [string] $Path,
        [string[]] $Arguments = @()
    )

    $ErrorActionPreference = 'Continue'
    & $Path @Arguments 2>$null
}

function Get-SystemPart {
    $system = Get-CimInstance -ClassName Win32_OperatingSystem
    [ordered] @{
        product           = Get-Value -Key $CurrentVersion -Name 'ProductName'
        edition           = Get-Value -Key $CurrentVersion -Name 'EditionID'
        version           = Get-Value -Key $CurrentVersion -Name 'DisplayVersion'
        build             = [int] (Get-Value -Key $CurrentVersion -Name 'CurrentBuildNumber')
        revision          = Get-Value -Key $CurrentVersion -Name 'UBR'
        server            = $system.ProductType -ne 1
        architecture      = $env:PROCESSOR_ARCHITECTURE.ToLowerInvariant()
        processors        = [Environment]::ProcessorCount
        memoryBytes       = [long] $system.TotalVisibleMemorySize * 1024
        freeMemoryBytes   = [long] $system.FreePhysicalMemory * 1024
    }
}

function Get-TestSigning {
    # What the boot configuration says, without the localised words of bcdedit: the element BcdLibraryBoolean
    # AllowPrereleaseSignatures (16000049) of any entry. The store is a hive that administrators may read.
    foreach ($entry in Get-SubKeyName -Key 'BCD00000000\Objects') {
        $element = Get-Value -Key "BCD00000000\Objects\$entry\Elements\16000049" -Name 'Element'
        if ($null -ne $element -and @($element)[0] -ne 0) {
            return $true
        }
    }
    return $false
}

function Get-BootPart {
    $system = Get-CimInstance -ClassName Win32_OperatingSystem
    $options = [string] (Get-Value -Key $Control -Name 'SystemStartOptions')
    [ordered] @{
        identity              = Get-Value -Key "$MemoryManagement\PrefetchParameters" -Name 'BootId'
        startedTicks          = $system.LastBootUpTime.ToUniversalTime().Ticks
        options               = $options.Trim()
        testsigningInEffect   = ($options -split '\s+') -contains 'TESTSIGNING'
        testsigningConfigured = Get-Part { Get-TestSigning }
        debugger              = @(($options -split '\s+') -like 'DEBUG*').Count -gt 0
        secureBoot            = ConvertTo-Flag (Get-Value -Key "$Control\SecureBoot\State" -Name 'UEFISecureBootEnabled')
    }
}

function Get-VirtualizationPart {
    $guard = Get-CimInstance -Namespace 'root\Microsoft\Windows\DeviceGuard' -ClassName Win32_DeviceGuard
    [ordered] @{
        vbs  = $guard.VirtualizationBasedSecurityStatus -eq 2
        hvci = @($guard.SecurityServicesRunning) -contains 2
    }
}

function Get-VerifierPart {
    $drivers = [string] (Get-Value -Key $MemoryManagement -Name 'VerifyDrivers')
    [ordered] @{
        level   = Get-Value -Key $MemoryManagement -Name 'VerifyDriverLevel'
        drivers = @($drivers -split '\s+' | Where-Object { $_ })
    }
}

function Get-CrashPart {
    $key = "$Control\CrashControl"
    $dumps = @(Get-Item -Path "$env:SystemRoot\MEMORY.DMP" -ErrorAction SilentlyContinue)
    foreach ($directory in 'Minidump', 'LiveKernelReports') {
        $dumps += @(Get-ChildItem -Path "$env:SystemRoot\$directory" -Recurse -File -ErrorAction SilentlyContinue)
    }
    $pageFileMegabytes = 0
    foreach ($file in Get-Part { Get-CimInstance -ClassName Win32_PageFileUsage }) {
        $pageFileMegabytes += $file.AllocatedBaseSize
    }
    [ordered] @{
        dumpKind      = Get-Value -Key $key -Name 'CrashDumpEnabled'
        alwaysKeep    = ConvertTo-Flag (Get-Value -Key $key -Name 'AlwaysKeepMemoryDump')
        autoReboot    = ConvertTo-Flag (Get-Value -Key $key -Name 'AutoReboot')
        overwrite     = ConvertTo-Flag (Get-Value -Key $key -Name 'Overwrite')
        pageFileBytes = [long] $pageFileMegabytes * 1MB
        dumps         = @($dumps | Select-Object -First 50 | ForEach-Object { $_.FullName })
    }
}

function Get-DiskPart {
    $drive = New-Object System.IO.DriveInfo $env:SystemDrive
    [ordered] @{
        drive      = $env:SystemDrive
        freeBytes  = $drive.AvailableFreeSpace
        totalBytes = $drive.TotalSize
    }
}

function Get-WinRmPart {
    $item = { param([string] $Path) [long] (Get-Item -Path "WSMan:\localhost\$Path").Value }
    $expiry = Get-Part {
        $listener = Get-ChildItem -Path 'WSMan:\localhost\Listener' |
            Where-Object { $_.Keys -contains 'Transport=HTTPS' } |
            Select-Object -First 1
        $thumbprint = (Get-ChildItem -Path $listener.PSPath | Where-Object { $_.Name -eq 'CertificateThumbprint' }).Value
        (Get-Item -Path "Cert:\LocalMachine\My\$($thumbprint -replace '\s', '')").NotAfter.ToUniversalTime().Ticks
    }
    [ordered] @{
        maxEnvelopeKb           = & $item 'MaxEnvelopeSizekb'
        maxTimeoutMs            = & $item 'MaxTimeoutms'
        maxShellsPerUser        = & $item 'Shell\MaxShellsPerUser'
        maxProcessesPerShell    = & $item 'Shell\MaxProcessesPerShell'
        maxMemoryPerShellMb     = & $item 'Shell\MaxMemoryPerShellMB'
        httpsCertificateExpires = $expiry
    }
}

function Get-Certificate {
    # Thumbprint and expiry of every certificate in a store of the machine.
    param([Parameter(Mandatory = $true)] [string] $Store)

    $opened = New-Object System.Security.Cryptography.X509Certificates.X509Store $Store, 'LocalMachine'
    $opened.Open('ReadOnly')
    try {
        foreach ($certificate in $opened.Certificates) {
            [ordered] @{
                thumbprint   = $certificate.Thumbprint.ToLowerInvariant()
                startsTicks  = $certificate.NotBefore.ToUniversalTime().Ticks
                expiresTicks = $certificate.NotAfter.ToUniversalTime().Ticks
            }
        }
    } finally {
        $opened.Close()
    }
}

function Get-DefenderPart {
    $status = Get-MpComputerStatus
    [ordered] @{
        realTime        = [bool] $status.RealTimeProtectionEnabled
        tamperProtected = [bool] $status.IsTamperProtected
    }
}

function Get-LoadedFilter {
    # The headers of fltmc are localised, the rows are not: name, number of instances, altitude, frame.
    foreach ($line in Invoke-Tool -Path "$env:SystemRoot\System32\fltMC.exe" -Arguments 'filters') {
        if ($line -match '^(\S.*?)\s+(\d+)\s+(\d[\d.]*)\s+\S+\s*$') {
            [ordered] @{
                name      = $Matches[1]
                instances = [int] $Matches[2]
                altitude  = $Matches[3]
            }
        }
    }
}

function Get-Altitude {
    # Every altitude that any service claims, in both of the places where the Filter Manager looks.
    $services = 'SYSTEM\CurrentControlSet\Services'
    foreach ($name in Get-SubKeyName -Key $services) {
        foreach ($place in 'Instances', 'Parameters\Instances') {
            foreach ($instance in Get-SubKeyName -Key "$services\$name\$place") {
                $altitude = Get-Value -Key "$services\$name\$place\$instance" -Name 'Altitude'
                if ($null -ne $altitude) {
                    [ordered] @{
                        service  = $name
                        instance = $instance
                        altitude = [string] $altitude
                        place    = $place
                    }
                }
            }
        }
    }
}

function Get-ServicePart {
    param([Parameter(Mandatory = $true)] [string] $Name)

    $key = "SYSTEM\CurrentControlSet\Services\$Name"
    if (-not (Test-Key -Key $key)) {
        return $null
    }
    # A key that waits for its deletion is no driver to WMI any more.
    $driver = Get-Part { Get-CimInstance -ClassName Win32_SystemDriver -Filter "Name = '$Name'" }
    [ordered] @{
        name              = $Name
        running           = $null -ne $driver -and $driver.State -eq 'Running'
        image             = [string] (Get-Value -Key $key -Name 'ImagePath')
        markedForDeletion = [bool] (Get-Value -Key $key -Name 'DeleteFlag')
    }
}

function Get-DriverPackage {
    # In the listing of pnputil only the labels are localised: a published name is followed by the original one.
    param([Parameter(Mandatory = $true)] [string] $OriginalName)

    $published = ''
    foreach ($line in Invoke-Tool -Path "$env:SystemRoot\System32\pnputil.exe" -Arguments '/enum-drivers') {
        if ($line -match ':\s+(oem\d+\.inf)\s*$') {
            $published = $Matches[1]
        } elseif ($published -and $line -match ':\s+(\S+\.inf)\s*$') {
            if ($Matches[1] -eq $OriginalName) {
                $published
            }
            $published = ''
        }
    }
}

function Get-PendingRestart {
    $servicing = 'SOFTWARE\Microsoft\Windows\CurrentVersion'
    if (Test-Key -Key "$servicing\Component Based Servicing\RebootPending") {
        'component servicing'
    }
    if (Test-Key -Key "$servicing\WindowsUpdate\Auto Update\RebootRequired") {
        'Windows Update'
    }
    $renames = Get-Value -Key "$Control\Session Manager" -Name 'PendingFileRenameOperations'
    if (@($renames | Where-Object { $_ }).Count -gt 0) {
        'file renames'
    }
}

function Get-PythonPart {
    # The alias of the Store in WindowsApps is no Python.
    $found = @(Get-Command -Name python.exe -CommandType Application -All -ErrorAction SilentlyContinue |
            Where-Object { $_.Source -notlike '*\WindowsApps\*' } |
            ForEach-Object { $_.Source })
    $found += @("$env:SystemDrive\Python\python.exe" | Where-Object { Test-Path -Path $_ })
    if ($found.Count -eq 0) {
        return $null
    }
    $root = Split-Path -Path $found[0] -Parent
    # What is installed, without the time that starting an interpreter takes.
    $packages = [ordered] @{}
    foreach ($directory in Get-ChildItem -Path "$root\Lib\site-packages\*.dist-info" -ErrorAction SilentlyContinue) {
        if ($directory.Name -match '^(.+)-([^-]+)\.dist-info$') {
            $packages[$Matches[1].ToLowerInvariant() -replace '_', '-'] = $Matches[2]
        }
    }
    [ordered] @{
        path     = $found[0]
        version  = (Get-Item -Path $found[0]).VersionInfo.ProductVersion
        packages = $packages
    }
}

function Get-ProxyPart {
    # Variables of the machine, which every logon gets; a proxy between the guest's own processes helps nobody.
    foreach ($name in 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY') {
        if ([Environment]::GetEnvironmentVariable($name, 'Machine')) {
            $name
        }
    }
}

try {
    $result = [ordered] @{
        schema         = 1
        computer       = $env:COMPUTERNAME
        utcTicks       = [DateTime]::UtcNow.Ticks
        timeZone       = [TimeZoneInfo]::Local.Id
        system         = Get-Part { Get-SystemPart }
        boot           = Get-Part { Get-BootPart }
        virtualization = Get-Part { Get-VirtualizationPart }
        verifier       = Get-Part { Get-VerifierPart }
        crash          = Get-Part { Get-CrashPart }
        disk           = Get-Part { Get-DiskPart }
        winrm          = Get-Part { Get-WinRmPart }
        networks       = @(Get-Part { Get-NetConnectionProfile | ForEach-Object { [string] $_.NetworkCategory } } |
                Where-Object { $_ })
        certificates   = [ordered] @{
            root             = @(Get-Part { Get-Certificate -Store 'Root' } | Where-Object { $_ })
            trustedPublisher = @(Get-Part { Get-Certificate -Store 'TrustedPublisher' } | Where-Object { $_ })
        }
        defender       = Get-Part { Get-DefenderPart }
        filters        = @(Get-Part { Get-LoadedFilter } | Where-Object { $_ })
        altitudes      = @(Get-Part { Get-Altitude } | Where-Object { $_ })
        service        = $null
        packages       = @()
        pendingRestart = @(Get-Part { Get-PendingRestart } | Where-Object { $_ })
        python         = Get-Part { Get-PythonPart }
        proxies        = @(Get-Part { Get-ProxyPart } | Where-Object { $_ })
    }
    if ($Service) {
        $result['service'] = Get-Part { Get-ServicePart -Name $Service }
    }
    if ($Inf) {
        $result['packages'] = @(Get-Part { Get-DriverPackage -OriginalName $Inf } | Where-Object { $_ })
    }
    $result['endTicks'] = [DateTime]::UtcNow.Ticks
    [ordered] @{
        ok     = $true
        result = $result
    } | ConvertTo-Json -Depth 6 -Compress
    exit 0
} catch {
    [ordered] @{
        ok    = $false
        error = [ordered] @{
            code    = 'unexpected'
            message = $_.Exception.Message
            hresult = $_.Exception.HResult
        }
    } | ConvertTo-Json -Depth 3 -Compress
    exit 1
}
