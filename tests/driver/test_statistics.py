"""Statistics: counters that come by the clock and agree to the digit with what the client has seen."""

from __future__ import annotations

import pytest

from harness.client import files
from harness.client.listener import matching
from harness.client.protocol import (
    MASK_STATISTICS,
    QUEUE_BYTES_DEFAULT,
    QUEUE_BYTES_MINIMUM,
    STATISTICS_INTERVAL_MAXIMUM,
    STATISTICS_INTERVAL_MINIMUM,
    ConnectFlag,
    Kind,
)

OPENED = Kind.FILE_OPENED.bit
OFTEN = STATISTICS_INTERVAL_MINIMUM
LONG = "x" * 150

# These wait for intervals of real time, of which the shortest that a client may ask for is 100 ms.
pytestmark = pytest.mark.slow


def make(scratch, first, count):
    for number in range(first, first + count):
        files.create(scratch / f"file-{number:03}-{LONG}")


def next_statistics(listener):
    return listener.wait_for("statistics", matching(Kind.STATISTICS))


def fetched_before(listener, record):
    """Records, messages and bytes of the messages before the one that carries this record."""
    messages = []
    for message, batch in zip(listener.messages, listener.batches, strict=True):
        if record in batch.records:
            break
        messages.append((message, batch))
    records = sum(len(batch.records) for _, batch in messages)
    return records, len(messages), sum(len(message.data) for message, _ in messages)


@pytest.fixture
def counted(listen):
    """A listener for opens and statistics."""
    return listen(event_mask=OPENED | MASK_STATISTICS, statistics_interval_ms=OFTEN)


@pytest.mark.fact("S6")
def test_statistics_of_an_idle_connection_are_all_zero_but_for_the_queue(counted):
    record = next_statistics(counted)
    counters = record.statistics
    assert (record.sequence, counters.queue_bytes) == (1, QUEUE_BYTES_DEFAULT)
    assert (counters.queued, counters.sent, counters.dropped, counters.messages) == (0, 0, 0, 0)
    assert (counters.message_bytes, counters.pending_records, counters.used_bytes) == (0, 0, 0)


@pytest.mark.fact("S6", "S7")
def test_statistics_count_exactly_what_was_fetched(counted, scratch):
    make(scratch, 0, 10)
    counted.wait_for("the last file", matching(Kind.FILE_OPENED, scratch.device(f"file-009-{LONG}")))
    for _ in range(3):
        record = next_statistics(counted)
        counters = record.statistics
        sent, messages, size = fetched_before(counted, record)
        assert (counters.sent, counters.messages, counters.message_bytes) == (sent, messages, size)
        assert (counters.dropped, counters.pending_records) == (0, 0)
        assert counters.queued == counters.sent
    assert counters.sent >= 12


@pytest.mark.fact("S6")
@pytest.mark.parametrize("policy", [ConnectFlag(0), ConnectFlag.DROP_OLDEST], ids=["newest", "oldest"])
def test_statistics_count_exactly_what_was_dropped(listen, scratch, policy):
    listener = listen(
        event_mask=OPENED | MASK_STATISTICS,
        flags=ConnectFlag.INCLUDE_OWN_PROCESS | policy,
        queue_bytes=QUEUE_BYTES_MINIMUM,
        statistics_interval_ms=OFTEN,
    )
    make(scratch, 0, 30)
    while not listener.dropped:
        listener.receive()
    # The first of them may still have been made while drops were not announced; of the second all are.
    next_statistics(listener)
    counters = next_statistics(listener).statistics
    opens = sum(record.kind == Kind.FILE_OPENED for record in listener.records)
    lost_statistics = counters.dropped + opens - 30
    assert counters.dropped == listener.dropped_count > 0
    assert 0 <= lost_statistics <= 1
    assert QUEUE_BYTES_MINIMUM // 2 < counters.high_water_bytes <= QUEUE_BYTES_MINIMUM


@pytest.mark.fact("S6")
def test_in_every_statistics_record_the_counters_add_up_to_its_number(listen, scratch):
    listener = listen(
        event_mask=OPENED | MASK_STATISTICS,
        queue_bytes=QUEUE_BYTES_MINIMUM,
        statistics_interval_ms=OFTEN,
    )
    for number in range(4):
        make(scratch, 30 * number, 30)
        next_statistics(listener)
    for record in (r for r in listener.records if r.kind == Kind.STATISTICS):
        counters = record.statistics
        assert counters.sent + counters.dropped + counters.pending_records == record.sequence - 1
        assert counters.used_bytes <= counters.high_water_bytes <= counters.queue_bytes


@pytest.mark.fact("S6")
def test_statistics_have_the_time_between_them_that_was_asked_for(counted):
    first, second = next_statistics(counted), next_statistics(counted)
    assert second.time - first.time >= 0.9 * OFTEN * 10_000


@pytest.mark.fact("S6")
@pytest.mark.parametrize(
    ("mask", "interval"),
    [
        pytest.param(OPENED, OFTEN, id="interval without the bit"),
        pytest.param(OPENED | MASK_STATISTICS, 0, id="bit without an interval"),
        pytest.param(OPENED | MASK_STATISTICS, STATISTICS_INTERVAL_MAXIMUM, id="a day"),
    ],
)
def test_without_bit_and_interval_there_are_no_statistics(listen, counted, scratch, mask, interval):
    listener = listen(event_mask=mask, statistics_interval_ms=interval)
    for _ in range(2):
        next_statistics(counted)
    files.create(scratch / "a")
    record = listener.next()
    assert (record.kind, record.sequence) == (Kind.FILE_OPENED, 1)


@pytest.mark.fact("S6")
def test_statistics_of_one_connection_know_nothing_of_another(listen, counted, scratch):
    other = listen(event_mask=MASK_STATISTICS, statistics_interval_ms=OFTEN)
    make(scratch, 0, 5)
    counted.wait_for("the last file", matching(Kind.FILE_OPENED, scratch.device(f"file-004-{LONG}")))
    record = next_statistics(other)
    assert record.statistics.sent == record.sequence - 1
    assert {r.kind for r in other.records} == {Kind.STATISTICS}


@pytest.mark.fact("S6", "S21")
def test_the_bytes_of_the_statistics_do_not_count_the_filter_manager_s_header(counted, scratch):
    files.create(scratch / "a")
    counted.wait_for("the file", matching(Kind.FILE_OPENED))
    counters = next_statistics(counted).statistics
    fetched = counted.messages[: counters.messages]
    assert counters.message_bytes == sum(len(message.data) for message in fetched) > 0
