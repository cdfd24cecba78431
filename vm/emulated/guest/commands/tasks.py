"""`tasklist` and `taskkill`: the guest's processes, which are host processes started for it, and no others."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

from vm.emulated.guest.commands.session import Invocation

_FILTER = re.compile(r"(imagename|pid)\s+(eq|ne)\s+(.+)", re.IGNORECASE)
_SYSTEM = (("System Idle Process", 0), ("System", 4))
_MEMORY = "12,288 K"


@dataclass(frozen=True, slots=True)
class _Task:
    image: str
    process_id: int


def tasklist(call: Invocation) -> int:
    """`tasklist [/fo table|list|csv] [/nh] [/fi "IMAGENAME eq x"] [/v]`."""
    layout, header, filters = "table", True, []
    words = iter(call.arguments)
    for word in words:
        match word.casefold():
            case "/fo":
                layout = (next(words, "") or "").casefold()
            case "/nh":
                header = False
            case "/fi":
                filters.append(next(words, ""))
            case "/v" | "/svc":
                continue
            case _:
                call.err(f"ERROR: Invalid argument/option - '{word}'.\nType \"TASKLIST /?\" for usage.")
                return 1
    if layout not in ("table", "list", "csv"):
        call.err(f"ERROR: Invalid syntax. '{layout}' value is not allowed for '/fo' option.")
        return 1
    tasks = _tasks(call)
    for text in filters:
        found = _FILTER.fullmatch(text.strip())
        if not found:
            call.err("ERROR: The search filter cannot be recognized.")
            return 1
        tasks = [task for task in tasks if _holds(task, *found.groups())]
    if not tasks:
        call.out("INFO: No tasks are running which match the specified criteria.")
        return 0
    _print(call, tasks, layout, header)
    return 0


def taskkill(call: Invocation) -> int:
    """`taskkill [/f] [/t] /pid N | /im name`: always ends the tree; exit code 128 when nothing was found."""
    wanted: list[tuple[str, str]] = []
    words = iter(call.arguments)
    for word in words:
        option = word.casefold()
        if option in ("/pid", "/im"):
            wanted.append((option, next(words, "")))
        elif option not in ("/f", "/t"):
            call.err(f"ERROR: Invalid argument/option - '{word}'.\nType \"TASKKILL /?\" for usage.")
            return 1
    if not wanted:
        call.err("ERROR: Invalid syntax. Neither /FI nor /PID nor /IM were specified.")
        return 1
    code = 0
    for option, text in wanted:
        pattern = re.compile(re.escape(text).replace(r"\*", ".*"), re.IGNORECASE)
        tasks = [
            task
            for task in _tasks(call)
            if (str(task.process_id) == text if option == "/pid" else pattern.fullmatch(task.image))
        ]
        if not tasks:
            call.err(f'ERROR: The process "{text}" not found.')
            code = 128
        for task in tasks:
            if not call.guest.processes.kill(task.process_id):
                call.err(
                    f"ERROR: The process with PID {task.process_id} could not be terminated.\nReason: Access is denied."
                )
                code = 1
            elif option == "/pid":
                call.out(f"SUCCESS: The process with PID {task.process_id} has been terminated.")
            else:
                call.out(
                    f'SUCCESS: The process "{task.image}" with PID {task.process_id} has been terminated.'
                )
    return code


def _tasks(call: Invocation) -> list[_Task]:
    fixed = [_Task(image, process_id) for image, process_id in _SYSTEM]
    return fixed + [_Task(item.image, item.process_id) for item in call.guest.processes.running()]


def _holds(task: _Task, field: str, comparison: str, value: str) -> bool:
    actual = task.image if field.casefold() == "imagename" else str(task.process_id)
    return (actual.casefold() == value.strip().casefold()) == (comparison.casefold() == "eq")


def _print(call: Invocation, tasks: list[_Task], layout: str, header: bool) -> None:
    if layout == "csv":
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        if header:
            writer.writerow(["Image Name", "PID", "Session Name", "Session#", "Mem Usage"])
        writer.writerows([task.image, task.process_id, "Services", 0, _MEMORY] for task in tasks)
        call.out(text.getvalue().removesuffix("\n"))
        return
    if layout == "list":
        for task in tasks:
            call.out(f"\nImage Name:   {task.image}\nPID:          {task.process_id}")
            call.out(f"Session Name: Services\nSession#:     0\nMem Usage:    {_MEMORY}")
        return
    call.out()
    if header:
        call.out("Image Name                     PID Session Name        Session#    Mem Usage")
        call.out("========================= ======== ================ =========== ============")
    for task in tasks:
        call.out(f"{task.image[:25]:<25} {task.process_id:>8} {'Services':<16} {0:>11} {_MEMORY:>12}")
