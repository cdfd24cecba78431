"""Runs a suite inside a guest and finds out what became of it, whatever happens to the guest on the way."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from harness.deployment.plan import GUEST_ROOT, TASK_PREFIX, StepResult
from harness.remote.guest import Guest
from harness.runs import attached, detached, upload
from harness.runs.detached import DetachedSuite
from harness.runs.directory import RunDirectory
from harness.runs.journal import Event, read
from harness.runs.record import RunRecord
from harness.runs.share import Share
from harness.runs.stream import EventStream
from harness.runs.suite import EVENTS_FILE, SuiteEnd, SuiteRequest, check_selection, pytest_arguments
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, DownlinkError, GuestError, MachineError
from vm.machine import Machine, MachineState

__all__ = ["SuiteRequest", "check_selection", "record_condition", "resume_suite", "run_suite"]

BOOT_SECONDS = 120
"""How long a guest that crashed may take to come back."""

COLLECT_SECONDS = 60
"""How long fetching of results and crash files may take, also when the run's deadline has passed."""

_EVERYTHING = Share()


def run_suite(
    machine: Machine,
    guest: Guest,
    request: SuiteRequest,
    record: RunRecord,
    deadline: Deadline,
    share: Share = _EVERYTHING,
) -> bool:
    """Run the suite and write down everything that happens; returns True when the guest went down in it.

    Failing tests, a crashed machine and a passed deadline are results, not errors of this function.

    Args:
        machine: the machine, asked for its condition afterwards.
        guest: its guest, with the driver loaded.
        request: what to run.
        record: gets the events, the guest's output and the collected files.
        deadline: for the whole suite.
        share: which of the suite's files are run, and in whose name.

    Raises:
        ConfigurationError: there is no such suite.
        GuestError: the suite could not be sent, or the guest could not be reached to start it.
    """
    run = record.directory
    boot = guest.boot_identity(deadline)
    gathered = upload.gather(request.root, request.suites, run.path)
    sent = upload.send(guest, gathered, deadline)
    step = f"{share.worker}: send the suite" if share.worker else "send the suite"
    record.step(StepResult(step, str(sent), bool(sent.sent_files), sent.seconds))
    prefix = f"@{secrets.token_hex(8)} "
    name = f"{run.path.name}-{share.worker}" if share.worker else run.path.name
    with _output(run, share.worker).open("w", encoding="utf-8", newline="\n") as output:
        stream = EventStream(prefix, _teller(record), output)
        if machine.abilities.detached:
            suite = DetachedSuite(name, TASK_PREFIX + name, prefix, boot)
            arguments = pytest_arguments(request, prefix, name, share.files, sync=True)
            # Known before it runs: a host that is killed now finds it again.
            record.event(suite.event())
            detached.start(guest, suite, arguments, deadline.remaining, deadline)
            end = _follow(guest, suite, stream, record, deadline)
        else:
            arguments = pytest_arguments(request, prefix, name, share.files)
            end = _closing(stream, lambda: attached.run(guest, arguments, stream, deadline))
        return _conclude(machine, guest, record, stream, end, boot, share)


def resume_suite(
    machine: Machine, guest: Guest, suite: DetachedSuite, record: RunRecord, deadline: Deadline
) -> bool:
    """Follow a suite that another process of this host started and did not see to its end; as `run_suite`."""
    seen = [event["n"] for event in read(record.directory.journal) if "n" in event]
    record.write("resumed", events=len(seen))
    # Everything that pytest has printed is read again, so what is there already is replaced.
    with record.directory.output.open("w", encoding="utf-8", newline="\n") as output:
        stream = EventStream(suite.prefix, _teller(record), output, seen)
        end = _follow(guest, suite, stream, record, deadline)
        return _conclude(machine, guest, record, stream, end, suite.boot, _EVERYTHING)


def record_condition(machine: Machine, record: RunRecord) -> None:
    """Ask the machine how it came through and write that down."""
    condition = machine.condition()
    for crash in condition.crashes:
        record.write("crash", **asdict(crash))
    counts = Counter(
        (violation.rule, violation.driver, violation.stack) for violation in condition.violations
    )
    for violation in condition.violations:
        # The same rule broken at the same place is told once, with how often it happened.
        count = counts.pop((violation.rule, violation.driver, violation.stack), 0)
        if count:
            record.write("violation", **asdict(violation), count=count)


def _teller(record: RunRecord) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        record.event(event)
        record.view.event(event)

    return tell


def _follow(
    guest: Guest, suite: DetachedSuite, stream: EventStream, record: RunRecord, deadline: Deadline
) -> SuiteEnd | Event:
    """Follow a task to its end; one that nobody will follow any more is ended."""

    def told(error: DownlinkError) -> None:
        record.log.write(f"the suite goes on without us: {error.message}")

    try:
        end = _closing(stream, lambda: detached.follow(guest, suite, stream, deadline, told))
    except BaseException:
        # Also Ctrl-C: whoever wants the suite to go on kills this process, or lets its connection go.
        detached.remove(guest, suite)
        raise
    detached.remove(guest, suite)
    return end


def _closing(stream: EventStream, run: Callable[[], SuiteEnd | Event]) -> SuiteEnd | Event:
    try:
        return run()
    finally:
        stream.close()


def _conclude(
    machine: Machine,
    guest: Guest,
    record: RunRecord,
    stream: EventStream,
    end: SuiteEnd | Event,
    boot: str,
    share: Share,
) -> bool:
    """Write down how pytest ended, see which boot this is, and fetch what the guest has; True if it went down."""
    if isinstance(end, dict):
        _teller(record)(end)
    elif end.problem and not (share.files and end.selected_nothing):
        _teller(record)({"event": "problem", "text": end.problem})
    now = _see_boot(machine, guest, boot, record)
    if now is not None:
        _collect(guest, record, stream, share.worker)
    return now != boot


def _see_boot(machine: Machine, guest: Guest, boot: str, record: RunRecord) -> str | None:
    """See which boot the guest is in now; waits for one that restarts. None when it does not come back."""
    deadline = Deadline.after(seconds=BOOT_SECONDS)
    try:
        try:
            now = guest.boot_identity(deadline.sooner(seconds=10))
        except (GuestError, DeadlineExceededError):
            guest.reconnect()
            if machine.state() is not MachineState.RUNNING and machine.abilities.restores:
                raise MachineError("the machine does not run any more", machine=machine.name) from None
            now = guest.wait_for_boot(None, deadline)
    except DownlinkError as error:
        record.write("guest-lost", text=f"the guest did not come back: {error.message}")
        return None
    if now != boot:
        record.write("restarted", before=boot, after=now)
    return now


def _output(run: RunDirectory, worker: str) -> Path:
    """Where the text goes that pytest and the tests print."""
    return run.output.with_stem(f"{run.output.stem}-{worker}") if worker else run.output


def _collect(guest: Guest, record: RunRecord, stream: EventStream, worker: str) -> None:
    """Fetch the results and the crash files; add the events that were lost on the way."""
    deadline = Deadline.after(seconds=COLLECT_SECONDS)
    place = record.directory.guest / worker
    name = record.directory.path.name
    results = GUEST_ROOT / str(upload.RESULTS) / (f"{name}-{worker}" if worker else name)
    try:
        guest.get_tree(str(results), place, deadline)
        guest.get_tree(r"C:\Windows\Minidump", place / "Minidump", deadline)
    except DownlinkError as error:
        record.write("problem", text=f"the results could not be fetched: {error.message}")
    with suppress(FileNotFoundError):
        missing = stream.add_missing((place / EVENTS_FILE).read_text(encoding="utf-8", errors="replace"))
        if missing:
            record.write("recovered", count=missing)
