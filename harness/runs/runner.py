"""Runs a suite inside a guest and finds out what became of it, whatever happens to the guest on the way."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.deployment.plan import GUEST_ROOT
from harness.remote.faults import ConnectionLostError, ShellGoneError
from harness.remote.guest import Guest
from harness.remote.quoting import quotable
from harness.remote.winrm import CommandResult
from harness.runs import upload
from harness.runs.journal import Event
from harness.runs.record import RunRecord
from harness.runs.stream import EventStream
from vm.deadline import Deadline
from vm.errors import ConfigurationError, DeadlineExceededError, DownlinkError, GuestError, MachineError
from vm.machine import Machine, MachineState

BOOT_SECONDS = 120
"""How long a guest that crashed may take to come back."""

COLLECT_SECONDS = 60
"""How long fetching of results and crash files may take, also when the run's deadline has passed."""

_EXIT_PROBLEMS = {
    3: "pytest in the guest failed internally; look at guest-output.txt",
    4: "pytest in the guest refused its command line; look at guest-output.txt",
}
_EXIT_NO_TESTS = 5


@dataclass(frozen=True, slots=True)
class SuiteRequest:
    """What to run: the suite's directory on the host, a selection (None = everything), a limit per test."""

    root: Path
    suites: Path
    select: str | None
    test_seconds: int


def check_selection(select: str | None) -> None:
    """Refuse a selection that cannot reach the guest unchanged; raises `ConfigurationError`."""
    if select is not None and not quotable(select):
        raise ConfigurationError(
            f"the selection {select!r} has a character that does not pass through cmd.exe",
            hint='leave out double quotes and percent signs: --select "not slow"',
        )


def run_suite(
    machine: Machine,
    guest: Guest,
    request: SuiteRequest,
    record: RunRecord,
    deadline: Deadline,
) -> bool:
    """Run the suite and write down everything that happens; returns True when the guest went down in it.

    Failing tests, a crashed machine and a passed deadline are results, not errors of this function.

    Args:
        machine: the machine, asked for its condition afterwards.
        guest: its guest, with the driver loaded.
        request: what to run.
        record: gets the events, the guest's output and the collected files.
        deadline: for the whole suite.

    Raises:
        ConfigurationError: there is no such suite.
        GuestError: the suite could not be sent, or the guest could not be reached to start it.
    """

    def on_event(event: Event) -> None:
        record.event(event)
        record.view.event(event)

    run = record.directory
    boot = guest.boot_identity(deadline)
    files = upload.gather(request.root, request.suites, run.path)
    sent = upload.send(guest, files, deadline)
    record.write("uploaded", files=len(files.sources), sent=sent)
    results = f"../{upload.RESULTS}/{run.path.name}"
    prefix = f"@{secrets.token_hex(8)} "
    with run.output.open("w", encoding="utf-8", newline="\n") as output:
        stream = EventStream(prefix, on_event, output)
        try:
            _run_pytest(guest, request, prefix, results, stream, deadline, on_event)
        finally:
            stream.close()
        now = _see_boot(machine, guest, boot, record)
        if now is not None:
            _collect(guest, record, stream)
    return now != boot


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


def _run_pytest(
    guest: Guest,
    request: SuiteRequest,
    prefix: str,
    results: str,
    stream: EventStream,
    deadline: Deadline,
    on_event: Callable[[Event], None],
) -> None:
    command = [
        *("python", "-m", "pytest", "-q", "--no-header", "--no-summary", "--color=no", "--tb=short"),
        *("-p", "no:cacheprovider", "-p", "guest_plugin"),
        # Relative with slashes: the same on Windows and where the emulated guest keeps its C: drive.
        *("-c", f"../{upload.SUITES}/pytest.ini", f"--rootdir=../{upload.SUITES}"),
        *(f"--event-prefix={prefix}", f"--event-file={results}/events.jsonl"),
        f"--test-seconds={request.test_seconds}",
        *((f"--select={request.select}",) if request.select else ()),
        f"../{upload.SUITES}",
    ]
    try:
        # The working directory of `python -m` is where it imports from: harness.client and the plugin, nothing else.
        result = guest.run(
            command,
            deadline=deadline,
            check=False,
            directory=str(GUEST_ROOT / str(upload.LIBRARY)),
            on_output=stream.feed,
        )
    except (ConnectionLostError, ShellGoneError) as error:
        on_event({"event": "guest-lost", "text": error.message})
    except DeadlineExceededError as error:
        on_event({"event": "problem", "text": f"the run took too long: {error.message}"})
    else:
        problem = _exit_problem(result)
        if problem:
            on_event({"event": "problem", "text": problem})


def _exit_problem(result: CommandResult) -> str | None:
    if "\nTimeout (" in f"\n{result.stderr}":
        return f"a test took too long and was ended:\n{result.stderr.strip()}"
    said = next((line for line in result.stderr.splitlines() if line.startswith("ERROR:")), "")
    if result.exit_code in (
        0,
        1,
        2,
    ):  # all passed, some failed, interrupted in the guest: the events tell which
        return None
    if result.exit_code == _EXIT_NO_TESTS:
        return "no test matches the selection"
    if result.exit_code in _EXIT_PROBLEMS:
        return said.removeprefix("ERROR:").strip() or _EXIT_PROBLEMS[result.exit_code]
    trace = result.stderr.strip()
    return f"pytest in the guest ended with 0x{result.exit_code:X}" + (f":\n{trace}" if trace else "")


def _see_boot(machine: Machine, guest: Guest, boot: str, record: RunRecord) -> str | None:
    """See which boot the guest is in now; waits for one that restarts. None when it does not come back."""
    deadline = Deadline.after(seconds=BOOT_SECONDS)
    try:
        try:
            now = guest.boot_identity(deadline.sooner(seconds=10))
        except (GuestError, DeadlineExceededError):
            guest.reconnect()
            if machine.state() is not MachineState.RUNNING:
                raise MachineError("the machine does not run any more", machine=machine.name) from None
            now = guest.wait_for_boot(None, deadline)
    except DownlinkError as error:
        record.write("guest-lost", text=f"the guest did not come back: {error.message}")
        return None
    if now != boot:
        record.write("restarted", before=boot, after=now)
    return now


def _collect(guest: Guest, record: RunRecord, stream: EventStream) -> None:
    """Fetch the results and the crash files; add the events that were lost on the way."""
    deadline = Deadline.after(seconds=COLLECT_SECONDS)
    run = record.directory
    try:
        guest.get_tree(str(GUEST_ROOT / str(upload.RESULTS) / run.path.name), run.guest, deadline)
        guest.get_tree(r"C:\Windows\Minidump", run.guest / "Minidump", deadline)
    except DownlinkError as error:
        record.write("problem", text=f"the results could not be fetched: {error.message}")
    with suppress(FileNotFoundError):
        missing = stream.add_missing(
            (run.guest / "events.jsonl").read_text(encoding="utf-8", errors="replace")
        )
        if missing:
            record.write("recovered", count=missing)
