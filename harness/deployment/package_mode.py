"""The mode `package`: pnputil with INF and catalog, the image in the driver store, as a customer's machine gets it.

A primitive driver is installed, not started, by pnputil; loading it is fltmc's business in both modes.
"""

from __future__ import annotations

from pathlib import PureWindowsPath

from harness.deployment import pnputil, services
from harness.deployment.plan import PACKAGE_DIRECTORY, Plan
from harness.deployment.steps import Step, Steps
from harness.package import Package, read_identity
from harness.remote.channels import ContentError
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.errors import GuestError, PackageError


def check(package: Package, plan: Plan) -> None:
    """Refuse a package that cannot be installed in this mode, before anything is touched.

    Raises:
        PackageError: it has no INF or no catalog, or its INF says other names than the plan.
    """
    for role in ("inf", "catalog"):
        if package.path(role) is None:
            raise PackageError(
                f"the package '{package.directory}' has no file of the role '{role}', and the mode 'package' needs it",
                hint='build it again with ./inv build, or deploy with: deployment = "service"',
            )
    identity = read_identity(package.directory / package.entry("inf").name)
    for what, written, wanted in (
        ("service", identity.service, plan.service),
        ("instance", identity.instance, plan.instance),
        ("altitude", identity.altitude, plan.altitude),
    ):
        if written != wanted:
            raise PackageError(
                f"the INF of the package names the {what} '{written}', and harness.toml says '{wanted}'",
                hint="make both the same: in the mode 'package' Windows takes the INF's word",
            )


def install(guest: Guest, package: Package, plan: Plan, deadline: Deadline, steps: Steps) -> None:
    """Have pnputil install the package, and see that the service runs the image of this package."""

    def add(step: Step) -> None:
        added = pnputil.add(guest, str(PACKAGE_DIRECTORY / package.entry("inf").name), deadline)
        image = _check_image(guest, package, plan, added, deadline)
        step.changed = not added.nothing_newer
        step.detail = f"{added.published or 'in the driver store'}, '{image}'"
        if added.restart_needed:
            step.detail += ", pnputil asks for a restart"

    steps.do("install the package", add)


def _check_image(
    guest: Guest, package: Package, plan: Plan, added: pnputil.Added, deadline: Deadline
) -> PureWindowsPath:
    """What pnputil says is one thing; what counts is the service and the image that it names."""
    path = services.image_path(guest, plan, deadline)
    if path is None:
        said = ", which says that there is nothing newer" if added.nothing_newer else ""
        raise GuestError(
            f"pnputil has made no service '{plan.service}'{said}",
            hint="has the INF a section [DefaultInstall] for the guest's architecture and build?",
            machine=guest.machine,
        )
    try:
        guest.verify({str(path): package.entry("image").sha256}, deadline)
    except ContentError as error:
        why = "an older package is still in the driver store" if added.nothing_newer else "look at the INF"
        raise GuestError(
            f"the service '{plan.service}' does not run the image of this package, but '{path}'",
            hint=f"{why}; in the guest: pnputil /enum-drivers",
            machine=guest.machine,
            causes=[error],
        ) from error
    return path
