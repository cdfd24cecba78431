"""The task scheduler: tasks of SYSTEM that belong to no shell and no connection, and end with the boot.

Time triggers are kept and shown, and not acted on: who tests drivers starts tasks by hand or at boot.
"""

from __future__ import annotations

import logging
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from vm.deadline import Deadline
from vm.emulated.guest.streams import Cancellation

log = logging.getLogger(__name__)

SCHED_S_TASK_RUNNING = 0x41301
SCHED_S_TASK_HAS_NOT_RUN = 0x41303
SCHED_S_TASK_TERMINATED = 0x41306
DBG_TERMINATE_PROCESS = 0x40010004
"""Result of a task that the end of the system took with it."""
ERROR_FILE_NOT_FOUND_HRESULT = 0x80070002

_NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
_SYSTEM_NAMES = ("s-1-5-18", "system", "nt authority\\system", "nt-autorität\\system", "")
_END_SECONDS = 5.0
DEFAULT_LIMIT_SECONDS = 72 * 3600.0


class TaskXmlError(Exception):
    """A definition that is no task; the text is what schtasks says after "The task XML is malformed."."""


class Trigger(Enum):
    """When a task would start by itself."""

    NONE = "On demand only"
    ONCE = "One Time Only"
    BOOT = "At system start up"


@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """What is to be run, and how."""

    command: str
    arguments: str = ""
    directory: str = ""
    user: str = "SYSTEM"
    author: str = ""
    comment: str = ""
    trigger: Trigger = Trigger.NONE
    start_time: str = ""
    """Of a task that runs once, as it was given."""
    limit_seconds: float | None = DEFAULT_LIMIT_SECONDS
    """ExecutionTimeLimit; None is without limit."""
    xml: str = ""
    """The definition's own text, where it came from a file."""

    @property
    def line(self) -> str:
        """The command line."""
        program = (
            f'"{self.command}"' if " " in self.command and not self.command.startswith('"') else self.command
        )
        return f"{program} {self.arguments}".strip()


@dataclass(slots=True)
class Task:
    """A registered task and its last run."""

    name: str
    """With its folder, as in "\\\\Downlink\\\\suite"."""
    definition: TaskDefinition
    last_result: int = SCHED_S_TASK_HAS_NOT_RUN
    last_run: float | None = None
    """Seconds since the Unix epoch by the guest's clock."""
    thread: threading.Thread | None = None
    cancellation: Cancellation = field(default_factory=Cancellation)
    ending: int = SCHED_S_TASK_TERMINATED
    """The result that the run has if it is cancelled."""

    @property
    def running(self) -> bool:
        """True while its process runs."""
        return self.last_result == SCHED_S_TASK_RUNNING


Runner = Callable[[TaskDefinition, Cancellation], int]
"""Runs a definition to its end and returns the exit code; raises CommandTerminatedError if it is cancelled."""


class TaskScheduler:
    """All tasks of one guest; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}
        self._runs: list[Task] = []
        """Tasks with a run that may not have ended, also those that were deleted meanwhile."""
        self._closed = False

    def add(self, name: str, definition: TaskDefinition) -> None:
        """Register a task; one of the same name is replaced, its run goes on unseen until the boot ends."""
        full = full_name(name)
        with self._lock:
            self._tasks[full.casefold()] = Task(full, definition)

    def find(self, name: str) -> Task | None:
        """The task of that name, with or without the leading backslash."""
        with self._lock:
            return self._tasks.get(full_name(name).casefold())

    def all(self) -> list[Task]:
        """Every task by name."""
        with self._lock:
            return [self._tasks[key] for key in sorted(self._tasks)]

    def remove(self, task: Task) -> None:
        """Forget a task; a run of it is not ended, as on Windows."""
        with self._lock:
            self._tasks.pop(task.name.casefold(), None)

    def run(self, task: Task, runner: Runner, now: float) -> bool:
        """Start it; False if it runs already (IgnoreNew) or the guest goes down."""
        with self._lock:
            if self._closed or task.running:
                return False
            task.cancellation = Cancellation()
            task.last_result = SCHED_S_TASK_RUNNING
            task.last_run = now
            task.thread = threading.Thread(
                target=self._work, args=(task, runner), daemon=True, name=f"guest task {task.name}"
            )
            self._runs = [*(each for each in self._runs if each.running and each is not task), task]
            task.thread.start()
        return True

    def end(self, task: Task, *, result: int = SCHED_S_TASK_TERMINATED) -> None:
        """End a run; returns when its processes are gone."""
        with self._lock:
            task.ending = result
            thread = task.thread
        task.cancellation.cancel()
        if thread is not None:
            thread.join(_END_SECONDS)

    def close(self) -> None:
        """The guest goes down: all runs end, nothing starts until `open`."""
        with self._lock:
            self._closed = True
            tasks, self._runs = self._runs, []
        deadline = Deadline.after(seconds=_END_SECONDS)
        for task in tasks:
            if task.running:
                task.ending = DBG_TERMINATE_PROCESS
            task.cancellation.cancel()
        for task in tasks:
            if task.thread is not None:
                task.thread.join(deadline.remaining)

    def open(self) -> None:
        """The guest has booted."""
        with self._lock:
            self._closed = False

    def _work(self, task: Task, runner: Runner) -> None:
        limit = task.definition.limit_seconds
        timer = threading.Timer(limit, task.cancellation.cancel) if limit else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            result = runner(task.definition, task.cancellation)
        finally:
            if timer is not None:
                timer.cancel()
        with self._lock:
            task.last_result = task.ending if task.cancellation.event.is_set() else result


def full_name(name: str) -> str:
    """A task's name from the root folder."""
    return "\\" + name.strip("\\").replace("/", "\\")


def parse_xml(data: bytes) -> TaskDefinition:
    """A definition in the schema of Task Scheduler 2.0.

    Raises:
        TaskXmlError: not XML, another schema, no Exec action, or an account other than SYSTEM.
    """
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            text = data.decode("utf-16")
        else:
            text = data.decode("utf-8-sig")
        # The parser takes a decoded text only without what its declaration says of bytes.
        body = text[text.index("?>") + 2 :] if text.lstrip().startswith("<?xml") else text
        root = ElementTree.fromstring(body)
    except (UnicodeDecodeError, ValueError, ElementTree.ParseError) as error:
        raise TaskXmlError(f"(1,1)::ERROR: {error}") from error
    if root.tag != f"{_NAMESPACE}Task":
        raise TaskXmlError("(1,2):Task:ERROR: unexpected root element")
    command = _text(root, "Actions", "Exec", "Command")
    if not command:
        raise TaskXmlError("(1,2):Actions:ERROR: incorrect document syntax, an action is missing")
    user = _text(root, "Principals", "Principal", "UserId")
    if user.casefold() not in _SYSTEM_NAMES:
        raise TaskXmlError(f"(1,2):UserId:{user} (only SYSTEM is available on the emulated machine)")
    limit = _text(root, "Settings", "ExecutionTimeLimit")
    triggers = root.find(f"{_NAMESPACE}Triggers")
    boot = triggers is not None and triggers.find(f"{_NAMESPACE}BootTrigger") is not None
    once = triggers is not None and triggers.find(f"{_NAMESPACE}TimeTrigger") is not None
    return TaskDefinition(
        command=command,
        arguments=_text(root, "Actions", "Exec", "Arguments"),
        directory=_text(root, "Actions", "Exec", "WorkingDirectory"),
        author=_text(root, "RegistrationInfo", "Author"),
        comment=_text(root, "RegistrationInfo", "Description"),
        trigger=Trigger.BOOT if boot else Trigger.ONCE if once else Trigger.NONE,
        limit_seconds=_seconds(limit) if limit else DEFAULT_LIMIT_SECONDS,
        xml=text,
    )


def _text(root: ElementTree.Element, *names: str) -> str:
    return (root.findtext("/".join(_NAMESPACE + name for name in names)) or "").strip()


def _seconds(duration: str) -> float | None:
    """Seconds of an xs:duration; PT0S is no limit."""
    # The rules of durations live with the protocol that uses them most; importing it at the top would be a circle.
    from vm.emulated.guest.winrm.soap import parse_duration

    try:
        return parse_duration(duration) or None
    except ValueError as error:
        raise TaskXmlError(f"(1,2):ExecutionTimeLimit:{duration}") from error
