"""`C:\\Windows\\INF\\setupapi.dev.log`: what installations leave behind, in sections between `>>>` and `<<<`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from vm.emulated.guest.boot import WINDOWS_VERSION
from vm.emulated.guest.commands.session import Guest

LOG_PATH = "C:\\Windows\\INF\\setupapi.dev.log"


class SetupFailure(Exception):  # noqa: N818  # a code that is on its way to the command's end, not a fault of ours
    """An operation on the driver store fails with this code; `reason` goes to the log."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class SetupLog:
    """Appends to the log of one guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    @contextmanager
    def section(self, title: str, command: str) -> Iterator[None]:
        """One section; a `SetupFailure` inside is logged with its code and goes on."""
        self._write(
            f">>>  [{title}]\n>>>  Section start {self._time()}\n      cmd: {command}",
        )
        status = "SUCCESS"
        try:
            yield
        except SetupFailure as failure:
            self.failed(failure.reason, failure.code)
            status = f"FAILURE(0x{failure.code:08x})"
            raise
        finally:
            self._write(f"<<<  Section end {self._time()}\n<<<  [Exit status: {status}]\n\n")

    def note(self, area: str, text: str) -> None:
        """A line inside of a section; `area` is a word such as "sto" (driver store) or "sig" (signatures)."""
        self._write(f"     {area}: {text}")

    def failed(self, text: str, code: int) -> None:
        """A line about a failure."""
        self._write(f"!!!  sto: {text} Error = 0x{code:08X}")

    def _time(self) -> str:
        now = datetime.fromtimestamp(self._guest.clock.now(), UTC)
        return f"{now:%Y/%m/%d %H:%M:%S}.{now.microsecond // 1000:03}"

    def _write(self, text: str) -> None:
        path = self._guest.drive.root / "Windows" / "INF" / "setupapi.dev.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            text = f"[Device Install Log]\n     OS Version = {WINDOWS_VERSION}\n\n[BeginLog]\n\n{text}"
        data = (text + "\n").replace("\n", "\r\n").encode()
        self._guest.drive.charge(len(data))
        with path.open("ab") as file:
            file.write(data)
