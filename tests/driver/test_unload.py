"""Unloading and loading from inside the guest, with clients connected and messages under way."""

from __future__ import annotations

import threading

import pytest

from harness.client import files
from harness.client import hresult as hr
from harness.client.errors import DisconnectedError, NotFoundError, PortError
from harness.client.listener import matching
from harness.client.port import Port
from harness.client.protocol import (
    MASK_FILES,
    MASK_LIFECYCLE,
    PORT_NAME,
    QUEUE_BYTES_MINIMUM,
    Connect,
    ConnectFlag,
    Kind,
    Reason,
)

FILTER = "Downlink"
CONTEXT = Connect(event_mask=MASK_FILES).encode()


@pytest.fixture
def binding(loaded_afterwards):
    return loaded_afterwards


@pytest.fixture
def make_listener(scratch, binding):
    """Listeners for tests that unload: closed before the filter is loaded again."""
    from harness.client.listener import Listener

    opened = []

    def open_listener(**options):
        options.setdefault("event_mask", MASK_FILES)
        options.setdefault("flags", ConnectFlag.INCLUDE_OWN_PROCESS)
        options.setdefault("path_prefix", scratch.device(""))
        opened.append(Listener.open(Connect(**options)))
        return opened[-1]

    yield open_listener
    for listener in opened:
        listener.close()


@pytest.mark.fact("L3", "X10")
def test_the_filter_can_be_unloaded_and_loaded_again(binding):
    assert FILTER in [found.name for found in binding.filters()]
    binding.filter_unload(FILTER)
    assert FILTER not in [found.name for found in binding.filters()]
    binding.filter_load(FILTER)
    assert FILTER in [found.name for found in binding.filters()]
    Port.connect(PORT_NAME, CONTEXT).close()


@pytest.mark.fact("X3", "G18")
def test_a_client_that_waits_is_woken_by_the_unload(binding, make_listener):
    listener = make_listener()
    operation = listener.port.begin_get()
    binding.filter_unload(FILTER)
    with pytest.raises(DisconnectedError, match="0x80070006"):
        operation.wait(10)


@pytest.mark.fact("X3")
def test_a_connection_that_ended_by_the_unload_refuses_every_further_request(binding, make_listener):
    port = make_listener().port
    binding.filter_unload(FILTER)
    for attempt in (port.get_message, port.begin_get):
        with pytest.raises(DisconnectedError):
            attempt()
    with pytest.raises(PortError) as caught:
        port.send(b"x" * 16)
    assert caught.value.hresult in {hr.INVALID_HANDLE, hr.INVALID_FUNCTION, hr.NOT_SUPPORTED}
    port.close()


@pytest.mark.fact("X3")
def test_an_old_connection_stays_dead_when_the_filter_is_loaded_again(binding, make_listener):
    old = make_listener()
    binding.filter_unload(FILTER)
    binding.filter_load(FILTER)
    with pytest.raises(DisconnectedError):
        old.port.get_message(timeout=10)


@pytest.mark.fact("C11", "X5", "G3")
def test_nobody_can_connect_while_the_filter_is_unloaded(binding, observe):
    binding.filter_unload(FILTER)
    with pytest.raises(PortError) as caught:
        Port.connect(PORT_NAME, CONTEXT).close()
    observe("C11", caught.value.hresult)
    assert caught.value.hresult in {hr.FILE_NOT_FOUND, hr.FLT_DELETING_OBJECT}


@pytest.mark.fact("D9", "D10", "X8")
def test_the_filter_unloads_with_eight_clients_of_which_none_reads(binding, make_listener, scratch):
    listeners = [make_listener(queue_bytes=QUEUE_BYTES_MINIMUM) for _ in range(8)]
    for number in range(15):
        files.create(scratch / f"file-{number:02}-{'x' * 200}")
    binding.filter_unload(FILTER)
    for listener in listeners:
        assert listener.end().hresult == hr.INVALID_HANDLE


@pytest.mark.fact("D9", "D3", "X6")
def test_each_connection_ends_once_when_the_filter_is_unloaded(binding, make_listener):
    observer = make_listener(event_mask=MASK_LIFECYCLE)
    others = [make_listener() for _ in range(3)]
    identities = {observer.wait_for("a connection", matching(Kind.CLIENT_CONNECTED)).value for _ in range(4)}
    binding.filter_unload(FILTER)
    assert observer.end().hresult == hr.INVALID_HANDLE
    ended = [r for r in observer.records if r.kind == Kind.CLIENT_DISCONNECTED]
    assert len({record.value for record in ended}) == len(ended), "a connection ended twice"
    assert {record.value for record in ended} <= identities
    assert {record.detail for record in ended} <= {Reason.DRIVER}
    for listener in others:
        assert listener.end().hresult == hr.INVALID_HANDLE


@pytest.mark.fact("D3", "C9")
def test_nothing_of_the_old_clients_is_left_after_a_reload(binding, make_listener):
    for _ in range(8):
        make_listener()
    binding.filter_unload(FILTER)
    binding.filter_load(FILTER)
    observer = make_listener(event_mask=MASK_LIFECYCLE)
    first = observer.next()
    assert (first.detail, first.sequence) == (1, 1)
    for _ in range(7):
        make_listener()


@pytest.mark.fact("X4", "D8")
def test_closing_an_old_handle_after_a_reload_disconnects_nobody_new(binding, make_listener, scratch):
    old = make_listener()
    binding.filter_unload(FILTER)
    binding.filter_load(FILTER)
    observer = make_listener(event_mask=MASK_LIFECYCLE | MASK_FILES)
    observer.next()
    old.close()
    files.create(scratch / "a")
    record = observer.next()
    assert record.kind == Kind.FILE_OPENED, "closing a dead connection was reported"


@pytest.mark.fact("S6", "X6")
def test_what_was_delivered_before_the_unload_is_complete(binding, make_listener, scratch):
    listener = make_listener(event_mask=Kind.FILE_OPENED.bit)
    for number in range(5):
        files.create(scratch / f"file-{number}")
    listener.until("the last file", matching(path=scratch.device("file-4")))
    binding.filter_unload(FILTER)
    assert listener.end().hresult == hr.INVALID_HANDLE
    assert [record.sequence for record in listener.records] == [1, 2, 3, 4, 5]


@pytest.mark.fact("D9", "D10")
def test_a_client_in_another_process_is_told_of_the_unload(binding, agent):
    number = agent.call("connect", {"event_mask": MASK_FILES})
    agent.begin("wait_for_end", number)
    binding.filter_unload(FILTER)
    assert agent.finish("wait_for_end") == hr.INVALID_HANDLE


@pytest.mark.fact("X8", "D9")
def test_the_filter_unloads_while_another_process_makes_files(binding, make_listener, scratch, agent):
    listener = make_listener(flags=0)
    names = [f"file-{number:03}" for number in range(40)]
    agent.begin("create_many", scratch.path, names)
    listener.wait_for("the first file", matching(Kind.FILE_OPENED))
    binding.filter_unload(FILTER)
    agent.finish("create_many")
    assert listener.end().hresult == hr.INVALID_HANDLE
    assert len(files.listdir(scratch.path)) == len(names)


@pytest.mark.fact("L7", "X7")
def test_files_that_are_open_across_an_unload_stay_usable(binding, scratch):
    with files.open_file(
        scratch / "a", access=files.GENERIC_READ | files.GENERIC_WRITE, disposition=files.CREATE
    ) as file:
        file.write(b"one", 0)
        binding.filter_unload(FILTER)
        file.write(b"two", 3)
        binding.filter_load(FILTER)
        file.write(b"six", 6)
        assert file.read(9, 0) == b"onetwosix"


@pytest.mark.fact("C11", "C12")
def test_clients_that_connect_during_an_unload_are_connected_or_refused_but_never_half(
    binding, make_listener
):
    ports: list[Port] = []
    results: list[int] = []
    started, stop = threading.Event(), threading.Event()

    def connect() -> None:
        while not stop.is_set():
            try:
                ports.append(Port.connect(PORT_NAME, CONTEXT))
            except PortError as error:
                results.append(error.hresult)
                if error.hresult != hr.CONNECTION_COUNT_LIMIT:
                    return
            started.set()
            if len(ports) > 4:
                ports.pop(0).close()

    thread = threading.Thread(target=connect)
    thread.start()
    started.wait(10)
    binding.filter_unload(FILTER)
    thread.join(30)
    stop.set()
    alive = thread.is_alive()
    for port in ports:
        with pytest.raises(PortError):
            port.get_message(timeout=10)
        port.close()
    assert not alive
    assert set(results) <= {hr.FILE_NOT_FOUND, hr.FLT_DELETING_OBJECT, hr.CONNECTION_COUNT_LIMIT}


@pytest.mark.fact("L3")
def test_a_filter_that_is_not_loaded_cannot_be_unloaded(binding):
    with pytest.raises(NotFoundError, match="0x801F0013"):
        binding.filter_unload("DownlinkNoSuchFilter")


@pytest.mark.fact("L1")
def test_a_filter_that_is_loaded_cannot_be_loaded_again(binding, observe):
    with pytest.raises(PortError) as caught:
        binding.filter_load(FILTER)
    observe("L1", caught.value.hresult)
    assert caught.value.hresult in {hr.SERVICE_ALREADY_RUNNING, 0x800700B7}


@pytest.mark.fact("L1")
def test_a_filter_that_is_not_installed_cannot_be_loaded(binding):
    with pytest.raises(NotFoundError, match="0x80070002"):
        binding.filter_load("DownlinkNoSuchFilter")


@pytest.mark.fact("L9")
def test_the_filter_is_attached_to_the_volume_of_the_scratch_directory(binding, scratch):
    volumes = {found.volume.casefold() for found in binding.instances() if found.filter == FILTER}
    assert volumes & {scratch.volume.casefold(), scratch.path[:2].casefold()}
