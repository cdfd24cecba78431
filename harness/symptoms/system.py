"""Symptoms of hosts, toolchains, guests and of the ways between them, as far as no other table has them.

Sources: the documentation of the tools, and reports of what was met with them (Windows lab figures).
"""

from __future__ import annotations

from harness.symptoms.symptom import Place, Symptom

_FIX = "./inv doctor --fix --machine <name>"

INF: tuple[Symptom, ...] = (
    Symptom(
        "inf-no-instances",
        Place.INF,
        "the filter loads but attaches to nothing on a newer Windows",
        "from Windows 11 24H2 on instances are read from Parameters\\Instances",
        "write both: Instances and Parameters\\Instances",
    ),
    Symptom(
        "catalog-unsigned",
        Place.INF,
        "a catalog that was signed on Linux counts as unsigned on Windows",
        "osslsigncode was given options that are for images",
        "sign a .cat without -n, -i, -t and -ac",
    ),
)

HYPERV: tuple[Symptom, ...] = (
    Symptom(
        "hyperv-credential-invalid",
        Place.HYPERV,
        "PowerShell Direct: 'The credential is invalid'",
        "the guest is still booting, or the password is wrong",
        "wait until it has booted; if it stays, look at the environment variable or keyring entry of the password",
        None,
        r"credential is invalid",
    ),
    Symptom(
        "hyperv-no-rights",
        Place.HYPERV,
        "Get-VM: you do not have the required permission",
        "the user is neither an administrator nor in 'Hyper-V Administrators'",
        'net localgroup "Hyper-V Administrators" <user> /add, then log on again',
        None,
        r"(do not have the required permission|hyper-v administrators)",
    ),
    Symptom(
        "hyperv-no-module",
        Place.HYPERV,
        "Get-VM is not recognized",
        "the PowerShell module Hyper-V is not installed",
        "Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V -All, then restart the host",
        None,
        r"'?Get-VM'? is not recognized",
    ),
    Symptom(
        "hyperv-no-address",
        Place.HYPERV,
        "the machine runs but has no address",
        "its integration services do not answer yet, or the switch changed: the Default Switch has another subnet after"
        " each start of the host",
        "use the internal switch that ./inv vm.create makes, with a static address",
    ),
    Symptom(
        "hyperv-production-checkpoint",
        Place.HYPERV,
        "a restore boots instead of going on where it was",
        "the checkpoint is of the type Production, which has no memory",
        "Set-VM <name> -CheckpointType Standard, then make the checkpoint again",
    ),
    Symptom(
        "hyperv-secure-boot",
        Place.HYPERV,
        "bcdedit /set testsigning on: the value is protected by Secure Boot policy",
        "Secure Boot is on in the machine's firmware",
        "with the machine off: Set-VMFirmware <name> -EnableSecureBoot Off",
        None,
        r"protected by Secure Boot",
    ),
)

WINRM: tuple[Symptom, ...] = (
    Symptom(
        "winrm-400",
        Place.WINRM,
        "HTTP 400 on every call after a while",
        "the connection with the sealed session was dropped (after about 120 s idle, or by a restart)",
        "close the session and log on again; the harness does, and the shell survives",
        400,
        r"HTTP status 400",
    ),
    Symptom(
        "winrm-401",
        Place.WINRM,
        "HTTP 401: the guest refused the user name or password",
        "the password is wrong, has expired, or the account is locked",
        "set the right one in the environment variable DOWNLINK_SECRET_<MACHINE>_PASSWORD",
        401,
        r"refused the user name or password",
    ),
    Symptom(
        "winrm-500-unencrypted",
        Place.WINRM,
        "HTTP 500 without a fault",
        "WinRM does not take unencrypted messages (AllowUnencrypted is false)",
        "use the transport 'ntlm', which seals them, or https",
        500,
        r"HTTP status 500",
    ),
    Symptom(
        "winrm-public-network",
        Place.WINRM,
        "nothing answers on port 5985, although WinRM runs",
        "the network is public, and the firewall keeps WinRM's rule closed there",
        f"in the guest: Set-NetConnectionProfile -NetworkCategory Private, or {_FIX}",
        None,
        r"(connection .* was lost|refused|timed out).*5985",
    ),
    Symptom(
        "winrm-proxy",
        Place.WINRM,
        "another server answers, or HTTP 403 and 502",
        "HTTP_PROXY or HTTPS_PROXY sends the guest's traffic through a proxy",
        "unset HTTP_PROXY HTTPS_PROXY, or name the guest in NO_PROXY",
        None,
        r"HTTP status (403|502|504)",
    ),
    Symptom(
        "winrm-ntlm-off",
        Place.WINRM,
        "NTLM is refused on a new Windows",
        "a policy blocks NTLM; the next major Windows has it off by default",
        'use https with the pinned certificate: scheme = "https", transport = "ssl"',
        None,
        r"NTLM .*(disabled|blocked|not supported)",
    ),
    Symptom(
        "winrm-second-hop",
        Place.WINRM,
        "a share or Windows Update is 'access denied' in a remote command only",
        "a WinRM logon is a network logon: no second hop, no user keys, no desktop",
        'run it as a scheduled task: suites = "detached" in harness.toml',
    ),
)

FILES: tuple[Symptom, ...] = (
    Symptom(
        "sftp-host-key",
        Place.FILES,
        "SFTP: the host key is not the pinned one",
        "the guest was made anew, or something else answers at its address",
        "take the new key over: ssh-keyscan <host>, then host_key in harness.local.toml",
        None,
        r"host key",
    ),
    Symptom(
        "sftp-key-ignored",
        Place.FILES,
        "SSH: the key of an administrator is ignored",
        "administrators' keys are read only from C:\\ProgramData\\ssh\\administrators_authorized_keys, with a strict ACL",
        'icacls <file> /inheritance:r /grant "Administrators:F" /grant "SYSTEM:F"',
    ),
    Symptom(
        "disk-full",
        Place.FILES,
        "There is not enough space on the disk (112, 0x80070070)",
        "the guest's disk is full: dumps and event traces grow",
        "in the guest: del C:\\Windows\\MEMORY.DMP, or give the disk more room",
        0x80070070,
        r"(not enough space|No space left|0x80070070)",
    ),
    Symptom(
        "files-short",
        Place.FILES,
        "SFTP: fewer bytes arrived than were sent",
        "the guest's disk is full, or its antivirus holds the file",
        "in the guest: fsutil volume diskfree C:, and make room",
        None,
        r"\d+ of \d+ bytes arrived",
    ),
    Symptom(
        "file-in-use",
        Place.FILES,
        "The process cannot access the file (32, 0x80070020)",
        "the image belongs to a loaded driver, which cannot be overwritten",
        "unload it first: fltmc unload; or restore the machine: ./inv vm.restore",
        0x80070020,
        r"(used by another process|0x80070020)",
    ),
    Symptom(
        "nul-bytes",
        Place.FILES,
        "files that were written just before a bugcheck hold only zero bytes",
        "they were in the cache and never reached the disk",
        "flush what matters; the harness streams results to the host",
    ),
)
