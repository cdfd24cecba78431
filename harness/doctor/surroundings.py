"""What is around a run in a guest: WinRM, the evidence that a crash would leave, and what changes what results mean."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from harness.doctor.expectation import Expectation
from harness.doctor.facts import GuestFacts, moment
from harness.doctor.subject import fine, note, trouble
from vm.findings import Finding, Severity

EXPIRES_SOON = timedelta(days=14)
QUOTAS = {
    "maxEnvelopeKb": 150,
    "maxShellsPerUser": 10,
    "maxProcessesPerShell": 15,
    "maxMemoryPerShellMb": 512,
}
"""Least values that a run gets along with."""

_COMPLETE_DUMP = 1
"""CrashDumpEnabled of a dump of all memory."""


def winrm(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """Quotas, the certificate of the HTTPS listener, the firewall's view of the network, proxies."""
    quotas = facts.part("winrm")
    # 0 and the largest number stand for no limit.
    small = {
        name: least
        for name, least in QUOTAS.items()
        if isinstance(quotas.get(name), int) and 0 < quotas[name] < least
    }
    if small:
        yield trouble(
            *("guest.winrm-quotas", Severity.WARNING, "guest-quotas"),
            ", ".join(f"{_upper(name)} is {quotas[name]}" for name in small),
            ", ".join(f"{_upper(name)} of {least} or more" for name, least in small.items()),
            "guest.raise-quotas",
            name=wanted.machine,
        )
    elif quotas:
        yield fine("guest.winrm-quotas", f"{quotas.get('maxShellsPerUser')} shells per user")
    expires = quotas.get("httpsCertificateExpires")
    if isinstance(expires, int):
        until = moment(expires)
        said = f"valid until {until:%Y-%m-%d}"
        if facts.now >= until or facts.now + EXPIRES_SOON >= until:
            severity = Severity.ERROR if facts.now >= until else Severity.WARNING
            yield trouble(
                "guest.https-certificate",
                severity,
                "guest-https-certificate",
                said,
                "valid for two weeks or longer",
            )
        else:
            yield fine("guest.https-certificate", said)
    if "Public" in facts.items("networks"):
        yield trouble(
            *("guest.network", Severity.WARNING, "guest-network", "a network is public", "private"),
            fix="guest.private-network",
            name=wanted.machine,
        )
    if facts.items("proxies"):
        names = facts.items("proxies")
        yield trouble(
            *("guest.proxy", Severity.WARNING, "guest-proxy", f"{', '.join(names)} set for the machine"),
            "no proxy variables",
            variable=names[0],
        )


def evidence(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """Whether a bugcheck would leave a dump, and whether dumps of older ones lie about."""
    crash = facts.part("crash")
    if crash.get("dumps"):
        count = len(crash["dumps"])
        said = f"{count} dump{'s' if count > 1 else ''}, the first is '{crash['dumps'][0]}'"
        yield trouble("guest.old-dumps", Severity.WARNING, "guest-old-dumps", said, "none")
    if not crash or wanted.witness:
        return
    problems = []
    if not crash.get("dumpKind"):
        problems.append("no dump is written")
    if not crash.get("alwaysKeep"):
        problems.append("a dump may be deleted when the disk is nearly full")
    if crash.get("autoReboot") is False:
        problems.append("the guest does not restart by itself")
    if problems:
        yield trouble(
            *("guest.crash-dump", Severity.WARNING, "guest-crash-dump", ", ".join(problems)),
            "kernel dumps that are kept, automatic restart",
            "guest.set-crash-dump",
            name=wanted.machine,
        )
    memory = int(facts.part("system").get("memoryBytes") or 0)
    size = int(crash.get("pageFileBytes") or 0)
    if crash.get("dumpKind") == _COMPLETE_DUMP and size < memory + 2**20:
        said = f"the page file has {size // 2**20} MiB"
        yield trouble(
            *("guest.page-file", Severity.WARNING, "guest-page-file", said, f"{memory // 2**20 + 1} MiB"),
            name=wanted.machine,
        )


def modifiers(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """What changes the meaning of results: VBS and HVCI, Driver Verifier, Defender, other filters, a debugger."""
    guard = facts.part("virtualization")
    if guard.get("hvci") or guard.get("vbs"):
        yield note("guest.hvci", "memory integrity (HVCI) is on" if guard.get("hvci") else "VBS is on")
    verifier = facts.part("verifier")
    verified = [str(each).casefold() for each in verifier.get("drivers", ())]
    if wanted.verified and not {wanted.verified.casefold(), "*"} & set(verified):
        said = f"Driver Verifier checks {', '.join(verified) or 'nothing'}"
        yield trouble(
            *("guest.verifier", Severity.ERROR, "guest-verifier", said, f"'{wanted.verified}'"),
            image=wanted.verified,
        )
    elif verified:
        level = verifier.get("level")
        flags = f", flags 0x{level:X}" if isinstance(level, int) else ""
        yield note("guest.verifier", f"Driver Verifier checks {', '.join(verifier['drivers'])}{flags}")
    defender = facts.part("defender")
    if defender.get("realTime"):
        protected = ", tamper-protected" if defender.get("tamperProtected") else ""
        yield note("guest.defender", f"real-time protection is on{protected}")
    others = [each for each in facts.items("filters") if differs(each["name"], wanted.service)]
    if others:
        shown = ", ".join(f"{each['name']} ({each['altitude']})" for each in others)
        yield note("guest.filters", f"other filters are loaded: {shown}")
    if facts.part("boot").get("debugger"):
        said = "kernel debugging is on"
        yield trouble("guest.debugger", Severity.WARNING, "guest-debugger", said, "off")


def differs(name: object, ours: str) -> bool:
    """True if a name is not ours; names of services and filters have no case."""
    return str(name).casefold() != ours.casefold()


def _upper(name: str) -> str:
    """The name of a quota as `winrm get winrm/config` shows it, but for capitals within it."""
    return name[:1].upper() + name[1:]
