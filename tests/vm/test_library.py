"""The machine as a library with the project's own driver: exactly repeatable, and its parts as the harness sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.client import protocol
from vm.emulated.kernel.scheduler import Preemption
from vm.emulated.library import LibraryMachine, ServiceFailedError

ROOT = Path(__file__).resolve().parents[2]
GENERIC_ALL_SHARED = {"access": 0xC011_0000, "share": 7, "options": 0x40, "attributes": 0x80}
FILE_CREATE = 2
CONTEXT = protocol.Connect(
    event_mask=protocol.MASK_ALL, flags=protocol.ConnectFlag.INCLUDE_OWN_PROCESS
).encode()


@pytest.fixture(scope="module")
def image() -> bytes:
    from harness.builds import prepare
    from harness.config import load

    return prepare(load(ROOT), None, None, None)().image.read_bytes()


def trace_of(image: bytes, seed: int, work: Callable[[LibraryMachine], None]) -> tuple[str, int]:
    """Digest of every export call with its thread and registers, and the number of calls."""
    digest = hashlib.sha256()
    preemption = Preemption(instructions=(20, 400), exports=(1, 8))
    with LibraryMachine(seed=seed, preemption=preemption) as machine:

        def note(thread: Any, export: Any, registers: tuple[int, ...], value: Any) -> None:
            digest.update(repr((thread.id, export.name, registers, str(value)[:40])).encode())

        machine.load("Downlink", image)
        machine.kernel.scheduler.on_call = note
        work(machine)
        assert machine.unload("Downlink") == 0
        assert machine.condition.clean
        return digest.hexdigest(), machine.kernel.scheduler.calls


def some_work(machine: LibraryMachine) -> None:
    clients = [machine.client() for _ in range(3)]
    handles = [
        c.must("connect_port", name=r"\DownlinkPort", context=CONTEXT, context_size=len(CONTEXT))["handle"]
        for c in clients
    ]
    writers = [
        client.begin("create_file", path=rf"D:\file{number}", disposition=FILE_CREATE, **GENERIC_ALL_SHARED)
        for number, client in enumerate(clients)
    ]
    for client, writer in zip(clients, writers, strict=True):
        _, values = writer.result()
        client.must("write_file", handle=values["handle"], offset=0, data=b"x" * 100)
        client.must("close", handle=values["handle"])
    operation = clients[0].must("get_message", handle=handles[0], size=65536)["operation"]
    status, _ = clients[0].call("wait_operation", operation=operation, timeout=1000)
    assert status == 0
    clients[1].exit()


def test_the_same_seed_gives_the_same_run_to_the_call(image: bytes) -> None:
    assert trace_of(image, 7, some_work) == trace_of(image, 7, some_work)


def test_different_seeds_give_different_runs(image: bytes) -> None:
    assert len({trace_of(image, seed, some_work)[0] for seed in range(4)}) == 4


def test_a_driver_without_its_instances_is_not_loaded(image: bytes) -> None:
    with LibraryMachine() as machine:
        machine.kernel.registry.create_key(r"HKLM\SYSTEM\CurrentControlSet\Services\Downlink")
        with pytest.raises(ServiceFailedError, match="STATUS_OBJECT_NAME_NOT_FOUND"):
            machine.load("Downlink", image)
        assert machine.condition.clean


def test_memory_of_the_driver_is_gone_after_the_unload(image: bytes) -> None:
    with LibraryMachine() as machine:
        machine.load("Downlink", image)
        some_work(machine)
        assert machine.kernel.pool.owned_by("downlink") or machine.kernel.pool.owned_by("Downlink")
        machine.unload("Downlink")
        assert not machine.kernel.pool.owned_by("downlink")
        assert not machine.kernel.pool.owned_by("Downlink")
