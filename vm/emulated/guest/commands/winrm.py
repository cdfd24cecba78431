"""`winrm`: the service's configuration as text, and its quotas changed from the next request on (windows-lab.md A.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.settings import Quotas

_ERROR_INVALID_PARAMETER = 0x80338041
_PAIR = re.compile(r"\s*(\w+)\s*=\s*\"?([^\";}]*)\"?\s*")


@dataclass(frozen=True, slots=True)
class _Quota:
    """One number of the configuration: where it stands, how it is read and written."""

    section: str
    name: str
    read: Callable[[Quotas], int]
    write: Callable[[Quotas, int], None]
    minimum: int
    maximum: int


def _attribute(section: str, name: str, field: str, factor: float, bounds: tuple[int, int]) -> _Quota:
    def write(quotas: Quotas, value: int) -> None:
        number = value * factor
        setattr(quotas, field, int(number) if isinstance(getattr(quotas, field), int) else number)

    return _Quota(
        section, name, lambda quotas: round(getattr(quotas, field) / factor), write, bounds[0], bounds[1]
    )


_QUOTAS = (
    _attribute("", "MaxEnvelopeSizekb", "max_envelope_bytes", 1024, (32, 4294967295)),
    _attribute("", "MaxTimeoutms", "max_timeout_seconds", 0.001, (500, 1800000)),
    _attribute("Service", "MaxConcurrentOperationsPerUser", "max_operations_per_user", 1, (1, 4294967295)),
    _attribute("Winrs", "IdleTimeout", "idle_timeout_seconds", 0.001, (1, 2147483647)),
    _attribute("Winrs", "MaxProcessesPerShell", "max_processes_per_shell", 1, (1, 2147483647)),
    _attribute("Winrs", "MaxMemoryPerShellMB", "max_memory_per_shell_mb", 1, (0, 2147483647)),
    _attribute("Winrs", "MaxShellsPerUser", "max_shells_per_user", 1, (1, 2147483647)),
)
_SECTIONS = {"": "", "/service": "Service", "/winrs": "Winrs", "/client": "Client"}


def winrm(call: Invocation) -> int:
    """`winrm get winrm/config[/service|/winrs]`, `winrm set winrm/config/winrs @{Name="value"; ...}`."""
    words = call.arguments
    verb = words[0].casefold() if words else ""
    resource = words[1].casefold() if len(words) > 1 else ""
    section = _SECTIONS.get(resource.removeprefix("winrm/config"))
    if verb in ("get", "g") and resource.startswith("winrm/config") and section is not None:
        _show(call, section)
        return 0
    if verb in ("set", "s") and resource.startswith("winrm/config") and section is not None:
        return _set(call, section)
    call.err('Error: Invalid use of command line. Type "winrm -?" for help.')
    return 1


def _set(call: Invocation, section: str) -> int:
    text = re.search(r"@\{(.*)\}", call.tail, re.DOTALL)
    pairs = [_PAIR.fullmatch(part) for part in text[1].split(";") if part.strip()] if text else []
    if not pairs or None in pairs:
        call.err('Error: Invalid use of command line. Type "winrm -?" for help.')
        return 1
    changes: list[tuple[_Quota, int]] = []
    for pair in pairs:
        assert pair is not None
        quota = next(
            (
                each
                for each in _QUOTAS
                if each.section == section and each.name.casefold() == pair[1].casefold()
            ),
            None,
        )
        if quota is None:
            return _failed(call, f"The property {pair[1]} is not one that can be changed here.")
        if not pair[2].isdecimal() or not quota.minimum <= int(pair[2]) <= quota.maximum:
            return _failed(call, f"The value {pair[2]} of {quota.name} is not valid.")
        changes.append((quota, int(pair[2])))
    for quota, value in changes:
        quota.write(call.guest.settings.quotas, value)
    _show(call, section)
    return 0


def _failed(call: Invocation, message: str) -> int:
    call.err(
        f"WSManFault\n    Message = {message}\n\nError number:  -2144108479 {_ERROR_INVALID_PARAMETER:#X}"
    )
    return 1


def _show(call: Invocation, section: str) -> None:
    settings = call.guest.settings
    quotas = settings.quotas
    shown: Mapping[str, str] = {f"{quota.section}.{quota.name}": str(quota.read(quotas)) for quota in _QUOTAS}

    def line(depth: int, name: str, value: str) -> None:
        call.out(f"{' ' * 4 * depth}{name} = {value}")

    depth = 0 if section else 1
    if not section:
        call.out("Config")
        for name in ("MaxEnvelopeSizekb", "MaxTimeoutms"):
            line(1, name, shown[f".{name}"])
        line(1, "MaxBatchItems", "32000")
        line(1, "MaxProviderRequests", "4294967295")
    encrypted = "false" if settings.tls is not None or not settings.unencrypted_basic else "true"
    if section in ("", "Service"):
        call.out(f"{' ' * 4 * depth}Service")
        line(depth + 1, "MaxConcurrentOperations", "4294967295")
        line(depth + 1, "MaxConcurrentOperationsPerUser", shown["Service.MaxConcurrentOperationsPerUser"])
        line(depth + 1, "EnumerationTimeoutms", "240000")
        line(depth + 1, "MaxConnections", "300")
        line(depth + 1, "AllowUnencrypted", encrypted)
        call.out(f"{' ' * 4 * (depth + 1)}Auth")
        for name, value in (
            ("Basic", "true"),
            ("Kerberos", "false"),
            ("Negotiate", "true"),
            ("CredSSP", "false"),
        ):
            line(depth + 2, name, value)
        line(depth + 1, "AllowRemoteAccess", "true")
    if section in ("", "Winrs"):
        call.out(f"{' ' * 4 * depth}Winrs")
        line(depth + 1, "AllowRemoteShellAccess", "true")
        line(depth + 1, "IdleTimeout", shown["Winrs.IdleTimeout"])
        line(depth + 1, "MaxConcurrentUsers", "2147483647")
        for name in ("MaxProcessesPerShell", "MaxMemoryPerShellMB", "MaxShellsPerUser"):
            line(depth + 1, name, shown[f"Winrs.{name}"])
