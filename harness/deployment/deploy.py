"""The deployment itself: named steps in order, each of which may be repeated at will.

What the modes share is here; how a driver is installed in each is in a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from harness.deployment import certificate, filters, leftovers, package_mode, service_mode
from harness.deployment.plan import GUEST_ROOT, PACKAGE_DIRECTORY, REMOVE_OLDER, Deployment, Plan
from harness.deployment.steps import OnStep, Step, Steps
from harness.package import Package
from harness.remote.channels import ContentError
from harness.remote.guest import Guest
from harness.remote.repeating import repeated
from harness.remote.sync import Sync
from vm.deadline import Deadline
from vm.machine import DeploymentMode

_MANIFEST = str(GUEST_ROOT / "package-files.json")


@dataclass(frozen=True, slots=True)
class _Mode:
    check: Callable[[Package, Plan], None]
    install: Callable[[Guest, Package, Plan, Deadline, Steps], None]


_MODES: Mapping[DeploymentMode, _Mode] = MappingProxyType(
    {
        DeploymentMode.PACKAGE: _Mode(package_mode.check, package_mode.install),
        DeploymentMode.SERVICE: _Mode(service_mode.check, service_mode.install),
    }
)


def deploy(
    guest: Guest, package: Package, plan: Plan, deadline: Deadline, on_step: OnStep = lambda _: None
) -> Deployment:
    """Bring `package` to the guest in place of an older one, load its driver and see that it is attached.

    Args:
        guest: the running guest.
        package: what a build produced.
        plan: the driver's names, and how it is installed.
        deadline: for all steps together.
        on_step: told of each step when it is done.

    Raises:
        UnloadError: an older driver refused to go or hung; the machine must be restored.
        GuestError: a step failed; the message names the step's command and the hint what to do.
        PackageError: the package lacks a file that is needed.
    """
    mode = _MODES[plan.mode]
    image, publisher = package.entry("image").name, package.entry("certificate").name
    mode.check(package, plan)
    steps = Steps(guest, deadline, on_step, plan.mend)
    volumes: tuple[str, ...] = ()

    def check_test_signing(step: Step) -> None:
        step.detail = certificate.check_test_signing(guest, deadline)

    def trust(step: Step) -> None:
        step.changed = certificate.trust(guest, package, publisher, deadline)
        step.detail = f"'{publisher}' in Root and TrustedPublisher"

    def remove_older(step: Step) -> None:
        removed = leftovers.remove_all(guest, plan, deadline, image)
        step.changed = bool(removed)
        step.detail = removed or "there was none"

    def copy(step: Step) -> None:
        step.changed, step.detail = _copy(guest, package, deadline)

    def load(step: Step) -> None:
        filters.load(guest, plan, deadline, again=step.repeated)
        step.changed = True
        step.detail = f"'{plan.service}'"

    def see_attached(step: Step) -> None:
        nonlocal volumes
        volumes = filters.attached(guest, plan, deadline)
        step.detail = f"instance '{plan.instance}' on {', '.join(volumes)}"

    steps.do("check test signing", check_test_signing)
    steps.do("trust the certificate", trust)
    steps.do(REMOVE_OLDER, remove_older)
    steps.do("copy the package", copy)
    mode.install(guest, package, plan, deadline, steps)
    steps.do("load the driver", load)
    steps.do("see that it is attached", see_attached)
    return Deployment(plan.service, volumes, tuple(steps.results))


def remove(guest: Guest, plan: Plan, deadline: Deadline) -> bool:
    """Unload the driver and remove what installed it; returns False when there was none. Raises as `deploy` does."""
    return bool(repeated(guest, lambda: leftovers.remove_all(guest, plan, deadline)))


def _copy(guest: Guest, package: Package, deadline: Deadline) -> tuple[bool, str]:
    """Have every file of the package in the guest, which computes all hashes; returns whether any had to be sent."""
    files = {file.name: package.directory / file.name for file in package.manifest.files}
    digests = {file.name: file.sha256 for file in package.manifest.files}
    places = {str(PACKAGE_DIRECTORY / name): digest for name, digest in digests.items()}

    def sync() -> Sync:
        return guest.sync(files, str(PACKAGE_DIRECTORY), deadline, manifest=_MANIFEST, digests=digests)

    done = sync()
    try:
        guest.verify(places, deadline)
    except ContentError:
        if done.sent_files == len(files):
            raise
        # Somebody has removed or changed what an earlier deployment left: all of it once more.
        guest.remove([_MANIFEST], deadline)
        done = sync()
        guest.verify(places, deadline)
    return bool(done.sent_files or done.removed_files), f"{done}, hashes verified in the guest"
