"""The verbs that need a machine: deploy here, test in `harness.testing`, its resumption in `harness.resuming`."""

from __future__ import annotations

from functools import partial

from harness import deployment, tidying
from harness.choices import Build, Choices, plan_for, timed, where
from harness.config import Configuration, DriverConfig
from harness.console import Console
from harness.deployment import Deployment, Plan, StepResult
from harness.doctor import preflight
from harness.doctor.subject import Subject
from harness.machines import HeldMachine, held
from harness.package import Package
from harness.remote.guest import Guest
from harness.remote.readiness import wait_until_ready
from harness.remote.repeating import repeated
from harness.resuming import resume
from harness.testing import DEPLOY_SECONDS, test
from vm.deadline import Deadline

__all__ = ["Build", "Choices", "Package", "deploy", "resume", "test"]


def deploy(configuration: Configuration, choices: Choices, build: Build, console: Console) -> None:
    """Build if stale, bring the machine up, replace the driver in it and leave it running.

    Raises:
        DownlinkError: a step failed; a machine that was started for it is stopped again.
    """
    driver = configuration.driver(choices.driver)
    preflight.before_start(Subject(configuration, configuration.machine(choices.machine), driver))
    with held(configuration, choices.machine, driver) as machine, machine.stopped_on_failure():
        machine.refuse_elsewhere()
        package = timed(console, "build", build, lambda made: f"'{made.directory}'")
        machine.check(package)
        if machine.restores and (reason := machine.dirty):
            console.line(f"the machine '{machine.name}' is restored first: {reason}")
        timed(console, machine.starting, machine.start, where)
        plan = plan_for(driver, machine.machine)
        # Not the address itself: after a restart the guest may have another one.
        with Guest(machine.machine.address, machine=machine.name) as guest:
            deadline = Deadline.after(seconds=DEPLOY_SECONDS)
            wait_until_ready(guest, deadline)
            machine.see_boot(guest.boot_identity(deadline))
            done = _deployed(machine, guest, driver, package, plan, deadline, console)
    console.line(
        f"'{done.service}' runs on the machine '{machine.name}', attached to {', '.join(done.volumes)}"
    )


def _deployed(
    machine: HeldMachine,
    guest: Guest,
    driver: DriverConfig,
    package: Package,
    plan: Plan,
    deadline: Deadline,
    console: Console,
) -> Deployment:
    """Look at the guest and deploy; a machine that cannot be restored is cleaned if that fails."""
    cleanup = tidying.look(guest, machine, package, plan)

    def show(step: StepResult) -> None:
        if cleanup is not None:
            cleanup.on_step(step)
        console.step(step.name, step.detail, step.seconds)

    with tidying.tidied(
        *(guest, machine, cleanup),
        on_step=show,
        tell=lambda sentence: console.line(f"left behind: {sentence}"),
        on_success=False,
    ):
        show(repeated(guest, partial(preflight.in_guest, guest, driver, machine.machine, package, deadline)))
        if cleanup is not None:
            show(tidying.end_tasks(guest, deadline))
        return deployment.deploy(guest, package, plan, deadline, show)
