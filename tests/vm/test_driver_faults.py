"""What Downlink's driver does when the kernel denies it something: it says less, or no, and never loses track."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.client.protocol import MASK_ALL, MASK_LIFECYCLE, PORT_NAME, Connect, Kind, RecordFlag
from tests.vm.driver_lab import POLICIES, Fault, Station, Stations, loaded
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.library import ServiceFailedError

INSUFFICIENT_RESOURCES = 0xC000_009A
ACCESS_DENIED = 0xC000_0022
PORT_DISCONNECTED = 0xC000_0037
THREAD_IS_TERMINATING = 0xC000_004B
INVALID_NAME_REQUEST = 0xC01C_0005
INVALID_INFO_CLASS = 0xC000_0003
CONTEXT = Connect(event_mask=MASK_ALL, path_prefix="\\Device", queue_bytes=0x4000).encode()


def connect(station: Station) -> int:
    client = station.machine.client()
    status, _ = client.call("connect_port", name=PORT_NAME, context=CONTEXT, context_size=len(CONTEXT))
    return status


class Refusals:
    """Refuses the pool allocation with that number of the driver, and says whether there was one."""

    def __init__(self, station: Station, number: int, tag: str | None = None) -> None:
        self.left = number
        self.tag = tag
        self.happened = False
        station.kernel.pool.refuse = self._refuse

    def _refuse(self, size: int, tag: str, driver: str) -> bool:
        if not tag.startswith("Dnl") or (self.tag is not None and tag != self.tag):
            return False
        self.left -= 1
        self.happened |= self.left == 0
        return self.left == 0


# Loading


@pytest.mark.parametrize(
    "name",
    [
        "FltRegisterFilter",
        "FltStartFiltering",
        "FltCreateCommunicationPort",
        "FltBuildDefaultSecurityDescriptor",
    ],
)
def test_a_load_that_fails_somewhere_leaves_nothing_and_works_the_next_time(
    stations: Stations, name: str
) -> None:
    station = stations(load=False)
    fault = Fault(station, name, INSUFFICIENT_RESOURCES)
    with pytest.raises(ServiceFailedError) as caught:
        station.load()
    assert caught.value.status == INSUFFICIENT_RESOURCES
    assert fault.failed == 1
    assert (station.pool_bytes(), list(loaded(station))) == (0, [])
    fault.mend()
    station.load()
    assert connect(station) == 0


def test_a_load_without_memory_leaves_nothing_and_works_the_next_time(stations: Stations) -> None:
    """Settings may fall back to their defaults; who may connect and the table of connections may not."""
    fatal = 0
    for number in range(1, 12):
        station = stations(load=False, settings={"MaximumConnections": 3, "PortSecurity": "D:(A;;GA;;;BA)"})
        refusal = Refusals(station, number)
        try:
            station.load()
        except ServiceFailedError as error:
            assert error.status == INSUFFICIENT_RESOURCES
            assert (station.pool_bytes(), list(loaded(station))) == (0, [])
            fatal += 1
        if not refusal.happened:
            assert fatal == 3, "the value, the descriptor and the table of connections"
            return
        station.kernel.pool.refuse = None
        if not list(loaded(station)):
            station.load()
        assert connect(station) == 0
    pytest.fail("the driver allocates more at load than the test expects")


def test_settings_that_cannot_be_read_keep_the_driver_from_loading(stations: Stations) -> None:
    station = stations(load=False, settings={"PortSecurity": "D:(A;;GA;;;SY)"})
    fault = Fault(station, "ZwOpenKey", ACCESS_DENIED, calls=[2])
    with pytest.raises(ServiceFailedError) as caught:
        station.load()
    assert (caught.value.status, fault.failed) == (ACCESS_DENIED, 1)
    assert station.pool_bytes() == 0


def test_a_client_that_connects_while_the_load_fails_is_let_go(stations: Stations) -> None:
    """The port is open before filtering starts, and starting can fail."""
    for seed in range(6):
        station = stations(load=False, seed=seed)
        fault = Fault(station, "FltStartFiltering", INSUFFICIENT_RESOURCES)
        client = station.machine.client()
        with pytest.raises(ServiceFailedError):
            pending = client.begin("connect_port", name=PORT_NAME, context=CONTEXT, context_size=len(CONTEXT))
            station.load()
        pending.result()
        station.machine.settle()
        assert (station.pool_bytes(), fault.failed) == (0, 1)


# Connecting


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("PsCreateSystemThread", INSUFFICIENT_RESOURCES),
        ("ObReferenceObjectByHandle", ACCESS_DENIED),
        ("FltObjectReference", 0xC01C_000B),
    ],
)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_connection_that_cannot_be_made_is_refused_and_leaves_nothing(
    stations: Stations, name: str, status: int, policy: PortPolicy
) -> None:
    station = stations(policy=policy)
    observer = station.listener(event_mask=MASK_LIFECYCLE)
    assert len(observer.records()) == 1
    station.machine.settle()
    before = station.pool_bytes()
    fault = Fault(station, name, status)
    assert connect(station) == status
    fault.mend()
    station.machine.settle()
    assert station.pool_bytes() == before
    assert not observer.records()
    assert connect(station) == 0
    assert [(r.kind, r.detail) for r in observer.records()] == [(Kind.CLIENT_CONNECTED, 2)]


def test_a_connection_without_memory_is_refused_and_leaves_nothing(stations: Stations) -> None:
    station = stations()
    observer = station.listener(event_mask=MASK_LIFECYCLE)
    observer.records()
    before = station.pool_bytes()
    for number in range(1, 10):
        refusal = Refusals(station, number)
        status = connect(station)
        station.kernel.pool.refuse = None
        if not refusal.happened:
            assert (status, number) == (0, 4), "ring, message buffer and prefix"
            break
        assert status == INSUFFICIENT_RESOURCES
        assert station.pool_bytes() == before
        assert not observer.records()


# Sending


def test_a_send_that_fails_for_want_of_memory_is_repeated(station: Station) -> None:
    listener = station.listener()
    fault = Fault(station, "FltSendMessage", INSUFFICIENT_RESOURCES, calls=range(1, 6))
    station.worker().file("D:\\a", b"1")
    batch = listener.message(seconds=5)
    assert batch is not None
    assert fault.failed == 5
    assert [r.sequence for r in (*batch.records, *listener.records())] == [1, 2, 3]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_worker_that_is_terminated_ends_its_connection_in_sight_of_the_client(
    stations: Stations, policy: PortPolicy, seed: int
) -> None:
    station = stations(policy=policy, seed=seed)
    listener, other = station.listener(), station.listener()
    listener.post()
    fault = Fault(station, "FltSendMessage", THREAD_IS_TERMINATING)
    worker = station.worker()
    worker.file("D:\\a", b"1")
    station.machine.settle()
    fault.mend()
    pending, _ = listener.client.call("wait_operation", operation=listener._operation, timeout=0)
    later, _ = other.client.call("get_message", handle=other.handle, size=0x1000)
    assert (pending, later) == (PORT_DISCONNECTED, PORT_DISCONNECTED)
    worker.file("D:\\b", b"1")
    listener.close()
    station.machine.settle()
    assert station.unload() == 0
    assert station.pool_bytes() == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_an_unload_ends_a_worker_whose_sends_keep_failing(stations: Stations, policy: PortPolicy) -> None:
    station = stations(policy=policy)
    station.listener()
    Fault(station, "FltSendMessage", INSUFFICIENT_RESOURCES)
    station.worker().file("D:\\a", b"1")
    station.machine.settle()
    assert station.unload() == 0
    assert station.pool_bytes() == 0


# Files


def test_without_a_context_every_write_is_told(station: Station) -> None:
    listener, worker = station.listener(), station.worker()
    Fault(station, "FltAllocateContext", INSUFFICIENT_RESOURCES)
    handle = worker.open("D:\\a")
    for _ in range(3):
        worker.write(handle, b"12")
    worker.close(handle)
    records = listener.records()
    assert [(r.kind, r.value) for r in records[1:]] == [(Kind.FILE_WRITTEN, 2)] * 3
    assert {r.path.rpartition("\\")[2] for r in records} == {"a"}


def test_the_short_identifier_is_taken_where_there_is_no_long_one(station: Station) -> None:
    listener, worker = station.listener(), station.worker()
    fault = Fault(station, "FltQueryInformationFile", INVALID_INFO_CLASS, calls=[1])
    handle = worker.open("D:\\a")
    (record,) = listener.records()
    _, values = worker.client.call("query_information", handle=handle, length=8, **{"class": 6})
    assert fault.failed == 1
    assert record.flags & RecordFlag.FILE_ID
    assert record.file_id == values["data"] + bytes(8)


def test_without_any_identifier_the_record_says_so(station: Station) -> None:
    listener, worker = station.listener(), station.worker()
    Fault(station, "FltQueryInformationFile", INVALID_INFO_CLASS)
    worker.file("D:\\a", b"1")
    for record in listener.records():
        assert not record.flags & RecordFlag.FILE_ID
        assert record.file_id == bytes(16)
        assert record.path.endswith("\\a")


def test_the_opened_name_is_taken_where_there_is_no_normalised_one(station: Station) -> None:
    listener, worker = station.listener(), station.worker()
    worker.file("D:\\Written")
    listener.records()
    Fault(station, "FltGetFileNameInformation", INVALID_NAME_REQUEST, calls=[1])
    worker.close(worker.open("D:\\WRITTEN"))
    assert [r.path.rpartition("\\")[2] for r in listener.records()] == ["WRITTEN"]


def test_a_rename_without_memory_for_its_old_name_still_tells_the_new_one(station: Station) -> None:
    listener, worker = station.listener(), station.worker()
    handle = worker.open("D:\\a")
    listener.records()
    Refusals(station, 1, "Dnlo")
    worker.rename(handle, "b")
    (record,) = listener.records()
    assert record.kind == Kind.FILE_RENAMED
    assert record.flags & RecordFlag.NO_PATH
    assert record.second_path.endswith("\\b")


def test_a_deletion_without_memory_for_its_name_is_still_told(station: Station) -> None:
    listener, worker = station.listener(), station.worker()
    handle = worker.open("D:\\a")
    worker.delete(handle)
    Refusals(station, 1, "Dnlo")
    worker.close(handle)
    record = listener.records()[-1]
    assert record.kind == Kind.FILE_DELETED
    assert record.flags & RecordFlag.NO_PATH


def test_a_failed_rename_without_a_destination_is_told_with_one_name(station: Station) -> None:
    from harness.client.protocol import ConnectFlag

    listener, worker = station.listener(flags=ConnectFlag.FAILED_OPERATIONS), station.worker()
    worker.file("D:\\taken")
    handle = worker.open("D:\\a")
    listener.records()
    Fault(station, "FltGetDestinationFileNameInformation", INVALID_NAME_REQUEST)
    worker.rename(handle, "taken")
    (record,) = listener.records()
    assert (record.path[-2:], record.second_path) == ("\\a", "")


def test_inside_the_file_system_nothing_is_asked_of_the_file_system(station: Station) -> None:
    """An operation in a thread with a top-level IRP: no identifier, no new name, and the record is there."""
    listener, worker = station.listener(), station.worker()
    handle = worker.open("D:\\a")
    listener.records()
    seen: list[str] = []
    station.kernel.scheduler.on_call = lambda thread, export, arguments, value: seen.append(export.name)
    thread = worker.client._thread(1)
    thread.top_level_irp = 1
    try:
        worker.write(handle)
        other = worker.open("D:\\other")
    finally:
        thread.top_level_irp = 0
    records = listener.records()
    assert [(r.kind, bool(r.flags & RecordFlag.NO_PATH)) for r in records] == [
        (Kind.FILE_WRITTEN, False),
        (Kind.FILE_OPENED, True),
    ]
    assert "FltQueryInformationFile" not in seen
    assert "FltIsDirectory" not in seen
    worker.close(other)


@pytest.fixture(params=[False, True])
def deferred(request: pytest.FixtureRequest, station: Station) -> Iterator[Station]:
    """A machine on which asynchronous requests complete at DISPATCH_LEVEL, or not."""
    io_state(station.kernel).settings.completion_irql = request.param
    yield station


def test_an_asynchronous_write_is_told_wherever_it_completes(deferred: Station) -> None:
    listener, worker = deferred.listener(), deferred.worker()
    handle = worker.open("D:\\a", options=n.FILE_NON_DIRECTORY_FILE)
    for _ in range(5):
        worker.write(handle, b"123")
    deferred.machine.settle()
    worker.close(handle)
    records = listener.of(Kind.FILE_WRITTEN, Kind.FILE_CLOSED)
    assert [(r.kind, r.value) for r in records] == [
        (Kind.FILE_WRITTEN, 3),
        (Kind.FILE_WRITTEN, 12),
        (Kind.FILE_CLOSED, 15),
    ]
    assert {r.path.rpartition("\\")[2] for r in records} == {"a"}
    assert {r.process_id for r in records} == {worker.process_id}
