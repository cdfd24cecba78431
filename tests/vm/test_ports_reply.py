"""Messages that expect a reply, and FilterReplyMessage: facts R1 to R5, S8, S12 to S14, S24, S27."""

from __future__ import annotations

import pytest

from tests.vm.conftest import Labs
from tests.vm.port_lab import SECONDS, Client, Lab, pause
from tests.vm.scripted_filter import ScriptedFilter, Sent
from vm.emulated.fltmgr import port_services
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.kernel import MachineCrashedError
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_BUFFER_OVERFLOW,
    STATUS_FLT_NO_WAITER_FOR_REPLY,
    STATUS_INVALID_PARAMETER,
    STATUS_PORT_DISCONNECTED,
    STATUS_SUCCESS,
    STATUS_TIMEOUT,
)
from vm.emulated.kernel.threads import KThread, Model


@pytest.fixture
def client(lab: Lab, scripted: ScriptedFilter) -> Client:
    return lab.client()


@pytest.fixture
def handle(client: Client) -> int:
    return client.connect()


@pytest.fixture
def shared(client: Client, handle: int) -> int:
    return client.connection(handle).cookie


@pytest.mark.fact("S8", "R1", "S12")
def test_a_sender_waits_for_the_reply_with_its_id(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    one, two = client.post(handle), client.post(handle)
    first = scripted.begin_sending(shared, b"one", reply=8)
    lab.settle()
    second = scripted.begin_sending(shared, b"two", reply=8)
    answered = {c.payload: c.message_id for c in (client.wait(one, None), client.wait(two, None))}
    assert client.reply(handle, answered[b"two"], b"to two") == STATUS_SUCCESS
    assert second.result() == Sent(STATUS_SUCCESS, 6, b"to two")
    assert not first.done
    assert client.reply(handle, answered[b"one"], b"to one") == STATUS_SUCCESS
    assert first.result() == Sent(STATUS_SUCCESS, 6, b"to one")


@pytest.mark.fact("S8")
def test_a_disconnect_ends_the_wait_for_a_reply(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    operation = client.post(handle)
    sender = scripted.begin_sending(shared, reply=8)
    client.wait(operation, None)
    client.close(handle)
    assert sender.result() == Sent(STATUS_PORT_DISCONNECTED)


@pytest.mark.fact("S8")
def test_a_disconnect_straight_after_delivery_ends_the_wait_for_a_reply(labs: Labs) -> None:
    for seed in range(8):
        lab = labs(seed=seed)
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        handle = client.connect()
        shared = client.connection(handle).cookie
        sender = scripted.begin_sending(shared, reply=8)
        client.begin(port_services.get_message, handle=handle, size=100)
        closing = client.begin_close(handle)
        assert closing.result()[0] == STATUS_SUCCESS
        assert sender.result().status == STATUS_PORT_DISCONNECTED


@pytest.mark.fact("S12")
@pytest.mark.parametrize("payload", [b"", b"1", b"1234567", b"12345678"])
def test_the_driver_receives_the_bare_payload_and_its_length(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, payload: bytes
) -> None:
    operation = client.post(handle)
    sender = scripted.begin_sending(shared, reply=8)
    assert client.reply(handle, client.wait(operation, None).message_id, payload) == STATUS_SUCCESS
    assert sender.result() == Sent(STATUS_SUCCESS, len(payload), payload)


@pytest.mark.fact("S12")
@pytest.mark.parametrize("outcome", ["timeout", "disconnected"])
def test_the_reply_length_is_zero_when_there_is_no_reply(
    lab: Lab, scripted: ScriptedFilter, client: Client, shared: int, outcome: str
) -> None:
    if outcome == "disconnected":
        lab.run(scripted.close_client(shared))
    sent = lab.run(scripted.send(shared, b"x", reply=8, timeout=-SECONDS))
    assert sent.status in {STATUS_TIMEOUT, STATUS_PORT_DISCONNECTED}
    assert sent.reply_length == 0


@pytest.mark.fact("S13", "R1")
@pytest.mark.parametrize("status", [STATUS_ACCESS_DENIED, STATUS_TIMEOUT, 0x1234_5678])
def test_the_status_of_the_reply_is_what_the_sender_returns(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, status: int
) -> None:
    operation = client.post(handle)
    sender = scripted.begin_sending(shared, reply=8)
    message_id = client.wait(operation, None).message_id
    assert client.reply(handle, message_id, b"why", status=status) == STATUS_SUCCESS
    assert sender.result() == Sent(status, 3, b"why")


@pytest.mark.fact("S14", "R4")
def test_a_reply_that_is_too_long_is_cut_and_both_sides_hear_of_it(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    operation = client.post(handle)
    sender = scripted.begin_sending(shared, reply=1)
    message_id = client.wait(operation, None).message_id
    # The padding pitfall: a header of 16 bytes and one byte, in a structure of 24.
    replied = client.reply(handle, message_id, b"\1" + bytes(7))
    assert replied in {STATUS_BUFFER_OVERFLOW, STATUS_SUCCESS}
    assert sender.result() == Sent(STATUS_BUFFER_OVERFLOW, 1, b"\1")


@pytest.mark.fact("R4")
def test_the_sum_of_the_two_sizes_is_the_right_size_of_a_reply(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    operation = client.post(handle)
    sender = scripted.begin_sending(shared, reply=1)
    message_id = client.wait(operation, None).message_id
    assert client.reply(handle, message_id, b"\1" + bytes(7), size=17) == STATUS_SUCCESS
    assert sender.result() == Sent(STATUS_SUCCESS, 1, b"\1")


@pytest.mark.fact("R2")
def test_nobody_waits_for_a_second_a_foreign_or_a_late_reply(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    operation = client.post(handle)
    sender = scripted.begin_sending(shared, reply=8, timeout=-SECONDS)
    message_id = client.wait(operation, None).message_id
    assert client.reply(handle, message_id + 1) == STATUS_FLT_NO_WAITER_FOR_REPLY
    assert client.reply(handle, message_id) == STATUS_SUCCESS
    assert client.reply(handle, message_id) == STATUS_FLT_NO_WAITER_FOR_REPLY
    assert sender.result().status == STATUS_SUCCESS

    operation = client.post(handle)
    late = scripted.begin_sending(shared, reply=8, timeout=-SECONDS)
    message_id = client.wait(operation, None).message_id
    assert late.result().status == STATUS_TIMEOUT
    assert client.reply(handle, message_id) == STATUS_FLT_NO_WAITER_FOR_REPLY


@pytest.mark.fact("R2", "R5")
def test_nobody_waits_for_a_reply_to_a_one_way_message(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    operation = client.post(handle)
    lab.run(scripted.send(shared, b"x"))
    completion = client.wait(operation)
    assert completion.reply_length == 0
    assert client.reply(handle, completion.message_id) == STATUS_FLT_NO_WAITER_FOR_REPLY


@pytest.mark.fact("R2")
def test_a_reply_reaches_only_its_own_connection(lab: Lab, scripted: ScriptedFilter) -> None:
    one, two = lab.client(), lab.client()
    first, second = one.connect(), two.connect()
    operation = one.post(first)
    sender = scripted.begin_sending(one.connection(first).cookie, reply=4)
    message_id = one.wait(operation, None).message_id
    assert two.reply(second, message_id, b"fake") == STATUS_FLT_NO_WAITER_FOR_REPLY
    assert one.reply(first, message_id, b"real") == STATUS_SUCCESS
    assert sender.result().reply == b"real"


@pytest.mark.fact("R3")
@pytest.mark.parametrize("size", [0, 8, 15])
def test_a_reply_without_a_whole_header_is_refused(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, size: int
) -> None:
    operation = client.post(handle)
    sender = scripted.begin_sending(shared, reply=8)
    message_id = client.wait(operation, None).message_id
    assert client.reply(handle, message_id, size=size) == STATUS_INVALID_PARAMETER
    assert not sender.done
    assert client.reply(handle, message_id) == STATUS_SUCCESS


@pytest.mark.fact("R3")
def test_a_reply_that_is_shorter_than_it_says_is_refused(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    assert client.reply(handle, 1, b"ab", size=100) == STATUS_INVALID_PARAMETER


@pytest.mark.fact("R1", "X3")
def test_a_reply_after_the_driver_closed_its_port_is_disconnected(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    operation = client.post(handle)
    scripted.begin_sending(shared, reply=8)
    message_id = client.wait(operation, None).message_id
    lab.run(scripted.close_client(shared))
    assert client.reply(handle, message_id) == STATUS_PORT_DISCONNECTED


@pytest.mark.fact("S27")
def test_the_timeout_counts_with_a_reply_buffer_too(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    client.post(handle)
    assert lab.run(scripted.send(shared, b"x", reply=8, timeout=-SECONDS)).status == STATUS_TIMEOUT
    assert lab.now == SECONDS


@pytest.mark.fact("S24")
def test_a_reply_at_the_moment_of_the_timeout_is_one_or_the_other(labs: Labs) -> None:
    outcomes = set()
    for seed in range(24):
        lab = labs(seed=seed)
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        handle = client.connect()
        operation = client.post(handle)

        def reply_late(k: object, thread: KThread, lab: Lab = lab, handle: int = handle) -> Model:
            yield from pause(SECONDS)
            data = (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"late"
            return (
                yield from port_services.reply_message(lab.kernel, thread, handle=handle, data=data, size=20)
            )

        shared = client.connection(handle).cookie
        if seed % 2:
            sender = scripted.begin_sending(shared, reply=8, timeout=-SECONDS)
        replying = client.begin(reply_late)
        if not seed % 2:
            sender = scripted.begin_sending(shared, reply=8, timeout=-SECONDS)
        sent, (replied, _) = sender.result(), replying.result()
        assert client.wait(operation).message_id == 1
        outcomes.add((sent.status, replied))
    legal = {
        (STATUS_SUCCESS, STATUS_SUCCESS),
        (STATUS_TIMEOUT, STATUS_FLT_NO_WAITER_FOR_REPLY),
        (STATUS_TIMEOUT, STATUS_SUCCESS),
    }
    assert outcomes <= legal
    assert len(outcomes) > 1, "the schedules of all seeds were the same"


@pytest.mark.fact("S16")
def test_message_and_reply_may_share_a_buffer(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    memory = lab.kernel.memory
    block = lab.kernel.pool.allocate(8, "Msg ", owner="test")
    length = scripted.new_variable(8)
    memory.write(block, b"question")
    operation = client.post(handle)
    sender = lab.start(
        scripted.call("FltSendMessage", scripted.address, shared, block, 8, block, length, 0), "sender"
    )
    completion = client.wait(operation, None)
    assert completion.payload == b"question"
    client.reply(handle, completion.message_id, b"answer")
    assert sender.result() == STATUS_SUCCESS
    assert memory.read(block, memory.u32(length)) == b"answer"


def test_a_reply_buffer_that_is_gone_stops_the_machine(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    block = lab.kernel.pool.allocate(8, "Rply", owner="test")
    length = scripted.new_variable(8)
    operation = client.post(handle)
    text = scripted.new_variable(1)
    lab.start(scripted.call("FltSendMessage", scripted.address, shared, text, 8, block, length, 0), "sender")
    completion = client.wait(operation, None)
    lab.kernel.pool.free(block)
    with pytest.raises(MachineCrashedError):
        client.reply(handle, completion.message_id, b"answer")
        lab.settle()
    report = lab.take_crash()
    assert report.code == bc.DRIVER_PAGE_FAULT_IN_FREED_SPECIAL_POOL
    assert report.rule.startswith("FltSendMessage wrote to")
