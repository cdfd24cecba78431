"""The mode `service`: a copied image and a service key of its own with both Instances keys. No INF, no catalog."""

from __future__ import annotations

from harness.deployment.plan import DRIVERS_DIRECTORY, Plan
from harness.deployment.services import SERVICE_MARKED_FOR_DELETE
from harness.deployment.steps import Step, Steps
from harness.package import Package
from harness.remote.channels import CommandResult, Upload
from harness.remote.guest import Guest, failure
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError
from vm.waiting import wait_until

_SERVICE_EXISTS = 1073


def check(package: Package, plan: Plan) -> None:
    """Nothing beside what every deployment needs: image and certificate."""


def install(guest: Guest, package: Package, plan: Plan, deadline: Deadline, steps: Steps) -> None:
    """Copy the image to its place and make the service."""
    image = package.entry("image")

    def create(step: Step) -> None:
        target = str(DRIVERS_DIRECTORY / image.name)
        guest.put([Upload(package.image, target)], deadline)
        guest.verify({target: image.sha256}, deadline)
        _create_service(guest, plan, target, deadline, again=step.repeated)
        step.changed = True
        step.detail = f"'{plan.service}' at altitude {plan.altitude}"

    steps.do("create the service", create)


def _create_service(guest: Guest, plan: Plan, image: str, deadline: Deadline, *, again: bool) -> None:
    """Make the service; with `again`, one that is there may be the one that the first attempt made."""
    command = [
        *("sc", "create", plan.service, "type=", "filesys", "start=", "demand", "error=", "normal"),
        *("binPath=", image, "group=", plan.load_order_group),
        *("depend=", "FltMgr", "DisplayName=", plan.service),
    ]
    last: CommandResult | None = None

    def attempt() -> str | None:
        nonlocal last
        last = guest.run(command, deadline=deadline, check=False)
        # Its key may be gone before the service controller has forgotten it (windows-lab C.3).
        return (
            "its predecessor is marked for deletion" if last.exit_code == SERVICE_MARKED_FOR_DELETE else None
        )

    limit = deadline.sooner(seconds=plan.race_seconds)
    try:
        wait_until(attempt, f"the service '{plan.service}' to be created", limit, machine=guest.machine)
    except DeadlineExceededError:
        if last is None or not last.exit_code:
            raise
    assert last is not None
    if last.exit_code and not (again and last.exit_code == _SERVICE_EXISTS):
        raise failure(last, guest.machine)
    # Windows 11 24H2 reads both below 'Parameters', older versions directly below the service key (fact I4).
    for parent in (plan.service_key, rf"{plan.service_key}\Parameters"):
        instances = rf"{parent}\Instances"
        _reg_add(guest, parent, "SupportedFeatures", "REG_DWORD", "0x3", deadline)
        _reg_add(guest, instances, "DefaultInstance", "REG_SZ", plan.instance, deadline)
        _reg_add(guest, rf"{instances}\{plan.instance}", "Altitude", "REG_SZ", plan.altitude, deadline)
        _reg_add(guest, rf"{instances}\{plan.instance}", "Flags", "REG_DWORD", "0x0", deadline)


def _reg_add(guest: Guest, key: str, value: str, kind: str, data: str, deadline: Deadline) -> None:
    guest.run(["reg", "add", key, "/v", value, "/t", kind, "/d", data, "/f"], deadline=deadline)
