"""Connection contexts, hostile ones included: an oracle of its own says what each has to bring."""

from __future__ import annotations

import random
import struct

import pytest

from harness.client.protocol import CONNECT_LAYOUT, CONNECT_MAGIC, MASK_ALL, PORT_NAME, Connect
from tests.vm.driver_lab import Station, Stations
from vm.emulated.library import Client

SUCCESS = 0
INVALID_PARAMETER = 0xC000_000D
REVISION_MISMATCH = 0xC000_0059
INSUFFICIENT_RESOURCES = 0xC000_009A
CASES = 2000
SIZE = CONNECT_LAYOUT.size
INTERESTING = (
    0, 1, 2, 3, 7, 8, 31, 32, 33, 34, 99, 100, 0x3FF, 0x400, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF,
    0x10000, 0x40000, 0x40001, 0x400000, 0x400001, 86_400_000, 86_400_001, 0x703FE, 0x7FFF_FFFF, 0x8000_0000,
    0xFFFF_FFFF,
)  # fmt: skip


def expected(context: bytes) -> int:
    """What the protocol header says of a context."""
    if len(context) < SIZE:
        return INVALID_PARAMETER
    magic, size, minimum, maximum, prefix, mask, flags, queue, message, interval = CONNECT_LAYOUT.unpack_from(
        context
    )
    if magic != CONNECT_MAGIC or minimum > maximum:
        return INVALID_PARAMETER
    if not minimum <= 1 <= maximum:
        return REVISION_MISMATCH
    good = (
        size == len(context) == SIZE + prefix
        and prefix % 2 == 0
        and mask & ~MASK_ALL == 0
        and flags & ~7 == 0
        and (queue == 0 or 0x1000 <= queue <= 0x400000)
        and (message == 0 or 0x400 <= message <= 0x40000)
        and (interval == 0 or 100 <= interval <= 86_400_000)
    )
    return SUCCESS if good else INVALID_PARAMETER


def attempt(client: Client, context: bytes, size: int | None = None) -> int:
    """Connect and, if it was accepted, leave again; returns the status of the connect."""
    status, values = client.call(
        "connect_port", name=PORT_NAME, context=context, context_size=len(context) if size is None else size
    )
    if status == SUCCESS:
        client.must("close", handle=values["handle"])
    return status


def random_context(chance: random.Random) -> bytes:
    """Mostly nearly right, sometimes quite wrong."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.choice([1, 4, 31, 32, 33, 40, 64, 0x400, 0xFFE7]))
    good = Connect(
        event_mask=chance.choice([0, 2, MASK_ALL]),
        flags=chance.randrange(8),
        path_prefix=chance.choice(["", "\\Device\\HarddiskVolume2", "\ud800", "x" * 300]),
        queue_bytes=chance.choice([0, 0x1000, 0x8000]),
        message_bytes=chance.choice([0, 0x400, 0x40000]),
        statistics_interval_ms=chance.choice([0, 100, 86_400_000]),
        minimum_version=chance.choice([0, 1, 1, 1, 2]),
        maximum_version=chance.choice([1, 2, 7]),
    ).encode()
    data = bytearray(good)
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
        match chance.randrange(5):
            case 0:
                offset = chance.choice([0, 0xC, 0x10, 0x14, 0x18, 0x1C])
                data[offset : offset + 4] = struct.pack("<I", chance.choice(INTERESTING))
            case 1:
                offset = chance.choice([4, 6, 8, 0xA])
                data[offset : offset + 2] = struct.pack("<H", chance.choice(INTERESTING) & 0xFFFF)
            case 2:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 3:
                del data[chance.randrange(1, len(data) + 1) :]
            case _:
                data += chance.randbytes(chance.randrange(1, 9))
    return bytes(data)


def fuzz(station: Station, *, seed: int, cases: int) -> dict[int, int]:
    """So many contexts, each against the oracle; how often each status came."""
    chance = random.Random(seed)
    client = station.machine.client()
    station.machine.settle()
    before = station.pool_bytes()
    seen: dict[int, int] = {}
    for number in range(cases):
        context = random_context(chance)
        status = attempt(client, context)
        if not context:
            assert status == INVALID_PARAMETER
        else:
            assert status == expected(context), (number, context[:64].hex(), len(context))
        seen[status] = seen.get(status, 0) + 1
    station.machine.settle()
    assert station.pool_bytes() == before
    assert not station.machine.manager.ports.connections
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_no_context_crashes_leaks_or_connects_by_mistake(stations: Stations, seed: int) -> None:
    seen = fuzz(stations(seed=seed), seed=seed, cases=CASES // 4)
    assert min(seen.get(status, 0) for status in (SUCCESS, INVALID_PARAMETER, REVISION_MISMATCH)) > 10


@pytest.mark.parametrize("length", [0, 1, 4, 31])
def test_a_context_shorter_than_its_structure_is_malformed(station: Station, length: int) -> None:
    context = Connect().encode()[:length]
    assert attempt(station.machine.client(), context) == INVALID_PARAMETER


def test_a_client_without_a_context_is_refused(station: Station) -> None:
    status, _ = station.machine.client().call("connect_port", name=PORT_NAME, context=None, context_size=0)
    assert status == INVALID_PARAMETER


@pytest.mark.parametrize(
    ("minimum", "maximum", "status"),
    [
        (1, 1, SUCCESS),
        (0, 0xFFFF, SUCCESS),
        (1, 2, SUCCESS),
        (0, 1, SUCCESS),
        (2, 2, REVISION_MISMATCH),
        (2, 0xFFFF, REVISION_MISMATCH),
        (0, 0, REVISION_MISMATCH),
        (2, 1, INVALID_PARAMETER),
    ],
)
def test_a_client_is_served_if_its_versions_include_the_drivers(
    station: Station, minimum: int, maximum: int, status: int
) -> None:
    context = Connect(minimum_version=minimum, maximum_version=maximum).encode()
    assert attempt(station.machine.client(), context) == status


def test_a_version_of_the_future_may_look_otherwise(station: Station) -> None:
    """The version comes before everything that a later version may define: it gets the right answer."""
    later = CONNECT_LAYOUT.pack(CONNECT_MAGIC, 40, 2, 3, 999, 0xFFFF_FFFF, 0xFFFF_FFFF, 1, 1, 1) + bytes(8)
    assert attempt(station.machine.client(), later) == REVISION_MISMATCH


def test_the_longest_prefix_is_taken(station: Station) -> None:
    """A context has at most 0xFFE7 bytes (fact C13)."""
    characters = (0xFFE7 - SIZE) // 2
    longest = Connect(event_mask=2, path_prefix="p" * characters).encode()
    assert attempt(station.machine.client(), longest) == SUCCESS


@pytest.mark.parametrize("interval", [99, 86_400_001, 0xFFFF_FFFF])
def test_an_interval_out_of_bounds_is_malformed(station: Station, interval: int) -> None:
    context = Connect(statistics_interval_ms=interval).encode()
    assert attempt(station.machine.client(), context) == INVALID_PARAMETER


def test_the_context_is_read_before_the_callback_returns_and_never_again(station: Station) -> None:
    """The prefix lies in memory that is gone after the callback (fact C4): the filter works none the less."""
    volume = "\\Device\\HarddiskVolume2"
    listener = station.listener(path_prefix=f"{volume}\\IN\\")
    worker = station.worker()
    for name in ("in", "inside"):
        worker.directory(f"D:\\{name}")
        worker.file(f"D:\\{name}\\a", b"1")
    assert {r.path for r in listener.records()} == {f"{volume}\\in\\a"}


def test_a_prefix_is_compared_without_regard_to_case(station: Station) -> None:
    volume = "\\Device\\HarddiskVolume2"
    worker = station.worker()
    listeners = [
        station.listener(path_prefix=prefix)
        for prefix in (f"{volume}\\GRÜSSE".upper(), f"{volume}\\grüsse".lower(), f"{volume}\\grüsse\\b")
    ]
    worker.directory("D:\\Grüsse")
    worker.file("D:\\Grüsse\\b")
    worker.file("D:\\gruesse")
    assert [[r.path.rpartition("\\")[2] for r in listener.records()] for listener in listeners] == [
        ["Grüsse", "b"],
        ["Grüsse", "b"],
        ["b"],
    ]


def test_a_rename_into_or_out_of_the_prefix_is_told(station: Station) -> None:
    volume = "\\Device\\HarddiskVolume2"
    worker = station.worker()
    worker.directory("D:\\in")
    listener = station.listener(path_prefix=f"{volume}\\in\\", event_mask=0x10)
    handle = worker.open("D:\\a")
    worker.rename(handle, "D:\\in\\a")
    worker.rename(handle, "D:\\in\\b")
    worker.rename(handle, "D:\\c")
    worker.rename(handle, "D:\\d")
    assert [
        (r.path.removeprefix(volume), r.second_path.removeprefix(volume)) for r in listener.records()
    ] == [
        ("\\a", "\\in\\a"),
        ("\\in\\a", "\\in\\b"),
        ("\\in\\b", "\\c"),
    ]
