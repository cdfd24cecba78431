"""Removing the driver, however it was installed: the way before another deployment, and the end of one.

Order: unload the filter, then the packages in the driver store (which own their files: PnpLockdown), then a copied image,
then what is left of the service, which is the last to tell where the image was. Each of them may be missing; half a
deployment is nothing else than some of them missing.
"""

from __future__ import annotations

from harness.deployment import pnputil, services
from harness.deployment.filters import unload
from harness.deployment.plan import DRIVERS_DIRECTORY, Plan, UnloadError
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError


def remove_all(guest: Guest, plan: Plan, deadline: Deadline, image: str | None = None) -> str:
    """Remove the driver of both modes; says what there was, empty if there was nothing.

    Args:
        image: name of the image that is going to be deployed; the plan's if that is another. A copy of it that no
            service names is removed, too.

    Raises:
        UnloadError: it refused to go, hangs, or has to wait for a restart.
        GuestError: a step failed.
    """
    done = []
    running = services.runs(guest, plan, deadline)
    if running:
        unload(guest, plan, deadline)
        done.append("unloaded")
    installed_at = services.image_path(guest, plan, deadline) if running is not None else None
    packages = pnputil.stored(guest, plan, deadline)
    for published in packages:
        _delete_package(guest, plan, published, deadline)
    if packages:
        done.append(f"{', '.join(packages)} uninstalled")
    copies = {DRIVERS_DIRECTORY / name for name in (image, plan.image) if name}
    if installed_at is not None and installed_at.parent == DRIVERS_DIRECTORY:
        copies.add(installed_at)
    if copies:
        guest.remove(sorted(str(path) for path in copies), deadline)
    if running is not None and services.runs(guest, plan, deadline) is not None:
        services.delete(guest, plan, deadline)
        done.append("service deleted")
    elif running is not None:
        services.wait_until_gone(guest, plan, deadline)
    return ", ".join(done)


def _delete_package(guest: Guest, plan: Plan, published: str, deadline: Deadline) -> None:
    """Uninstall one package with the deadline of an unload: pnputil stops what still runs."""
    try:
        restart_needed = pnputil.delete(guest, published, deadline.sooner(seconds=plan.unload_seconds))
    except DeadlineExceededError as error:
        raise UnloadError(
            f"the removal of the package '{published}' hangs",
            hint=plan.mend,
            machine=guest.machine,
            causes=[error],
        ) from error
    if restart_needed and _still_there(guest, plan, published, deadline):
        raise UnloadError(
            f"the package '{published}' of the driver '{plan.service}' is in use, only a restart of the guest removes it",
            hint=plan.mend,
            machine=guest.machine,
        )


def _still_there(guest: Guest, plan: Plan, published: str, deadline: Deadline) -> bool:
    """Whether something of the package is left, so that the restart is really needed."""
    return services.runs(guest, plan, deadline) is not None or published in pnputil.stored(
        guest, plan, deadline
    )
