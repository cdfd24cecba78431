"""Queues, messages, statistics and memory of Downlink's driver, to the byte and to the call."""

from __future__ import annotations

import itertools
import random
import struct
from dataclasses import dataclass

import pytest

from harness.client.protocol import (
    MASK_ALL,
    MASK_FILES,
    MASK_LIFECYCLE,
    MESSAGE_LAYOUT,
    RECORD_LAYOUT,
    Batch,
    ConnectFlag,
    Kind,
    Record,
)
from tests.vm.driver_costs import Meter
from tests.vm.driver_lab import Listener, Station, Stations
from vm.emulated.exports.declare import Export
from vm.emulated.kernel.scheduler import Preemption
from vm.emulated.kernel.threads import KThread

STATISTICS = struct.Struct("<QQQQQIIII")
UNDISTURBED = Preemption((1_000_000, 1_000_000), (1_000_000, 1_000_000))
"""Nobody is preempted: counts do not depend on the schedule."""
OPENS = Kind.FILE_OPENED.bit


@dataclass(frozen=True)
class Statistics:
    """DOWNLINK_STATISTICS, and the sequence number of its record."""

    sequence: int
    queued: int
    sent: int
    dropped: int
    messages: int
    bytes: int
    pending: int
    queue_bytes: int
    used: int
    high_water: int


def statistics(data: bytes) -> list[Statistics]:
    """The statistics records of a message; whatever they say of themselves must fit together."""
    found = []
    offset = MESSAGE_LAYOUT.size
    while offset < len(data):
        fields = RECORD_LAYOUT.unpack_from(data, offset)
        size, kind, flags, sequence = fields[:4]
        if kind == Kind.STATISTICS:
            assert size == RECORD_LAYOUT.size + STATISTICS.size
            assert not any((flags, *fields[7:10], *fields[11:]))
            record = Statistics(sequence, *STATISTICS.unpack_from(data, offset + RECORD_LAYOUT.size))
            assert record.sent + record.dropped + record.pending == record.sequence - 1
            assert record.used <= record.high_water <= record.queue_bytes
            found.append(record)
        offset += size
    return found


def all_statistics(listener: Listener) -> list[Statistics]:
    """Of everything that lies in the queue now."""
    found = []
    while (data := listener.message_bytes()) is not None:
        found += statistics(data)
    return found


def check_sequences(batches: list[Batch], *, first: int = 1) -> int:
    """Every number is there once, as a record or as a drop that was announced in time; returns the last number."""
    known, dropped, highest = set(), 0, first - 1
    ranges = []
    for batch in batches:
        dropped += batch.dropped_count
        if batch.dropped_count:
            ranges.append((batch.first_dropped, batch.last_dropped))
        for record in batch.records:
            assert record.sequence > highest, "the order is not kept"
            missing = set(range(highest + 1, record.sequence))
            assert all(any(low <= number <= high for low, high in ranges) for number in missing)
            highest = record.sequence
            known.add(record.sequence)
    # Drops behind the last record may have been announced with it.
    last = max([highest, *(high for _, high in ranges)])
    assert len(known) + dropped == last - first + 1
    return last


# Statistics


def test_statistics_come_at_their_interval_and_only_then(station: Station) -> None:
    listener = station.listener(event_mask=Kind.STATISTICS.bit, statistics_interval_ms=500)
    assert listener.message_bytes() is None
    times = []
    for _ in range(3):
        data = listener.message_bytes(seconds=10)
        assert data is not None
        times.append(station.kernel.clock.system_time)
        (record,) = statistics(data)
        assert record.sequence == len(times)
    assert [round((b - a) / 10_000) for a, b in itertools.pairwise(times)] == [500, 500]


@pytest.mark.parametrize(("mask", "interval"), [(MASK_ALL, 0), (MASK_FILES | MASK_LIFECYCLE, 500)])
def test_statistics_need_both_their_bit_and_an_interval(station: Station, mask: int, interval: int) -> None:
    listener = station.listener(event_mask=mask, statistics_interval_ms=interval)
    station.machine.advance(seconds=5)
    assert not all_statistics(listener)


def test_statistics_count_what_was_sent(station: Station) -> None:
    listener = station.listener(
        event_mask=MASK_FILES | Kind.STATISTICS.bit, statistics_interval_ms=1000, queue_bytes=0x10000
    )
    worker = station.worker()
    messages, size = 0, 0
    for number in range(20):
        worker.file(f"D:\\{number}", b"1")
        data = listener.message_bytes()
        assert data is not None
        messages, size = messages + 1, size + len(data)
    while (data := listener.message_bytes()) is not None:
        messages, size = messages + 1, size + len(data)
    data = listener.message_bytes(seconds=2)
    assert data is not None
    (record,) = statistics(data)
    assert (record.queued, record.sent, record.dropped, record.pending) == (60, 60, 0, 0)
    assert (record.messages, record.bytes) == (messages, size)
    assert (record.queue_bytes, record.used) == (0x10000, 0)


@pytest.mark.parametrize("flags", [0, ConnectFlag.DROP_OLDEST])
def test_statistics_count_drops_and_the_high_water_mark(station: Station, flags: int) -> None:
    mask = OPENS | Kind.STATISTICS.bit
    listener = station.listener(
        event_mask=mask, statistics_interval_ms=1000, queue_bytes=0x1000, flags=ConnectFlag(flags)
    )
    worker = station.worker()
    for number in range(200):
        worker.file(f"D:\\{number:04}")
    while listener.message_bytes() is not None:
        pass
    data = listener.message_bytes(seconds=2)
    assert data is not None
    record = statistics(data)[-1]
    assert record.dropped > 100
    assert record.sent + record.dropped == 200
    assert 0x1000 - 200 < record.high_water <= 0x1000
    in_first_place = record.queued + (0 if flags else record.dropped)
    assert in_first_place == 200


def test_no_statistics_pile_up_while_the_client_does_not_fetch(station: Station) -> None:
    listener = station.listener(event_mask=OPENS | Kind.STATISTICS.bit, statistics_interval_ms=100)
    station.worker().file("D:\\a")
    station.machine.advance(seconds=60)
    assert len(all_statistics(listener)) <= 2


@pytest.mark.parametrize("step", [-3600, 3600])
def test_statistics_survive_a_clock_that_is_set(station: Station, step: int) -> None:
    listener = station.listener(event_mask=Kind.STATISTICS.bit, statistics_interval_ms=500)
    assert listener.message_bytes(seconds=2) is not None
    clock = station.kernel.clock
    clock.set_system_time(clock.system_time + step * 10_000_000)
    for _ in range(3):
        assert listener.message_bytes(seconds=2) is not None


@pytest.mark.parametrize("seed", range(8))
def test_counters_add_up_at_every_moment_of_a_storm(stations: Stations, seed: int) -> None:
    chance = random.Random(seed)
    station = stations(seed=seed)
    listener = station.listener(
        event_mask=MASK_ALL & ~MASK_LIFECYCLE,
        statistics_interval_ms=100,
        queue_bytes=0x1000 << chance.randrange(3),
        flags=ConnectFlag.DROP_OLDEST if seed % 2 else ConnectFlag(0),
    )
    worker = station.worker()
    seen: list[Statistics] = []
    for number in range(150):
        worker.file(f"D:\\{number}", b"1")
        if chance.random() < 0.3:
            station.machine.advance(seconds=chance.random() / 5)
        if chance.random() < 0.2 and (data := listener.message_bytes()) is not None:
            seen += statistics(data)
    seen += all_statistics(listener)
    assert len(seen) > 5
    assert [s.queued for s in seen] == sorted(s.queued for s in seen)
    assert [s.sent for s in seen] == sorted(s.sent for s in seen)


# Drops and order


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("oldest", [False, True])
def test_every_number_is_a_record_or_an_announced_drop(stations: Stations, seed: int, oldest: bool) -> None:
    """Several workers, preempted anywhere, a reader that reads now and then, paths of all lengths."""
    chance = random.Random(seed)
    station = stations(seed=seed)
    listener = station.listener(
        queue_bytes=0x1000,
        message_bytes=chance.choice([0x400, 0x800, 0x10000]),
        flags=ConnectFlag.DROP_OLDEST if oldest else ConnectFlag(0),
    )
    workers = [station.worker() for _ in range(4)]
    for number in range(40):
        jobs = [
            (
                worker,
                worker.client.begin(
                    "create_file",
                    path=f"D:\\{'x' * chance.randrange(200)}{number}{index}",
                    access=0x12019F,
                    share=7,
                    disposition=3,
                    options=0x60,
                    attributes=0x80,
                ),
            )
            for index, worker in enumerate(workers)
        ]
        handles = [(worker, job.result()[1]["handle"]) for worker, job in jobs]
        writes = [w.client.begin("write_file", handle=h, offset=0, data=b"1") for w, h in handles]
        for write in writes:
            write.result()
        closes = [w.client.begin("close", handle=h) for w, h in handles]
        for close in closes:
            close.result()
        if chance.random() < 0.3:
            listener.message()
    listener.records()
    assert check_sequences(listener.batches) == 4 * 40 * 3
    kept = sum(len(batch.records) for batch in listener.batches)
    assert kept < 4 * 40 * 3, "the queue was meant to be too small"


def test_a_record_as_long_as_the_message_allows_is_cut_and_says_so(station: Station) -> None:
    short = station.listener(event_mask=OPENS, message_bytes=0x400, queue_bytes=0x1000)
    long = station.listener(event_mask=OPENS)
    worker = station.worker()
    worker.directory("D:\\" + "a" * 250)
    path = "D:\\" + "a" * 250 + "\\" + "b" * 250
    worker.file(path)
    (full,) = [r for r in long.records() if r.path.endswith("b")]
    (cut,) = [r for r in short.records() if r.path.endswith("b")]
    assert len(full.path) == len(full.volume) + len(path) - 2
    assert full.path.startswith(cut.path)
    assert cut.flags & 4
    assert not full.flags & 4
    assert len(cut.path) * 2 == 0x400 - MESSAGE_LAYOUT.size - RECORD_LAYOUT.size


def test_a_record_longer_than_the_own_buffer_is_sent_whole(station: Station) -> None:
    listener = station.listener(event_mask=OPENS, message_bytes=0x40000, queue_bytes=0x40000)
    worker = station.worker()
    path = "D:"
    records: list[Record] = []
    while len(path) < 16_000:
        path += "\\" + "d" * 240
        worker.directory(path)
        records += listener.records()
    assert max(len(r.path) for r in records) == len(records[-1].volume) + len(path) - 2
    assert not any(r.flags & 4 for r in records)


def test_without_memory_for_a_long_record_its_path_is_cut(station: Station) -> None:
    listener = station.listener(event_mask=OPENS, message_bytes=0x40000, queue_bytes=0x40000)
    worker = station.worker()
    station.kernel.pool.refuse = lambda size, tag, driver: tag == "Dnlm"
    path = "D:"
    records: list[Record] = []
    while len(path) < 16_000:
        path += "\\" + "d" * 240
        worker.directory(path)
        records += listener.records()
    check_sequences(listener.batches)
    cut = [r for r in records if r.flags & 4]
    assert cut
    assert all(len(r.path) * 2 == 0x6000 - MESSAGE_LAYOUT.size - RECORD_LAYOUT.size for r in cut)
    assert all(len(r.path) * 2 <= 0x6000 - MESSAGE_LAYOUT.size - RECORD_LAYOUT.size for r in records)


# What it costs


@dataclass
class Sends:
    """FltSendMessage calls, by thread."""

    count: int = 0

    def watch(self, station: Station) -> None:
        station.kernel.scheduler.on_call = self._call

    def _call(self, thread: KThread, export: Export, arguments: tuple[int, ...], value: object) -> None:
        self.count += export.name == "FltSendMessage" and bool(arguments)


def test_a_lone_event_reaches_a_waiting_client_with_one_send(station: Station) -> None:
    listener, worker = station.listener(event_mask=Kind.FILE_WRITTEN.bit), station.worker()
    handle = worker.open("D:\\a")
    listener.post()
    station.machine.settle()
    sends = Sends()
    sends.watch(station)
    worker.write(handle)
    batch = listener.message()
    assert batch is not None
    assert [r.kind for r in batch.records] == [Kind.FILE_WRITTEN]
    assert sends.count == 1


def test_a_storm_is_sent_in_messages_of_many_records(station: Station) -> None:
    listener, worker = station.listener(queue_bytes=0x40000), station.worker()
    sends = Sends()
    sends.watch(station)
    for number in range(200):
        worker.file(f"D:\\{number}", b"1")
    count = len(listener.records())
    assert count == 600
    assert count / sends.count >= 20


def event_costs(stations: Stations, connections: int) -> tuple[int, int]:
    """Instructions and kernel calls of one write event in the requestor's thread."""
    station = stations(preemption=UNDISTURBED)
    meter = Meter(station)
    meter.attach()
    listeners = [station.listener() for _ in range(connections)]
    worker = station.worker()
    handle = worker.open("D:\\a")
    for listener in listeners:
        listener.records()
    with meter.counting() as costs:
        worker.write(handle)
    assert costs.calls["KeSetEvent"] == connections, "the workers were meant to be asleep"
    return costs.instructions, costs.call_count


def test_a_write_event_stays_within_its_costs(stations: Stations) -> None:
    instructions, calls = event_costs(stations, 1)
    assert (instructions <= 3000, calls <= 12) == (True, True), (instructions, calls)


def test_costs_grow_with_the_connections_and_not_faster(stations: Stations) -> None:
    costs = {count: event_costs(stations, count) for count in (1, 4, 8)}
    for index in (0, 1):
        first, fourth, eighth = (costs[count][index] for count in (1, 4, 8))
        assert fourth <= first + 3 * first
        assert eighth - fourth <= (fourth - first) / 3 * 4 * 1.05


def test_a_storm_of_write_events_stays_within_its_costs_with_delivery(stations: Stations) -> None:
    station = stations(preemption=UNDISTURBED)
    meter = Meter(station)
    meter.attach()
    listener, worker = station.listener(), station.worker()
    handles = [worker.open(f"D:\\{number}") for number in range(200)]
    listener.records()
    with meter.counting() as costs:
        for handle in handles:
            worker.write(handle)
        assert len(listener.records()) == 200
    calls = costs.call_count + costs.worker_calls.total()
    instructions = costs.instructions + costs.worker_instructions
    assert calls / 200 <= 12
    assert instructions / 200 <= 3000


def test_an_operation_that_nobody_wants_costs_next_to_nothing(stations: Stations) -> None:
    station = stations(preemption=UNDISTURBED)
    meter = Meter(station)
    meter.attach()
    worker = station.worker()
    with meter.counting() as costs:
        worker.file("D:\\a", b"1")
    assert costs.call_count == 0
    assert costs.instructions < 200


# Memory


def test_idle_connections_hold_their_queues_and_little_else(station: Station) -> None:
    before = station.pool_bytes()
    queue_bytes = 0x40000
    listeners = [station.listener(queue_bytes=queue_bytes, event_mask=MASK_ALL) for _ in range(8)]
    station.machine.settle()
    assert station.pool_bytes() - before < 8 * queue_bytes + (256 << 10)
    for listener in listeners:
        listener.close()
    station.machine.settle()
    assert station.pool_bytes() == before
    assert station.unload() == 0
    assert station.pool_bytes() == 0


def test_an_event_allocates_nothing_while_its_handle_is_known(station: Station) -> None:
    listener, worker = station.listener(), station.worker()
    handle = worker.open("D:\\a")
    listener.records()
    allocations: list[str] = []

    def note(size: int, tag: str, driver: str) -> bool:
        if tag.startswith("Dnl"):
            allocations.append(tag)
        return False

    station.kernel.pool.refuse = note
    worker.write(handle)
    worker.write(handle)
    worker.close(handle)
    assert not allocations
    assert len(listener.records()) == 3


def test_what_is_sent_has_no_old_bytes_in_it(station: Station) -> None:
    """The ring is used several times over with paths of all lengths; the parser refuses padding that is not zero."""
    listener, worker = station.listener(queue_bytes=0x1000, event_mask=OPENS), station.worker()
    seen: list[Record] = []
    for number in range(120):
        worker.file("D:\\" + "xyz"[number % 3] * (1 + number % 17))
        if number % 5 == 0:
            seen += listener.records()
    seen += listener.records()
    assert len(seen) == 120
