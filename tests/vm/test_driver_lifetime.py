"""Unload, connect, close and kill at any moment, on any schedule, under every policy that the facts leave open."""

from __future__ import annotations

import random
from typing import Any

import pytest

from harness.client.protocol import (
    MASK_ALL,
    MASK_LIFECYCLE,
    PORT_NAME,
    Connect,
    ConnectFlag,
    Kind,
    Reason,
    parse,
)
from tests.vm.driver_lab import HEADER_BYTES, POLICIES, Listener, Station, Stations, Worker
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.kernel.scheduler import Preemption
from vm.emulated.library import Client, Pending, ServiceFailedError

RESTLESS = Preemption((5, 400), (1, 5))
"""Threads are switched every few calls, or within one function."""
SUCCESS = 0
OBJECT_NAME_NOT_FOUND = 0xC000_0034
CONNECTION_COUNT_LIMIT = 0xC000_0246
FLT_DELETING_OBJECT = 0xC01C_000B
PORT_DISCONNECTED = 0xC000_0037
REFUSALS = {SUCCESS, OBJECT_NAME_NOT_FOUND, CONNECTION_COUNT_LIMIT, FLT_DELETING_OBJECT}
SEEDS = range(12)


def run_some(station: Station, slices: int) -> None:
    """Run so many slices of whatever is ready; time stands still."""
    left = [slices]

    def stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    station.kernel.scheduler.run_until_idle(stop=stop)


class Storm:
    """Workers that make, write, rename, delete and close files, each in the middle of something."""

    def __init__(self, station: Station, chance: random.Random, count: int) -> None:
        self._chance = chance
        self._workers = [station.worker() for _ in range(count)]
        self._handles: list[tuple[Worker, int]] = []
        self._numbers = iter(range(10_000))

    def settle(self) -> None:
        """A few operations to their end, so that there are handles in all states."""
        for worker in self._workers:
            for _ in range(self._chance.randrange(1, 4)):
                handle = worker.open(f"D:\\f{next(self._numbers)}")
                if self._chance.random() < 0.6:
                    worker.write(handle, b"123")
                if self._chance.random() < 0.3:
                    worker.delete(handle)
                self._handles.append((worker, handle))

    def begin(self) -> list[Pending]:
        """One operation of every worker, none of them finished."""
        pending = []
        busy: set[int] = set()
        self._chance.shuffle(self._handles)
        for worker, handle in list(self._handles):
            if worker.process_id in busy:
                continue
            busy.add(worker.process_id)
            client = worker.client
            match self._chance.randrange(4):
                case 0:
                    pending.append(client.begin("write_file", handle=handle, offset=0, data=b"12345"))
                case 1:
                    name = f"r{next(self._numbers)}".encode("utf-16-le")
                    data = bytes(16) + len(name).to_bytes(4, "little") + name + bytes(4)
                    pending.append(client.begin("set_information", handle=handle, data=data, **{"class": 10}))
                case 2:
                    self._handles.remove((worker, handle))
                    pending.append(client.begin("close", handle=handle))
                case _:
                    pending.append(
                        client.begin(
                            "create_file",
                            path=f"D:\\n{next(self._numbers)}",
                            access=0x12019F,
                            share=7,
                            disposition=3,
                            options=0x1060,
                            attributes=0x80,
                        )
                    )
        return pending


def begin_connect(client: Client, **options: Any) -> Pending:
    context = Connect(**({"event_mask": MASK_ALL} | options)).encode()
    return client.begin("connect_port", name=PORT_NAME, context=context, context_size=len(context))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_unload_is_clean_at_any_moment(stations: Stations, policy: PortPolicy, seed: int) -> None:
    """In a storm, with clients that read, clients that never read, one that leaves and two that are just connecting."""
    chance = random.Random(seed)
    station = stations(seed=seed, policy=policy, preemption=RESTLESS)
    readers = [station.listener(queue_bytes=0x1000, event_mask=MASK_ALL) for _ in range(chance.randrange(4))]
    silent = [
        station.listener(queue_bytes=0x1000, flags=ConnectFlag.DROP_OLDEST)
        for _ in range(chance.randrange(3))
    ]
    for reader in readers:
        reader.post()
    storm = Storm(station, chance, 4)
    storm.settle()
    pending = storm.begin()
    connecting = [begin_connect(station.machine.client()) for _ in range(2)]
    run_some(station, chance.randrange(400))

    assert station.unload(mandatory=chance.random() < 0.5) == SUCCESS
    station.machine.settle()

    assert station.pool_bytes() == 0
    assert all(job.finished for job in pending)
    assert {job.result()[0] for job in connecting} <= REFUSALS
    for listener in (*readers, *silent):
        status, _ = listener.client.call("get_message", handle=listener.handle, size=0x1000)
        assert status == PORT_DISCONNECTED
        listener.close()
    station.load()
    listener = station.listener()
    station.worker().file("D:\\again", b"1")
    assert [r.kind for r in listener.records()] == [Kind.FILE_OPENED, Kind.FILE_WRITTEN, Kind.FILE_CLOSED]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_clients_may_go_at_any_moment(stations: Stations, policy: PortPolicy, seed: int) -> None:
    """Closed or killed while records are made for them; the others miss nothing, and their storage comes back."""
    chance = random.Random(seed)
    station = stations(seed=seed, policy=policy, preemption=RESTLESS)
    survivor = station.listener(event_mask=Kind.FILE_OPENED.bit)
    storm = Storm(station, chance, 3)
    for _ in range(4):
        going = [station.listener(queue_bytes=0x1000) for _ in range(3)]
        for listener in going[:2]:
            listener.post()
        storm.settle()
        jobs = storm.begin()
        run_some(station, chance.randrange(120))
        closing = going[0].client.begin("close", handle=going[0].handle)
        run_some(station, chance.randrange(60))
        for listener in going[1:]:
            listener.client.exit()
        closing.result()
        for job in jobs:
            job.result()
        station.machine.settle()
        assert len(station.machine.manager.ports.connections) == 1
    records = survivor.records()
    assert [r.sequence for r in records] == list(range(1, len(records) + 1))
    assert station.unload() == SUCCESS
    assert station.pool_bytes() == 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_connections_come_and_go_in_pairs_of_records(
    stations: Stations, policy: PortPolicy, seed: int
) -> None:
    """Whatever the schedule: an arrival is told before its departure, each once, and nobody is told who was refused."""
    chance = random.Random(seed)
    station = stations(seed=seed, policy=policy, preemption=RESTLESS, settings={"MaximumConnections": 4})
    observer = station.listener(event_mask=MASK_LIFECYCLE)
    accepted = 0
    for _ in range(5):
        clients = [station.machine.client() for _ in range(5)]
        jobs = [begin_connect(client, event_mask=chance.choice([0, MASK_ALL])) for client in clients]
        run_some(station, chance.randrange(150))
        results = [job.result() for job in jobs]
        assert {status for status, _ in results} <= {SUCCESS, CONNECTION_COUNT_LIMIT}
        opened = [
            (client, values["handle"])
            for client, (status, values) in zip(clients, results, strict=True)
            if status == SUCCESS
        ]
        accepted += len(opened)
        closing = [client.begin("close", handle=handle) for client, handle in opened]
        for job in closing:
            job.result()
        station.machine.settle()
    records = observer.records()[1:]
    alive: set[int] = set()
    for record in records:
        if record.kind == Kind.CLIENT_CONNECTED:
            assert record.value not in alive
            alive.add(record.value)
            assert 1 <= record.detail <= 4
        else:
            assert (record.kind, record.detail) == (Kind.CLIENT_DISCONNECTED, Reason.HANDLE_CLOSED)
            alive.remove(record.value)
    assert not alive
    assert len(records) == 2 * accepted >= 15


@pytest.mark.parametrize("seed", range(30))
def test_the_limit_of_connections_holds_in_a_race(stations: Stations, seed: int) -> None:
    station = stations(seed=seed, preemption=RESTLESS, settings={"MaximumConnections": 2})
    jobs = [begin_connect(station.machine.client()) for _ in range(4)]
    statuses = sorted(job.result()[0] for job in jobs)
    assert statuses == [SUCCESS, SUCCESS, CONNECTION_COUNT_LIMIT, CONNECTION_COUNT_LIMIT]


@pytest.mark.parametrize("seed", range(10))
def test_the_budget_holds_in_a_race(stations: Stations, seed: int) -> None:
    station = stations(seed=seed, preemption=RESTLESS, settings={"MemoryBudgetKilobytes": 1024})
    jobs = [begin_connect(station.machine.client(), queue_bytes=400 << 10) for _ in range(5)]
    statuses = sorted(job.result()[0] for job in jobs)
    assert statuses == [SUCCESS, SUCCESS] + [0xC000_009A] * 3


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(30))
def test_an_unload_while_clients_connect_keeps_none_of_them(
    stations: Stations, policy: PortPolicy, seed: int
) -> None:
    """The unload begins at every point of the connect callback; who was accepted sees the end at once."""
    station = stations(seed=seed, policy=policy, preemption=Preemption((1, 60), (1, 2)))
    clients = [station.machine.client() for _ in range(3)]
    jobs = [begin_connect(client) for client in clients]
    run_some(station, seed * 6)
    assert station.unload() == SUCCESS
    station.machine.settle()
    assert station.pool_bytes() == 0
    for client, job in zip(clients, jobs, strict=True):
        status, values = job.result()
        assert status in REFUSALS
        if status == SUCCESS:
            ended, _ = client.call("get_message", handle=values["handle"], size=0x1000)
            assert ended == PORT_DISCONNECTED


@pytest.mark.parametrize("seed", range(20))
def test_no_event_is_left_behind_by_a_worker_that_falls_asleep(stations: Stations, seed: int) -> None:
    """An event that comes while the worker is on its way to sleep wakes it, whatever instruction it has reached."""
    station = stations(seed=seed, preemption=Preemption((1, 25), (1, 2)))
    listener = station.listener(event_mask=Kind.FILE_WRITTEN.bit)
    workers = [station.worker() for _ in range(3)]
    for number in range(8):
        handles = [worker.open(f"D:\\{number}{index}") for index, worker in enumerate(workers)]
        jobs = [
            worker.client.begin("write_file", handle=handle, offset=0, data=b"1")
            for worker, handle in zip(workers, handles, strict=True)
        ]
        for job in jobs:
            job.result()
        assert len(listener.records()) == len(workers)


@pytest.mark.parametrize("policy", POLICIES)
def test_load_and_unload_many_times_leave_nothing(stations: Stations, policy: PortPolicy) -> None:
    station = stations(policy=policy)
    for round_ in range(10):
        listener = station.listener(event_mask=MASK_ALL)
        station.worker().file(f"D:\\{round_}", b"1")
        if round_ % 2:
            listener.records()
        assert station.unload(mandatory=bool(round_ % 3)) == SUCCESS
        assert station.pool_bytes() == 0
        if round_ % 3:
            listener.close()
        station.load()


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_in_the_queue_at_unload_is_gone_and_the_client_hears_it(
    stations: Stations, policy: PortPolicy
) -> None:
    station = stations(policy=policy)
    listener = station.listener()
    worker = station.worker()
    for number in range(20):
        worker.file(f"D:\\{number}", b"1")
    assert station.unload() == SUCCESS
    assert _end(listener) == PORT_DISCONNECTED


def _end(listener: Listener) -> int:
    """Reads to the end of the connection; returns the status that ended it."""
    while True:
        status, values = listener.client.call("get_message", handle=listener.handle, size=0x20000)
        if "operation" not in values:
            return status
        status, values = listener.client.call("wait_operation", operation=values["operation"], timeout=5000)
        if status:
            return status
        parse(values["data"][HEADER_BYTES:])


@pytest.mark.parametrize("seed", range(6))
def test_an_observer_hears_of_an_unload_if_it_reads_in_time_and_else_sees_the_end(
    stations: Stations, seed: int
) -> None:
    station = stations(seed=seed, preemption=RESTLESS)
    others = [station.listener() for _ in range(3)]
    observer = station.listener(event_mask=MASK_LIFECYCLE)
    observer.records()
    observer.post()
    assert station.unload() == SUCCESS
    status, _ = observer.client.call("wait_operation", operation=observer._operation, timeout=0)
    assert status in (SUCCESS, PORT_DISCONNECTED)
    for listener in others:
        listener.close()


def test_a_new_driver_gives_connections_numbers_of_its_own(stations: Stations) -> None:
    """A cookie of an earlier load never meets a connection of a later one."""
    station = stations(policy=PortPolicy(notify_after_kernel_close=True))
    old = station.listener()
    assert station.unload() == SUCCESS
    station.load()
    listener = station.listener()
    old.close()
    station.machine.settle()
    station.worker().file("D:\\a")
    assert len(listener.records()) == 1


def test_a_driver_that_is_not_loaded_accepts_nobody(stations: Stations) -> None:
    station = stations()
    assert station.unload() == SUCCESS
    with pytest.raises(ServiceFailedError):
        station.listener()
