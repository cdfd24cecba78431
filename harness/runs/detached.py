"""A suite as a scheduled task of SYSTEM in the guest: it goes on whatever becomes of the connection and of this host.

WinRM ends what it started when its shell goes, sshd when its session goes; a scheduled task belongs to nobody. The host
follows it through three files that only ever grow: what pytest prints, what it writes to standard error, and a status
that beats once a second. So a connection that breaks, an address that changes and a host process that is killed cost
nothing but a new look.
"""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import PureWindowsPath
from xml.sax.saxutils import escape

from harness.deployment.plan import GUEST_ROOT
from harness.remote.guest import Guest
from harness.remote.repeating import UNKNOWN_FATE
from harness.runs import upload
from harness.runs.journal import Event
from harness.runs.stream import EventStream
from harness.runs.suite import ERRORS_FILE, OUTPUT_FILE, WORKING_DIRECTORY, SuiteEnd, results_directory
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, DownlinkError, GuestError
from vm.waiting import INTERVAL_SECONDS, wait_until

SILENCE_SECONDS = 30.0
"""A task whose status has not beaten for so long is asked about: it beats once a second."""

DOUBT_SECONDS = 3.0
"""After so long without a beat the guest is asked whether it has restarted: a quick restart may break no connection."""

START_SECONDS = 60.0
"""How long the scheduler may take to start a task; on a guest that has just booted it may be busy."""

END_SECONDS = 20.0

_STATUS_FILE = "status.jsonl"
_SPECIFICATION = "task.json"
_RUNNER = "guest_task.py"

_TASK_XML = """<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>{description}</Description></RegistrationInfo>
  <Triggers />
  <Principals>
    <Principal id="Author"><UserId>S-1-5-18</UserId><RunLevel>HighestAvailable</RunLevel></Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <AllowStartOnDemand>true</AllowStartOnDemand>
    <ExecutionTimeLimit>PT{seconds}S</ExecutionTimeLimit>
    <Priority>5</Priority>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{command}</Command>
      <Arguments>{arguments}</Arguments>
      <WorkingDirectory>{directory}</WorkingDirectory>
    </Exec>
  </Actions>
</Task>
"""
"""The schema of Task Scheduler 2.0. The account by its SID, because its name is localised; without the two settings on
batteries a laptop would not start the task; the default priority 7 is that of background work."""


@dataclass(frozen=True, slots=True)
class DetachedSuite:
    """What is needed to find a suite that runs in a guest again."""

    run: str
    """Name of the run's directory, here and there."""
    task: str
    """Full name of the scheduled task."""
    prefix: str
    """What each event's line starts with."""
    boot: str
    """Boot identity of the guest in which it was started."""

    def event(self) -> Event:
        """What the journal keeps of it."""
        return {"event": "detached", **asdict(self)}

    @classmethod
    def of(cls, event: Event) -> DetachedSuite:
        """The suite that such an event tells of."""
        return cls(*(str(event[key]) for key in ("run", "task", "prefix", "boot")))

    def path(self, file: str) -> str:
        """Windows path of one of its files."""
        return str(GUEST_ROOT / str(upload.RESULTS) / self.run / file)


def start(
    guest: Guest, suite: DetachedSuite, arguments: list[str], seconds: float, deadline: Deadline
) -> None:
    """Create the task and see that it runs.

    Args:
        guest: the guest, with the suite's files in it.
        suite: how it will be found.
        arguments: what Python is started with.
        seconds: after so long the scheduler ends the task, whoever still watches.
        deadline: for the start.

    Raises:
        GuestError: the scheduler refused it, or the suite's process could not be started.
        DeadlineExceededError: the scheduler did not start it; with what it says of the task.
    """
    results = results_directory(suite.run)
    specification = {
        "arguments": arguments,
        "output": f"{results}/{OUTPUT_FILE}",
        "errors": f"{results}/{ERRORS_FILE}",
        "status": f"{results}/{_STATUS_FILE}",
    }
    guest.put_bytes(json.dumps(specification, indent=1).encode(), suite.path(_SPECIFICATION), deadline)
    task = _TASK_XML.format(
        description=escape(f"The suite of the run {suite.run}"),
        seconds=max(60, round(seconds)),
        command=escape(_python(guest, deadline)),
        arguments=escape(f"{_RUNNER} {results}/{_SPECIFICATION}"),
        directory=escape(WORKING_DIRECTORY),
    )
    definition = suite.path("task.xml")
    guest.put_bytes(codecs.BOM_UTF16_LE + task.encode("utf-16-le"), definition, deadline)
    create = ["schtasks", "/create", "/tn", suite.task, "/xml", definition, "/f"]
    guest.run(create, deadline=deadline, repeatable=True)
    try:
        guest.run(["schtasks", "/run", "/tn", suite.task], deadline=deadline)
    except UNKNOWN_FATE as error:
        # If it was started its status tells; starting it twice would run the suite twice.
        guest.log.write(f"the task may have been started: {error.message}")
        guest.reconnect()
    status = _Tail(guest, suite.path(_STATUS_FILE))
    try:
        wait_until(
            lambda: None if status.read(deadline) else "no status file yet",
            f"the scheduled task '{suite.task}' to start",
            deadline.sooner(seconds=START_SECONDS),
            machine=guest.machine,
        )
    except DeadlineExceededError as error:
        said = guest.run(
            ["schtasks", "/query", "/tn", suite.task, "/v", "/fo", "list"], deadline=deadline, check=False
        )
        error.causes += (GuestError(f"schtasks says: {said.output[-1500:]}", machine=guest.machine),)
        raise


def follow(
    guest: Guest,
    suite: DetachedSuite,
    stream: EventStream,
    deadline: Deadline,
    on_trouble: Callable[[DownlinkError], None],
    *,
    silence_seconds: float = SILENCE_SECONDS,
) -> SuiteEnd | Event:
    """Hand over what the suite prints until it ends; returns how it ended, or the event that says why not.

    Trouble with the connection is told and outlived: the guest is asked again until it answers or the deadline passes.
    A suite that outlives the deadline is ended in the guest.
    """
    output = _Tail(guest, suite.path(OUTPUT_FILE))
    status = _Status(_Tail(guest, suite.path(_STATUS_FILE)))
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    trouble: DownlinkError | None = None
    doubtful = False  # a connection broke: was that a restart?
    doubt = DOUBT_SECONDS  # the silence after which that is asked, too
    while True:
        try:
            # The status first: what was printed before the end is there when the end is.
            end = status.look(deadline)
            printed = output.read(deadline)
            gone = None
            if end is None and not printed:
                silence = status.silence
                if doubtful or silence > min(doubt, silence_seconds):
                    doubt = silence + DOUBT_SECONDS
                    gone = _gone(guest, suite, silence > silence_seconds, deadline)
            else:
                doubt = DOUBT_SECONDS
            doubtful = False
        except (GuestError, DeadlineExceededError) as error:
            trouble, doubtful = error, True
            if deadline.passed:
                return _too_long(guest, suite, trouble)
            on_trouble(error)
            guest.reconnect()
            time.sleep(min(INTERVAL_SECONDS, deadline.remaining))
            continue
        stream.feed(decode(printed))
        if end is not None and not printed:
            return end if isinstance(end, dict) else SuiteEnd(end, _errors(guest, suite, deadline))
        if gone:
            return {"event": "guest-lost", "text": gone}
        if deadline.passed:
            return _too_long(guest, suite, trouble)
        if not printed:
            time.sleep(min(INTERVAL_SECONDS, deadline.remaining))


def remove(guest: Guest, suite: DetachedSuite) -> None:
    """End the task if it still runs, and delete it; what cannot be done any more is left."""
    deadline = Deadline.after(seconds=END_SECONDS)
    for command in (["/end", "/tn", suite.task], ["/delete", "/tn", suite.task, "/f"]):
        with suppress(DownlinkError):
            guest.run(["schtasks", *command], deadline=deadline, check=False)


class _Tail:
    """What a growing file of the guest has got since it was last read."""

    def __init__(self, guest: Guest, path: str) -> None:
        self._guest = guest
        self._path = path
        self._offset = 0

    def read(self, deadline: Deadline) -> bytes:
        """The bytes that are new; none if there are none, or no file yet."""
        content = self._guest.read_bytes(self._path, deadline, offset=self._offset) or b""
        self._offset += len(content)
        return content


class _Status:
    """The status of the task, line by line."""

    def __init__(self, tail: _Tail) -> None:
        self._tail = tail
        self._rest = b""
        self._last_sign = time.monotonic()
        self._end: int | Event | None = None

    def look(self, deadline: Deadline) -> int | Event | None:
        """The exit code, or the event for a suite that could not be started; None as long as it runs."""
        content = self._tail.read(deadline)
        if content:
            self._last_sign = time.monotonic()
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            with suppress(ValueError):  # a line that a crash filled with zeros says nothing
                said = json.loads(line)
                if "exit_code" in said:
                    self._end = int(said["exit_code"])
                elif "problem" in said:
                    self._end = {"event": "problem", "text": str(said["problem"])}
        return self._end

    @property
    def silence(self) -> float:
        """Seconds since it has beaten."""
        return time.monotonic() - self._last_sign


def _gone(guest: Guest, suite: DetachedSuite, silent: bool, deadline: Deadline) -> str | None:
    """Why the suite will not say any more; None if it may."""
    now = guest.boot_identity(deadline)
    if now != suite.boot:
        return f"the guest restarted while the suite ran (boot {suite.boot}, now {now})"
    return "the suite's process in the guest ended without a word" if silent else None


def _too_long(guest: Guest, suite: DetachedSuite, trouble: DownlinkError | None) -> Event:
    remove(guest, suite)
    last = f"; the last trouble was: {trouble.message}" if trouble else ""
    return {"event": "problem", "text": f"the run took too long and was ended{last}"}


def _errors(guest: Guest, suite: DetachedSuite, deadline: Deadline) -> str:
    """What the suite wrote to standard error; nothing when that cannot be had."""
    with suppress(DownlinkError):
        content = guest.read_bytes(suite.path(ERRORS_FILE), deadline)
        return (content or b"").decode("utf-8", errors="replace")
    return ""


def _python(guest: Guest, deadline: Deadline) -> str:
    """Full path of the guest's Python: SYSTEM does not have the PATH of whoever logged on."""
    found = guest.run(
        ["where", "python"], deadline=deadline, check=False, repeatable=True
    ).stdout.splitlines()
    path = next((line.strip() for line in found if PureWindowsPath(line.strip()).is_absolute()), None)
    if path is None:
        raise GuestError(
            "there is no Python in the guest's PATH",
            hint="install it for all users; './inv doctor' says how",
            machine=guest.machine,
        )
    return path
