"""`./inv listen`: a client of the driver in a machine's guest, whose events are shown here as they happen."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

from harness import interrupts
from harness.client import hresult
from harness.client.listen import CONNECTING, KINDS, VARIABLE, Request
from harness.client.protocol import (
    MASK_FILES,
    STATISTICS_INTERVAL_MAXIMUM,
    STATISTICS_INTERVAL_MINIMUM,
    Kind,
)
from harness.config import Configuration, DriverConfig
from harness.console import Console
from harness.deployment.plan import GUEST_ROOT
from harness.listen_view import ListenView
from harness.remote.guest import Guest, failure
from harness.runs import upload
from vm.deadline import Deadline
from vm.errors import ConfigurationError, GuestError, MachineError
from vm.machine import GuestAddress, MachineState

UPLOAD_SECONDS = 60
STATISTICS_SECONDS = 1.0
"""How often `--statistics` without a number shows the counters."""

DIRECTORY = PurePosixPath("listen")
MANIFEST = str(GUEST_ROOT / "listen-files.json")
"""Apart from the suites' library: a run that goes on meanwhile must not find its files changed."""

_DRIVE = re.compile(r"[A-Za-z]:(\\.*)?", re.DOTALL)


class LineSplitter:
    """Takes text in pieces as they arrive and hands out whole lines without their ends."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest: list[str] = []

    def feed(self, text: str) -> None:
        """Take the next piece."""
        first, *others = text.split("\n")
        self._rest.append(first)
        for piece in others:
            line, self._rest = "".join(self._rest), [piece]
            self._on_line(line.rstrip("\r"))


def request(
    driver: DriverConfig,
    *,
    kinds: str = "",
    path: str = "",
    statistics: str | bool = "",
    failed: bool = False,
) -> Request:
    """What the options of the command ask for.

    Args:
        driver: whose port to connect to.
        kinds: words of `KINDS`, separated by commas; empty for everything that happens to files.
        path: in the guest, with its drive or as a device path; slashes are taken for backslashes.
        statistics: seconds between two counts as text; True for the default, empty for none.
        failed: operations that failed, too.

    Raises:
        ConfigurationError: an option says what cannot be.
    """
    milliseconds = _milliseconds(statistics)
    mask = _mask(kinds)
    if milliseconds:
        mask |= Kind.STATISTICS.bit
    elif mask & Kind.STATISTICS.bit:
        milliseconds = round(STATISTICS_SECONDS * 1000)
    return Request(driver.port, mask, _path(path), failed, milliseconds)


def listen(
    configuration: Configuration,
    machine_name: str | None,
    driver: DriverConfig,
    wanted: Request,
    console: Console,
    *,
    as_json: bool = False,
) -> int:
    """Show events until Ctrl-C (exit status 0) or until the driver is unloaded (1); nothing stays behind in the guest.

    Raises:
        MachineError: the machine does not run.
        GuestError: the driver is not loaded or refuses the connection, or the guest went away.
    """
    # Not held: one listens while another command works with the machine.
    mend = "./inv deploy" + (f" --machine {machine_name}" if machine_name else "")
    machine = configuration.create_machine(machine_name, driver)
    if machine.state() not in (MachineState.RUNNING, MachineState.DIRTY):
        raise MachineError("the machine does not run", hint=mend, machine=machine.name)
    session = _Session(driver.service, machine.name, mend, ListenView(console, as_json=as_json))
    try:
        # Ending the process in the guest takes a moment, and an impatient second Ctrl-C must not leave it behind.
        with interrupts.one_interrupt():
            return session.run(configuration, machine.address, wanted)
    except BrokenPipeError:
        # Whoever read the lines has left (`| head`): that is the wish to end, too.
        _discard_output()
        return 0


class _Session:
    """One connection from its beginning to its last line."""

    def __init__(self, service: str, machine: str, mend: str, view: ListenView) -> None:
        self._service = service
        self._machine = machine
        self._mend = mend
        self._view = view
        self._reason: str | None = None
        self._error: GuestError | None = None
        self._began: float | None = None

    def run(self, configuration: Configuration, address: Callable[[], GuestAddress], wanted: Request) -> int:
        """Listen; returns the exit status."""
        with Guest(address, machine=self._machine) as guest:
            sources = upload.client_library(configuration.root, DIRECTORY)
            upload.send(
                guest, upload.hashed(sources), Deadline.after(seconds=UPLOAD_SECONDS), manifest=MANIFEST
            )
            try:
                result = guest.run(
                    ["python", "-m", "harness.client.listen"],
                    deadline=Deadline.never(),
                    check=False,
                    # The working directory of `python -m` is where it imports from.
                    directory=str(GUEST_ROOT / str(DIRECTORY)),
                    environment={VARIABLE: wanted.encode()},
                    on_output=LineSplitter(self._line).feed,
                    keep_output=False,
                )
            except KeyboardInterrupt as interrupt:
                # By now the guest's process has been ended: that is how `run` is left.
                self._end()
                return interrupts.exit_status(interrupt) if _terminated(interrupt) else 0
            except GuestError:
                self._end()
                raise
        if self._error is not None:
            raise self._error
        if self._reason is None:
            self._end()
            raise failure(result, self._machine)
        self._end(self._reason)
        return 1

    def _end(self, reason: str | None = None) -> None:
        """The last line, if there was a first one."""
        if self._began is not None:
            self._view.end(time.monotonic() - self._began, reason)

    def _line(self, line: str) -> None:
        try:
            event = json.loads(line)
            name = event["event"]
        except (ValueError, KeyError, TypeError):
            return  # not ours: what a customised interpreter says at its start
        if name == "listening":
            self._began = time.monotonic()
            self._view.start(self._service, self._machine)
        elif name == "error":
            self._error = self._explained(event)
        elif name == "ended":
            self._reason = event["reason"]
        else:
            self._view.event(event)

    def _explained(self, event: dict[str, Any]) -> GuestError:
        """The error for what the process in the guest could not do."""
        code = event["code"]
        if event["step"] == CONNECTING and code == hresult.FILE_NOT_FOUND:
            return GuestError(
                f"the driver '{self._service}' is not loaded", hint=self._mend, machine=self._machine
            )
        return GuestError(event["message"], machine=self._machine)


def _terminated(interrupt: KeyboardInterrupt) -> bool:
    return isinstance(interrupt, interrupts.TerminatedError)


def _mask(words: str) -> int:
    if not words.strip():
        return MASK_FILES
    mask = 0
    for word in (word.strip().lower() for word in words.split(",")):
        if word not in KINDS:
            near = get_close_matches(word, KINDS, n=1)
            known = ", ".join(f"'{known}'" for known in KINDS)
            raise ConfigurationError(
                f"there is no kind of event '{word}'",
                hint=f"did you mean '{near[0]}'?" if near else f"known are {known}",
            )
        mask |= KINDS[word].bit
    return mask


def _path(text: str) -> str:
    path = text.replace("/", "\\")
    if path and not _DRIVE.fullmatch(path) and not path.lower().startswith("\\device\\"):
        raise ConfigurationError(
            f"'{text}' is not a full path in the guest", hint=r"write it with its drive: --path 'D:\dir'"
        )
    # What is watched is the directory itself and what is in it.
    return path.rstrip("\\")


def _milliseconds(statistics: str | bool) -> int:
    if isinstance(statistics, bool):
        return round(STATISTICS_SECONDS * 1000) if statistics else 0
    if not statistics:
        return 0
    lowest, highest = STATISTICS_INTERVAL_MINIMUM / 1000, STATISTICS_INTERVAL_MAXIMUM // 1000
    try:
        seconds = float(statistics)
    except ValueError:
        seconds = 0.0
    if not lowest <= seconds <= highest:
        raise ConfigurationError(
            f"'{statistics}' is no interval for the statistics",
            hint=f"seconds between {lowest:g} and {highest}: --statistics 5",
        )
    return round(seconds * 1000)


def _discard_output() -> None:
    """Keep the interpreter from flushing into the closed pipe once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
