"""`schtasks`: tasks of SYSTEM, made from XML or from options, run by hand or at boot, shown as list, table or CSV."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from vm.emulated.guest.commands.parsing import split_words
from vm.emulated.guest.commands.session import Environment, Guest, Invocation, Session, base_environment
from vm.emulated.guest.drive import WindowsPathError
from vm.emulated.guest.scheduler import (
    ERROR_FILE_NOT_FOUND_HRESULT,
    SCHED_S_TASK_TERMINATED,
    Runner,
    Task,
    TaskDefinition,
    TaskXmlError,
    Trigger,
    full_name,
    parse_xml,
)
from vm.emulated.guest.streams import Cancellation, CommandTerminatedError, FileSink, FileSource

_SYSTEM = ("system", "nt authority\\system", "s-1-5-18", "")
_NOT_AVAILABLE = "N/A"
_NEVER = "11/30/1999 12:00:00 AM"
"""What schtasks shows for a task that has never run."""
_WITH_VALUE = (
    "/tn", "/xml", "/tr", "/sc", "/st", "/sd", "/ru", "/rp", "/rl", "/fo", "/mo", "/d", "/du", "/ed",
)  # fmt: skip
_FLAGS = ("/f", "/v", "/nh", "/z", "/np", "/it", "/i", "/hresult")
_SCHEDULES = {"once": Trigger.ONCE, "onstart": Trigger.BOOT}


class _RefusedError(Exception):
    """The verb fails with this sentence and exit code 1."""


def schtasks(call: Invocation) -> int:
    """`schtasks /create | /run | /query | /end | /delete`; 1 for every error."""
    words = list(call.arguments) or ["/query"]
    verb = _VERBS.get(words[0].casefold().replace("-", "/", 1))
    try:
        if verb is None:
            raise _RefusedError(
                f"ERROR: Invalid argument/option - '{words[0]}'.\nType \"SCHTASKS /?\" for usage."
            )
        verb(call, _options(words[1:]))
    except _RefusedError as error:
        call.err(str(error))
        return 1
    return 0


def runner(guest: Guest) -> Runner:
    """How the scheduler of this guest runs a definition: in a session of SYSTEM, with no console."""

    def run(definition: TaskDefinition, cancellation: Cancellation) -> int:
        # The interpreter finds this command in the catalog; importing it at the top would be a circle.
        from vm.emulated.guest.commands.interpreter import Streams, run_program

        environment = Environment(base_environment(guest))
        environment.set("USERNAME", f"{guest.settings.computer_name}$")
        environment.set("USERPROFILE", "C:\\Windows\\system32\\config\\systemprofile")
        directory = definition.directory.strip('"') or "C:\\Windows\\System32"
        try:
            host = guest.drive.existing(directory)
            session = Session(guest, environment, guest.drive.windows_path(host), cancellation)
            code = run_program(
                definition.line, session, Streams(FileSource(None), FileSink(None), FileSink(None))
            )
        except WindowsPathError as error:
            return 0x80070000 | error.code
        except CommandTerminatedError:
            return SCHED_S_TASK_TERMINATED
        return ERROR_FILE_NOT_FOUND_HRESULT if code is None else code

    return run


def _create(call: Invocation, options: Mapping[str, str]) -> None:
    name = _required(options, "/tn", "create")
    definition = _from_xml(call, options) if "/xml" in options else _from_options(call, options)
    scheduler = call.guest.scheduler
    if scheduler.find(name) is not None and "/f" not in options:
        _confirm(call, f'WARNING: The task name "{name}" already exists. Do you want to replace it (Y/N)? ')
    author = definition.author or f"{call.guest.settings.computer_name}\\{call.guest.settings.username}"
    scheduler.add(name, replace(definition, author=author))
    call.out(f'SUCCESS: The scheduled task "{name}" has successfully been created.')


def _run(call: Invocation, options: Mapping[str, str]) -> None:
    task = _task(call, options, "run")
    call.guest.scheduler.run(task, runner(call.guest), call.guest.clock.now())
    call.out(f'SUCCESS: Attempted to run the scheduled task "{options["/tn"]}".')


def _end(call: Invocation, options: Mapping[str, str]) -> None:
    task = _task(call, options, "end")
    if not task.running:
        raise _RefusedError("ERROR: There is no running instance of the task.")
    call.guest.scheduler.end(task)
    call.out(f'SUCCESS: The scheduled task "{options["/tn"]}" has been terminated successfully.')


def _delete(call: Invocation, options: Mapping[str, str]) -> None:
    task = _task(call, options, "delete")
    if "/f" not in options:
        _confirm(call, f'WARNING: Are you sure you want to remove the task "{options["/tn"]}" (Y/N)? ')
    call.guest.scheduler.remove(task)
    call.out(f'SUCCESS: The scheduled task "{options["/tn"]}" was successfully deleted.')


def _query(call: Invocation, options: Mapping[str, str]) -> None:
    if "/xml" in options:
        raise _RefusedError("ERROR: /xml of /query is not available on the emulated machine.")
    layout = options.get("/fo", "table").casefold()
    if layout not in ("table", "list", "csv"):
        raise _RefusedError(
            "ERROR: Invalid syntax. Value expected for '/fo'.\nType \"SCHTASKS /QUERY /?\" for usage."
        )
    tasks = [_task(call, options, "query")] if "/tn" in options else call.guest.scheduler.all()
    verbose = "/v" in options
    rows = [_fields(call, task, verbose=verbose) for task in tasks]
    if layout == "csv":
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        for row in rows:
            # Windows repeats the header for every task.
            if "/nh" not in options:
                writer.writerow([name.rstrip(":") for name, _ in row])
            writer.writerow([value for _, value in row])
        if rows:
            call.out(text.getvalue().removesuffix("\n"))
        return
    if not rows:
        raise _RefusedError("INFO: There are no scheduled tasks presently available at your access level.")
    for task, row in zip(tasks, rows, strict=True):
        call.out(f"\nFolder: {task.name.rpartition(chr(92))[0] or chr(92)}")
        if layout == "list":
            for name, value in row:
                call.out(f"{name:<37} {value}".rstrip())
            continue
        if "/nh" not in options:
            call.out(f"{'TaskName':<40} {'Next Run Time':<22} {'Status':<15}")
            call.out(f"{'=' * 40} {'=' * 22} {'=' * 15}")
        shown = dict(row)
        name = task.name.rpartition("\\")[2]
        call.out(f"{name:<40} {shown['Next Run Time:']:<22} {shown['Status:']:<15}".rstrip())


_VERBS: Mapping[str, Callable[[Invocation, Mapping[str, str]], None]] = {
    "/create": _create,
    "/run": _run,
    "/end": _end,
    "/delete": _delete,
    "/query": _query,
}


def _fields(call: Invocation, task: Task, *, verbose: bool) -> list[tuple[str, str]]:
    """Labels and values as `/fo list` shows them."""
    definition = task.definition
    status = "Running" if task.running else "Ready"
    host = ("HostName:", call.guest.settings.computer_name)
    name, following = ("TaskName:", task.name), ("Next Run Time:", _NOT_AVAILABLE)
    mode = ("Logon Mode:", "Interactive/Background")
    if not verbose:
        return [host, name, following, ("Status:", status), mode]
    limit = definition.limit_seconds
    hours = "Disabled" if limit is None else f"{int(limit // 3600):02}:{int(limit % 3600 // 60):02}:00"
    last = _NEVER
    if task.last_run is not None:
        last = time.strftime("%m/%d/%Y %I:%M:%S %p", time.gmtime(task.last_run))
    return [
        host,
        name,
        following,
        ("Status:", status),
        mode,
        ("Last Run Time:", last),
        ("Last Result:", str(_signed(task.last_result))),
        ("Author:", definition.author),
        ("Task To Run:", definition.line),
        ("Start In:", definition.directory or _NOT_AVAILABLE),
        ("Comment:", definition.comment or _NOT_AVAILABLE),
        ("Scheduled Task State:", "Enabled"),
        ("Idle Time:", "Disabled"),
        ("Power Management:", ""),
        ("Run As User:", "SYSTEM"),
        ("Delete Task If Not Rescheduled:", "Disabled"),
        ("Stop Task If Runs X Hours and X Mins:", hours),
        ("Schedule:", "Scheduling data is not available in this format."),
        ("Schedule Type:", definition.trigger.value),
        ("Start Time:", definition.start_time or _NOT_AVAILABLE),
        *(
            (label, _NOT_AVAILABLE)
            for label in (
                "Start Date:",
                "End Date:",
                "Days:",
                "Months:",
                "Repeat: Every:",
                "Repeat: Until: Time:",
                "Repeat: Until: Duration:",
                "Repeat: Stop If Still Running:",
            )
        ),
    ]


def _from_xml(call: Invocation, options: Mapping[str, str]) -> TaskDefinition:
    if options.get("/ru", "").casefold() not in _SYSTEM:
        raise _RefusedError("ERROR: No mapping between account names and security IDs was done.")
    try:
        path = call.guest.drive.existing(options["/xml"], directory=call.session.directory)
        return parse_xml(path.read_bytes())
    except (WindowsPathError, OSError) as error:
        raise _RefusedError("ERROR: The system cannot find the file specified.") from error
    except TaskXmlError as error:
        raise _RefusedError(f"ERROR: The task XML is malformed.\n{error}") from error


def _from_options(call: Invocation, options: Mapping[str, str]) -> TaskDefinition:
    line = _required(options, "/tr", "create")
    schedule = _required(options, "/sc", "create").casefold()
    trigger = _SCHEDULES.get(schedule)
    if trigger is None:
        raise _RefusedError(
            f"ERROR: The schedule '{schedule}' is not available on the emulated machine, only ONCE and ONSTART."
        )
    start = options.get("/st", "")
    if trigger is Trigger.ONCE and not start:
        raise _RefusedError(
            "ERROR: Invalid syntax. Mandatory option 'st' is missing.\nType \"SCHTASKS /CREATE /?\" for usage."
        )
    if start and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", start):
        raise _RefusedError("ERROR: Invalid starttime value.")
    # Without /ru a task runs as its maker, who would have to be logged on.
    if options.get("/ru", "?").casefold() not in _SYSTEM:
        raise _RefusedError("ERROR: Only /ru SYSTEM is available on the emulated machine.")
    program, *rest = split_words(line) or [""]
    return TaskDefinition(
        command=program.strip('"'),
        arguments=line.strip()[len(program) :].strip() if rest else "",
        trigger=trigger,
        start_time=start,
    )


def _task(call: Invocation, options: Mapping[str, str], verb: str) -> Task:
    found = call.guest.scheduler.find(_required(options, "/tn", verb))
    if found is None:
        raise _RefusedError("ERROR: The system cannot find the file specified.")
    return found


def _required(options: Mapping[str, str], name: str, verb: str) -> str:
    if not options.get(name):
        raise _RefusedError(
            f"ERROR: Invalid syntax. Mandatory option '{name[1:]}' is missing.\n"
            f'Type "SCHTASKS /{verb.upper()} /?" for usage.'
        )
    if name == "/tn" and re.search(r'[<>:"|?*]', options[name]):
        raise _RefusedError("ERROR: The filename, directory name, or volume label syntax is incorrect.")
    return full_name(options[name])[1:] if name == "/tn" else options[name]


def _options(words: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name = ("/" + word[1:]).casefold() if word[:1] in "/-" else word
        if name in _WITH_VALUE:
            value = next(rest, None)
            if value is None:
                raise _RefusedError(f"ERROR: Invalid syntax. Value expected for '{word}'.")
            options[name] = value
        elif name in _FLAGS:
            options[name] = ""
        else:
            raise _RefusedError(
                f"ERROR: Invalid argument/option - '{word}'.\nType \"SCHTASKS /?\" for usage."
            )
    return options


def _confirm(call: Invocation, question: str) -> None:
    """Ask on standard output; anything but a yes, also the end of the input, leaves everything as it is."""
    call.stdout.write(call.session.encode(question))
    answer = call.session.decode(call.read_all()).strip().casefold()
    if not answer.startswith("y"):
        raise _RefusedError("ERROR: The operation was cancelled." if answer else "ERROR: Access is denied.")


def _signed(number: int) -> int:
    """schtasks shows HRESULTs as signed numbers."""
    return number - (1 << 32) if number & 0x80000000 else number
