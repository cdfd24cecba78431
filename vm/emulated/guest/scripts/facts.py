"""`Get-GuestFacts.ps1`: every answer is read from the state of the emulated machine, where Windows keeps it too."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import TypeVar

from cryptography import x509

from vm.emulated.guest import boot, certificates
from vm.emulated.guest.chaos.files import DiskFull
from vm.emulated.guest.commands import services
from vm.emulated.guest.scripts.call import ScriptCall, script
from vm.emulated.registry import (
    SERVICES,
    MissingKeyError,
    MissingValueError,
    Registry,
    ValueTypeError,
)

_T = TypeVar("_T")

_CURRENT_VERSION = "HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion"
_SERVICING = "HKLM\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion"
_MEMORY_MANAGEMENT = f"{boot.CONTROL}\\Session Manager\\Memory Management"
_DUMP_PLACES = ("C:\\Windows\\Minidump", "C:\\Windows\\LiveKernelReports")
_MEMORY_BYTES = 4 * 1024**3
"""What the machine states to have; drivers have their own, modelled limit."""
_DUMPS_SHOWN = 50
_EPOCH_TICKS = 621_355_968_000_000_000
"""1970-01-01 in .NET ticks (100 ns since 0001-01-01)."""
_DIST_INFO = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)\.dist-info")
_PUBLISHED = re.compile(r":\s+(oem\d+\.inf)\s*$", re.IGNORECASE)
_ORIGINAL = re.compile(r":\s+(\S+\.inf)\s*$", re.IGNORECASE)


@script("Get-GuestFacts")
def get_guest_facts(call: ScriptCall) -> object:
    """See the help of the `.ps1`."""
    registry = call.guest.registry
    start = ticks(call.guest.clock.now())
    service, inf = call.text("Service"), call.text("Inf")
    return {
        "schema": 1,
        "computer": call.guest.settings.computer_name,
        "utcTicks": start,
        "timeZone": "UTC",
        "system": _system(registry),
        "boot": _boot(call),
        "virtualization": _virtualization(registry),
        "verifier": {
            "level": _read(registry.get_dword, _MEMORY_MANAGEMENT, "VerifyDriverLevel"),
            "drivers": (_read(registry.get_string, _MEMORY_MANAGEMENT, "VerifyDrivers") or "").split(),
        },
        "crash": _crash(call),
        "disk": _disk(call),
        "winrm": _winrm(call),
        "networks": [_network(registry)],
        "certificates": {
            "root": [_certificate(each) for each in certificates.certificates(registry, "Root")],
            "trustedPublisher": [
                _certificate(each) for each in certificates.certificates(registry, "TrustedPublisher")
            ],
        },
        "defender": None,
        "filters": [
            {"name": each.name, "instances": each.instances, "altitude": each.altitude}
            for each in call.guest.computer().filters()
        ],
        "altitudes": list(_altitudes(registry)),
        "service": _service(call, service) if service else None,
        "packages": list(_packages(call, inf)) if inf else [],
        "pendingRestart": list(_pending_restart(registry)),
        "python": _python(call),
        "proxies": list(_proxies(registry)),
        "endTicks": ticks(call.guest.clock.now()),
    }


def ticks(seconds: float) -> int:
    """.NET ticks of a time in seconds since the Unix epoch."""
    return _EPOCH_TICKS + round(seconds * 10_000_000)


def seconds(ticks: int) -> float:
    """Seconds since the Unix epoch of a time in .NET ticks."""
    return (ticks - _EPOCH_TICKS) / 10_000_000


def _system(registry: Registry) -> dict[str, object]:
    return {
        "product": _read(registry.get_string, _CURRENT_VERSION, "ProductName"),
        "edition": _read(registry.get_string, _CURRENT_VERSION, "EditionID"),
        "version": _read(registry.get_string, _CURRENT_VERSION, "DisplayVersion"),
        "build": int(_read(registry.get_string, _CURRENT_VERSION, "CurrentBuildNumber") or 0),
        "revision": _read(registry.get_dword, _CURRENT_VERSION, "UBR"),
        "server": True,
        "architecture": "amd64",
        "processors": 1,
        "memoryBytes": _MEMORY_BYTES,
        "freeMemoryBytes": _MEMORY_BYTES // 2,
    }


def _boot(call: ScriptCall) -> dict[str, object]:
    registry = call.guest.registry
    return {
        "identity": _read(registry.get_dword, boot.BOOT_COUNTER_KEY, boot.BOOT_COUNTER_VALUE),
        "startedTicks": ticks(call.guest.computer().boot_time + call.guest.clock.offset),
        "options": (_read(registry.get_string, boot.CONTROL, "SystemStartOptions") or "").strip(),
        "testsigningInEffect": boot.testsigning_in_effect(registry),
        "testsigningConfigured": bool(boot.testsigning_configured(registry)),
        "debugger": False,
        "secureBoot": _flag(
            _read(registry.get_dword, f"{boot.CONTROL}\\SecureBoot\\State", "UEFISecureBootEnabled")
        ),
    }


def _virtualization(registry: Registry) -> dict[str, object]:
    guard = f"{boot.CONTROL}\\DeviceGuard"
    hvci = _read(registry.get_dword, f"{guard}\\Scenarios\\HypervisorEnforcedCodeIntegrity", "Enabled")
    vbs = _read(registry.get_dword, guard, "EnableVirtualizationBasedSecurity")
    return {"vbs": bool(vbs), "hvci": bool(vbs and hvci)}


def _crash(call: ScriptCall) -> dict[str, object]:
    registry, drive = call.guest.registry, call.guest.drive
    key = f"{boot.CONTROL}\\CrashControl"
    dumps = [
        drive.windows_path(path)
        for place in _DUMP_PLACES
        for path in sorted(drive.host_path(place).rglob("*"))
        if path.is_file()
    ]
    whole = drive.host_path("C:\\Windows\\MEMORY.DMP")
    return {
        "dumpKind": _read(registry.get_dword, key, "CrashDumpEnabled"),
        "alwaysKeep": _flag(_read(registry.get_dword, key, "AlwaysKeepMemoryDump")),
        "autoReboot": _flag(_read(registry.get_dword, key, "AutoReboot")),
        "overwrite": _flag(_read(registry.get_dword, key, "Overwrite")),
        "pageFileBytes": _MEMORY_BYTES + 2**20,
        "dumps": ([drive.windows_path(whole)] if whole.exists() else []) + dumps[:_DUMPS_SHOWN],
    }


def _disk(call: ScriptCall) -> dict[str, object]:
    drive = call.guest.drive
    usage = shutil.disk_usage(drive.root)
    full = [fault for fault in call.guest.chaos.faults if isinstance(fault, DiskFull)]
    free = min([usage.free, *(max(0, int(fault.value) - fault.used) for fault in full)])
    return {"drive": f"{drive.letter}:", "freeBytes": free, "totalBytes": usage.total}


def _winrm(call: ScriptCall) -> dict[str, object]:
    settings = call.guest.settings
    quotas = settings.quotas
    expires = None
    if settings.tls is not None:
        found = certificates.parse(settings.tls.certificate.read_bytes())
        expires = ticks(found.not_valid_after_utc.timestamp())
    return {
        "maxEnvelopeKb": quotas.max_envelope_bytes // 1024,
        "maxTimeoutMs": int(quotas.max_timeout_seconds * 1000),
        "maxShellsPerUser": quotas.max_shells_per_user,
        "maxProcessesPerShell": quotas.max_processes_per_shell,
        "maxMemoryPerShellMb": quotas.max_memory_per_shell_mb,
        "httpsCertificateExpires": expires,
    }


def network_key(registry: Registry) -> str:
    """Where the category of the guest's one network is kept."""
    return f"{_CURRENT_VERSION}\\NetworkList\\Profiles\\{{6f3a1b52-6d4e-4f0e-9a55-3c1f0f6f7d11}}"


def _network(registry: Registry) -> str:
    # 0 public, 1 private, 2 domain; the machine's network is the loopback of its host, which nobody else reaches.
    category = _read(registry.get_dword, network_key(registry), "Category")
    return {0: "Public", 2: "DomainAuthenticated"}.get(1 if category is None else category, "Private")


def _certificate(certificate: x509.Certificate) -> dict[str, object]:
    return {
        "thumbprint": certificates.thumbprint(certificate).lower(),
        "startsTicks": ticks(certificate.not_valid_before_utc.timestamp()),
        "expiresTicks": ticks(certificate.not_valid_after_utc.timestamp()),
    }


def _altitudes(registry: Registry) -> Iterator[dict[str, object]]:
    for name in registry.subkeys(SERVICES):
        for place in ("Instances", "Parameters\\Instances"):
            key = f"{SERVICES}\\{name}\\{place}"
            for instance in registry.subkeys(key) if registry.exists(key) else ():
                altitude = _read(registry.get_string, f"{key}\\{instance}", "Altitude")
                if altitude is not None:
                    yield {"service": name, "instance": instance, "altitude": altitude, "place": place}


def _service(call: ScriptCall, name: str) -> dict[str, object] | None:
    key = services.key_of(name)
    registry = call.guest.registry
    if not registry.exists(key):
        return None
    return {
        "name": name,
        "running": services.is_running(call.guest, name),
        "image": _read(registry.get_string, key, "ImagePath") or "",
        "markedForDeletion": bool(_read(registry.get_dword, key, "DeleteFlag")),
    }


def _packages(call: ScriptCall, original: str) -> Iterator[str]:
    published = ""
    for line in call.run("pnputil /enum-drivers").stdout.splitlines():
        if match := _PUBLISHED.search(line):
            published = match[1]
        elif published and (match := _ORIGINAL.search(line)):
            if match[1].casefold() == original.casefold():
                yield published
            published = ""


def _pending_restart(registry: Registry) -> Iterator[str]:
    if registry.exists(f"{_SERVICING}\\Component Based Servicing\\RebootPending"):
        yield "component servicing"
    if registry.exists(f"{_SERVICING}\\WindowsUpdate\\Auto Update\\RebootRequired"):
        yield "Windows Update"
    if _read(registry.get_multi_string, f"{boot.CONTROL}\\Session Manager", "PendingFileRenameOperations"):
        yield "file renames"


def _python(call: ScriptCall) -> dict[str, object] | None:
    drive = call.guest.drive
    root = drive.root / "Python"
    if call.guest.chaos.program_missing("python.exe") or not any(
        (root / each).exists() for each in ("bin/python", "Scripts/python.exe", "python.exe")
    ):
        return None
    packages = {}
    for place in ("Lib/site-packages", "lib/python3*/site-packages"):
        for path in root.glob(f"{place}/*.dist-info"):
            if match := _DIST_INFO.fullmatch(path.name):
                packages[match["name"].lower().replace("_", "-")] = match["version"]
    configured = root / "pyvenv.cfg"
    words = configured.read_text(encoding="utf-8").splitlines() if configured.exists() else []
    settings = dict(line.split(" = ", 1) for line in words if " = " in line)
    return {
        "path": "C:\\Python\\python.exe",
        "version": settings.get("version", ""),
        "packages": dict(sorted(packages.items())),
    }


def _proxies(registry: Registry) -> Iterator[str]:
    key = f"{boot.CONTROL}\\Session Manager\\Environment"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        if _read(registry.get_string, key, name):
            yield name


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _read(getter: Callable[[str, str], _T], key: str, name: str) -> _T | None:
    """A value of the registry; None if it is not there."""
    try:
        return getter(key, name)
    except (MissingKeyError, MissingValueError, ValueTypeError):
        return None
