"""The guest: whether it lets the driver in, and whether suites can run in it. Each check reads facts, none asks.

Limits are those of the Windows lab figures: 2 s of clock skew. What is around a run is in `harness.doctor.surroundings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation

from harness.doctor import surroundings
from harness.doctor.expectation import Expectation
from harness.doctor.facts import GuestFacts
from harness.doctor.subject import fine, note, trouble
from harness.doctor.surroundings import differs
from vm.findings import Finding, Severity

GuestCheck = Callable[[GuestFacts, Expectation], Iterable[Finding]]

SKEW_SECONDS = 2.0
SKEW_ERROR_SECONDS = 300.0
"""From here on certificates, Kerberos and event logs go wrong."""
DISK_ERROR_BYTES = 500_000_000
DISK_WARNING_BYTES = 2_000_000_000
MEMORY_WARNING_BYTES = 256 * 2**20
PYTHON = (3, 11)

_ARCHITECTURES = {"amd64": "x64", "arm64": "arm64"}
_RESTART_ERRORS = frozenset({"component servicing", "Windows Update"})


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
        if differs(each["service"], wanted.service)
    ]
    claims += [
        (str(each["name"]), str(each["altitude"]))
        for each in facts.items("filters")
        if differs(each["name"], wanted.service)
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
    *(surroundings.winrm, surroundings.evidence, surroundings.modifiers),
)


def examine(facts: GuestFacts, wanted: Expectation) -> Iterator[Finding]:
    """All findings, in the order in which a run would meet the trouble."""
    for check in ALL:
        yield from check(facts, wanted)


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
