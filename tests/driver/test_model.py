"""Random sequences of file operations by several processes: the driver tells exactly what a reference model expects."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from reference import VERBS, Request, Step, Told, Tree

from harness.client import files
from harness.client.files import ScratchDirectory
from harness.client.listener import Listener
from harness.client.processes import ClientProcess
from harness.client.protocol import ConnectFlag, Kind, Record, RecordFlag

ACTORS = 3
MARK = "mark"

steps = st.builds(
    Step,
    verb=st.sampled_from(VERBS),
    actor=st.integers(0, ACTORS - 1),
    where=st.integers(0, 30),
    what=st.integers(0, 6000),
    amount=st.integers(0, 6000),
)
programs = st.lists(steps, min_size=8, max_size=40)

repeatable = settings(
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    # What fails names the first record that differs. Shrinking would take longer than one test may.
    phases=[Phase.generate],
    # The fixtures are processes and a parent directory; every example makes a directory and connections of its own.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def agents(start_agent) -> list[ClientProcess]:
    return [start_agent() for _ in range(ACTORS)]


@pytest.fixture
def directories(scratch) -> Iterator[ScratchDirectory]:
    """Empty directories, as many as one asks for."""

    def made() -> Iterator[ScratchDirectory]:
        for number in itertools.count():
            name = f"x{number}"
            files.mkdir(scratch / name)
            yield ScratchDirectory(scratch / name, scratch.device(name))

    return made()


def perform(agents: Sequence[ClientProcess], directory: str, requests: Sequence[Request]) -> None:
    """One request after the other, each by its own process; every one must end as the model says."""
    for actor, group in itertools.groupby(requests, key=lambda request: request.actor):
        asked = list(group)
        compare(asked, agents[actor].call("perform", directory, arguments(asked)))


def arguments(requests: Sequence[Request]) -> list[tuple[str, tuple[object, ...]]]:
    """Requests as `perform` of the agent takes them."""
    return [(request.verb, request.arguments) for request in requests]


def compare(requests: Sequence[Request], statuses: list[int]) -> None:
    for number, (request, status) in enumerate(zip(requests, statuses, strict=True)):
        if status != request.status:
            raise AssertionError(f"request {number}, {request}, ended with 0x{status:08X}")


def until_marked(listener: Listener, directory: ScratchDirectory) -> list[Record]:
    """All records up to the making of a file that marks the end."""
    files.create(directory / MARK)
    records = listener.until("the mark", lambda r: r.path == directory.device(MARK))[:-1]
    files.delete(directory / MARK)
    return records


def check(records: list[Record], expected: list[Told], directory: ScratchDirectory, ids: list[int]) -> None:
    """Record by record, so that a failure names the first one that differs."""
    identities: dict[int, bytes] = {}
    for number, (record, told) in enumerate(itertools.zip_longest(records, expected)):
        assert record is not None, f"record {number} did not come: {told}"
        assert told is not None, f"record {number} should not have come: {record}"
        second = directory.device(told.second) if told.second else ""
        assert (record.kind, record.process_id) == (told.kind, ids[told.actor]), f"record {number}: {told}"
        assert (record.path, record.second_path) == (directory.device(told.path), second)
        assert record.status == told.status
        if not told.status:
            assert (record.value, record.detail) == (told.value, told.detail), f"record {number}: {told}"
            assert bool(record.flags & RecordFlag.DIRECTORY) == told.directory, f"record {number}: {told}"
            assert not record.flags & (RecordFlag.NO_PATH | RecordFlag.PATH_TRUNCATED)
        if told.node is not None:
            assert record.flags & RecordFlag.FILE_ID
            assert identities.setdefault(told.node, record.file_id) == record.file_id, (
                f"record {number}: {told}"
            )
    assert len(set(identities.values())) == len(identities), "two files had one id"


def totals(records: Sequence[Record]) -> dict[str, int]:
    """Bytes written by path of the records of writes, and of those of closes."""
    sums: dict[str, int] = defaultdict(int)
    for record in records:
        if record.kind in (Kind.FILE_WRITTEN, Kind.FILE_CLOSED):
            sums[record.kind.name] += record.value
    return sums


def contents(path: str, below: str = "") -> dict[str, int | None]:
    """Sizes of the files in a directory, by their relative paths; None for directories."""
    found: dict[str, int | None] = {}
    for entry in files.listdir(path):
        found[below + entry.name] = None if entry.directory else entry.size
        if entry.directory:
            found |= contents(f"{path}\\{entry.name}", f"{below}{entry.name}\\")
    return found


@pytest.mark.slow
@pytest.mark.fact("N3", "S23")
def test_what_processes_do_in_turn_is_told_in_that_order(listen, agents, directories):
    ids = [agent.process_id for agent in agents]

    @settings(repeatable, max_examples=60)
    @given(program=programs, failures=st.booleans())
    def holds(program: list[Step], failures: bool) -> None:
        tree = Tree(failures=failures)
        for step in program:
            tree.take(step)
        tree.finish()
        directory = next(directories)
        flags = ConnectFlag.INCLUDE_OWN_PROCESS | (ConnectFlag.FAILED_OPERATIONS if failures else 0)
        listener = listen(flags=flags, path_prefix=directory.device(""))
        try:
            perform(agents, directory.path, tree.requests)
            records = until_marked(listener, directory)
            check(records, tree.told, directory, ids)
            sums = totals(records)
            assert sums["FILE_WRITTEN"] == sums["FILE_CLOSED"]
            assert contents(directory.path) == tree.contents()
        finally:
            listener.close()

    holds()


@pytest.mark.slow
@pytest.mark.fact("N3", "S23")
def test_what_processes_do_at_once_is_told_in_the_order_of_each(listen, agents, directories):
    ids = [agent.process_id for agent in agents]

    @settings(repeatable, max_examples=15)
    @given(each=st.tuples(*[programs] * ACTORS))
    def holds(each: tuple[list[Step], ...]) -> None:
        trees = []
        own = [next(directories) for _ in each]
        for actor, program in enumerate(each):
            tree = Tree()
            for step in program:
                tree.take(replace(step, actor=actor))
            tree.finish()
            trees.append(tree)
        listeners = [listen(path_prefix=directory.device("")) for directory in own]
        everything = listen()
        try:
            for agent, tree, directory in zip(agents, trees, own, strict=True):
                agent.begin("perform", directory.path, arguments(tree.requests))
            for agent, tree in zip(agents, trees, strict=True):
                compare(tree.requests, agent.finish("perform"))
            records = until_marked(everything, own[0])
            for tree, listener, directory, process in zip(trees, listeners, own, ids, strict=True):
                check(until_marked(listener, directory), tree.told, directory, ids)
                check([r for r in records if r.process_id == process], tree.told, directory, ids)
        finally:
            for listener in (*listeners, everything):
                listener.close()

    holds()
