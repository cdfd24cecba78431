"""The scripts that mend a guest: clock, quotas of WinRM, crash dumps, network category."""

from __future__ import annotations

from vm.emulated.guest import boot
from vm.emulated.guest.scripts.call import ScriptCall, script
from vm.emulated.guest.scripts.facts import network_key, seconds, ticks

CRASH_CONTROL = {"CrashDumpEnabled": 2, "AlwaysKeepMemoryDump": 1, "AutoReboot": 1, "Overwrite": 1}


@script("Set-GuestClock")
def set_guest_clock(call: ScriptCall) -> object:
    """Moves the guest's clock; processes and the kernel keep the host's."""
    clock = call.guest.clock
    before = clock.now()
    clock.set(seconds(call.number("UtcTicks")))
    return {"beforeTicks": ticks(before), "afterTicks": ticks(clock.now())}


@script("Set-WinRmQuota")
def set_winrm_quota(call: ScriptCall) -> object:
    """Raises the quotas that the service enforces from its next request on."""
    quotas = call.guest.settings.quotas
    changed = []
    if quotas.max_envelope_bytes < call.number("EnvelopeKb") * 1024:
        quotas.max_envelope_bytes = call.number("EnvelopeKb") * 1024
        changed.append("MaxEnvelopeSizekb")
    if quotas.max_timeout_seconds < call.number("TimeoutMs") / 1000:
        quotas.max_timeout_seconds = call.number("TimeoutMs") / 1000
        changed.append("MaxTimeoutms")
    for name, attribute, wanted in (
        ("MaxShellsPerUser", "max_shells_per_user", call.number("Shells")),
        ("MaxProcessesPerShell", "max_processes_per_shell", call.number("Processes")),
        ("MaxMemoryPerShellMB", "max_memory_per_shell_mb", call.number("MemoryMb")),
    ):
        if getattr(quotas, attribute) < wanted:
            setattr(quotas, attribute, wanted)
            changed.append(name)
    return {"changed": changed}


@script("Set-CrashDump")
def set_crash_dump(call: ScriptCall) -> object:
    """Writes the values of CrashControl."""
    for name, value in CRASH_CONTROL.items():
        call.guest.registry.set_dword(f"{boot.CONTROL}\\CrashControl", name, value)
    return dict(CRASH_CONTROL)


@script("Set-PrivateNetwork")
def set_private_network(call: ScriptCall) -> object:
    """Changes the category of the guest's one network."""
    registry = call.guest.registry
    key = network_key(registry)
    public = registry.exists(key) and registry.values(key).get("Category") is not None
    public = public and registry.get_dword(key, "Category") == 0
    if public:
        registry.set_dword(key, "Category", 1)
    return {"changed": int(public)}
