"""What follows a suite, however it ended: the driver goes, the machine is asked what it saw, the guest is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from harness import deployment, tidying
from harness.deployment import Plan
from harness.deployment.cleanup import Cleanup
from harness.machines import HeldMachine
from harness.remote.guest import Guest
from harness.runs import evidence, runner
from harness.runs.record import RunRecord
from vm.deadline import Deadline
from vm.errors import DownlinkError

UNLOAD_SECONDS = 60
EVIDENCE_SECONDS = 120
"""How long the collection of logs and dumps may take, also when the run's deadline has passed."""


@contextmanager
def seeing(machine: HeldMachine, record: RunRecord) -> Iterator[None]:
    """Within, an error is explained by what the machine knows; at the end its condition is written down."""
    try:
        yield
    except DownlinkError as error:
        machine.explain(error)
        machine.mark_dirty(error)
        with suppress(DownlinkError):
            runner.record_condition(machine.machine, record)
        raise
    runner.record_condition(machine.machine, record)


def tidied(
    guest: Guest, machine: HeldMachine, cleanup: Cleanup | None, record: RunRecord
) -> AbstractContextManager[None]:
    """Within, the run is on a guest that is cleaned afterwards if it cannot be restored; the journal is told what stays."""
    return tidying.tidied(
        *(guest, machine, cleanup),
        on_step=record.step,
        tell=lambda sentence: record.write("left-behind", text=sentence),
    )


def afterwards(
    machine: HeldMachine,
    guest: Guest,
    plan: Plan,
    record: RunRecord,
    mark: evidence.Mark | None,
    boot: str | None,
    worker: str = "",
    cleanup: Cleanup | None = None,
) -> None:
    """Unload the driver, so that what it forgets to give back shows now; then ask the guest what it remembers.

    `boot` is the one in which the suite has ended; None if the guest went down in it, and the driver with it.
    """
    if boot is not None:
        deadline = Deadline.after(seconds=UNLOAD_SECONDS)
        try:
            deployment.remove(guest, plan, deadline)
            if (now := guest.boot_identity(deadline)) != boot:
                record.write("restarted", before=boot, after=now)
        except DownlinkError as error:
            record.problem(error)
            machine.mark_dirty(error)
            if cleanup is not None:
                cleanup.see(error)
    if mark is not None:
        gather_evidence(guest, mark, record, worker, stays=cleanup is not None)


def gather_evidence(
    guest: Guest, mark: evidence.Mark, record: RunRecord, worker: str, *, stays: bool
) -> None:
    """What a machine that is no witness of its own leaves in its logs; `stays` says that no restore takes it away."""
    deadline = Deadline.after(seconds=EVIDENCE_SECONDS)
    try:
        for crash in evidence.crashes(guest, mark, deadline):
            record.crash(crash)
            if crash.dump and stays:
                record.write(
                    "left-behind", text=f"the dump '{crash.dump}' of the bugcheck stays in the guest"
                )
        for sentence in evidence.collect(guest, mark, record.directory.guest / worker, deadline):
            record.log.write(sentence)
    except DownlinkError as error:
        record.problem(error)
