"""Faults of files and transfers: SFTP that breaks or crawls, disks that are full, machines that die while copying."""

from __future__ import annotations

import errno
from typing import Any

from vm.emulated.guest.chaos.fault import ALWAYS, Fault, Unit


class _AfterBytes(Fault):
    """Acts once that many bytes have passed; each further group of so many bytes is one more occasion."""

    unit = Unit.BYTES
    default = 1 << 16

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._passed = 0

    def passed(self, size: int) -> bool:
        """Count bytes; True if the fault acts on them."""
        self._passed += size
        if self._passed <= self.value:
            return False
        self._passed = 0
        return self.strikes()


class SftpCloses(_AfterBytes):
    """The SSH connection closes in the middle of an upload; half a file stays (windows-lab B: write to *.part)."""

    name = "sftp-closes"

    def on_upload(self, size: int) -> int:
        if self.passed(size):
            raise ConnectionAbortedError(errno.ECONNABORTED, "the connection closes")
        return size


class SftpShortWrite(_AfterBytes):
    """The server says it has written everything and has not (windows-lab B: confirm compares the size only)."""

    name = "sftp-short-write"

    def on_upload(self, size: int) -> int:
        return size // 2 if self.passed(size) else size


class SftpSlow(Fault):
    """A slow SFTP server: so many bytes a second and no more (windows-lab B: 0.8 MB/s has been measured)."""

    name = "sftp-slow"
    unit = Unit.BYTES
    default = 1 << 20
    habit = ALWAYS

    def on_upload(self, size: int) -> int:
        if self.strikes():
            self.pause(size / max(1.0, self.value))
        return size


class DiskFull(Fault):
    """Only so many more bytes fit on C:; then every write fails, by SFTP and by commands (windows-lab H, preflight)."""

    name = "disk-full"
    unit = Unit.BYTES
    default = 0
    habit = ALWAYS

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.used = 0

    def on_write(self, size: int) -> None:
        if self.used + size > self.value and self.strikes(f"{size} bytes"):
            # A smaller write must not slip in where a larger one failed.
            self.used = int(self.value) + 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self.used += size


class RestartInCopy(_AfterBytes):
    """The whole guest restarts in the middle of an upload (windows-lab D.4: updates, watchdogs, people)."""

    name = "restart-in-copy"

    def on_write(self, size: int) -> None:
        if self.passed(size):
            assert self.controls is not None
            self.controls.restart()


class BugcheckInCopy(_AfterBytes):
    """The machine bugchecks while files are copied: the driver under test sees that I/O, too (windows-lab D.4)."""

    name = "bugcheck-in-copy"

    def on_write(self, size: int) -> None:
        if self.passed(size):
            assert self.controls is not None
            self.controls.bugcheck(
                0xD1, (0x28, 2, 0, 0), "chaos: a bugcheck in the middle of a copy was asked for"
            )
