"""Benchmarks of the emulated machine as a library: traps, callbacks, a fresh machine with the driver loaded."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.bench import Measurement

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel
    from vm.emulated.kernel.threads import Model

_CODE = 0xFFFF_F805_0000_0000
_REPEATS = 7
_CALLS = 20
_LOOPS = 400
_SECONDS = 120


def traps(root: Path) -> list[Measurement]:
    """Export calls and callbacks against the bare round trip: a stub with `hlt`, back, and into the engine again.

    The bare round trip is the library's own `uc_emu_start` on a `hlt`, called through ctypes with nothing around it.
    Each is the best of several runs, taken in turn, so that a slow moment of the host hits all alike.
    """
    from vm.emulated.boot import make_kernel

    kernel = make_kernel()
    _write_code(kernel)
    samples: dict[str, list[float]] = {"bare": [], "call": [], "callback": []}
    for _ in range(_REPEATS):
        samples["bare"].append(_bare(kernel))
        samples["call"].append(_export_call(kernel))
        samples["callback"].append(_callback(kernel))
    bare, call, callback = (min(samples[name]) for name in ("bare", "call", "callback"))
    kernel.close()
    return [
        Measurement("traps", "bare engine round trip", bare * 1e6, "us"),
        Measurement("traps", "export call (KeSetEvent)", call * 1e6, "us"),
        Measurement("traps", "export call / bare round trip", call / bare, "times", limit=5),
        Measurement("traps", "callback with 20 export calls", callback * 1e6, "us"),
        Measurement(
            "traps", "callback with 20 export calls / bare round trip", callback / bare, "times", limit=100
        ),
    ]


def fresh_machine(root: Path) -> list[Measurement]:
    """A new kernel with the Filter Manager, the volumes and the driver loaded, against starting Python with pytest."""
    from harness.builds import prepare
    from harness.config import load
    from vm.emulated.library import LibraryMachine

    image = prepare(load(root), None, None, None)().image.read_bytes()

    def machine() -> None:
        with LibraryMachine() as fresh:
            fresh.load("Downlink", image)

    machine()
    samples: dict[str, list[float]] = {"machine": [], "python": []}
    for _ in range(_REPEATS):
        samples["machine"].append(_timed(machine))
        samples["python"].append(_timed(_python_with_pytest))
    fresh, python = min(samples["machine"]), min(samples["python"])
    return [
        Measurement("fresh machine", "fresh machine with the driver loaded", fresh * 1e3, "ms"),
        Measurement("fresh machine", "Python started with pytest imported", python * 1e3, "ms"),
        Measurement("fresh machine", "machine / Python with pytest", fresh / python, "times", limit=0.1),
    ]


def _write_code(kernel: Kernel) -> None:
    """Driver code for the measurements: `hlt`; an empty function; a loop over one export; twenty calls in a row."""
    export = kernel.resolve_import("ntoskrnl.exe", "KeSetEvent")
    memory = kernel.memory
    memory.map(_CODE, 0x2000, 5)
    memory.poke(_CODE, b"\xf4")
    event = kernel.pool.allocate(0x18, "Benc", owner="bench")
    kernel.dispatcher.initialize(event, 0, 1)
    # sub rsp, 28h ... mov rcx, event; xor edx, edx; xor r8d, r8d; mov rax, export; call rax
    one = (
        b"\x48\xb9"
        + struct.pack("<Q", event)
        + b"\x31\xd2\x45\x31\xc0\x48\xb8"
        + struct.pack("<Q", export)
        + b"\xff\xd0"
    )
    enter, leave = b"\x48\x83\xec\x28", b"\x48\x83\xc4\x28\xc3"
    memory.poke(_CODE + 0x100, enter + one * _CALLS + leave)
    # push rbx; sub rsp, 20h; mov ebx, LOOPS; again: (call); dec ebx; jnz again; add rsp, 20h; pop rbx; ret
    body = one + b"\xff\xcb"
    loop = b"\x53\x48\x83\xec\x20\xbb" + struct.pack("<I", _LOOPS) + body
    loop += b"\x0f\x85" + struct.pack("<i", -(len(body) + 6)) + b"\x48\x83\xc4\x20\x5b\xc3"
    memory.poke(_CODE + 0x1000, loop)


def _bare(kernel: Kernel) -> float:
    from vm.emulated.cpu.engine import bare_round_trip

    count = 5000
    kernel.engine.run(_CODE)
    trip = bare_round_trip(kernel.engine, _CODE)
    began = time.perf_counter()
    for _ in range(count):
        trip()
    return (time.perf_counter() - began) / count


def _export_call(kernel: Kernel) -> float:
    return _run(kernel, _CODE + 0x1000, 5) / 5 / _LOOPS


def _callback(kernel: Kernel) -> float:
    return _run(kernel, _CODE + 0x100, 200) / 200


def _run(kernel: Kernel, address: int, times: int) -> float:
    from vm.emulated.kernel.threads import Call

    def work() -> Model:
        for _ in range(times):
            yield Call(address, ())

    return _timed(lambda: kernel.run(work(), "bench"))


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _python_with_pytest() -> None:
    subprocess.run([sys.executable, "-c", "import pytest"], check=True, capture_output=True, timeout=_SECONDS)
