"""FilterSendMessage and MessageNotify: facts U1 to U6, M1 to M4."""

from __future__ import annotations

import pytest

from tests.vm.port_lab import Gate, Lab
from tests.vm.scripted_filter import MessageCall, ScriptedFilter
from vm.emulated.kernel.kernel import MachineCrashedError
from vm.emulated.kernel.status import (
    STATUS_BUFFER_TOO_SMALL,
    STATUS_FLT_BUFFER_TOO_SMALL,
    STATUS_INVALID_DEVICE_REQUEST,
    STATUS_INVALID_PARAMETER,
    STATUS_IO_TIMEOUT,
    STATUS_NO_MORE_ENTRIES,
    STATUS_NOT_SUPPORTED,
    STATUS_PORT_DISCONNECTED,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import Model

USER_END = 0x0000_8000_0000_0000


@pytest.mark.fact("M1", "U1")
def test_the_callback_gets_raw_user_buffers_in_the_callers_process(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    seen: list[tuple[int, bytes, int, int]] = []

    def message(call: MessageCall) -> int:
        memory = lab.kernel.memory
        assert call.input < USER_END
        assert call.output < USER_END
        thread = lab.kernel.current
        data = memory.read(call.input, call.input_size)
        seen.append((thread.process.id, data, call.output_size, lab.kernel.engine.irql))
        memory.write(call.output, b"answer")
        memory.put32(call.returned, 6)
        return STATUS_SUCCESS

    scripted.on_message = message
    client = lab.client()
    assert client.send(client.connect(), b"question", 10) == (STATUS_SUCCESS, b"answer")
    assert seen == [(client.process.id, b"question", 10, 0)]


@pytest.mark.fact("M1")
def test_a_user_buffer_is_gone_when_the_callback_has_returned(lab: Lab, scripted: ScriptedFilter) -> None:
    kept: list[int] = []

    def keep(call: MessageCall) -> int:
        kept.append(call.input)
        return STATUS_SUCCESS

    def look(cookie: int) -> int:
        lab.kernel.memory.read(kept[0], 1)
        return 0

    scripted.on_message = keep
    scripted.on_disconnect = look
    client = lab.client()
    handle = client.connect()
    client.send(handle, b"x")
    with pytest.raises(MachineCrashedError):
        client.close(handle)
    assert "user memory without a handler" in lab.take_crash().rule


@pytest.mark.fact("M1")
@pytest.mark.parametrize("beyond", ["input", "output"])
def test_an_access_behind_a_user_buffer_faults(lab: Lab, scripted: ScriptedFilter, beyond: str) -> None:
    def message(call: MessageCall) -> int:
        if beyond == "input":
            lab.kernel.memory.read(call.input, call.input_size + 8)
        else:
            lab.kernel.memory.write(call.output, bytes(call.output_size + 8))
        return STATUS_SUCCESS

    scripted.on_message = message
    client = lab.client()
    handle = client.connect()
    with pytest.raises(MachineCrashedError):
        client.send(handle, bytes(0x1000), 0x1000)
    assert "user memory without a handler" in lab.take_crash().rule


@pytest.mark.fact("M1", "U1")
@pytest.mark.parametrize("size", [1, 0xFFF, 0x1000, 0x2801])
def test_buffers_of_every_size_arrive_whole(lab: Lab, scripted: ScriptedFilter, size: int) -> None:
    def echo(call: MessageCall) -> int:
        lab.kernel.memory.write(call.output, lab.kernel.memory.read(call.input, call.input_size))
        lab.kernel.memory.put32(call.returned, call.input_size)
        return STATUS_SUCCESS

    scripted.on_message = echo
    client = lab.client()
    data = bytes(n * 11 & 0xFF for n in range(size))
    assert client.send(client.connect(), data, size) == (STATUS_SUCCESS, data)


@pytest.mark.fact("U1", "M1")
@pytest.mark.parametrize("output_size", [0, None])
def test_without_an_output_buffer_the_callback_gets_none(
    lab: Lab, scripted: ScriptedFilter, output_size: int | None
) -> None:
    seen: list[tuple[int, int]] = []

    def message(call: MessageCall) -> int:
        seen.append((call.output, call.output_size))
        return STATUS_SUCCESS

    scripted.on_message = message
    client = lab.client()
    assert client.send(client.connect(), b"x", output_size) == (STATUS_SUCCESS, b"")
    assert seen == [(0, 0)]


@pytest.mark.fact("M1")
def test_returning_more_bytes_than_there_is_room_for_is_a_broken_rule(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    def message(call: MessageCall) -> int:
        lab.kernel.memory.put32(call.returned, call.output_size + 1)
        return STATUS_SUCCESS

    scripted.on_message = message
    client = lab.client()
    assert client.send(client.connect(), b"x", 4) == (STATUS_SUCCESS, bytes(4))
    (violation,) = lab.take_violations()
    assert violation.rule == "message-notify-length"
    assert violation.driver == scripted.name


@pytest.mark.fact("M2")
@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_buffer_of_any_size_is_accepted_without_a_check_of_alignment(
    lab: Lab, scripted: ScriptedFilter, size: int
) -> None:
    client = lab.client()
    assert client.send(client.connect(), bytes(size), size)[0] == STATUS_SUCCESS


@pytest.mark.fact("M3", "D4")
def test_messages_run_at_the_same_time(lab: Lab, scripted: ScriptedFilter) -> None:
    gate = Gate(lab)

    def message(call: MessageCall) -> Model:
        yield from gate.wait()
        return STATUS_SUCCESS

    scripted.on_message = message
    client = lab.client()
    handle = client.connect()
    jobs = [client.begin_send(handle, b"x") for _ in range(3)]
    lab.settle()
    assert client.connection(handle).notifying == 3
    gate.release()
    assert [job.result()[0] for job in jobs] == [STATUS_SUCCESS] * 3
    assert client.connection(handle).notifying == 0


@pytest.mark.fact("U2", "U6")
@pytest.mark.parametrize("status", [STATUS_NO_MORE_ENTRIES, STATUS_IO_TIMEOUT, STATUS_SUCCESS])
def test_the_status_of_the_callback_is_the_callers(lab: Lab, scripted: ScriptedFilter, status: int) -> None:
    scripted.on_message = lambda call: status
    client = lab.client()
    assert client.send(client.connect(), b"x")[0] == status


@pytest.mark.fact("U2", "X3")
def test_a_message_to_a_port_that_is_gone_is_disconnected(lab: Lab, scripted: ScriptedFilter) -> None:
    client = lab.client()
    handle = client.connect()
    lab.run(scripted.close_client(client.connection(handle).cookie))
    assert client.send(handle, b"x")[0] == STATUS_PORT_DISCONNECTED
    assert "MessageNotify" not in lab.events


@pytest.mark.fact("U3", "P10")
def test_a_port_without_a_message_callback_refuses_messages(lab: Lab) -> None:
    ScriptedFilter(lab, message=False).load()
    client = lab.client()
    status, data = client.send(client.connect(), b"x", 4)
    assert status in {STATUS_INVALID_DEVICE_REQUEST, STATUS_NOT_SUPPORTED}
    assert data == b""


@pytest.mark.fact("U4")
def test_a_callback_that_wants_more_room_is_told_apart(lab: Lab, scripted: ScriptedFilter) -> None:
    scripted.on_message = lambda call: STATUS_BUFFER_TOO_SMALL
    client = lab.client()
    assert client.send(client.connect(), b"x", 4)[0] == STATUS_FLT_BUFFER_TOO_SMALL


@pytest.mark.fact("U5")
@pytest.mark.parametrize("data", [b"", None])
def test_a_message_without_content_is_refused(lab: Lab, scripted: ScriptedFilter, data: bytes | None) -> None:
    client = lab.client()
    assert client.send(client.connect(), data)[0] == STATUS_INVALID_PARAMETER
    assert "MessageNotify" not in lab.events
