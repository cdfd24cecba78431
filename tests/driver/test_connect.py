"""Connecting: who is admitted, what is refused and with which code, and how many fit."""

from __future__ import annotations

import os
import struct
import threading

import pytest

from harness.client import hresult as hr
from harness.client.errors import AccessDeniedError, ConnectionLimitError, NotFoundError, PortError
from harness.client.port import Port
from harness.client.protocol import (
    MASK_FILES,
    MASK_LIFECYCLE,
    MESSAGE_BYTES_MAXIMUM,
    MESSAGE_BYTES_MINIMUM,
    PORT_NAME,
    QUEUE_BYTES_MAXIMUM,
    QUEUE_BYTES_MINIMUM,
    STATISTICS_INTERVAL_MAXIMUM,
    STATISTICS_INTERVAL_MINIMUM,
    Connect,
    Kind,
)
from harness.client.security import without_administrators

LIMIT = 8
GOOD = Connect(event_mask=MASK_FILES)


def patched(offset: int, layout: str, value: int | tuple[int, ...], context: bytes = GOOD.encode()) -> bytes:
    """A good context with one field, or some that follow each other, overwritten."""
    data = bytearray(context)
    struct.pack_into(layout, data, offset, *(value if isinstance(value, tuple) else (value,)))
    return bytes(data)


@pytest.mark.fact("C6", "G1")
def test_a_client_with_a_valid_context_is_connected():
    with Port.connect(PORT_NAME, GOOD.encode()) as port:
        assert port.handle


@pytest.mark.fact("C2")
def test_the_connect_callback_runs_in_the_process_of_the_client(observer, listen):
    listen()
    record = observer.next()
    assert (record.kind, record.process_id) == (Kind.CLIENT_CONNECTED, os.getpid())


@pytest.mark.fact("C2")
def test_a_connection_of_another_process_is_reported_with_that_process_id(observer, agent):
    agent.call("connect", {"event_mask": MASK_FILES})
    record = observer.next()
    assert (record.kind, record.process_id) == (Kind.CLIENT_CONNECTED, agent.call("process_id"))


@pytest.mark.fact("C1", "C5")
def test_an_observer_gets_its_own_connection_as_its_first_record(listen):
    record = listen(event_mask=MASK_LIFECYCLE).next()
    assert (record.kind, record.sequence, record.process_id) == (Kind.CLIENT_CONNECTED, 1, os.getpid())


@pytest.mark.fact("C1")
def test_each_connection_is_reported_with_the_number_of_connections_now(observer, listen):
    for _ in range(3):
        listen()
    counts = [observer.next().detail for _ in range(3)]
    assert counts == [2, 3, 4]


@pytest.mark.fact("C5")
def test_no_two_connections_have_the_same_identity(observer, listen):
    for _ in range(3):
        listen()
    assert len({observer.next().value for _ in range(3)}) == 3


@pytest.mark.fact("G3")
def test_a_port_that_does_not_exist_is_not_found(refusal):
    assert refusal(GOOD.encode(), name="\\DownlinkNoSuchPort") == hr.FILE_NOT_FOUND


@pytest.mark.fact("G3")
def test_a_port_in_a_directory_that_does_not_exist_is_not_found(refusal):
    assert refusal(GOOD.encode(), name="\\NoSuchDirectory\\DownlinkPort") in {0x80070003, hr.FILE_NOT_FOUND}


@pytest.mark.fact("G3")
def test_a_name_without_its_backslash_is_refused(refusal, observe):
    accepted = {0x800700A1, 0x8007007B, 0x80070003, hr.FILE_NOT_FOUND, hr.INVALID_PARAMETER}
    result = refusal(GOOD.encode(), name="DownlinkPort")
    observe("G3", result)
    assert result in accepted


@pytest.mark.fact("G4")
def test_a_name_in_another_case_is_connected_or_not_found(observe):
    try:
        Port.connect(PORT_NAME.upper(), GOOD.encode()).close()
        result = hr.S_OK
    except PortError as error:
        result = error.hresult
    observe("G4", hr.describe(result).name)
    assert result in {hr.S_OK, hr.FILE_NOT_FOUND}


@pytest.mark.fact("P20", "P24", "G3")
def test_a_plain_user_is_denied_by_the_default_security_descriptor():
    with without_administrators(), pytest.raises(AccessDeniedError, match="0x80070005"):
        Port.connect(PORT_NAME, GOOD.encode()).close()
    Port.connect(PORT_NAME, GOOD.encode()).close()


@pytest.mark.fact("P20", "C7")
def test_a_denied_user_never_reaches_the_connect_callback(observer, fence):
    with without_administrators(), pytest.raises(AccessDeniedError):
        Port.connect(PORT_NAME, GOOD.encode()).close()
    assert fence(observer) == []


@pytest.mark.fact("C6", "C4")
@pytest.mark.parametrize(
    "context",
    [
        pytest.param(None, id="no context"),
        pytest.param(b"\0", id="one byte"),
        pytest.param(GOOD.encode()[:31], id="one byte short"),
        pytest.param(bytes(32), id="all zero"),
        pytest.param(patched(0x00, "<I", 0x4B4E4C45), id="wrong magic"),
        pytest.param(patched(0x04, "<H", 31), id="size one less"),
        pytest.param(patched(0x04, "<H", 33), id="size one more"),
        pytest.param(patched(0x04, "<H", 0), id="size zero"),
        pytest.param(GOOD.encode() + b"\0\0", id="two bytes more than its size"),
        pytest.param(patched(0x04, "<H", 34, GOOD.encode() + b"\0\0"), id="prefix not counted"),
        pytest.param(patched(0x0A, "<H", 2), id="prefix outside"),
        pytest.param(patched(0x0A, "<H", 0xFFFE), id="prefix far outside"),
        pytest.param(patched(0x0A, "<H", 1, patched(0x04, "<H", 33, GOOD.encode() + b"\0")), id="odd prefix"),
        pytest.param(patched(0x06, "<HH", (2, 1)), id="versions the wrong way round"),
        pytest.param(patched(0x0C, "<I", 0x1), id="unknown event"),
        pytest.param(patched(0x0C, "<I", 0x80000000), id="unknown high event"),
        pytest.param(patched(0x10, "<I", 0x8), id="unknown flag"),
        pytest.param(patched(0x10, "<I", 0x80000000), id="unknown high flag"),
        pytest.param(patched(0x14, "<I", QUEUE_BYTES_MINIMUM - 1), id="queue too small"),
        pytest.param(patched(0x14, "<I", QUEUE_BYTES_MAXIMUM + 1), id="queue too large"),
        pytest.param(patched(0x14, "<I", 0xFFFFFFFF), id="queue far too large"),
        pytest.param(patched(0x1C, "<I", STATISTICS_INTERVAL_MINIMUM - 1), id="statistics too often"),
        pytest.param(patched(0x1C, "<I", STATISTICS_INTERVAL_MAXIMUM + 1), id="statistics too seldom"),
        pytest.param(patched(0x18, "<I", MESSAGE_BYTES_MINIMUM - 1), id="message too small"),
        pytest.param(patched(0x18, "<I", MESSAGE_BYTES_MAXIMUM + 1), id="message too large"),
    ],
)
def test_a_malformed_context_is_refused_as_an_invalid_parameter(refusal, context):
    assert refusal(context) == hr.INVALID_PARAMETER


@pytest.mark.fact("C6", "H1")
@pytest.mark.parametrize(("low", "high"), [(2, 2), (2, 0xFFFF), (0, 0)])
def test_a_version_that_the_driver_does_not_speak_is_a_revision_mismatch(refusal, low, high):
    context = Connect(event_mask=MASK_FILES, minimum_version=low, maximum_version=high).encode()
    assert refusal(context) == hr.REVISION_MISMATCH


@pytest.mark.fact("C6")
@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 2), (0, 0xFFFF)])
def test_a_range_of_versions_that_holds_the_driver_s_is_accepted(low, high):
    context = Connect(event_mask=MASK_FILES, minimum_version=low, maximum_version=high)
    Port.connect(PORT_NAME, context.encode()).close()


@pytest.mark.fact("C6")
@pytest.mark.parametrize("queue", [QUEUE_BYTES_MINIMUM, QUEUE_BYTES_MAXIMUM])
def test_the_bounds_of_the_queue_size_are_themselves_accepted(queue):
    Port.connect(PORT_NAME, Connect(event_mask=MASK_FILES, queue_bytes=queue).encode()).close()


@pytest.mark.fact("C6")
@pytest.mark.parametrize("message", [MESSAGE_BYTES_MINIMUM, MESSAGE_BYTES_MAXIMUM])
def test_the_bounds_of_the_message_size_are_themselves_accepted(message):
    Port.connect(PORT_NAME, Connect(event_mask=MASK_FILES, message_bytes=message).encode()).close()


@pytest.mark.fact("C14")
@pytest.mark.parametrize(("context", "size"), [(GOOD.encode(), 0), (None, 5)])
def test_a_context_and_its_size_must_both_be_there_or_both_be_missing(refusal, context, size):
    assert refusal(context, context_size=size) == hr.INVALID_PARAMETER


@pytest.mark.fact("C13")
@pytest.mark.parametrize("size", [0xFFE8, 0xFFFF])
def test_a_context_that_does_not_fit_into_the_request_is_refused_as_an_overflow(refusal, size):
    assert refusal(bytes(size)) == hr.ARITHMETIC_OVERFLOW


@pytest.mark.fact("C13", "C4")
def test_the_largest_context_that_fits_reaches_the_driver(refusal):
    assert refusal(bytes(0xFFE7)) == hr.INVALID_PARAMETER


@pytest.mark.fact("C7")
def test_a_refused_connection_leaves_no_trace(observer, fence, refusal):
    assert refusal(patched(0x00, "<I", 0)) == hr.INVALID_PARAMETER
    assert refusal(Connect(minimum_version=9, maximum_version=9).encode()) == hr.REVISION_MISMATCH
    assert fence(observer) == []


@pytest.mark.fact("C7", "C8")
def test_refused_connections_use_up_no_slots(listen, refusal):
    for _ in range(LIMIT + 1):
        refusal(b"nonsense")
    for _ in range(LIMIT):
        listen()


@pytest.mark.fact("C8")
def test_eight_clients_are_connected_at_once_and_the_ninth_is_refused(listen, scratch):
    for _ in range(LIMIT):
        listen()
    with pytest.raises(ConnectionLimitError, match="0x800704D6"):
        listen()


@pytest.mark.fact("C8")
def test_a_client_over_the_limit_never_reaches_the_connect_callback(observer, listen):
    others = [listen() for _ in range(LIMIT - 1)]
    with pytest.raises(ConnectionLimitError):
        listen()
    others[0].close()
    kinds = [observer.next().kind for _ in range(LIMIT)]
    assert kinds == [Kind.CLIENT_CONNECTED] * (LIMIT - 1) + [Kind.CLIENT_DISCONNECTED]


@pytest.mark.fact("C9")
def test_a_slot_is_free_again_after_a_disconnect(listen):
    listeners = [listen() for _ in range(LIMIT)]
    listeners[3].close()
    listen()
    with pytest.raises(ConnectionLimitError):
        listen()


@pytest.mark.fact("C12")
def test_two_threads_that_race_for_the_last_slot_do_not_both_get_it(listen):
    for _ in range(LIMIT - 1):
        listen()
    start = threading.Barrier(2)
    ports: list[Port] = []
    refusals: list[int] = []

    def race() -> None:
        start.wait(10)
        try:
            ports.append(Port.connect(PORT_NAME, GOOD.encode()))
        except PortError as error:
            refusals.append(error.hresult)

    threads = [threading.Thread(target=race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for port in ports:
        port.close()
    assert (len(ports), refusals) == (1, [hr.CONNECTION_COUNT_LIMIT])


@pytest.mark.fact("G3")
def test_the_error_of_a_missing_port_says_what_to_do():
    with pytest.raises(NotFoundError, match="fltmc filters"):
        Port.connect("\\DownlinkNoSuchPort", GOOD.encode()).close()
