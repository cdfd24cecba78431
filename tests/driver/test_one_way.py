"""One way only: nothing that a client sends gets through, whatever its shape, and nothing is disturbed by it.

The codes are those of fact U3 (two values, which one is for a real machine to tell) and of fact U5 for input that is
missing or empty.
"""

from __future__ import annotations

import os
import threading

import pytest

from harness.client import files
from harness.client import hresult as hr
from harness.client.errors import InvalidParameterError, NoWaiterError, PortError
from harness.client.listener import matching
from harness.client.port import Message, Port
from harness.client.protocol import MASK_FILES, PORT_NAME, Connect, Kind

SIZES = [1, 16, 4096, 1 << 20]


class Outcome(int):
    """An HRESULT that a failure text shows by its name."""

    def __repr__(self) -> str:
        return f"{hr.describe(self).name} (0x{self:08X})"


REFUSED = {Outcome(hr.INVALID_FUNCTION), Outcome(hr.NOT_SUPPORTED)}
REFUSED_EMPTY = REFUSED | {Outcome(hr.INVALID_PARAMETER)}


def outcome(action, *arguments, **options):
    """The HRESULT of an attempt, S_OK for success."""
    try:
        action(*arguments, **options)
    except PortError as error:
        return Outcome(error.hresult)
    return Outcome(hr.S_OK)


@pytest.mark.fact("U3", "P10", "M4")
@pytest.mark.parametrize("output_size", [0, 1, 16, 4096, 1 << 20])
@pytest.mark.parametrize("size", SIZES)
def test_a_message_to_the_driver_is_refused(listen, observe, size, output_size):
    result = outcome(listen().port.send, os.urandom(size), output_size)
    observe("U3", result)
    assert result in REFUSED


@pytest.mark.fact("U3", "U5")
@pytest.mark.parametrize("output_size", [0, 16, 4096])
def test_an_empty_message_is_refused(listen, observe, output_size):
    result = outcome(listen().port.send, b"", output_size)
    observe("U5", result)
    assert result in REFUSED_EMPTY


@pytest.mark.fact("U3", "U5")
@pytest.mark.parametrize("output_size", [0, 16, 4096])
@pytest.mark.parametrize("input_size", [0, 1, 4096])
def test_a_message_with_a_null_buffer_is_refused(listen, input_size, output_size):
    assert outcome(listen().port.send, None, output_size, input_size=input_size) in REFUSED_EMPTY


@pytest.mark.fact("U3", "U5")
@pytest.mark.parametrize(("size", "output_size"), [(16, 0), (16, 16), (4096, 4096)])
def test_a_message_with_a_null_output_buffer_is_refused(listen, size, output_size):
    result = outcome(listen().port.send, bytes(size), output_size, output_null=True)
    assert result in (REFUSED if output_size == 0 else REFUSED_EMPTY)


@pytest.mark.fact("U3")
def test_a_message_with_the_bytes_of_a_connection_context_is_refused(listen):
    listener = listen()
    assert outcome(listener.port.send, listener.connect.encode(), 64) in REFUSED


@pytest.mark.fact("U3")
def test_sending_before_any_traffic_does_not_disturb_what_comes(listen, scratch):
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    assert outcome(listener.port.send, b"x" * 16) in REFUSED
    files.create(scratch / "a")
    record = listener.next()
    assert (record.sequence, record.path.casefold()) == (1, scratch.device("a").casefold())


@pytest.mark.fact("U3")
def test_sending_after_traffic_is_refused_as_before(listen, scratch):
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    files.create(scratch / "a")
    listener.next()
    assert outcome(listener.port.send, b"x" * 16, 16) in REFUSED


@pytest.mark.fact("U3", "S6")
def test_sending_leaves_a_queue_that_is_not_read_as_it_is(listen, scratch):
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    for number in range(5):
        files.create(scratch / f"file-{number}")
        assert outcome(listener.port.send, b"x" * 64, 64) in REFUSED
    last = matching(path=scratch.device("file-4"))
    records = listener.until("the last file", last)
    assert [record.sequence for record in records] == [1, 2, 3, 4, 5]


@pytest.mark.fact("U3", "G12")
def test_sending_while_a_request_is_pending_leaves_it_pending(listen, scratch):
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    operation = listener.port.begin_get()
    for size in SIZES:
        assert outcome(listener.port.send, bytes(size), 16) in REFUSED
    assert not operation.done
    files.create(scratch / "a")
    assert operation.wait(10).data


@pytest.mark.fact("U3")
def test_sending_on_one_connection_is_not_seen_on_another(observer, listen, fence):
    listener = listen()
    assert observer.next().kind == Kind.CLIENT_CONNECTED
    for size in SIZES:
        assert outcome(listener.port.send, bytes(size), 16) in REFUSED
    assert fence(observer) == []


@pytest.mark.fact("U3", "S22")
def test_sending_from_many_threads_at_once_is_refused_to_each(listen, scratch):
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    start = threading.Barrier(6)
    results: list[int] = []

    def send(size: int) -> None:
        start.wait(10)
        results.extend(outcome(listener.port.send, bytes(size), 16) for _ in range(10))

    threads = [threading.Thread(target=send, args=(16 * (n + 1),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 60
    assert set(results) <= REFUSED
    files.create(scratch / "a")
    assert listener.next().sequence == 1


@pytest.mark.fact("U3", "U2", "D4")
def test_sending_while_the_connection_is_closed_is_refused_or_finds_it_closed(listen):
    port = listen().port
    started = threading.Event()
    results: list[int] = []

    def send() -> None:
        while True:
            result = outcome(port.send, b"x" * 16)
            results.append(result)
            started.set()
            if result == hr.INVALID_HANDLE:
                return

    thread = threading.Thread(target=send)
    thread.start()
    started.wait(10)
    port.close()
    thread.join(30)
    assert not thread.is_alive()
    assert set(results) <= REFUSED | {hr.INVALID_HANDLE}


@pytest.mark.fact("U3", "D2")
def test_a_client_that_is_killed_while_it_sends_is_disconnected_once(observer, agent, fence):
    number = agent.call("connect", {"event_mask": MASK_FILES})
    observer.next()
    assert agent.call("send", number, 4096) in REFUSED
    agent.begin("send", number, 1 << 20)
    agent.kill()
    observer.wait_for("the killed client's end", matching(Kind.CLIENT_DISCONNECTED))
    assert fence(observer) == []


@pytest.mark.fact("U3", "G2", "G12")
@pytest.mark.parametrize("size", SIZES)
def test_sending_on_a_synchronous_handle_is_refused(size):
    context = Connect(event_mask=Kind.FILE_OPENED.bit).encode()
    with Port.connect(PORT_NAME, context, synchronous=True) as port:
        assert outcome(port.send, bytes(size), 16) in REFUSED


@pytest.mark.fact("U3", "G2")
def test_sending_on_a_duplicate_handle_is_refused(listen):
    with listen().port.duplicate() as duplicate:
        assert outcome(duplicate.send, b"x" * 16, 16) in REFUSED


@pytest.mark.fact("R2", "S20")
def test_a_reply_to_a_message_finds_no_waiter(listen, scratch):
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    files.create(scratch / "a")
    message = listener.port.get_message(timeout=10)
    with pytest.raises(NoWaiterError, match="0x801F0020"):
        listener.port.reply(message, b"answer")
    with pytest.raises(NoWaiterError):
        listener.port.reply(message)


@pytest.mark.fact("R2")
@pytest.mark.parametrize("message_id", [0, 1, 2, 0xFFFFFFFFFFFFFFFF])
def test_a_reply_to_a_message_that_was_never_sent_finds_no_waiter(listen, message_id):
    invented = Message(b"", message_id=message_id, reply_length=0)
    with pytest.raises(NoWaiterError):
        listen().port.reply(invented, b"x" * 8)


@pytest.mark.fact("R2", "S13")
@pytest.mark.parametrize("status", [0, 0x102, 0xC0000022])
def test_no_status_makes_a_reply_pass(listen, status):
    with pytest.raises(NoWaiterError):
        listen().port.reply(Message(b"", 0, 0), b"", status)


@pytest.mark.fact("R3")
@pytest.mark.parametrize("size", [0, 1, 15])
def test_a_reply_shorter_than_its_header_is_refused(listen, size):
    with pytest.raises(InvalidParameterError, match="0x80070057"):
        listen().port.reply_raw(bytes(16), size)


@pytest.mark.fact("R2", "S6")
def test_replies_leave_the_queue_as_it_is(listen, scratch):
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    for number in range(5):
        files.create(scratch / f"file-{number}")
        with pytest.raises(NoWaiterError):
            listener.port.reply(Message(b"", number, 0), b"x" * 100)
    records = listener.until("the last file", matching(path=scratch.device("file-4")))
    assert [record.sequence for record in records] == [1, 2, 3, 4, 5]
