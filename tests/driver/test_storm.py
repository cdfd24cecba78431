"""Storms: thousands of file operations from four processes at once, and every record of every client accounted for."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from harness.client import files
from harness.client.binding import OPERATION_SECONDS
from harness.client.errors import OperationTimeoutError
from harness.client.files import ScratchDirectory
from harness.client.listener import Listener
from harness.client.processes import ClientProcess
from harness.client.protocol import (
    MASK_FILES,
    QUEUE_BYTES_MAXIMUM,
    QUEUE_BYTES_MINIMUM,
    ConnectFlag,
    Kind,
    Record,
)

pytestmark = pytest.mark.slow

PROCESSES = 4
OPERATIONS = 5
"""Requests on each file, in the agent's `churn`. Each of them makes one record: the close makes two, of the close and
of the deletion, and the mark for deletion none."""
CHUNK = 20
"""Files after which a process tells how far it is."""
STORM_SECONDS = 60.0

Sign = tuple[int, str, str, int, int]


@dataclass(frozen=True, slots=True)
class Storm:
    """What the processes do: `files_each` files each, below one directory."""

    scratch: ScratchDirectory
    agents: list[ClientProcess]
    files_each: int

    def prefix(self, agent: int) -> str:
        return f"process-{agent}-file-"

    def begin(self) -> None:
        """Give every process all of its work; it does one chunk after the other."""
        for number, agent in enumerate(self.agents):
            assert agent.process_id
            for first in range(0, self.files_each, CHUNK):
                agent.begin("churn", self.scratch.path, self.prefix(number), first, CHUNK)

    def finish(self, *, after_chunk: Callable[[], object] = lambda: None) -> float:
        """Wait until all is done; the longest that one file took, in seconds.

        Args:
            after_chunk: called whenever a process has done one more chunk, except for the last round.
        """
        slowest = 0.0
        rounds = self.files_each // CHUNK
        for current in range(rounds):
            for agent in self.agents:
                slowest = max(slowest, agent.finish("churn", seconds=STORM_SECONDS))
                if current < rounds - 1:
                    after_chunk()
        return slowest

    def expected(self, agent: int, mask: int) -> list[Sign]:
        """What a client with this mask is told of one process, in this order, unless it is dropped."""
        told = []
        for number in range(self.files_each):
            path = self.scratch.device(f"{self.prefix(agent)}{number:04}")
            done = f"{path}-done"
            size = number + 1
            changes = Kind.FILE_WRITTEN.bit | Kind.FILE_RENAMED.bit
            told += [
                (Kind.FILE_OPENED, path, "", 0, files.CREATED),
                (Kind.FILE_WRITTEN, path, "", size, 0),
                (Kind.FILE_RENAMED, path, done, 0, 0),
                (Kind.FILE_CLOSED, done, "", size, changes),
                (Kind.FILE_DELETED, done, "", 0, 0),
            ]
        return [sign for sign in told if mask & (1 << sign[0])]

    def produced(self, mask: int) -> int:
        """How many records were meant for a client with this mask."""
        return sum(len(self.expected(agent, mask)) for agent in range(len(self.agents)))


def sign(record: Record) -> Sign:
    return (record.kind, record.path, record.second_path, record.value, record.detail)


def accounted(listener: Listener) -> int:
    return len(listener.records) + listener.dropped_count


def drain(listener: Listener, produced: int) -> None:
    """Receive until every record was received or announced as dropped."""
    while accounted(listener) < produced:
        listener.receive()


def check(storm: Storm, listener: Listener) -> None:
    """Totals, the order per process, and that nothing came twice or was made up."""
    mask = listener.connect.event_mask
    assert accounted(listener) == storm.produced(mask)
    for number, agent in enumerate(storm.agents):
        received = [sign(record) for record in listener.records if record.process_id == agent.process_id]
        wanted = iter(storm.expected(number, mask))
        # With drops it is a part of what was meant, in the same order: each is found behind the one before it.
        lost = next((one for one in received if not any(one == other for other in wanted)), None)
        assert lost is None, f"not what process {number} did, or not in that order: {lost}"
    identities = {agent.process_id for agent in storm.agents}
    assert {record.process_id for record in listener.records} <= identities


def finish_with_a_mark(storm: Storm, listeners: list[Listener]) -> None:
    """One more file: its number shows that nothing was numbered besides what is accounted for."""
    files.create(storm.scratch / "mark", b"x")
    files.rename(storm.scratch / "mark", storm.scratch / "mark-2")
    for listener in listeners:
        produced = storm.produced(listener.connect.event_mask)
        mark = listener.wait_for("the mark", lambda r: "\\mark" in r.path)
        # Drops that no message had room to tell of before are told of with the mark.
        assert mark.sequence == produced + 1, (
            f"{mark.sequence - 1} records were numbered, {produced} were made"
        )


@pytest.fixture
def make_storm(scratch, start_agent):
    def make(files_each: int) -> Storm:
        return Storm(scratch, [start_agent() for _ in range(PROCESSES)], files_each)

    return make


@pytest.mark.fact("S6", "S7", "S23", "N3")
def test_in_a_storm_every_record_is_received_or_announced_as_dropped(listen, make_storm):
    storm = make_storm(500)
    eager = listen(queue_bytes=QUEUE_BYTES_MAXIMUM)
    steady = listen()
    slow = listen(
        event_mask=Kind.FILE_OPENED.bit | Kind.FILE_RENAMED.bit | Kind.FILE_DELETED.bit,
        flags=ConnectFlag.INCLUDE_OWN_PROCESS | ConnectFlag.DROP_OLDEST,
        queue_bytes=QUEUE_BYTES_MINIMUM,
    )
    silent = listen(event_mask=Kind.FILE_WRITTEN.bit | Kind.FILE_CLOSED.bit, queue_bytes=QUEUE_BYTES_MINIMUM)
    listeners = [eager, steady, slow, silent]
    total = storm.produced(MASK_FILES)
    reader = threading.Thread(target=drain, args=(eager, total), daemon=True)
    chunks = itertools.count()

    def after_chunk() -> None:
        steady.receive()
        if next(chunks) % 10 == 0:
            slow.receive()

    reader.start()
    storm.begin()
    storm.finish(after_chunk=after_chunk)
    reader.join(STORM_SECONDS)
    for listener in (steady, slow, silent):
        drain(listener, storm.produced(listener.connect.event_mask))

    assert total == PROCESSES * 500 * OPERATIONS == 10_000
    for listener in listeners:
        check(storm, listener)
    assert eager.dropped_count == 0
    assert slow.dropped_count
    assert silent.dropped_count
    assert len(steady.records) / len(steady.batches) >= 20
    finish_with_a_mark(storm, listeners)


@pytest.mark.fact("S6", "S25", "N3")
def test_a_storm_runs_at_full_speed_while_no_client_reads(listen, make_storm):
    storm = make_storm(200)
    started = time.monotonic()
    calm = 2 * CHUNK
    storm.agents[0].call("churn", storm.scratch.path, "calm-", 0, calm, seconds=STORM_SECONDS)
    alone = (time.monotonic() - started) / calm
    silent = [
        listen(
            flags=ConnectFlag.INCLUDE_OWN_PROCESS | (ConnectFlag.DROP_OLDEST if number % 2 else 0),
            queue_bytes=QUEUE_BYTES_MINIMUM,
        )
        for number in range(4)
    ]
    started = time.monotonic()
    storm.begin()
    slowest = storm.finish()
    each = (time.monotonic() - started) / (PROCESSES * storm.files_each)

    # A send that nobody takes lasts a second: whoever waits for one is slower by a thousand times, not by a few.
    if slowest > OPERATION_SECONDS or each > 20 * alone:
        raise OperationTimeoutError(
            f"a file took {alone:.4f} s without a client, {each:.4f} s in the storm and {slowest:.1f} s at most: "
            "the I/O path waits"
        )
    assert all(listener.records == [] for listener in silent)
    for listener in silent:
        drain(listener, storm.produced(MASK_FILES))
        check(storm, listener)
        assert listener.dropped_count
    finish_with_a_mark(storm, silent)
