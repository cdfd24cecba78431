"""What the user chose on the command line, and how one thing that is done for him is shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from harness.config import DriverConfig
from harness.console import Console
from harness.deployment import Plan, StepResult
from harness.deployment.plan import RESTART
from harness.package import Package
from vm.machine import Channel, GuestAddress, Machine

Build = Callable[[], Package]
"""Makes the package, or finds that it is up to date."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user chose on the command line; None = what harness.toml says."""

    driver: str | None = None
    machine: str | None = None
    select: str | None = None
    workers: int = 1
    """How many clones of the machine share the suite."""
    checkpoint: str | None = None
    """Checkpoint that the machine is restored to; None = the machine's own."""


def timed(
    console: Console,
    name: str,
    action: Callable[[], _T],
    detail: Callable[[_T], str],
    steps: list[StepResult] | None = None,
) -> _T:
    """Do one thing and show how long it took; also add it to `steps`."""
    console.transient(f"{name} ...")
    began = time.monotonic()
    result = action()
    step = StepResult(name, detail(result), True, time.monotonic() - began)
    console.step(step.name, step.detail, step.seconds)
    if steps is not None:
        steps.append(step)
    return result


def plan_for(driver: DriverConfig, machine: Machine) -> Plan:
    """How `driver` is installed on `machine`."""
    plan = Plan.of(driver, machine.abilities.deployment)
    return plan if machine.abilities.restores else replace(plan, mend=RESTART)


def where(address: GuestAddress) -> str:
    """Where a guest answers, for a line of the console."""
    if address.channel is Channel.LOCAL:
        return "this host itself"
    return f"WinRM at {address.host}:{address.winrm_port}"


def relative(path: Path) -> Path:
    """The path as it is shortest from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
