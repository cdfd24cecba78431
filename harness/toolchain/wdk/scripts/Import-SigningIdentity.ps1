#Requires -Version 5.1

<#
.SYNOPSIS
    Puts the test certificate of a checkout, with its key, into the personal store of this user, where signtool finds it.

.DESCRIPTION
    The secret on standard input: {"pfx", "password"}, the first in base64. Nothing is written to a file, and the key
    cannot be exported from the store. A certificate that is there with its key already is left alone.

    To remove it: Get-ChildItem -LiteralPath Cert:\CurrentUser\My\THUMBPRINT | Remove-Item -DeleteKey

.PARAMETER Thumbprint
    SHA-1 of the certificate that is expected, in hexadecimal.

.OUTPUTS
    One line of JSON: {"ok": true, "result": {"thumbprint", "imported"}} or
    {"ok": false, "error": {"code", "message", "hresult"}}.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [ValidatePattern('^[0-9A-Fa-f]{40}$')]
    [string]$Thumbprint
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false

$code = 'certificate-not-imported'
try {
    $secret = [Console]::In.ReadToEnd() | ConvertFrom-Json
    $location = [System.Security.Cryptography.X509Certificates.StoreLocation]::CurrentUser
    $store = New-Object System.Security.Cryptography.X509Certificates.X509Store 'My', $location
    $store.Open([System.Security.Cryptography.X509Certificates.OpenFlags]::ReadWrite)
    try {
        $present = @($store.Certificates | Where-Object { $_.Thumbprint -eq $Thumbprint -and $_.HasPrivateKey })
        $imported = $present.Count -eq 0
        if ($imported) {
            $password = New-Object System.Security.SecureString
            foreach ($character in ([string]$secret.password).ToCharArray()) {
                $password.AppendChar($character)
            }
            $bytes = [Convert]::FromBase64String([string]$secret.pfx)
            # The key stays when this process ends, belongs to this user, and is not exportable.
            $flags = [System.Security.Cryptography.X509Certificates.X509KeyStorageFlags]'UserKeySet, PersistKeySet'
            $certificate = New-Object System.Security.Cryptography.X509Certificates.X509Certificate2 $bytes, $password, $flags
            if ($certificate.Thumbprint -ne $Thumbprint) {
                $code = 'certificate-differs'
                throw "the certificate that was handed over is $($certificate.Thumbprint), not $Thumbprint"
            }
            $store.Add($certificate)
        }
    }
    finally {
        $store.Close()
    }
    $answer = @{ thumbprint = $Thumbprint.ToUpperInvariant(); imported = $imported }
    [Console]::Out.WriteLine((@{ ok = $true; result = $answer } | ConvertTo-Json -Compress -Depth 8))
    exit 0
}
catch {
    $failure = @{ code = $code; message = $_.Exception.Message; hresult = $_.Exception.HResult }
    [Console]::Out.WriteLine((@{ ok = $false; error = $failure } | ConvertTo-Json -Compress -Depth 8))
    exit 1
}
