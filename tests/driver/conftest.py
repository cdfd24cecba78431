"""Fixtures of the suites. They run inside the machine, and import pytest, `harness.client` and the standard library.

Unless a test says otherwise a listener asks for everything that happens in the test's own scratch directory, also by
the test's own process, so that a busy machine does not disturb it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.client import binding as bindings
from harness.client import files
from harness.client.errors import MachineGoneError, OperationTimeoutError, PortError
from harness.client.files import ScratchDirectory
from harness.client.listener import Listener, matching
from harness.client.processes import ClientProcess
from harness.client.protocol import MASK_FILES, MASK_LIFECYCLE, PORT_NAME, Connect, ConnectFlag, Kind

FILTER_NAME = "Downlink"
HUNG = pytest.StashKey[int]()
HUNG_MAXIMUM = 3
AGENT = Path(__file__).with_name("agent.py")

Listen = Callable[..., Listener]
StartAgent = Callable[[], ClientProcess]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fact(*ids): facts about Windows that the test asserts")
    config.addinivalue_line("markers", "slow: takes more than a second on the emulated machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the facts into the report, where they are compared across machines."""
    for item in items:
        for marker in item.iter_markers("fact"):
            item.user_properties += [("fact", fact) for fact in marker.args]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """End the session when the machine is gone or hangs: every further test would only say so again, slowly."""
    report = yield
    if call.excinfo is None:
        return report
    if call.excinfo.errisinstance(MachineGoneError):
        item.session.shouldstop = f"the machine ended during '{item.nodeid}'"
    elif call.excinfo.errisinstance(OperationTimeoutError):
        hung = item.session.stash.get(HUNG, 0) + 1
        item.session.stash[HUNG] = hung
        if hung == HUNG_MAXIMUM:
            item.session.shouldstop = f"requests that must not wait hung in {hung} tests"
    return report


@pytest.fixture(scope="session")
def session_scratch() -> Iterator[ScratchDirectory]:
    with files.scratch_directory() as directory:
        yield directory


@pytest.fixture
def territory(session_scratch: ScratchDirectory, request: pytest.FixtureRequest) -> ScratchDirectory:
    """The names of this test's own directory; it is there only for tests that ask for `scratch`."""
    name = f"t{request.node.session.items.index(request.node)}"
    return ScratchDirectory(session_scratch / name, session_scratch.device(name))


@pytest.fixture
def scratch(territory: ScratchDirectory) -> Iterator[ScratchDirectory]:
    """An empty directory of this test's own on a filtered volume."""
    files.mkdir(territory.path)
    yield territory
    files.remove_tree(territory.path)


@pytest.fixture
def listen(territory: ScratchDirectory, request: pytest.FixtureRequest) -> Iterator[Listen]:
    """Connect listeners; they are closed at the end of the test.

    By default: all file events in the scratch directory, those of this process included. Keyword arguments are the
    fields of `Connect`; `lifecycle=True` adds the lifecycle records to the mask.
    """
    if "scratch" in request.fixturenames:
        # Made before and removed after the listeners: nobody is told of that.
        request.getfixturevalue("scratch")
    opened: list[Listener] = []

    def open_listener(*, lifecycle: bool = False, **options: Any) -> Listener:
        options.setdefault("event_mask", MASK_FILES)
        options.setdefault("flags", ConnectFlag.INCLUDE_OWN_PROCESS)
        options.setdefault("path_prefix", territory.device(""))
        if lifecycle:
            options["event_mask"] |= MASK_LIFECYCLE
        listener = Listener.open(Connect(**options))
        opened.append(listener)
        return listener

    yield open_listener
    for listener in reversed(opened):
        listener.close()


@pytest.fixture
def observer(listen: Listen) -> Listener:
    """A listener for lifecycle records only, past the record of its own connection."""
    listener = listen(event_mask=MASK_LIFECYCLE)
    first = listener.next()
    assert first.kind == Kind.CLIENT_CONNECTED, "an observer's first record is its own connection"
    return listener


@pytest.fixture
def fence(listen: Listen) -> Callable[[Listener], list[Any]]:
    """Everything that lies in an observer's queue now.

    It makes a connection and returns the records before that connection's own record: because order is kept, whatever
    was going to be reported for earlier actions is among them. So 'nothing was reported' needs no waiting.
    """

    def records_so_far(listener: Listener) -> list[Any]:
        mark = listen(event_mask=MASK_LIFECYCLE)
        identity = mark.next().value
        own = matching(Kind.CLIENT_CONNECTED, value=identity)
        found = listener.until("the connection made as a mark", own)[:-1]
        mark.close()
        gone = matching(Kind.CLIENT_DISCONNECTED, value=identity)
        listener.wait_for("the end of the connection made as a mark", gone)
        return found

    return records_so_far


@pytest.fixture
def start_agent() -> Iterator[StartAgent]:
    """Start client processes that run `agent.py`; they are ended at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(ClientProcess(AGENT))


@pytest.fixture
def agent(start_agent: StartAgent) -> ClientProcess:
    """One client process that runs `agent.py`."""
    return start_agent()


@pytest.fixture
def loaded_afterwards() -> Iterator[bindings.Binding]:
    """For tests that unload the filter: the binding; the filter is loaded again at the end, whatever happened."""
    binding = bindings.current()
    yield binding
    if not any(found.name.casefold() == FILTER_NAME.casefold() for found in binding.filters()):
        binding.filter_load(FILTER_NAME)


@pytest.fixture
def refusal() -> Callable[..., int]:
    """The HRESULT with which a connection with this context is refused; fails the test if it is accepted."""

    def attempt(context: bytes | None, **options: Any) -> int:
        from harness.client.port import Port

        try:
            port = Port.connect(options.pop("name", PORT_NAME), context, **options)
        except PortError as error:
            return error.hresult
        port.close()
        raise AssertionError("the connection was accepted")

    return attempt


@pytest.fixture
def observe(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Put what a doubtful fact turned out to be into the report: `observe("U3", hresult)`."""

    def note(fact: str, value: object) -> None:
        shown = f"0x{value:08X}" if isinstance(value, int) and value > 0xFFFF else str(value)
        record_property(f"observed:{fact}", shown)

    return note
