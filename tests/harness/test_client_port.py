"""`Port`, `Listener`, files and client processes, over bindings and scripts of our own."""

from __future__ import annotations

import struct
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.client import binding as bindings
from harness.client import errors, files, security
from harness.client import hresult as hr
from harness.client.binding import Completion
from harness.client.listener import BrokenPromiseError, Listener, matching
from harness.client.port import Message, Port, parse_message
from harness.client.processes import ClientProcess, ClientProcessError
from harness.client.protocol import Connect, Kind


class Pending:
    """A request whose completion a test decides."""

    def __init__(self) -> None:
        self.completion: Completion | None = None
        self.cancelled = False
        self.on_cancel: Completion | None = Completion(hr.OPERATION_ABORTED, 0, b"")

    def wait(self, seconds: float | None) -> Completion | None:
        return self.completion

    def cancel(self) -> bool:
        self.cancelled = True
        if self.completion is None:
            self.completion = self.on_cancel
            return True
        return False


class FakeBinding:
    """Records what a port asks for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.pending: list[Pending] = []
        self.ready: list[bytes] = []
        self.cancelled = threading.Event()

    def connect(self, name: str, context: bytes | None, context_size: int, *, synchronous: bool) -> int:
        self.calls.append(("connect", name, context, context_size, synchronous))
        return 8

    def begin_get(self, handle: int, size: int) -> Pending:
        pending = Pending()
        if self.ready:
            data = self.ready.pop(0)
            pending.completion = Completion(hr.S_OK, len(data), data)
        self.pending.append(pending)
        return pending

    def get(self, handle: int, size: int) -> bytes:
        if self.ready:
            return self.ready.pop(0)
        assert self.cancelled.wait(10)
        raise errors.port_error(hr.OPERATION_ABORTED, "FilterGetMessage")

    def cancel(self, handle: int) -> bool:
        self.cancelled.set()
        return True

    def reply(self, handle: int, data: bytes, size: int) -> None:
        self.calls.append(("reply", data, size))

    def send(
        self, handle: int, data: bytes | None, size: int, output_size: int, *, output_null: bool
    ) -> bytes:
        self.calls.append(("send", data, size, output_size, output_null))
        return b""

    def duplicate(self, handle: int) -> int:
        return handle + 4

    def close(self, handle: int) -> None:
        self.calls.append(("close", handle))

    def impersonate(self, level: str) -> None:
        self.calls.append(("impersonate", level))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBinding:
    binding = FakeBinding()
    monkeypatch.setattr(bindings, "_chosen", [binding])
    return binding


@pytest.fixture
def port(fake: FakeBinding) -> Port:
    port = Port.connect("\\Port", b"context")
    fake.calls.clear()
    return port


@pytest.mark.parametrize(
    ("arguments", "options", "passed"),
    [
        ((b"abc",), {}, (b"abc", 3)),
        ((b"",), {}, (None, 0)),
        ((None,), {}, (None, 0)),
        ((b"abc",), {"context_size": 0}, (b"abc", 0)),
        ((None,), {"context_size": 5}, (None, 5)),
    ],
)
def test_context_and_size_are_passed_as_stated(
    fake: FakeBinding, arguments: tuple[Any, ...], options: dict[str, Any], passed: tuple[Any, ...]
) -> None:
    Port.connect("\\Port", *arguments, **options)
    assert fake.calls == [("connect", "\\Port", *passed, False)]


def test_a_message_is_split_into_header_and_payload() -> None:
    message = parse_message(struct.pack("<I4xQ", 24, 0x1_0000_0002) + b"payload")
    assert message == Message(b"payload", 0x1_0000_0002, 24)


def test_a_message_shorter_than_its_header_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter than its header"):
        parse_message(bytes(15))


def test_a_wait_that_times_out_cancels_its_request(fake: FakeBinding, port: Port) -> None:
    with pytest.raises(TimeoutError, match=r"0\.5 s"):
        port.get_message(timeout=0.5)
    assert fake.pending[0].cancelled


def test_a_message_that_is_faster_than_the_cancel_is_not_lost(
    fake: FakeBinding, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Completion(hr.S_OK, 20, bytes(16) + b"late")
    monkeypatch.setattr(Pending, "cancel", lambda self: setattr(self, "completion", late) or False)
    assert port.get_message(timeout=0).data == b"late"


def test_a_request_that_failed_raises_with_the_bytes_that_were_wanted(fake: FakeBinding, port: Port) -> None:
    operation = port.begin_get(20)
    fake.pending[0].completion = Completion(hr.INSUFFICIENT_BUFFER, 116, b"")
    with pytest.raises(errors.BufferTooSmallError) as caught:
        operation.wait(1)
    assert caught.value.information == 116
    assert operation.done


def test_an_operation_outlives_a_wait_that_timed_out(fake: FakeBinding, port: Port) -> None:
    operation = port.begin_get()
    with pytest.raises(TimeoutError):
        operation.wait(0)
    assert not fake.pending[0].cancelled
    fake.pending[0].completion = Completion(hr.S_OK, 17, bytes(16) + b"x")
    assert operation.wait(0).data == b"x"


def test_a_synchronous_wait_is_cancelled_when_its_time_is_over(fake: FakeBinding) -> None:
    port = Port.connect("\\Port", synchronous=True)
    with pytest.raises(TimeoutError):
        port.get_message(timeout=0.01)


def test_a_synchronous_wait_that_somebody_else_cancelled_is_no_timeout(fake: FakeBinding) -> None:
    port = Port.connect("\\Port", synchronous=True)
    threading.Timer(0.01, port.cancel).start()
    with pytest.raises(errors.CancelledError):
        port.get_message(timeout=60)


def test_sending_passes_null_only_where_it_was_meant(fake: FakeBinding, port: Port) -> None:
    port.send(b"ab")
    port.send(b"ab", 16)
    port.send(None, 0, input_size=9)
    port.send(b"", 4, output_null=True)
    assert fake.calls == [
        ("send", b"ab", 2, 0, True),
        ("send", b"ab", 2, 16, False),
        ("send", None, 9, 0, True),
        ("send", b"", 0, 4, True),
    ]


def test_a_reply_starts_with_status_and_message_id(fake: FakeBinding, port: Port) -> None:
    port.reply(Message(b"", 7, 24), b"xyz", 0xC0000022)
    assert fake.calls == [("reply", struct.pack("<I4xQ", 0xC0000022, 7) + b"xyz", 19)]


def test_a_port_is_closed_once_and_not_usable_after(fake: FakeBinding, port: Port) -> None:
    with port:
        duplicate = port.duplicate()
    port.close()
    assert fake.calls == [("close", 8)]
    assert duplicate.handle == 12
    with pytest.raises(errors.DisconnectedError):
        port.send(b"x")
    assert "closed" in repr(port)


def record(sequence: int, kind: int = 1) -> bytes:
    return struct.pack("<IHHQqIIiIQ16sHHHH", 72, kind, 0, sequence, 0, 1, 2, 0, 0, 0, bytes(16), 0, 0, 0, 0)


def buffer(*records: bytes, dropped: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    body = b"".join(records)
    return bytes(16) + struct.pack("<IHHQQQ", 32 + len(body), 1, len(records), *dropped) + body


@pytest.fixture
def listener(fake: FakeBinding) -> Listener:
    return Listener.open(Connect())


def test_a_listener_passes_over_what_does_not_match(fake: FakeBinding, listener: Listener) -> None:
    fake.ready = [buffer(record(1), record(2, 4)), buffer(record(3))]
    assert listener.wait_for("a rename", matching(Kind.FILE_RENAMED)).sequence == 2
    assert listener.next().sequence == 3


def test_a_listener_that_waits_in_vain_says_what_it_saw_last(fake: FakeBinding, listener: Listener) -> None:
    fake.ready = [buffer(record(1))]
    with pytest.raises(TimeoutError, match=r"no record of a rename came .* last seen: #1 FILE_OPENED"):
        listener.wait_for("a rename", matching(Kind.FILE_RENAMED), timeout=0.01)


@pytest.mark.parametrize(
    ("buffers", "broken"),
    [
        pytest.param([buffer(record(2))], "record 1 is missing", id="first missing"),
        pytest.param([buffer(record(1), record(3))], "record 2 is missing", id="gap"),
        pytest.param([buffer(record(1)), buffer(record(1))], "sequence numbers rise", id="twice"),
        pytest.param(
            [buffer(record(1)), buffer(record(4), dropped=(1, 2, 2))], "record 3", id="too few announced"
        ),
        pytest.param([buffer()], "carries records", id="empty message"),
    ],
)
def test_a_listener_notices_a_broken_promise(
    fake: FakeBinding, listener: Listener, buffers: list[bytes], broken: str
) -> None:
    fake.ready = list(buffers)
    with pytest.raises(BrokenPromiseError, match=broken):
        for _ in buffers:
            listener.receive()


def test_a_gap_that_was_announced_in_time_is_no_broken_promise(fake: FakeBinding, listener: Listener) -> None:
    fake.ready = [
        buffer(record(1), dropped=(2, 2, 3)),
        buffer(record(4)),
        buffer(record(6), dropped=(1, 5, 5)),
    ]
    for _ in range(3):
        listener.receive()
    assert listener.dropped_count == 3


def test_a_listener_that_closes_leaves_no_request_behind(fake: FakeBinding, listener: Listener) -> None:
    listener.post()
    listener.close()
    listener.close()
    assert fake.pending[0].cancelled
    assert fake.calls[-1] == ("close", 8)


def test_impersonation_ends_also_when_the_block_raises(fake: FakeBinding) -> None:
    with pytest.raises(KeyError), security.without_administrators():
        raise KeyError
    assert fake.calls == [("impersonate", "restricted"), ("impersonate", "none")]


def test_without_windows_or_an_emulated_machine_there_is_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if sys.platform == "win32":
        pytest.skip("this is Windows")
    monkeypatch.delenv(bindings.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(bindings, "_chosen", [])
    with pytest.raises(OSError, match="inv test"):
        bindings.current()


def test_a_scratch_directory_knows_its_volume() -> None:
    directory = files.ScratchDirectory("D:\\a\\b", "\\Device\\HarddiskVolume2\\a\\b")
    assert directory.volume == "\\Device\\HarddiskVolume2"
    assert (directory / "c", directory.device("c")) == ("D:\\a\\b\\c", "\\Device\\HarddiskVolume2\\a\\b\\c")


SCRIPT = """
    import os, sys
    from harness.client.processes import serve

    def fail():
        raise ValueError("as asked")

    def leave():
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)

    serve({"add": lambda a, b: a + b, "fail": fail, "leave": leave, "pid": os.getpid})
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ClientProcess]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    with ClientProcess(script) as process:
        yield process


def test_a_client_process_answers_calls_with_results_and_errors(process: ClientProcess) -> None:
    assert process.call("add", 1, 2) == 3
    assert process.call("pid") == process.process_id
    with pytest.raises(ClientProcessError, match="ValueError: as asked"):
        process.call("fail")
    assert process.call("add", 3, 4) == 7


def test_a_client_process_that_ends_is_reported_with_its_last_words(process: ClientProcess) -> None:
    with pytest.raises(ClientProcessError, match="last words"):
        process.call("leave")


def test_a_suspended_process_answers_when_it_goes_on(process: ClientProcess) -> None:
    process.call("add", 0, 0)
    process.suspend()
    process.begin("add", 1, 1)
    with pytest.raises(TimeoutError, match="'add'"):
        process.finish("add", seconds=0.1)
    process.resume()
    assert process.finish("add") == 2


def test_a_killed_process_is_gone_and_says_so(process: ClientProcess) -> None:
    process.kill()
    with pytest.raises(ClientProcessError):
        process.call("add", 1, 1)
