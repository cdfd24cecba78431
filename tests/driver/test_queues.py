"""Queues: every connection has its own, with its own numbers, mask and losses, and nobody waits for a reader."""

from __future__ import annotations

import threading
import time

import pytest

from harness.client import files
from harness.client import hresult as hr
from harness.client.binding import OPERATION_SECONDS
from harness.client.errors import BufferTooSmallError, InvalidParameterError, OperationTimeoutError
from harness.client.listener import matching
from harness.client.port import HEADER_BYTES, Port
from harness.client.protocol import (
    MASK_FILES,
    MESSAGE_BYTES_MINIMUM,
    PORT_NAME,
    QUEUE_BYTES_MINIMUM,
    Connect,
    ConnectFlag,
    Kind,
    parse,
    parse_padded,
)

OPENED = Kind.FILE_OPENED.bit
MANY = 24
"""Files made to overflow the smallest queue of 4096 bytes: their names make each record longer than 400 bytes, so
that it holds at most ten, and as many again may be on their way."""


def name(number):
    """Long names of one length, so that all records of one kind have one size and few fill a queue."""
    return f"file-{number:03}-{'x' * 150}"


def make(scratch, numbers):
    """Make files, and fail if that takes as long as only operations that wait for somebody can take."""
    started = time.monotonic()
    for done, number in enumerate(numbers):
        files.create(scratch / name(number))
        elapsed = time.monotonic() - started
        if elapsed > OPERATION_SECONDS:
            raise OperationTimeoutError(f"making {done + 1} files took {elapsed:.1f} s: the I/O path waits")


def opened(records, scratch):
    """Numbers of the files whose making is among the records, in their order."""
    start = scratch.device("file-").casefold()
    found = [r for r in records if r.kind == Kind.FILE_OPENED and r.path.casefold().startswith(start)]
    return [int(record.path[len(start) :][:3]) for record in found]


def drain(listener, scratch, last):
    """Receive until the making of file `last` has come; all records of the listener."""
    listener.wait_for(f"'{name(last)}'", matching(Kind.FILE_OPENED, scratch.device(name(last))))
    return listener.records


@pytest.mark.fact("S6")
def test_each_client_gets_its_own_copy(listen, scratch):
    listeners = [listen(event_mask=OPENED) for _ in range(4)]
    make(scratch, range(5))
    for listener in listeners:
        assert opened(drain(listener, scratch, 4), scratch) == [0, 1, 2, 3, 4]


@pytest.mark.fact("S6")
def test_each_connection_numbers_its_records_from_one(listen, scratch):
    early = listen(event_mask=OPENED)
    make(scratch, range(3))
    late = listen(event_mask=OPENED)
    make(scratch, range(3, 6))
    assert [r.sequence for r in drain(early, scratch, 5)] == [1, 2, 3, 4, 5, 6]
    assert [r.sequence for r in drain(late, scratch, 5)] == [1, 2, 3]


@pytest.mark.fact("S6")
def test_a_connection_gets_nothing_of_what_happened_before_it(listen, scratch):
    make(scratch, range(3))
    listener = listen(event_mask=OPENED)
    make(scratch, [3])
    assert opened(drain(listener, scratch, 3), scratch) == [3]


@pytest.mark.fact("S6")
def test_each_connection_has_its_own_mask(listen, scratch):
    opens, writes = listen(event_mask=OPENED), listen(event_mask=Kind.FILE_WRITTEN.bit)
    for number in range(3):
        files.create(scratch / name(number), b"x" * (number + 1))
    assert {r.kind for r in drain(opens, scratch, 2)} == {Kind.FILE_OPENED}
    writes.wait_for("the last write", matching(Kind.FILE_WRITTEN, scratch.device(name(2))))
    assert [(r.kind, r.value) for r in writes.records] == [(Kind.FILE_WRITTEN, n) for n in (1, 2, 3)]


@pytest.mark.fact("S6")
def test_what_a_mask_leaves_out_takes_no_sequence_number(listen, scratch):
    listener = listen(event_mask=OPENED)
    for number in range(3):
        files.create(scratch / name(number), b"data")
    assert [r.sequence for r in drain(listener, scratch, 2)] == [1, 2, 3]


@pytest.mark.fact("S23")
def test_records_come_in_the_order_of_the_operations(listen, scratch):
    listener = listen(event_mask=OPENED)
    make(scratch, range(MANY))
    assert opened(drain(listener, scratch, MANY - 1), scratch) == list(range(MANY))


@pytest.mark.fact("S23")
def test_records_of_one_file_come_in_the_order_of_its_life(listen, scratch):
    listener = listen()
    files.create(scratch / "a", b"text")
    files.rename(scratch / "a", scratch / "b")
    files.delete(scratch / "b")
    records = listener.until("the deletion", matching(Kind.FILE_DELETED, scratch.device("b")))
    wanted = (Kind.FILE_WRITTEN, Kind.FILE_RENAMED, Kind.FILE_DELETED)
    assert [r.kind for r in records if r.kind in wanted] == list(wanted)
    assert [r.sequence for r in records] == sorted(r.sequence for r in records)


@pytest.mark.fact("S6", "N3")
def test_records_that_pile_up_are_sent_many_to_a_message(listen, scratch):
    listener = listen(event_mask=OPENED)
    make(scratch, range(MANY))
    drain(listener, scratch, MANY - 1)
    assert max(len(batch.records) for batch in listener.batches) >= MANY // 3


@pytest.mark.fact("S17")
def test_no_message_is_longer_than_the_client_asked_for(listen, scratch):
    listener = listen(event_mask=OPENED, message_bytes=MESSAGE_BYTES_MINIMUM)
    make(scratch, range(10))
    drain(listener, scratch, 9)
    assert max(len(message.data) for message in listener.messages) <= MESSAGE_BYTES_MINIMUM
    assert len(listener.messages) > 4


@pytest.mark.fact("S6", "N3", "S25")
def test_a_client_that_never_reads_delays_nobody(listen, scratch):
    silent = listen(queue_bytes=QUEUE_BYTES_MINIMUM)
    reader = listen(event_mask=OPENED)
    make(scratch, range(MANY))
    assert opened(drain(reader, scratch, MANY - 1), scratch) == list(range(MANY))
    assert reader.dropped_count == 0
    assert silent.records == []


@pytest.mark.fact("S6", "N3", "S25")
def test_file_operations_go_on_when_no_client_reads_at_all(listen, scratch):
    for _ in range(8):
        listen(queue_bytes=QUEUE_BYTES_MINIMUM)
    make(scratch, range(MANY))
    assert len(files.listdir(scratch.path)) == MANY


def overflow(listener, scratch):
    """Fill the queue without reading, drain it, and make one more file; the number of records meant for it."""
    make(scratch, range(MANY))
    listener.receive()
    while sum(len(batch.records) for batch in listener.batches) + listener.dropped_count < MANY:
        listener.receive()
    make(scratch, [MANY])
    drain(listener, scratch, MANY)
    return listener.records[-1].sequence


@pytest.mark.fact("S6", "N3")
def test_a_full_queue_drops_the_newest_and_keeps_the_oldest(listen, scratch):
    listener = listen(event_mask=OPENED, queue_bytes=QUEUE_BYTES_MINIMUM)
    overflow(listener, scratch)
    kept = opened(listener.records[:-1], scratch)
    assert kept == list(range(len(kept)))
    assert 1 < len(kept) < MANY


@pytest.mark.fact("S6", "N3")
def test_a_full_queue_drops_the_oldest_when_the_client_asked_for_that(listen, scratch):
    flags = ConnectFlag.INCLUDE_OWN_PROCESS | ConnectFlag.DROP_OLDEST
    listener = listen(event_mask=OPENED, flags=flags, queue_bytes=QUEUE_BYTES_MINIMUM)
    overflow(listener, scratch)
    kept = opened(listener.records[:-1], scratch)
    assert kept[-1] == MANY - 1, "the newest record was dropped"
    # What the worker had taken off the queue before it was full is older than the gap.
    gap = next(n for n in range(MANY) if n not in kept)
    last_gap = max(n for n in range(MANY) if n not in kept)
    assert kept == [*range(gap), *range(last_gap + 1, MANY)]


@pytest.mark.fact("S6", "N3")
@pytest.mark.parametrize("policy", [ConnectFlag(0), ConnectFlag.DROP_OLDEST], ids=["newest", "oldest"])
def test_what_was_dropped_is_announced_with_its_number_and_range(listen, scratch, policy):
    flags = ConnectFlag.INCLUDE_OWN_PROCESS | policy
    listener = listen(event_mask=OPENED, flags=flags, queue_bytes=QUEUE_BYTES_MINIMUM)
    total = overflow(listener, scratch)
    received = {record.sequence for record in listener.records}
    missing = set(range(1, total + 1)) - received
    announced = {n for dropped in listener.dropped for n in range(dropped.first, dropped.last + 1)}
    assert total == MANY + 1
    assert missing == announced
    assert listener.dropped_count == len(missing)


@pytest.mark.fact("S6", "N3")
def test_a_full_queue_loses_only_its_own_records(listen, scratch):
    small = listen(event_mask=OPENED, queue_bytes=QUEUE_BYTES_MINIMUM)
    large = listen(event_mask=OPENED)
    make(scratch, range(MANY))
    assert opened(drain(large, scratch, MANY - 1), scratch) == list(range(MANY))
    assert large.dropped_count == 0
    small.receive()
    while not small.dropped_count:
        small.receive()
    assert [r.sequence for r in large.records] == list(range(1, MANY + 1))


@pytest.mark.fact("S6", "N3")
def test_a_queue_that_was_full_takes_records_again_once_it_is_read(listen, scratch):
    listener = listen(event_mask=OPENED, queue_bytes=QUEUE_BYTES_MINIMUM)
    overflow(listener, scratch)
    lost = listener.dropped_count
    for number in range(MANY + 1, MANY + 6):
        make(scratch, [number])
        drain(listener, scratch, number)
    assert opened(listener.records[-5:], scratch) == list(range(MANY + 1, MANY + 6))
    assert listener.dropped_count == lost


@pytest.mark.fact("S6", "N3")
def test_a_queue_that_holds_everything_drops_nothing(listen, scratch):
    listener = listen(event_mask=OPENED)
    make(scratch, range(MANY))
    drain(listener, scratch, MANY - 1)
    assert listener.dropped == []
    assert all(batch.first_dropped == batch.last_dropped == 0 for batch in listener.batches)


@pytest.mark.fact("S18", "G14")
def test_a_message_outlives_a_request_that_is_too_small_for_it(listen, scratch, observe):
    listener = listen(event_mask=OPENED)
    small = listener.port.begin_get(HEADER_BYTES + 16)
    make(scratch, [0])
    with pytest.raises(BufferTooSmallError, match="0x8007007A") as caught:
        small.wait(10)
    observe("S18", f"information {caught.value.information}")
    assert caught.value.information in {0, HEADER_BYTES + len_of_first(listener, scratch)}
    assert opened(listener.records, scratch) == [0]


def len_of_first(listener, scratch):
    drain(listener, scratch, 0)
    return len(listener.messages[0].data)


@pytest.mark.fact("S18")
def test_a_request_that_is_large_enough_is_preferred_to_an_earlier_one_that_is_not(listen, scratch):
    port = listen(event_mask=OPENED).port
    small = port.begin_get(HEADER_BYTES + 16)
    large = port.begin_get()
    make(scratch, [0])
    assert parse(large.wait(10).data).records
    assert not small.done
    small.cancel()


@pytest.mark.slow
@pytest.mark.fact("S5", "S6", "S26")
def test_a_message_that_nobody_fetches_for_longer_than_a_send_may_take_is_not_lost(listen, scratch):
    late, idle = listen(event_mask=OPENED), listen(event_mask=Kind.FILE_RENAMED.bit)
    make(scratch, [0])
    # The driver offers a message for a second at a time; a send that timed out is no success (fact S5).
    with pytest.raises(TimeoutError):
        idle.receive(timeout=1.2)
    make(scratch, [1])
    assert opened(drain(late, scratch, 1), scratch) == [0, 1]


@pytest.mark.fact("S20", "S21", "R5")
def test_the_header_of_a_message_says_that_no_reply_is_expected(listen, scratch):
    listener = listen(event_mask=OPENED)
    operation = listener.port.begin_get()
    make(scratch, [0])
    completion = operation.completion(10)
    message = operation.wait(0)
    assert completion is not None
    assert (message.reply_length, message.message_id) == (0, 0)
    assert completion.information == HEADER_BYTES + len(message.data)


@pytest.mark.fact("S23", "G21")
def test_requests_are_filled_in_the_order_in_which_they_were_posted(listen, scratch):
    port = listen(event_mask=OPENED).port
    operations = [port.begin_get() for _ in range(3)]
    for number, operation in enumerate(operations):
        make(scratch, [number])
        assert opened(parse(operation.wait(10).data).records, scratch) == [number]


@pytest.mark.fact("G22", "S7")
def test_threads_that_read_one_connection_share_its_messages_and_none_comes_twice(listen, scratch):
    port = listen(event_mask=OPENED, message_bytes=MESSAGE_BYTES_MINIMUM).port
    lock, complete = threading.Lock(), threading.Event()
    sequences: list[int] = []
    failures: list[Exception] = []

    def read() -> None:
        try:
            while not complete.is_set():
                operation = port.begin_get()
                while not complete.is_set():
                    completion = operation.completion(0.05)
                    if completion is not None:
                        break
                else:
                    operation.cancel()
                    completion = operation.completion(10)
                if completion is None or completion.hresult != hr.S_OK:
                    continue
                with lock:
                    sequences.extend(r.sequence for r in parse(operation.wait(0).data).records)
                    if len(sequences) >= MANY:
                        complete.set()
        except (AssertionError, OSError, ValueError) as error:
            failures.append(error)
            complete.set()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    make(scratch, range(MANY))
    finished = complete.wait(20)
    complete.set()
    for thread in threads:
        thread.join(20)
    assert not failures
    assert finished, f"only {len(sequences)} of {MANY} records came"
    assert sorted(sequences) == list(range(1, MANY + 1))


@pytest.mark.fact("G10", "S7")
def test_a_request_that_waits_is_completed_by_a_lone_event(listen, scratch):
    listener = listen(event_mask=OPENED)
    listener.post()
    make(scratch, [0])
    assert len(listener.receive().records) == 1


@pytest.mark.fact("G10")
def test_waiting_in_vain_loses_no_message(listen, scratch):
    port = listen(event_mask=OPENED).port
    with pytest.raises(TimeoutError):
        port.get_message(timeout=0.01)
    make(scratch, [0])
    assert opened(parse(port.get_message(timeout=10).data).records, scratch) == [0]


@pytest.mark.fact("G2", "G12")
def test_a_synchronous_handle_receives_without_overlapped(scratch):
    context = Connect(
        event_mask=OPENED, flags=ConnectFlag.INCLUDE_OWN_PROCESS, path_prefix=scratch.device("")
    )
    with Port.connect(PORT_NAME, context.encode(), synchronous=True) as port:
        make(scratch, [0])
        assert opened(parse_padded(port.get_message(timeout=10).data).records, scratch) == [0]


@pytest.mark.fact("G15")
def test_a_request_without_a_buffer_is_refused(listen):
    with pytest.raises(InvalidParameterError):
        listen().port.get_message(timeout=10, size=0)


@pytest.mark.fact("S6", "C2")
def test_clients_in_several_processes_each_get_every_record(listen, scratch, start_agent):
    agents = [start_agent(), start_agent()]
    options = {"event_mask": OPENED, "path_prefix": scratch.device("")}
    numbers = [agent.call("connect", options) for agent in agents]
    make(scratch, [0])
    for agent, number in zip(agents, numbers, strict=True):
        records = agent.call("receive", number)
        assert [(r["kind"], r["sequence"]) for r in records] == [(Kind.FILE_OPENED, 1)]


@pytest.mark.fact("S6", "N3")
def test_a_suspended_reader_delays_neither_operations_nor_other_clients(listen, scratch, agent):
    number = agent.call(
        "connect",
        {"event_mask": MASK_FILES, "path_prefix": scratch.device(""), "queue_bytes": QUEUE_BYTES_MINIMUM},
    )
    agent.call("post", number)
    reader = listen(event_mask=OPENED)
    agent.suspend()
    try:
        make(scratch, range(MANY))
        assert opened(drain(reader, scratch, MANY - 1), scratch) == list(range(MANY))
    finally:
        agent.resume()
    assert agent.call("receive", number)[0]["sequence"] == 1
