"""The guest: whether it lets the driver in, and whether a run in it can work. Each check reads facts, none asks.

Limits are those of the Windows lab figures: 2 s of clock skew, WinRM's defaults as the least quotas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from decimal import Decimal, InvalidOperation

from harness.doctor.expectation import Expectation
from harness.doctor.facts import GuestFacts, moment
from harness.doctor.subject import fine, note, trouble
from vm.findings import Finding, Severity

GuestCheck = Callable[[GuestFacts, Expectation], Iterable[Finding]]

SKEW_SECONDS = 2.0
SKEW_ERROR_SECONDS = 300.0
"""From here on certificates, Kerberos and event logs go wrong."""
DISK_ERROR_BYTES = 500_000_000
DISK_WARNING_BYTES = 2_000_000_000
MEMORY_WARNING_BYTES = 256 * 2**20
PYTHON = (3, 11)
EXPIRES_SOON = timedelta(days=14)
QUOTAS = {
    "maxEnvelopeKb": 150,
    "maxShellsPerUser": 10,
    "maxProcessesPerShell": 15,
    "maxMemoryPerShellMb": 512,
}
"""Least values that a run gets along with."""

_ARCHITECTURES = {"amd64": "x64", "arm64": "arm64"}
_RESTART_ERRORS = frozenset({"component servicing", "Windows Update"})
_COMPLETE_DUMP = 1


def system(facts: GuestFacts, _: Expectation) -> Iterator[Finding]:
    """Which Windows this is, and which boot."""
    found = facts.part("system")
    if not found:
        yield note("guest.system", "it does not say which Windows it is")
        return
    boot = facts.part("boot").get("identity")
    said = f"{found['product']}, build {found['build']}.{found['revision']}, {found['architecture']}"
    yield fine("guest.system", f"{said}, boot {boot}, {facts.values.get('timeZone')}")


def architecture(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """The package is for this processor."""
    found = _ARCHITECTURES.get(str(facts.part("system").get("architecture")), "")
    if found and wanted.architecture and found != wanted.architecture:
        yield trouble(
            "guest.architecture",
            Severity.ERROR,
            "guest-architecture",
            f"the package is for {wanted.architecture}, the guest is {found}",
            f"a package for {found}",
            architecture=found,
        )


def sections(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """The section of the INF that this build of Windows would take."""
    system = facts.part("system")
    build = int(system.get("build") or 0)
    fitting = [
        each
        for each in wanted.sections
        if each.architecture == system.get("architecture") and each.build <= build
    ]
    if fitting:
        chosen = max(fitting, key=lambda each: each.build)
        yield fine("guest.inf", f"[{chosen.name}] is for build {build}")
    elif wanted.sections and build:
        severity = Severity.ERROR if wanted.by_inf else Severity.NOTE
        said = f"'{wanted.inf}' has no section for build {build} on {system.get('architecture')}"
        yield trouble(
            *("guest.inf", severity, "guest-inf", said, "a section [DefaultInstall.NT<architecture>]"),
            architecture=str(system.get("architecture")),
        )


def signing(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """Test signing in effect and Secure Boot off."""
    boot = facts.part("boot")
    if not boot:
        yield note("guest.testsigning", "it does not say how it was booted")
        return
    secure, effective = boot.get("secureBoot"), boot.get("testsigningInEffect")
    if secure:
        yield trouble(
            *("guest.secure-boot", Severity.ERROR, "guest-secure-boot", "Secure Boot is on", "off"),
            name=wanted.machine,
        )
    else:
        yield fine("guest.secure-boot", "off" if secure is not None else "the firmware has none")
    if effective:
        yield fine("guest.testsigning", "on")
    elif boot.get("testsigningConfigured") and not secure:
        said = "testsigning is configured, but not in effect"
        yield trouble(
            "guest.testsigning", Severity.ERROR, "guest-testsigning-restart", said, "testsigning in effect"
        )
    else:
        yield trouble("guest.testsigning", Severity.ERROR, "guest-testsigning", "testsigning is off", "on")


def surroundings(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
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
    others = [each for each in facts.items("filters") if _differs(each["name"], wanted.service)]
    if others:
        shown = ", ".join(f"{each['name']} ({each['altitude']})" for each in others)
        yield note("guest.filters", f"other filters are loaded: {shown}")
    if facts.part("boot").get("debugger"):
        said = "kernel debugging is on"
        yield trouble("guest.debugger", Severity.WARNING, "guest-debugger", said, "off")


def clock(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """The guest's clock against the host's."""
    ahead = facts.ahead_seconds
    if abs(ahead) < SKEW_SECONDS:
        yield fine("guest.clock", f"{facts.now:%Y-%m-%d %H:%M:%S} UTC, as here")
        return
    said = f"{_duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} this host"
    severity = Severity.ERROR if abs(ahead) >= SKEW_ERROR_SECONDS else Severity.WARNING
    yield trouble(
        *(
            "guest.clock",
            severity,
            "guest-clock",
            said,
            f"less than {SKEW_SECONDS:g} s off",
            "guest.set-clock",
        ),
        name=wanted.machine,
    )


def room(facts: GuestFacts, _: Expectation) -> Iterator[Finding]:
    """Free disk and memory."""
    disk = facts.part("disk")
    if disk:
        free = int(disk["freeBytes"])
        said = f"{free // 1_000_000} MB free on {disk['drive']}"
        if free >= DISK_WARNING_BYTES:
            yield fine("guest.disk", said)
        else:
            severity = Severity.ERROR if free < DISK_ERROR_BYTES else Severity.WARNING
            wanted = f"{DISK_WARNING_BYTES // 1_000_000} MB or more"
            yield trouble("guest.disk", severity, "guest-disk", said, wanted)
    free = int(facts.part("system").get("freeMemoryBytes") or 0)
    if 0 < free < MEMORY_WARNING_BYTES:
        said = f"{free // 2**20} MiB of memory free"
        yield trouble(
            "guest.memory",
            Severity.WARNING,
            "guest-memory",
            said,
            f"{MEMORY_WARNING_BYTES // 2**20} MiB or more",
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


def winrm(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """Quotas, the certificate of the HTTPS listener, the firewall's view of the network, proxies."""
    quotas = facts.part("winrm")
    # 0 and the largest number stand for no limit.
    small = [
        f"{name[:1].upper()}{name[1:]} is {quotas[name]}"
        for name, least in QUOTAS.items()
        if isinstance(quotas.get(name), int) and 0 < quotas[name] < least
    ]
    if small:
        yield trouble(
            *("guest.winrm-quotas", Severity.WARNING, "guest-quotas", ", ".join(small)),
            ", ".join(str(least) for name, least in QUOTAS.items() if f"{name[1:]} is" in " ".join(small))
            + " or more",
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


def certificate(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """The test certificate: trusted, and valid at the guest's time."""
    ours = wanted.certificate
    if ours is None:
        return
    stores = facts.part("certificates")
    missing = [
        name
        for name, store in (("Root", "root"), ("TrustedPublisher", "trustedPublisher"))
        if ours.thumbprint not in {each["thumbprint"] for each in stores.get(store) or ()}
    ]
    if missing:
        said = f"{ours.thumbprint[:16]}… is not in {' and '.join(missing)}"
        yield trouble(
            *("guest.certificate", Severity.NOTE, "guest-certificate", said, "in Root and TrustedPublisher"),
            "guest.trust-certificate",
            name=wanted.machine,
        )
    else:
        yield fine("guest.certificate", f"{ours.thumbprint[:16]}… is trusted")
    if not ours.not_before <= facts.now < ours.not_after:
        yield trouble(
            *("guest.certificate-time", Severity.ERROR, "guest-certificate-time"),
            f"not valid at the guest's time, {facts.now:%Y-%m-%d %H:%M}",
            f"between {ours.not_before:%Y-%m-%d} and {ours.not_after:%Y-%m-%d}",
            name=wanted.machine,
        )


def python(facts: GuestFacts, _: Expectation) -> Iterator[Finding]:
    """Python and pytest, which the suites run with."""
    found = facts.part("python")
    if not found:
        yield trouble("guest.python", Severity.ERROR, "guest-python", "no Python", "3.11 or newer")
        return
    version = str(found.get("version"))
    if _version(version) < PYTHON:
        yield trouble(
            "guest.python", Severity.ERROR, "guest-python", f"Python {version or '?'}", "3.11 or newer"
        )
    elif "pytest" not in found.get("packages", {}):
        said = f"Python {version} without pytest"
        yield trouble("guest.python", Severity.ERROR, "guest-wheels", said, "pytest")
    else:
        yield fine("guest.python", f"Python {version}, pytest {found['packages']['pytest']}")


def leftovers(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """What older deployments left, and whether another filter claims the altitude."""
    service = facts.part("service")
    if service.get("markedForDeletion"):
        said = f"'{wanted.service}' waits for its deletion"
        yield trouble("guest.service", Severity.ERROR, "guest-service-deleted", said, "no such service")
    elif service:
        said = f"'{wanted.service}' is there{', running' if service.get('running') else ''}"
        yield trouble(
            *("guest.service", Severity.NOTE, "guest-service-stale", said, "no such service"),
            service=wanted.service,
        )
    if packages := facts.items("packages"):
        said = f"{', '.join(packages)} came from '{wanted.inf}'"
        yield trouble(
            *("guest.package", Severity.NOTE, "guest-package-stale", said, "no such package"),
            oem=packages[0],
        )
    claims = [
        (str(each["service"]), str(each["altitude"]))
        for each in facts.items("altitudes")
        if _differs(each["service"], wanted.service)
    ]
    claims += [
        (str(each["name"]), str(each["altitude"]))
        for each in facts.items("filters")
        if _differs(each["name"], wanted.service)
    ]
    rivals = sorted({name for name, altitude in claims if _same(altitude, wanted.altitude)})
    if rivals:
        yield trouble(
            *("guest.altitude", Severity.ERROR, "guest-altitude"),
            f"{wanted.altitude} is that of {', '.join(rivals)}, too",
            f"an altitude of its own for '{wanted.service}'",
            service=rivals[0],
        )
    else:
        yield fine("guest.altitude", f"{wanted.altitude} is free")


def restart(facts: GuestFacts, _: Expectation) -> Iterator[Finding]:
    """Whether something is half installed."""
    reasons = facts.items("pendingRestart")
    if not reasons:
        yield fine("guest.restart", "none pending")
        return
    # Renames at the next start are daily life; updates that are half done are not.
    severity = Severity.ERROR if _RESTART_ERRORS & set(reasons) else Severity.WARNING
    yield trouble(
        "guest.restart",
        severity,
        "guest-pending-restart",
        f"pending, because of {', '.join(reasons)}",
        "no restart pending",
    )


ALL: tuple[GuestCheck, ...] = (
    *(system, architecture, sections, signing, clock, room, python, certificate, leftovers, restart),
    *(winrm, evidence, surroundings),
)


def examine(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """All findings, in the order in which a run would meet the trouble."""
    for check in ALL:
        yield from check(facts, wanted)


def _differs(name: object, ours: str) -> bool:
    return str(name).casefold() != ours.casefold()


def _same(first: str, second: str) -> bool:
    """Altitudes are decimal numbers of any length: "370030" and "370030.0" are one."""
    try:
        return Decimal(first) == Decimal(second)
    except InvalidOperation:
        return first == second


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _duration(seconds: float) -> str:
    """A difference as people say it."""
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
