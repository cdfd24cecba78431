"""The verbs that need a machine: deploy here, test and its resumption in `harness.testing`."""

from __future__ import annotations

from functools import partial

from harness import deployment
from harness.choices import Build, Choices, plan_for, timed, where
from harness.config import Configuration
from harness.console import Console
from harness.doctor import preflight
from harness.doctor.subject import Subject
from harness.machines import held
from harness.package import Package
from harness.remote.guest import Guest
from harness.remote.readiness import wait_until_ready
from harness.remote.repeating import repeated
from harness.testing import DEPLOY_SECONDS, resume, test
from vm.deadline import Deadline

__all__ = ["Build", "Choices", "Package", "deploy", "resume", "test"]


def deploy(configuration: Configuration, choices: Choices, build: Build, console: Console) -> None:
    """Build if stale, bring the machine up, replace the driver in it and leave it running.

    Raises:
        DownlinkError: a step failed; a machine that was started for it is stopped again.
    """
    driver = configuration.driver(choices.driver)
    preflight.before_start(Subject(configuration, configuration.machine(choices.machine), driver))
    package = timed(console, "build", build, lambda made: f"'{made.directory}'")
    with held(configuration, choices.machine, driver) as machine, machine.stopped_on_failure():
        machine.check(package)
        if reason := machine.dirty:
            console.line(f"the machine '{machine.name}' is restored first: {reason}")
        address = timed(console, "start the machine", machine.start, where)
        with Guest(address, machine=machine.name) as guest:
            deadline = Deadline.after(seconds=DEPLOY_SECONDS)
            wait_until_ready(guest, deadline)
            look = partial(preflight.in_guest, guest, driver, machine.machine, package, deadline)
            looked = repeated(guest, look)
            console.step(looked.name, looked.detail, looked.seconds)
            done = deployment.deploy(
                guest,
                package,
                plan_for(driver, machine.machine),
                deadline,
                lambda step: console.step(step.name, step.detail, step.seconds),
            )
    console.line(
        f"'{done.service}' runs on the machine '{machine.name}', attached to {', '.join(done.volumes)}"
    )
