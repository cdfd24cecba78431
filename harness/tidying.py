"""Machines without a checkpoint: within a run they are looked at first and cleaned afterwards, however the run ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.deployment import StepResult, cleanup
from harness.deployment.cleanup import Before, Cleanup
from harness.deployment.plan import Plan
from harness.deployment.steps import OnStep
from harness.machines import HeldMachine
from harness.package import Package
from harness.remote.guest import Guest
from harness.remote.repeating import repeated
from vm.deadline import Deadline
from vm.errors import DownlinkError

CLEANUP_SECONDS = 150
"""How long the cleaning may take, also when the run's deadline has passed."""

LOOK_SECONDS = 60


def look(guest: Guest, machine: HeldMachine, package: Package, plan: Plan) -> Cleanup | None:
    """See what a machine without a checkpoint is like before anything is changed; None for one that is restored.

    Raises:
        GuestError: it does not say.
    """
    if machine.restores:
        return None
    before = repeated(guest, lambda: cleanup.look(guest, package, plan, Deadline.after(seconds=LOOK_SECONDS)))
    return Cleanup(before, plan)


def recalled(machine: HeldMachine, before: Before | None, plan: Plan) -> Cleanup | None:
    """What another process that ended in its suite would have cleaned."""
    return None if machine.restores or before is None else Cleanup(before, plan, replaced=True)


def end_tasks(guest: Guest, deadline: Deadline) -> StepResult:
    """End what earlier runs have left running: their suites would go on beside this run's."""
    began = time.monotonic()
    ended = repeated(guest, lambda: cleanup.end_tasks(guest, deadline))
    detail = ", ".join(f"the task '{task}' ended" for task in ended) or "there was nothing"
    return StepResult("end earlier suites", detail, bool(ended), time.monotonic() - began)


@contextmanager
def tidied(
    guest: Guest,
    machine: HeldMachine,
    cleanup: Cleanup | None,
    *,
    on_step: OnStep,
    tell: Callable[[str], None],
    on_success: bool = True,
) -> Iterator[None]:
    """Within, something is done on the guest; afterwards it is cleaned, also after a failure and after Ctrl-C.

    Args:
        guest: the guest, whose connections may be lost by then.
        machine: gets marked when its driver cannot be unloaded.
        cleanup: what to do; None for a machine that is restored instead.
        on_step: told of the cleaning when it is done.
        tell: gets a sentence for each thing that could not be put back.
        on_success: False leaves everything where it is if nothing fails.
    """
    if cleanup is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        cleanup.see(error)
        _clean(guest, machine, cleanup, on_step, tell)
        raise
    if on_success:
        _clean(guest, machine, cleanup, on_step, tell)


def _clean(
    guest: Guest, machine: HeldMachine, cleanup: Cleanup, on_step: OnStep, tell: Callable[[str], None]
) -> None:
    began = time.monotonic()
    try:
        left = cleanup.clean(guest, Deadline.after(seconds=CLEANUP_SECONDS))
        count = "1 thing stays" if len(left) == 1 else f"{len(left)} things stay"
        detail = count if left else "driver, certificate, tasks and files are as they were"
        on_step(StepResult("clean up", detail, True, time.monotonic() - began))
    except DownlinkError as error:
        cleanup.left.append(f"the clean-up did not come to its end: {error.message}")
    finally:
        for sentence in cleanup.left:
            tell(sentence)
        if cleanup.stuck is not None:
            machine.mark_dirty(cleanup.stuck)
