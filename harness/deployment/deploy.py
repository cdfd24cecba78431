"""The deployment itself: named steps in order, each of which may be repeated at will.

Installs in the mode `service`: a service key of its own with both Instances keys, and fltmc to load it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PureWindowsPath

from harness.client import hresult
from harness.deployment.failures import advise, explain, find_hresult
from harness.deployment.plan import (
    DRIVERS_DIRECTORY,
    PACKAGE_DIRECTORY,
    Deployment,
    Plan,
    StepResult,
    UnloadError,
)
from harness.package import Package
from harness.remote.faults import ConnectionLostError, ShellGoneError
from harness.remote.guest import Guest, failure
from harness.remote.polling import wait_until
from harness.remote.sftp import Upload
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError

SERVICE_DOES_NOT_EXIST = 1060
SERVICE_NOT_ACTIVE = 1062
SERVICE_MARKED_FOR_DELETE = 1072
SHUTDOWN_IN_PROGRESS = 1115

_TEST_SIGNING = re.compile(r"^\s*testsigning\s+(\S+)", re.IGNORECASE | re.MULTILINE)
_NO = frozenset({"no", "nein", "non", "nee", "nej", "não", "нет", "off", "0"})
_RUNNING = re.compile(r":\s+4\s")
"""State 4 in `sc query`: the label in front of the colon is localised, the number is not."""

OnStep = Callable[[StepResult], None]


def deploy(
    guest: Guest, package: Package, plan: Plan, deadline: Deadline, on_step: OnStep = lambda _: None
) -> Deployment:
    """Bring `package` to the guest in place of an older one, load its driver and see that it is attached.

    Args:
        guest: the running guest.
        package: what a build produced.
        plan: the driver's names.
        deadline: for all steps together.
        on_step: told of each step when it is done.

    Raises:
        UnloadError: an older driver refused to go or hung; the machine must be restored.
        GuestError: a step failed; the message names the step's command and the hint what to do.
        PackageError: the package lacks a file that is needed.
    """
    steps = _Steps(on_step)
    image, certificate = package.entry("image").name, package.entry("certificate").name
    with steps.step("check test signing") as step:
        step.detail = _check_test_signing(guest, deadline)
    with steps.step("trust the certificate") as step:
        step.changed = _trust(guest, package, certificate, deadline)
        step.detail = f"'{certificate}' in Root and TrustedPublisher"
    with steps.step("remove the older driver") as step:
        step.changed = _remove_older(guest, plan, deadline)
        step.detail = "unloaded and deleted" if step.changed else "there was none"
    with steps.step("copy the package") as step:
        step.changed = True
        step.detail = _copy(guest, package, image, deadline)
    with steps.step("create the service") as step:
        _create_service(guest, plan, image, deadline)
        step.changed = True
        step.detail = f"'{plan.service}' at altitude {plan.altitude}"
    with steps.step("load the driver") as step:
        _load(guest, plan, deadline)
        step.changed = True
        step.detail = f"'{plan.service}'"
    with steps.step("see that it is attached") as step:
        volumes = _attached(guest, plan, deadline)
        step.detail = f"instance '{plan.instance}' on {', '.join(volumes)}"
    return Deployment(plan.service, volumes, tuple(steps.results))


def remove(guest: Guest, plan: Plan, deadline: Deadline) -> bool:
    """Unload the driver and delete its service; returns False when there was none. Raises as `deploy` does."""
    return _remove_older(guest, plan, deadline)


@dataclass(slots=True)
class _Step:
    detail: str = ""
    changed: bool = False


@dataclass(slots=True)
class _Steps:
    on_step: OnStep
    results: list[StepResult] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[_Step]:
        started = time.monotonic()
        step = _Step()
        yield step
        result = StepResult(name, step.detail, step.changed, time.monotonic() - started)
        self.results.append(result)
        self.on_step(result)


def _check_test_signing(guest: Guest, deadline: Deadline) -> str:
    result = guest.run(["bcdedit", "/enum", "{current}"], deadline=deadline)
    match = _TEST_SIGNING.search(result.stdout)
    if match is None or match[1].lower() in _NO:
        raise GuestError(
            "the guest does not load test-signed drivers: 'testsigning' is off",
            hint="in the guest: bcdedit /set testsigning on, then restart it (Secure Boot must be off)",
            machine=guest.machine,
        )
    return "testsigning is on"


def _trust(guest: Guest, package: Package, certificate: str, deadline: Deadline) -> bool:
    """Put the certificate into both stores; returns False when it was in both already."""
    path = package.directory / certificate
    thumbprint = hashlib.sha1(_der(path.read_bytes()), usedforsecurity=False).hexdigest()
    missing = [
        store
        for store in ("Root", "TrustedPublisher")
        if guest.run(["certutil", "-store", store, thumbprint], deadline=deadline, check=False).exit_code
    ]
    if missing:
        target = str(PACKAGE_DIRECTORY / certificate)
        guest.put([Upload(path, target)], deadline)
        for store in missing:
            guest.run(["certutil", "-f", "-addstore", store, target], deadline=deadline)
    return bool(missing)


def _der(content: bytes) -> bytes:
    """The certificate as DER: Windows takes `.cer` files in either form, the thumbprint is that of the DER."""
    if not content.lstrip().startswith(b"-----BEGIN"):
        return content
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_pem_x509_certificate(content).public_bytes(Encoding.DER)


def _remove_older(guest: Guest, plan: Plan, deadline: Deadline) -> bool:
    query = guest.run(["sc", "query", plan.service], deadline=deadline, check=False)
    if query.exit_code == SERVICE_DOES_NOT_EXIST:
        return False
    if query.exit_code:
        raise failure(query, guest.machine)
    if _RUNNING.search(query.stdout):
        _unload(guest, plan, deadline)
    deleted = guest.run(["sc", "delete", plan.service], deadline=deadline, check=False)
    if deleted.exit_code not in (0, SERVICE_DOES_NOT_EXIST, SERVICE_MARKED_FOR_DELETE):
        raise failure(deleted, guest.machine)

    def still_there() -> str | None:
        found = guest.run(["reg", "query", plan.service_key], deadline=deadline, check=False)
        return None if found.exit_code else "its service key still exists"

    # A key marked for deletion goes when the last handle to the service is closed; creating it before that fails.
    wait_until(
        still_there,
        f"the service '{plan.service}' to be deleted",
        deadline.sooner(seconds=15),
        machine=guest.machine,
    )
    return True


def _unload(guest: Guest, plan: Plan, deadline: Deadline) -> None:
    """Unload with its own deadline. Never tried twice: a hung unload holds the Filter Manager's lock for ever."""
    restore = "the machine has to be restored: ./inv vm.restore"
    try:
        result = guest.run(
            ["fltmc", "unload", plan.service],
            deadline=deadline.sooner(seconds=plan.unload_seconds),
            check=False,
        )
    except DeadlineExceededError as error:
        raise UnloadError(
            f"the driver '{plan.service}' hangs in its unload",
            hint=f"{restore}; a reference, a sender or a server port that is still open holds it",
            machine=guest.machine,
            causes=[error],
        ) from error
    code = find_hresult(result.output) or result.exit_code
    if result.exit_code and code != hresult.FLT_FILTER_NOT_FOUND:
        raise UnloadError(
            f"the driver '{plan.service}' refused to be unloaded: {explain(code, result.output)}",
            exit_code=result.exit_code,
            hint=restore,
            machine=guest.machine,
        )


def _copy(guest: Guest, package: Package, image: str, deadline: Deadline) -> str:
    """Send every file of the package, the image also to its place, and have the guest compute all hashes."""
    digests = {file.name: file.sha256 for file in package.manifest.files}
    places: list[tuple[str, PureWindowsPath]] = [(name, PACKAGE_DIRECTORY / name) for name in digests]
    places.append((image, DRIVERS_DIRECTORY / image))
    size = guest.put([Upload(package.directory / name, str(place)) for name, place in places], deadline)
    guest.verify({str(place): digests[name] for name, place in places}, deadline)
    return f"{len(places)} files, {size / 1024:.0f} KiB, hashes verified in the guest"


def _create_service(guest: Guest, plan: Plan, image: str, deadline: Deadline) -> None:
    guest.run(
        [
            *("sc", "create", plan.service, "type=", "filesys", "start=", "demand", "error=", "normal"),
            *("binPath=", str(DRIVERS_DIRECTORY / image), "group=", plan.load_order_group),
            *("depend=", "FltMgr", "DisplayName=", plan.service),
        ],
        deadline=deadline,
    )
    # Windows 11 24H2 reads both below 'Parameters', older versions directly below the service key (fact I4).
    for parent in (plan.service_key, rf"{plan.service_key}\Parameters"):
        instances = rf"{parent}\Instances"
        _reg_add(guest, parent, "SupportedFeatures", "REG_DWORD", "0x3", deadline)
        _reg_add(guest, instances, "DefaultInstance", "REG_SZ", plan.instance, deadline)
        _reg_add(guest, rf"{instances}\{plan.instance}", "Altitude", "REG_SZ", plan.altitude, deadline)
        _reg_add(guest, rf"{instances}\{plan.instance}", "Flags", "REG_DWORD", "0x0", deadline)


def _reg_add(guest: Guest, key: str, value: str, kind: str, data: str, deadline: Deadline) -> None:
    guest.run(["reg", "add", key, "/v", value, "/t", kind, "/d", data, "/f"], deadline=deadline)


def _load(guest: Guest, plan: Plan, deadline: Deadline) -> None:
    try:
        result = guest.run(["fltmc", "load", plan.service], deadline=deadline, check=False)
    except (ConnectionLostError, ShellGoneError) as error:
        raise GuestError(
            f"the guest went down while it loaded the driver '{plan.service}'",
            machine=guest.machine,
            causes=[error],
        ) from error
    if not result.exit_code:
        return
    if result.exit_code == SHUTDOWN_IN_PROGRESS:
        raise GuestError(
            f"the guest went down while it loaded the driver '{plan.service}'", machine=guest.machine
        )
    code = find_hresult(result.output) or result.exit_code
    raise GuestError(
        f"the driver '{plan.service}' did not load: {explain(code, result.output)}",
        exit_code=result.exit_code,
        hint=advise(code),
        machine=guest.machine,
    )


def _attached(guest: Guest, plan: Plan, deadline: Deadline) -> tuple[str, ...]:
    """Volumes with our instance; parsed by our own names, because fltmc's headers are localised (fact FM4)."""
    result = guest.run(["fltmc", "instances", "-f", plan.service], deadline=deadline)
    volumes = []
    for line in result.stdout.splitlines():
        if plan.instance in line and plan.altitude in line:
            # With -f fltmc leaves out the filter's own column.
            words = line.split(plan.altitude)[0].split()
            volumes.append(words[-1] if words else "?")
    if not volumes:
        raise GuestError(
            f"the driver '{plan.service}' is loaded but attached to no volume",
            hint="its InstanceSetup callback refused every volume; compare 'fltmc volumes' in the guest",
            machine=guest.machine,
        )
    return tuple(volumes)
