"""Benchmarks of the ways into a guest, side by side on the loopback: SFTP, WinRM's standard input, and base64 on the
command line, which is how it is done without either and is kept nowhere else."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.bench import Measurement
from harness.log import Log
from harness.remote.channels import Upload
from harness.remote.guest import Guest
from harness.remote.winrm import WinRm
from vm.deadline import Deadline
from vm.machine import GuestAddress

_SECONDS = 300
_REPEATS = 3
_BIG_BYTES = 20_000_000
_NAIVE_BYTES = 200_000
"""Enough for a hundred commands; the time per byte does not depend on how many there are."""
_NAIVE_PIECE_BYTES = 1_998
"""A multiple of three: what is appended to base64 must not have padding in front of it."""
_PACKAGE_FILES = 8
_PACKAGE_BYTES = 10_000_000
_TARGET = "C:\\Downlink\\bench"

_SFTP_TIMES = 50.0
_STDIN_TIMES = 20.0
_UNCHANGED_TIMES = 20.0


@dataclass(slots=True)
class _Traffic:
    """What went to WinRM: requests, and bytes of their envelopes before they were sealed."""

    requests: int = 0
    envelope_bytes: int = 0


class _CountingWinRm(WinRm):
    """WinRM with a count of what it sends."""

    def __init__(self, address: GuestAddress, log: Log) -> None:
        super().__init__(address, machine="bench", log=log)
        self.traffic = _Traffic()

    def _protocol(self, address: GuestAddress) -> Any:
        protocol = super()._protocol(address)
        send = protocol.transport.send_message

        def counted(message: str | bytes) -> bytes:
            self.traffic.requests += 1
            self.traffic.envelope_bytes += len(message)
            answer: bytes = send(message)
            return answer

        protocol.transport.send_message = counted
        return protocol


def upload(root: Path) -> list[Measurement]:
    """Speeds are the best of several transfers of random bytes, over connections that are open already."""
    with tempfile.TemporaryDirectory(prefix="downlink-bench-") as name:
        scratch = Path(name)
        with _machine(scratch / "machines" / "bench") as address:
            return [*_speeds(address, scratch), *_package(address, scratch)]


def _speeds(address: GuestAddress, scratch: Path) -> list[Measurement]:
    big, small = scratch / "big", scratch / "small"
    big.write_bytes(os.urandom(_BIG_BYTES))
    small.write_bytes(os.urandom(_NAIVE_BYTES))
    deadline = Deadline.after(seconds=_SECONDS)
    log = Log()
    over_winrm = replace(address, ssh_port=None)
    counting = _CountingWinRm(over_winrm, log)
    with (
        Guest(address, machine="bench", log=log) as sftp,
        Guest(over_winrm, machine="bench", log=log, commands=counting) as stdin,
    ):
        for guest in (sftp, stdin):
            guest.put_bytes(b"", f"{_TARGET}\\first", deadline)
        fast = _speed(_BIG_BYTES, lambda: sftp.put([Upload(big, f"{_TARGET}\\sftp")], deadline))
        counting.traffic = _Traffic()
        middle = _speed(_BIG_BYTES, lambda: stdin.put([Upload(big, f"{_TARGET}\\stdin")], deadline))
        by_stdin = counting.traffic
        counting.traffic = _Traffic()
        naive = _speed(_NAIVE_BYTES, lambda: _naive(stdin, small, deadline))
        by_line = counting.traffic
        digest = hashlib.sha256(big.read_bytes()).hexdigest()
        sftp.verify({f"{_TARGET}\\sftp": digest, f"{_TARGET}\\stdin": digest}, deadline)
        sftp.verify({f"{_TARGET}\\naive": hashlib.sha256(small.read_bytes()).hexdigest()}, deadline)
    big_megabytes, naive_megabytes = (size / 1e6 * _REPEATS for size in (_BIG_BYTES, _NAIVE_BYTES))
    return [
        Measurement("upload", "SFTP", fast, "MB/s"),
        Measurement("upload", "WinRM standard input, sealed", middle, "MB/s"),
        Measurement("upload", "base64 on the command line", naive, "MB/s"),
        Measurement(
            "upload", "SFTP / base64 on the command line", fast / naive, "times", at_least=_SFTP_TIMES
        ),
        Measurement(
            "upload",
            "standard input / base64 on the command line",
            middle / naive,
            "times",
            at_least=_STDIN_TIMES,
        ),
        Measurement("upload", "requests per MB, standard input", by_stdin.requests / big_megabytes, ""),
        Measurement(
            "upload", "requests per MB, base64 on the command line", by_line.requests / naive_megabytes, ""
        ),
        Measurement(
            "upload",
            "bytes in envelopes per byte sent, standard input",
            by_stdin.envelope_bytes / 1e6 / big_megabytes,
            "",
        ),
        Measurement(
            "upload",
            "bytes in envelopes per byte sent, base64 on the command line",
            by_line.envelope_bytes / 1e6 / naive_megabytes,
            "",
        ),
    ]


def _package(address: GuestAddress, scratch: Path) -> list[Measurement]:
    """A package of 10 MB for the first time, unchanged, and with one small file changed; once per way."""
    files: dict[str, Path] = {}
    for number in range(_PACKAGE_FILES):
        files[f"file{number}.bin"] = scratch / f"file{number}.bin"
        files[f"file{number}.bin"].write_bytes(os.urandom(_PACKAGE_BYTES // _PACKAGE_FILES))
    files["small.inf"] = scratch / "small.inf"
    found: list[Measurement] = []
    for title, reached in (("SFTP", address), ("standard input", replace(address, ssh_port=None))):
        files["small.inf"].write_bytes(os.urandom(3_000))
        counting = _CountingWinRm(reached, Log())
        with Guest(reached, machine="bench", commands=counting) as guest:
            guest.put_bytes(b"", f"{_TARGET}\\first", Deadline.after(seconds=_SECONDS))
            guest.run("ver", deadline=Deadline.after(seconds=_SECONDS))

            def sync(guest: Guest = guest, title: str = title) -> None:
                place = f"{_TARGET}\\package {title}"
                guest.sync(files, place, Deadline.after(seconds=_SECONDS), manifest=f"{place}.json")

            first = _seconds(sync)
            counting.traffic = _Traffic()
            unchanged = min(_seconds(sync) for _ in range(_REPEATS))
            requests = counting.traffic.requests / _REPEATS
            files["small.inf"].write_bytes(os.urandom(3_000))
            changed = _seconds(sync)
        found += [
            Measurement("upload", f"package of 10 MB, first time, {title}", first, "s"),
            Measurement("upload", f"package of 10 MB, unchanged, {title}", unchanged * 1e3, "ms"),
            Measurement("upload", f"package of 10 MB, 3 kB of it changed, {title}", changed * 1e3, "ms"),
            Measurement(
                "upload",
                f"package of 10 MB, first time / unchanged, {title}",
                first / unchanged,
                "times",
                at_least=_UNCHANGED_TIMES if title == "SFTP" else None,
            ),
            Measurement("upload", f"WinRM requests for an unchanged package, {title}", requests, ""),
        ]
    return found


def _naive(guest: Guest, source: Path, deadline: Deadline) -> None:
    """Base64 appended to a file by one `echo` per piece, decoded at the end."""
    encoded = f"{_TARGET}\\naive.b64"
    content = source.read_bytes()
    guest.remove([encoded], deadline)
    for start in range(0, len(content), _NAIVE_PIECE_BYTES):
        text = base64.b64encode(content[start : start + _NAIVE_PIECE_BYTES]).decode("ascii")
        guest.run(f"echo {text}>> {encoded}", deadline=deadline)
    guest.run(f"certutil -f -decode {encoded} {_TARGET}\\naive", deadline=deadline)


def _speed(size_bytes: int, transfer: Callable[[], object]) -> float:
    """Megabytes per second of the best of several transfers."""
    return size_bytes / 1e6 / min(_seconds(transfer) for _ in range(_REPEATS))


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@contextmanager
def _machine(directory: Path) -> Iterator[GuestAddress]:
    """An emulated machine of its own, in a process of its own."""
    from vm.registry import KINDS

    machine = KINDS["emulated"].create("bench", directory, {"rules": {}})
    deadline = Deadline.after(seconds=_SECONDS)
    try:
        yield machine.start(deadline, keep=False)
    finally:
        machine.stop(deadline)
