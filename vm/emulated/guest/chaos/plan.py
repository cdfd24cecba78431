"""The faults of one machine: the setting read strictly, the places asked in turn, what fired remembered."""

from __future__ import annotations

import difflib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vm.emulated.guest.chaos import connections, files, machine, shells
from vm.emulated.guest.chaos.fault import ALWAYS, Controls, Fault, Firing, ProgramRefusal, Schedule, Unit
from vm.errors import ConfigurationError

if TYPE_CHECKING:
    from vm.emulated.guest.settings import GuestSettings

log = logging.getLogger(__name__)

T = TypeVar("T")
_JOIN_SECONDS = 5.0
_ITEM = re.compile(r"(?P<name>[^:@]+)(?::(?P<value>[^@]*))?(?:@(?P<when>.*))?", re.DOTALL)
_WHEN = re.compile(r"(?P<first>[1-9]\d*)(?P<open>\+)?(?:-(?P<last>[1-9]\d*))?")
_VALUE = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[a-zA-Z]*)")
_FACTORS: Mapping[Unit, Mapping[str, float]] = {
    Unit.SECONDS: {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0, "d": 86400.0},
    Unit.BYTES: {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30},
    Unit.NUMBER: {"": 1},
}


def _subclasses(base: type[Fault]) -> Iterator[type[Fault]]:
    for each in base.__subclasses__():
        yield from _subclasses(each)
        if "name" in vars(each):
            yield each


def known_faults() -> dict[str, type[Fault]]:
    """All faults by name, in the order of their names."""
    homes = {module.__name__ for module in (connections, files, machine, shells)}
    found = {fault.name: fault for fault in _subclasses(Fault) if fault.__module__ in homes}
    return dict(sorted(found.items()))


def parse(setting: str | Sequence[str], seed: int = 0) -> tuple[Fault, ...]:
    """The faults that a setting names.

    Args:
        setting: "" or [] for none.
        seed: of what faults decide by chance.

    Raises:
        ConfigurationError: an unknown or doubled fault, a value or a schedule that cannot be.
    """
    texts = setting.split(",") if isinstance(setting, str) else list(setting)
    found: dict[str, Fault] = {}
    for text in texts:
        if not isinstance(text, str):
            raise ConfigurationError(f"'chaos' holds '{text}', which is not the name of a fault")
        if not text.strip():
            if isinstance(setting, str) and not setting.strip():
                continue
            raise ConfigurationError("'chaos' holds an empty name between its commas")
        fault = _fault(text.strip(), seed)
        if fault.name in found:
            raise ConfigurationError(f"'chaos' names the fault '{fault.name}' twice")
        found[fault.name] = fault
    return tuple(found.values())


def _fault(text: str, seed: int) -> Fault:
    match = _ITEM.fullmatch(text)
    name = match["name"].strip() if match else text
    known = known_faults()
    if match is None or name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise ConfigurationError(
            f"'chaos' names the unknown fault '{name}'",
            hint=f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}",
        )
    kind = known[name]
    return kind(_value(kind, match["value"]), _schedule(name, match["when"]), seed)


def _value(kind: type[Fault], text: str | None) -> float | None:
    if text is None:
        if kind.unit is not Unit.NONE and kind.default is None:
            raise ConfigurationError(
                f"the fault '{kind.name}' needs a value: {kind.unit.value}", hint=f"write '{kind.name}:...'"
            )
        return None
    if kind.unit is Unit.NONE:
        raise ConfigurationError(f"the fault '{kind.name}' takes no value, and is given '{text}'")
    match = _VALUE.fullmatch(text.strip())
    factor = _FACTORS[kind.unit].get(match["unit"].casefold()) if match else None
    if match is None or factor is None:
        raise ConfigurationError(f"the value '{text}' of the fault '{kind.name}' is not {kind.unit.value}")
    value = float(match["number"]) * factor
    if value > kind.maximum:
        raise ConfigurationError(f"the value '{text}' of the fault '{kind.name}' is above {kind.maximum:g}")
    return value


def _schedule(name: str, text: str | None) -> Schedule | None:
    if text is None:
        return None
    if text.strip() == "*":
        return ALWAYS
    match = _WHEN.fullmatch(text.strip())
    if match is None or (match["open"] and match["last"]):
        raise ConfigurationError(
            f"'@{text}' of the fault '{name}' is no schedule", hint="write @3, @3+, @2-4 or @*"
        )
    first = int(match["first"])
    last = int(match["last"]) if match["last"] else None if match["open"] else first
    if last is not None and last < first:
        raise ConfigurationError(f"'@{text}' of the fault '{name}' ends before it begins")
    return Schedule(first, last)


class _Sink(Protocol):
    def write(self, data: bytes) -> None: ...


class Chaos:
    """All faults of a machine; without any, every place says that nothing is to happen.

    Threads that faults start or hold are released at every restart and are gone after `close`.
    """

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.faults = tuple(faults)
        self._lock = threading.Lock()
        self._firings: list[Firing] = []
        self._released = threading.Event()
        self._closed = False
        self._threads: list[threading.Thread] = []
        for fault in self.faults:
            fault.attach(self._fired, self.pause)

    def __bool__(self) -> bool:
        return bool(self.faults)

    def bind(self, controls: Controls) -> None:
        """Give the faults the machine that they act on; their actions run in threads of this object."""
        for fault in self.faults:
            fault.controls = _Threaded(controls, self.run)

    @property
    def firings(self) -> list[Firing]:
        """What fired so far, in order."""
        with self._lock:
            return list(self._firings)

    def report(self) -> list[dict[str, Any]]:
        """As the control channel tells it: every fault with its occasions and firings."""
        firings = self.firings
        return [
            {
                "fault": fault.name,
                "occasions": fault.occasions,
                "firings": [asdict(firing) for firing in firings if firing.fault == fault.name],
            }
            for fault in self.faults
        ]

    def pause(self, seconds: float) -> None:
        """Wait; ends early when the machine stops or restarts."""
        released = self._released
        released.wait(min(seconds, threading.TIMEOUT_MAX))

    def release(self) -> None:
        """The guest goes down: whoever is held up goes on. Held again from `resume` on."""
        self._released.set()

    def resume(self) -> None:
        """The guest has booted."""
        with self._lock:
            if not self._closed:
                # A new event: whoever waits for the old one must not be held again.
                self._released = threading.Event()

    def run(self, action: Callable[[], object], *, delay_seconds: float = 0.0) -> None:
        """Carry something out in a thread of its own, unless the machine stops or restarts within the delay."""

        released = self._released

        def work() -> None:
            if delay_seconds and released.wait(delay_seconds):
                return
            action()

        thread = threading.Thread(target=work, daemon=True, name="guest chaos")
        with self._lock:
            if self._closed:
                return
            self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """The machine stops: release and end everything; idempotent. Not to be called under a lock that actions take."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        self._released.set()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_SECONDS)

    # The places

    def settings(self, settings: GuestSettings) -> GuestSettings:
        return reduce(lambda result, fault: fault.settings(result), self.faults, settings)

    def noticed(self, place: str) -> None:
        for fault in self.faults:
            fault.noticed(place)

    def boot_delay_seconds(self) -> float:
        return max((fault.boot_delay_seconds() for fault in self.faults), default=0.0)

    def changes_ports(self) -> bool:
        return _any(fault.changes_ports() for fault in self.faults)

    def changes_host_key(self) -> bool:
        return _any(fault.changes_host_key() for fault in self.faults)

    def clock_step_seconds(self, *, first: bool) -> float:
        return sum(fault.clock_step_seconds(first=first) for fault in self.faults)

    def refuses_connection(self, server: str) -> bool:
        return _any(fault.refuses_connection(server) for fault in self.faults)

    def refuses_logon(self, server: str) -> bool:
        return _any(fault.refuses_logon(server) for fault in self.faults)

    def on_request(self) -> None:
        for fault in self.faults:
            fault.on_request()

    def dropped_idle(self) -> None:
        for fault in self.faults:
            fault.dropped_idle()

    def forgets_logon(self) -> bool:
        return _any(fault.forgets_logon() for fault in self.faults)

    def breaks_seal(self) -> bool:
        return _any(fault.breaks_seal() for fault in self.faults)

    def before(self, operation: str) -> None:
        for fault in self.faults:
            fault.before(operation)

    def after(self, operation: str) -> None:
        for fault in self.faults:
            fault.after(operation)

    def receive_bytes(self, budget: int) -> int:
        return min([budget, *(fault.receive_bytes(budget) for fault in self.faults)])

    def on_input(self, data: bytes) -> bytes:
        return reduce(lambda result, fault: fault.on_input(result), self.faults, data)

    def output(self, sink: _Sink) -> _Sink:
        """A command's standard output with the faults on the way to it."""
        return _Output(sink, self.faults) if self.faults else sink

    def code_page(self, asked: int) -> int:
        return reduce(lambda result, fault: fault.code_page(result), self.faults, asked)

    def exit_code(self, code: int) -> int:
        return reduce(lambda result, fault: fault.exit_code(result), self.faults, code)

    def on_program(self, program: str) -> ProgramRefusal | None:
        return _first(fault.on_program(program) for fault in self.faults)

    def result_of(self, program: str, arguments: Sequence[str], code: int) -> int:
        return reduce(lambda result, fault: fault.result_of(program, arguments, result), self.faults, code)

    def program_missing(self, program: str) -> bool:
        return _any(fault.program_missing(program) for fault in self.faults)

    def on_write(self, size: int) -> None:
        for fault in self.faults:
            fault.on_write(size)

    def on_upload(self, size: int) -> int:
        return min([size, *(fault.on_upload(size) for fault in self.faults)])

    def on_load(self, filter_name: str) -> int | None:
        return _first(fault.on_load(filter_name) for fault in self.faults)

    def on_unload(self, filter_name: str) -> int | None:
        return _first(fault.on_unload(filter_name) for fault in self.faults)

    def keeps_deleted(self, service: str) -> bool:
        return _any(fault.keeps_deleted(service) for fault in self.faults)

    def _fired(self, firing: Firing) -> None:
        log.info("chaos: '%s' at its occasion %d: %s", firing.fault, firing.occasion, firing.detail or "-")
        with self._lock:
            self._firings.append(firing)


class _Threaded:
    """Controls whose long actions run in a thread of their own: the one that met the fault is among what they end."""

    def __init__(self, controls: Controls, run: Callable[[Callable[[], object]], None]) -> None:
        self._controls = controls
        self._run = run

    def restart(self) -> None:
        self._run(self._controls.restart)

    def bugcheck(self, code: int, parameters: tuple[int, int, int, int], rule: str) -> None:
        self._run(lambda: self._controls.bugcheck(code, parameters, rule))

    def restart_winrm(self) -> None:
        # At once: a client that is told of a broken connection must not find its old shell.
        self._controls.restart_winrm()


class _Output:
    def __init__(self, sink: _Sink, faults: Sequence[Fault]) -> None:
        self._sink = sink
        self._faults = faults
        self._first = True

    def write(self, data: bytes) -> None:
        for fault in self._faults:
            data = fault.on_output(data, self._first)
        self._first = False
        self._sink.write(data)


def _first(values: Iterator[T | None]) -> T | None:
    """The first value that is one; all faults are asked, so that each counts its occasion."""
    return next((value for value in list(values) if value is not None), None)


def _any(values: Iterator[bool]) -> bool:
    """True if one of them is; unlike `any` it asks all faults, so that each counts its occasion."""
    return True in list(values)
