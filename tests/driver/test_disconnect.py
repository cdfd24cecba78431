"""Disconnecting: every way in which a connection ends, and that the driver hears of each exactly once."""

from __future__ import annotations

import os
import threading

import pytest

from harness.client import files
from harness.client import hresult as hr
from harness.client.errors import CancelledError, DisconnectedError, PortError
from harness.client.listener import matching
from harness.client.port import Port
from harness.client.protocol import (
    MASK_FILES,
    MASK_LIFECYCLE,
    PORT_NAME,
    QUEUE_BYTES_MINIMUM,
    Connect,
    Kind,
    Reason,
)

CONTEXT = Connect(event_mask=MASK_FILES).encode()


def kinds(records):
    return [record.kind for record in records]


@pytest.mark.fact("D1", "D3")
def test_closing_the_handle_is_one_disconnect(observer, listen, fence):
    listen().close()
    connected, disconnected = fence(observer)
    assert connected.kind == Kind.CLIENT_CONNECTED
    assert disconnected.kind == Kind.CLIENT_DISCONNECTED
    assert disconnected.detail == Reason.HANDLE_CLOSED
    assert disconnected.process_id == os.getpid()


@pytest.mark.fact("D1", "C5")
def test_a_disconnect_names_the_connection_that_ended(observer, listen):
    first, second = listen(), listen()
    identities = [observer.next().value for _ in range(2)]
    second.close()
    first.close()
    ended = [observer.next().value for _ in range(2)]
    assert ended == list(reversed(identities))


@pytest.mark.fact("D2")
def test_closing_one_of_two_handles_does_not_disconnect(observer, fence):
    port = Port.connect(PORT_NAME, CONTEXT)
    duplicate = port.duplicate()
    port.close()
    assert kinds(fence(observer)) == [Kind.CLIENT_CONNECTED]
    duplicate.close()
    assert kinds(fence(observer)) == [Kind.CLIENT_DISCONNECTED]


@pytest.mark.fact("D2")
def test_a_duplicate_receives_after_the_first_handle_was_closed(listen, scratch):
    listener = listen()
    duplicate = listener.port.duplicate()
    listener.close()
    with duplicate:
        files.create(scratch / "a")
        assert duplicate.get_message(timeout=10).data


@pytest.mark.fact("D2", "D3")
def test_a_killed_client_is_one_disconnect(observer, agent, fence):
    agent.call("connect", {"event_mask": MASK_FILES})
    agent.kill()
    ended = observer.wait_for("the killed client's end", matching(Kind.CLIENT_DISCONNECTED))
    assert (ended.detail, ended.process_id) == (Reason.HANDLE_CLOSED, agent.process_id)
    assert fence(observer) == []


@pytest.mark.fact("D2", "S26")
def test_a_client_killed_while_it_waits_for_a_message_is_one_disconnect(observer, agent, fence):
    number = agent.call("connect", {"event_mask": MASK_FILES})
    agent.call("post", number)
    agent.kill()
    observer.wait_for("the killed client's end", matching(Kind.CLIENT_DISCONNECTED))
    assert fence(observer) == []


@pytest.mark.fact("D2")
def test_a_client_that_exits_without_closing_is_disconnected(observer, agent):
    agent.call("connect", {"event_mask": MASK_FILES})
    agent.begin("leave")
    ended = observer.wait_for("the client's end", matching(Kind.CLIENT_DISCONNECTED))
    assert ended.detail == Reason.HANDLE_CLOSED


@pytest.mark.fact("D2", "D3")
def test_every_connection_of_a_killed_client_is_disconnected_once(observer, agent, fence):
    for _ in range(3):
        agent.call("connect", {"event_mask": MASK_FILES})
    connected = [observer.next().value for _ in range(3)]
    agent.kill()
    ended = [
        observer.wait_for("the killed client's end", matching(Kind.CLIENT_DISCONNECTED)).value
        for _ in range(3)
    ]
    assert sorted(ended) == sorted(connected)
    assert fence(observer) == []


@pytest.mark.fact("S26")
def test_a_suspended_client_stays_connected_and_receives_when_it_goes_on(observer, agent, scratch, fence):
    number = agent.call("connect", {"event_mask": MASK_FILES, "path_prefix": scratch.device("")})
    assert observer.next().kind == Kind.CLIENT_CONNECTED
    agent.suspend()
    try:
        files.create(scratch / "a")
        assert fence(observer) == []
    finally:
        agent.resume()
    paths = [record["path"] for record in agent.call("receive", number)]
    assert scratch.device("a").casefold() in [path.casefold() for path in paths]


@pytest.mark.fact("D4", "D5")
def test_a_connection_whose_queue_is_full_and_unread_can_be_closed(observer, listen, scratch):
    listener = listen(queue_bytes=QUEUE_BYTES_MINIMUM)
    for number in range(15):
        files.create(scratch / f"file-{number:02}-{'x' * 200}")
    listener.close()
    observer.wait_for("the end of the full connection", matching(Kind.CLIENT_DISCONNECTED))


@pytest.mark.fact("G17")
def test_a_request_that_is_pending_when_its_handle_is_closed_ends_with_an_error(listen, observe):
    listener = listen()
    operation = listener.port.begin_get()
    listener.port.close()
    completion = operation.completion(10)
    assert completion is not None, "the request is still pending after its handle was closed"
    observe("G17", completion.hresult)
    assert completion.hresult in {hr.OPERATION_ABORTED, hr.INVALID_HANDLE}


@pytest.mark.fact("G16")
def test_a_cancelled_request_ends_as_aborted_and_the_connection_goes_on(listen, scratch):
    listener = listen()
    operation = listener.port.begin_get()
    assert operation.cancel()
    with pytest.raises(CancelledError, match="0x800703E3"):
        operation.wait(10)
    files.create(scratch / "a")
    listener.wait_for("the file", matching(Kind.FILE_OPENED, scratch.device("a")))


@pytest.mark.fact("G16")
def test_cancelling_the_port_ends_all_of_its_requests(listen):
    port = listen().port
    operations = [port.begin_get() for _ in range(3)]
    assert port.cancel()
    for operation in operations:
        with pytest.raises(CancelledError):
            operation.wait(10)


@pytest.mark.fact("G16")
def test_there_is_nothing_to_cancel_on_an_idle_port(listen):
    assert not listen().port.cancel()


@pytest.mark.fact("G1")
def test_a_closed_port_cannot_be_used(listen):
    port = listen().port
    port.close()
    port.close()
    with pytest.raises(DisconnectedError):
        port.get_message(timeout=1)


@pytest.mark.fact("X2")
def test_the_end_of_one_connection_does_not_touch_another(listen, scratch):
    stays, leaves = listen(), listen()
    files.create(scratch / "before")
    leaves.close()
    files.create(scratch / "after")
    records = stays.until("the second file", matching(Kind.FILE_OPENED, scratch.device("after")))
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    assert any(record.path.casefold() == scratch.device("before").casefold() for record in records)


@pytest.mark.fact("D3", "C9")
def test_connecting_and_closing_many_times_leaves_nothing_behind(observer, listen):
    for _ in range(20):
        listen().close()
    records = [observer.next() for _ in range(40)]
    assert kinds(records) == [Kind.CLIENT_CONNECTED, Kind.CLIENT_DISCONNECTED] * 20
    assert {record.detail for record in records[::2]} == {2}
    assert len({record.value for record in records}) == 20


@pytest.mark.fact("D3")
def test_connections_closed_by_several_threads_at_once_end_once_each(observer, listen):
    listeners = [listen() for _ in range(6)]
    identities = sorted(observer.next().value for _ in listeners)
    start = threading.Barrier(len(listeners))

    def close(listener):
        start.wait(10)
        listener.close()

    threads = [threading.Thread(target=close, args=(listener,)) for listener in listeners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    ended = [observer.next() for _ in listeners]
    assert kinds(ended) == [Kind.CLIENT_DISCONNECTED] * len(listeners)
    assert sorted(record.value for record in ended) == identities


@pytest.mark.fact("D1")
def test_the_last_client_to_leave_is_reported_to_a_later_observer_by_its_absence(listen):
    listen().close()
    record = listen(event_mask=MASK_LIFECYCLE).next()
    assert record.detail == 1, "the driver still counts a connection that was closed"


@pytest.mark.fact("D2", "G17")
def test_a_handle_closed_while_threads_wait_on_it_wakes_every_one_of_them(listen):
    port = listen().port
    errors: list[PortError] = []
    posted = threading.Barrier(5)

    def wait() -> None:
        operation = port.begin_get()
        posted.wait(10)
        try:
            operation.wait(10)
        except PortError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    posted.wait(10)
    port.close()
    for thread in threads:
        thread.join(30)
    assert len(errors) == 4
    assert {error.hresult for error in errors} <= {hr.OPERATION_ABORTED, hr.INVALID_HANDLE}
