"""The two ways out: an unload that may be refused (FilterUnload) and one that may not (the stop of the service)."""

from __future__ import annotations

import pytest

from harness.client import files
from harness.client import hresult as hr
from harness.client.errors import DisconnectedError, NotFoundError, PortError
from harness.client.listener import Listener, matching
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


@pytest.fixture(params=["unload", "stop"])
def leave(binding, request):
    """Both ways by which the filter goes: `leave()`."""
    return {
        "unload": lambda: binding.filter_unload(FILTER),
        "stop": lambda: binding.service_stop(FILTER),
    }[request.param]


@pytest.fixture
def connect(scratch, binding):
    """Listeners that are closed before the filter is loaded again."""
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


def loaded(binding):
    return FILTER in [found.name for found in binding.filters()]


@pytest.mark.fact("X10", "L1")
def test_the_filter_goes_either_way_and_can_be_loaded_again(binding, leave, connect, scratch):
    leave()
    assert not loaded(binding)
    assert not [found for found in binding.instances() if found.filter == FILTER]
    binding.filter_load(FILTER)
    assert loaded(binding)
    listener = connect()
    files.create(scratch / "a")
    assert listener.wait_for("the file", matching(Kind.FILE_OPENED)).sequence == 1


@pytest.mark.fact("X10", "X3")
def test_a_client_that_waits_is_woken_either_way(leave, connect):
    operation = connect().port.begin_get()
    leave()
    with pytest.raises(DisconnectedError, match="0x80070006"):
        operation.wait(10)


@pytest.mark.fact("X10", "D3", "D9")
def test_each_connection_ends_once_and_by_the_driver_either_way(leave, connect):
    observer = connect(event_mask=MASK_LIFECYCLE)
    others = [connect() for _ in range(3)]
    identities = {observer.wait_for("a connection", matching(Kind.CLIENT_CONNECTED)).value for _ in range(4)}
    leave()
    assert observer.end().hresult == hr.INVALID_HANDLE
    ended = [r for r in observer.records if r.kind == Kind.CLIENT_DISCONNECTED]
    assert len({record.value for record in ended}) == len(ended), "a connection ended twice"
    assert {record.value for record in ended} <= identities
    assert {record.detail for record in ended} <= {Reason.DRIVER}
    for listener in others:
        assert listener.end().hresult == hr.INVALID_HANDLE


@pytest.mark.fact("X10", "X8", "D10")
def test_the_filter_goes_either_way_with_full_queues_that_nobody_reads(binding, leave, connect, scratch):
    listeners = [connect(queue_bytes=QUEUE_BYTES_MINIMUM) for _ in range(8)]
    for number in range(15):
        files.create(scratch / f"file-{number:02}-{'x' * 200}")
    leave()
    assert not loaded(binding)
    for listener in listeners:
        assert listener.end().hresult == hr.INVALID_HANDLE


@pytest.mark.fact("X10", "X7")
def test_the_filter_goes_either_way_while_another_process_makes_files(
    binding, leave, connect, scratch, agent
):
    listener = connect(flags=0)
    names = [f"file-{number:03}" for number in range(40)]
    agent.begin("create_many", scratch.path, names)
    listener.wait_for("the first file", matching(Kind.FILE_OPENED))
    leave()
    agent.finish("create_many")
    assert not loaded(binding)
    assert len(files.listdir(scratch.path)) == len(names)


@pytest.mark.fact("X10", "X7")
def test_files_that_are_open_stay_usable_either_way(binding, leave, scratch):
    access = files.GENERIC_READ | files.GENERIC_WRITE
    with files.open_file(scratch / "a", access=access, disposition=files.CREATE) as file:
        file.write(b"one", 0)
        leave()
        file.write(b"two", 3)
        binding.filter_load(FILTER)
        assert file.read(6, 0) == b"onetwo"


@pytest.mark.fact("C11", "X5")
def test_nobody_can_connect_after_either(leave):
    leave()
    with pytest.raises(PortError) as caught:
        Port.connect(PORT_NAME, CONTEXT).close()
    assert caught.value.hresult in {hr.FILE_NOT_FOUND, hr.FLT_DELETING_OBJECT}


@pytest.mark.fact("X10", "L3")
def test_after_an_unload_there_is_nothing_to_stop_and_after_a_stop_nothing_to_unload(binding):
    binding.filter_unload(FILTER)
    with pytest.raises(PortError) as caught:
        binding.service_stop(FILTER)
    assert caught.value.hresult == hr.SERVICE_NOT_ACTIVE
    binding.filter_load(FILTER)
    binding.service_stop(FILTER)
    with pytest.raises(NotFoundError, match="0x801F0013"):
        binding.filter_unload(FILTER)


@pytest.mark.fact("X10")
def test_what_is_not_installed_cannot_be_stopped(binding):
    with pytest.raises(NotFoundError, match="0x80070424"):
        binding.service_stop("DownlinkNoSuchService")


@pytest.mark.fact("L2", "P24")
@pytest.mark.parametrize(
    ("act", "refusals"),
    [
        pytest.param("filter_unload", {hr.PRIVILEGE_NOT_HELD, hr.ACCESS_DENIED}, id="unload"),
        pytest.param("service_stop", {hr.ACCESS_DENIED}, id="stop"),
    ],
)
def test_a_plain_user_can_do_neither(binding, act, refusals):
    binding.impersonate("restricted")
    try:
        with pytest.raises(PortError) as caught:
            getattr(binding, act)(FILTER)
    finally:
        binding.impersonate("none")
    assert caught.value.hresult in refusals
    assert loaded(binding)
