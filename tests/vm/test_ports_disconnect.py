"""The end of a connection from either side: facts D1 to D8, X1 to X4."""

from __future__ import annotations

import pytest

from tests.vm.conftest import Labs
from tests.vm.port_lab import SECONDS, Client, Gate, Job, Lab, pause
from tests.vm.scripted_filter import MessageCall, ScriptedFilter
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.kernel import MachineCrashedError
from vm.emulated.kernel.status import (
    STATUS_FLT_DELETING_OBJECT,
    STATUS_INVALID_HANDLE,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_PORT_DISCONNECTED,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import Model


@pytest.fixture
def client(lab: Lab, scripted: ScriptedFilter) -> Client:
    return lab.client()


@pytest.fixture
def handle(client: Client) -> int:
    return client.connect()


@pytest.fixture
def shared(client: Client, handle: int) -> int:
    return client.connection(handle).cookie


@pytest.mark.fact("D1", "D3")
def test_the_last_handle_brings_one_disconnect_in_the_closing_thread(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    seen: list[tuple[str, int]] = []

    def disconnect(cookie: int) -> Model:
        seen.append((lab.kernel.current.name, lab.kernel.engine.irql))
        return (yield from scripted.close_client(cookie))

    scripted.on_disconnect = disconnect
    closing = client.begin_close(handle)
    assert closing.result()[0] == STATUS_SUCCESS
    assert seen == [(closing.thread.name, 0)]
    assert scripted.disconnects == [shared]
    assert client.close(handle) == STATUS_INVALID_HANDLE
    assert scripted.unload() == STATUS_SUCCESS
    assert scripted.disconnects == [shared]


@pytest.mark.fact("D2")
def test_duplicated_and_inherited_handles_count(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int
) -> None:
    second = client.duplicate(handle)
    other = lab.client("child.exe")
    third = other.process.handles.insert(client.process.handles.get(handle))
    client.close(handle)
    client.close(second)
    assert not scripted.disconnects
    operation = other.post(third)
    lab.run(scripted.send(other.connection(third).cookie, b"still here"))
    assert other.wait(operation).payload == b"still here"
    other.close(third)
    assert len(scripted.disconnects) == 1


@pytest.mark.fact("D2", "D3")
def test_the_end_of_the_process_closes_its_handles(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int
) -> None:
    client.duplicate(handle)
    other = client.connect()
    assert other != handle
    client.begin_exit().result()
    assert len(scripted.disconnects) == 2
    assert len(set(scripted.disconnects)) == 2
    assert not scripted.model.client_ports


@pytest.mark.fact("D4")
def test_disconnect_notify_waits_for_running_messages(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int
) -> None:
    def message(call: MessageCall) -> Model:
        yield from pause(2 * SECONDS)
        lab.log(f"MessageNotify ends at {lab.now // SECONDS}")
        return STATUS_SUCCESS

    scripted.on_message = message
    client.begin_send(handle, b"x")
    client.begin_send(handle, b"y")
    lab.settle()
    lab.pass_time(SECONDS)
    client.begin_close(handle).result()
    assert lab.events == [
        "ConnectNotify",
        "MessageNotify",
        "MessageNotify",
        "MessageNotify ends at 2",
        "MessageNotify ends at 2",
        "DisconnectNotify",
        "client port closed",
    ]


@pytest.mark.fact("D4")
def test_no_message_starts_once_the_connection_ends(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int
) -> None:
    gate = Gate(lab)

    def disconnect(cookie: int) -> Model:
        yield from gate.wait()
        return (yield from scripted.close_client(cookie))

    scripted.on_disconnect = disconnect
    entry = client.process.handles.get(handle)
    closing = client.begin_close(handle)
    lab.settle()
    # A request that was on its way while the handle was closed.
    again = client.process.handles.insert(entry)
    assert client.send(again, b"x")[0] == STATUS_PORT_DISCONNECTED
    assert "MessageNotify" not in lab.events
    gate.release()
    assert closing.result()[0] == STATUS_SUCCESS


@pytest.mark.fact("D4")
def test_blocked_senders_are_woken_while_a_message_still_runs(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    gate = Gate(lab)

    def message(call: MessageCall) -> Model:
        yield from gate.wait()
        return STATUS_SUCCESS

    scripted.on_message = message
    sender = scripted.begin_sending(shared)
    client.begin_send(handle, b"x")
    lab.settle()
    closing = client.begin_close(handle)
    lab.settle()
    assert sender.value.status == STATUS_PORT_DISCONNECTED
    assert not scripted.disconnects
    assert not closing.done
    gate.release()
    closing.result()
    assert len(scripted.disconnects) == 1


@pytest.mark.fact("D4")
def test_a_message_that_itself_waits_in_a_send_does_not_hold_up_the_end(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    def message(call: MessageCall) -> Model:
        sent = yield from scripted.send(call.cookie, b"inner")
        return sent.status

    scripted.on_message = message
    sending = client.begin_send(handle, b"x")
    lab.settle()
    client.begin_close(handle).result()
    assert sending.value[0] == STATUS_PORT_DISCONNECTED
    assert lab.events[-2:] == ["DisconnectNotify", "client port closed"]


def end_with_senders(lab: Lab, *, reply: bool) -> int:
    """Close a connection with two blocked senders; how many of their calls were not over in DisconnectNotify."""
    scripted = ScriptedFilter(lab).load()
    client = lab.client()
    handle = client.connect()
    connection = client.connection(handle)
    seen: list[int] = []

    def disconnect(cookie: int) -> Model:
        seen.append(connection.sending)
        return (yield from scripted.close_client(cookie))

    scripted.on_disconnect = disconnect
    if reply:
        client.post(handle)
        client.post(handle)
    senders = [scripted.begin_sending(connection.cookie, reply=4 if reply else None) for _ in range(2)]
    lab.settle()
    assert connection.sending == 2
    client.begin_close(handle).result()
    assert [sender.result().status for sender in senders] == [STATUS_PORT_DISCONNECTED] * 2
    (left,) = seen
    return left


@pytest.mark.fact("D5")
@pytest.mark.parametrize("reply", [True, False])
def test_blocked_senders_leave_before_disconnect_notify_if_the_policy_says_so(
    labs: Labs, reply: bool
) -> None:
    for seed in range(10):
        lab = labs(seed=seed, policy=PortPolicy(wake_senders_before_notify=True))
        assert end_with_senders(lab, reply=reply) == 0


@pytest.mark.fact("D5")
@pytest.mark.parametrize("reply", [True, False])
def test_blocked_senders_may_return_before_or_after_disconnect_notify(labs: Labs, reply: bool) -> None:
    left = set()
    for seed in range(16):
        lab = labs(seed=seed, policy=PortPolicy(wake_senders_before_notify=False))
        left.add(end_with_senders(lab, reply=reply))
    assert left == {0, 1, 2}


@pytest.mark.fact("D5")
@pytest.mark.parametrize("senders_first", [True, False])
def test_a_disconnect_notify_that_waits_for_its_senders_gets_through(labs: Labs, senders_first: bool) -> None:
    for seed in range(6):
        lab = labs(seed=seed, policy=PortPolicy(wake_senders_before_notify=senders_first))
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        handle = client.connect()
        sender = scripted.begin_sending(client.connection(handle).cookie)
        lab.settle()

        def disconnect(
            cookie: int, lab: Lab = lab, scripted: ScriptedFilter = scripted, sender: Job = sender
        ) -> Model:
            while not sender.done:
                yield from pause(1)
            return (yield from scripted.close_client(cookie))

        scripted.on_disconnect = disconnect
        client.begin_close(handle).result()
        assert sender.value.status == STATUS_PORT_DISCONNECTED


@pytest.mark.fact("D6")
def test_the_client_port_may_be_closed_later_than_in_disconnect_notify(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    scripted.on_disconnect = lambda cookie: 0
    client.close(handle)
    assert len(scripted.model.client_ports) == 1
    lab.run(scripted.close_client(shared))
    assert not scripted.model.client_ports
    assert scripted.unload() == STATUS_SUCCESS


@pytest.mark.fact("D7")
@pytest.mark.parametrize("user_closes", [True, False])
def test_a_client_port_that_is_never_closed_is_reported_at_unload(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, user_closes: bool
) -> None:
    scripted.on_disconnect = lambda cookie: 0
    if user_closes:
        client.close(handle)
    assert scripted.unload() == STATUS_SUCCESS
    (violation,) = lab.take_violations()
    assert (violation.rule, violation.driver) == ("client-port-leaked", scripted.name)
    assert f"process {client.process.id}" in violation.message
    if not user_closes:
        client.close(handle)
    assert len(scripted.disconnects) == 1


@pytest.mark.fact("D8", "X2")
@pytest.mark.parametrize("notified", [True, False])
def test_after_a_close_by_the_driver_the_policy_says_whether_a_disconnect_follows(
    labs: Labs, notified: bool
) -> None:
    lab = labs(policy=PortPolicy(notify_after_kernel_close=notified))
    scripted = ScriptedFilter(lab).load()
    client = lab.client()
    handle = client.connect()
    lab.run(scripted.close_client(client.connection(handle).cookie))
    assert not scripted.disconnects  # never at the close itself
    assert client.close(handle) == STATUS_SUCCESS
    assert len(scripted.disconnects) == (1 if notified else 0)
    assert not scripted.model.client_ports
    assert scripted.unload() == STATUS_SUCCESS
    assert len(scripted.disconnects) == (1 if notified else 0)


@pytest.mark.fact("D8")
@pytest.mark.parametrize("notified", [True, False])
def test_an_unload_after_a_close_by_the_driver_follows_the_same_policy(labs: Labs, notified: bool) -> None:
    lab = labs(policy=PortPolicy(notify_after_kernel_close=notified))
    scripted = ScriptedFilter(lab).load()
    client = lab.client()
    handle = client.connect()
    lab.run(scripted.close_client(client.connection(handle).cookie))
    assert scripted.unload() == STATUS_SUCCESS
    assert len(scripted.disconnects) == (1 if notified else 0)
    assert client.close(handle) == STATUS_SUCCESS
    assert len(scripted.disconnects) == (1 if notified else 0)


@pytest.mark.fact("X1")
def test_closing_the_client_port_clears_the_shared_variable_and_wakes_senders(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    sender = scripted.begin_sending(shared)
    lab.settle()
    lab.run(scripted.close_client(shared))
    assert lab.kernel.memory.u64(shared) == 0
    assert sender.result().status == STATUS_PORT_DISCONNECTED


@pytest.mark.fact("X1")
def test_closing_a_cleared_variable_does_nothing(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    lab.run(scripted.close_client(shared))
    lab.run(scripted.close_client(shared))
    client.close(handle)
    assert len(scripted.disconnects) == 1


@pytest.mark.fact("X1")
def test_closing_a_port_twice_through_a_copy_stops_the_machine(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    copy = scripted.new_variable(lab.kernel.memory.u64(shared))
    lab.run(scripted.close_client(shared))
    with pytest.raises(MachineCrashedError):
        lab.run(scripted.close_client(copy))
    report = lab.take_crash()
    assert report.code == bc.DRIVER_VERIFIER_DETECTED_VIOLATION
    assert "FltCloseClientPort was called twice" in report.rule
    lab.take_violations()


@pytest.mark.fact("X1")
@pytest.mark.parametrize("function", ["FltSendMessage", "FltCloseClientPort"])
def test_a_port_that_is_gone_cannot_be_used(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, function: str
) -> None:
    copy = scripted.new_variable(lab.kernel.memory.u64(shared))
    client.close(handle)
    with pytest.raises(MachineCrashedError):
        lab.run(
            scripted.send(copy, b"x") if function == "FltSendMessage" else scripted.close_client(copy),
            "driver",
        )
    report = lab.take_crash()
    assert report.code == bc.REFERENCE_BY_POINTER
    assert report.rule.startswith(f"{function} was given ")
    assert "closed or disposed of" in report.rule


@pytest.mark.fact("X1")
@pytest.mark.parametrize("function", ["FltSendMessage", "FltCloseClientPort"])
def test_a_copy_of_the_port_on_the_stack_is_a_broken_rule(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, function: str
) -> None:
    def from_stack() -> Model:
        address = lab.kernel.current.stack_limit + 0x100
        lab.kernel.memory.put64(address, lab.kernel.memory.u64(shared))
        if function == "FltSendMessage":
            yield from scripted.send(address, b"x", timeout=0)
        else:
            yield from scripted.close_client(address)
        return lab.kernel.memory.u64(address)

    left = lab.run(from_stack())
    (violation,) = lab.take_violations()
    assert (violation.rule, violation.driver) == ("client-port-copy", scripted.name)
    assert f"{function} was given the address of a copy of the client port on the stack" in violation.message
    assert bool(left) == (function == "FltSendMessage")


@pytest.mark.fact("X1")
def test_a_second_variable_for_the_same_port_is_a_broken_rule(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    copy = scripted.new_variable(lab.kernel.memory.u64(shared))
    lab.run(scripted.send(shared, b"x", timeout=0))
    lab.run(scripted.send(shared, b"x", timeout=0))
    assert not lab.kernel.violations
    lab.run(scripted.close_client(copy))
    (violation,) = lab.take_violations()
    assert violation.rule == "client-port-copy"
    assert "the same variable (fact X1)" in violation.message


@pytest.mark.fact("X1", "S11")
def test_a_send_and_a_close_at_once_end_in_success_or_disconnection(labs: Labs) -> None:
    outcomes = set()
    for seed in range(16):
        lab = labs(seed=seed)
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        handle = client.connect()
        operation = client.post(handle)
        shared = client.connection(handle).cookie
        sender = scripted.begin_sending(shared)
        closer = lab.start(scripted.close_client(shared), "closer")
        status = sender.result().status
        closer.result()
        completion = client.wait(operation)
        assert completion.status == status
        outcomes.add(status)
    assert outcomes == {STATUS_SUCCESS, STATUS_PORT_DISCONNECTED}


@pytest.mark.fact("X2", "D2")
def test_both_ends_closing_at_once_give_one_disconnect(labs: Labs) -> None:
    for seed in range(16):
        lab = labs(seed=seed)
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        handle = client.connect()
        shared = client.connection(handle).cookie
        closer = lab.start(scripted.close_client(shared), "closer")
        closing = client.begin_close(handle)
        assert closing.result()[0] == STATUS_SUCCESS
        closer.result()
        assert scripted.disconnects == [shared]
        assert not scripted.model.client_ports
        assert scripted.unload() == STATUS_SUCCESS


@pytest.mark.fact("X4")
def test_closing_the_server_port_keeps_connections_and_refuses_new_ones(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    lab.run(scripted.close_server_port())
    assert lab.client().try_connect() in {STATUS_OBJECT_NAME_NOT_FOUND, STATUS_FLT_DELETING_OBJECT}
    operation = client.post(handle)
    assert lab.run(scripted.send(shared, b"x")).status == STATUS_SUCCESS
    assert client.wait(operation).payload == b"x"
    assert client.send(handle, b"up")[0] == STATUS_SUCCESS
    client.close(handle)
    assert len(scripted.disconnects) == 1
    lab.run(scripted.unregister())


@pytest.mark.fact("X4")
def test_closing_the_server_port_twice_stops_the_machine(lab: Lab, scripted: ScriptedFilter) -> None:
    lab.run(scripted.close_server_port())
    with pytest.raises(MachineCrashedError):
        lab.run(scripted.close_server_port())
    report = lab.take_crash()
    assert report.code == bc.REFERENCE_BY_POINTER
    assert "expected FilterConnectionPort" in report.rule
