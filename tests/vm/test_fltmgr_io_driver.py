"""The I/O path with a compiled minifilter: contexts, names, a swapped buffer, a posted read, a deferred completion."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.toolchain import cross_compile
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.image.pdb import read_symbols
from vm.emulated.library import Client, LibraryMachine

SOURCE = Path(__file__).parent / "drivers" / "filewatch.c"
ALL = n.FILE_GENERIC_READ | n.FILE_GENERIC_WRITE | n.DELETE


@cache
def built(out: Path) -> tuple[bytes, bytes]:
    result = cross_compile([SOURCE], "filewatch", out)
    return result.image.read_bytes(), result.image.with_suffix(".pdb").read_bytes()


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    return built(tmp_path_factory.mktemp("filewatch"))


@pytest.fixture(params=[1, 2, 3])
def machine(request: Any, driver: tuple[bytes, bytes]) -> Iterator[LibraryMachine]:
    """A machine with the filter loaded; at the end it is unloaded and must have left nothing behind."""
    with LibraryMachine(seed=request.param) as made:
        made.load("filewatch", driver[0], symbols=read_symbols(driver[1]))
        yield made
        made.settle()
        assert made.unload("filewatch") == 0
        assert made.condition.clean, made.condition


@pytest.fixture
def client(machine: LibraryMachine) -> Client:
    return machine.client()


def opened(client: Client, path: str, disposition: int = n.FILE_OPEN_IF) -> int:
    values = client.must(
        "create_file",
        path=path,
        access=ALL,
        share=7,
        disposition=disposition,
        options=n.FILE_SYNCHRONOUS_IO_NONALERT | n.FILE_NON_DIRECTORY_FILE,
        attributes=n.FILE_ATTRIBUTE_NORMAL,
    )
    return int(values["handle"])


def lines(machine: LibraryMachine) -> list[str]:
    return [line.rstrip("\n") for line in machine.kernel.debug_lines]


def test_a_driver_sees_names_processes_and_results(machine: LibraryMachine, client: Client) -> None:
    client.must("close", handle=opened(client, r"D:\New File.txt", n.FILE_CREATE))
    assert lines(machine) == [
        f"{client.process.id} opened New File.txt in \\ as {n.FILE_CREATED}, asked for {n.FILE_CREATE}",
        "context gone: 0 writes, 0 bytes",
    ]


@pytest.mark.parametrize("completion_irql", [0, 2])
def test_a_swapped_buffer_is_what_reaches_the_file(
    machine: LibraryMachine, client: Client, completion_irql: int
) -> None:
    io_state(machine.kernel).settings.completion_irql = completion_irql
    handle = opened(client, r"D:\a.txt")
    assert client.must("write_file", handle=handle, offset=None, data=b"first")["written"] == 5
    assert client.must("write_file", handle=handle, offset=None, data=b"second")["written"] == 6
    assert client.must("read_file", handle=handle, offset=0, length=100)["data"] == b"*irst*econd"
    client.must("close", handle=handle)
    machine.settle()
    assert lines(machine)[1:] == [
        "read of 100 bytes goes on in process 4",
        "context gone: 2 writes, 11 bytes",
    ]


def test_a_deletion_is_told_by_the_query_after_the_cleanup(machine: LibraryMachine, client: Client) -> None:
    handle = opened(client, r"D:\a.txt")
    client.must("set_information", handle=handle, data=b"\1", **{"class": n.FileDispositionInformation})
    client.must("close", handle=handle)
    assert "deleted" in lines(machine)


def test_files_that_are_open_when_the_filter_is_unloaded_lose_their_contexts(
    machine: LibraryMachine, client: Client, driver: tuple[bytes, bytes]
) -> None:
    handle = opened(client, r"D:\a.txt")
    client.must("write_file", handle=handle, offset=None, data=b"x")
    assert machine.unload("filewatch") == 0
    assert lines(machine)[-1] == "context gone: 1 writes, 1 bytes"
    assert client.must("read_file", handle=handle, offset=0, length=9)["data"] == b"*"
    client.must("close", handle=handle)
    machine.load("filewatch", driver[0])  # the fixture unloads it at the end
