"""FilterGetMessage and its cancellation: facts G2, G10, G12 to G18, G20, G22, G23."""

from __future__ import annotations

import pytest

from tests.vm.conftest import Labs
from tests.vm.port_lab import MILLISECONDS, SECONDS, Client, Lab
from tests.vm.scripted_filter import ScriptedFilter
from vm.emulated.fltmgr import port_services
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.kernel.status import (
    STATUS_BUFFER_TOO_SMALL,
    STATUS_CANCELLED,
    STATUS_INVALID_HANDLE,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_FOUND,
    STATUS_PORT_DISCONNECTED,
    STATUS_SUCCESS,
    STATUS_TIMEOUT,
)


@pytest.fixture
def client(lab: Lab, scripted: ScriptedFilter) -> Client:
    return lab.client()


@pytest.fixture
def handle(client: Client) -> int:
    return client.connect()


@pytest.fixture
def shared(client: Client, handle: int) -> int:
    return client.connection(handle).cookie


@pytest.mark.fact("G2", "G10")
def test_an_asynchronous_request_is_pending_even_with_a_sender_waiting(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    scripted.begin_sending(shared)
    lab.settle()
    operation = client.post(handle)  # asserts STATUS_PENDING
    assert client.wait(operation, None).payload == b"hello"


@pytest.mark.fact("G2", "G10")
def test_a_synchronous_request_blocks_until_a_message_comes(lab: Lab, scripted: ScriptedFilter) -> None:
    client = lab.client()
    handle = client.connect(synchronous=True)
    job = client.begin_get(handle)
    lab.pass_time(60 * SECONDS)
    assert not job.done
    scripted.begin_sending(client.connection(handle).cookie)
    status, values = job.result()
    assert (status, values["information"], values["data"][16:]) == (STATUS_SUCCESS, 21, b"hello")


@pytest.mark.fact("G10")
def test_a_wait_for_an_operation_ends_at_its_deadline_and_can_be_repeated(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    operation = client.post(handle)
    assert client.wait(operation, 250).status == STATUS_TIMEOUT
    assert lab.now == 250 * MILLISECONDS
    lab.run(scripted.send(shared, b"x"))
    assert client.wait(operation).status == STATUS_SUCCESS
    assert client.wait(operation).status == STATUS_INVALID_HANDLE  # collected


def test_an_operation_belongs_to_its_process(lab: Lab, client: Client, handle: int) -> None:
    operation = client.post(handle)
    assert lab.client().wait(operation).status == STATUS_INVALID_HANDLE


@pytest.mark.fact("G12")
def test_a_synchronous_handle_serialises_its_requests(lab: Lab, scripted: ScriptedFilter) -> None:
    client = lab.client()
    handle = client.connect(synchronous=True)
    getting = client.begin_get(handle)
    lab.settle()
    replying = client.begin(port_services.reply_message, handle=handle, data=bytes(16), size=16)
    sending = client.begin_send(handle, b"x")
    lab.pass_time(60 * SECONDS)
    assert not replying.done
    assert not sending.done
    lab.run(scripted.send(client.connection(handle).cookie, b"go on"))
    assert getting.result()[0] == STATUS_SUCCESS
    assert replying.result()[0] == 0xC01C_0020
    assert sending.result()[0] == STATUS_SUCCESS


@pytest.mark.fact("G12")
def test_requests_on_a_synchronous_handle_are_served_in_their_order(labs: Labs) -> None:
    for seed in range(6):
        lab = labs(seed=seed)
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        handle = client.connect(synchronous=True)
        jobs = []
        for _ in range(4):
            jobs.append(client.begin_get(handle))
            lab.settle()
        for number in range(4):
            lab.run(scripted.send(client.connection(handle).cookie, bytes((number,))))
        assert [job.result()[1]["data"][16] for job in jobs] == [0, 1, 2, 3]


@pytest.mark.fact("G12")
def test_an_asynchronous_handle_serialises_nothing(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int
) -> None:
    client.post(handle)
    assert client.send(handle, b"x")[0] == STATUS_SUCCESS


@pytest.mark.fact("G12")
def test_two_handles_of_one_synchronous_connection_share_the_lock(lab: Lab, scripted: ScriptedFilter) -> None:
    client = lab.client()
    handle = client.connect(synchronous=True)
    second = client.duplicate(handle)
    getting = client.begin_get(handle)
    lab.settle()
    sending = client.begin_send(second, b"x")
    lab.settle()
    assert not sending.done
    lab.run(scripted.close_client(client.connection(handle).cookie))
    assert getting.result()[0] == STATUS_PORT_DISCONNECTED
    assert sending.result()[0] == STATUS_PORT_DISCONNECTED


@pytest.mark.fact("G15")
@pytest.mark.parametrize("synchronous", [True, False])
def test_a_request_without_a_buffer_is_refused(lab: Lab, scripted: ScriptedFilter, synchronous: bool) -> None:
    client = lab.client()
    assert client.try_get(client.connect(synchronous=synchronous), size=0) == STATUS_INVALID_PARAMETER


@pytest.mark.fact("G15")
@pytest.mark.parametrize("size", [1, 15])
def test_a_request_without_room_for_the_header_is_too_small(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, size: int
) -> None:
    operation = client.post(handle, size=size)
    assert lab.run(scripted.send(shared, b"", timeout=0)).status == STATUS_TIMEOUT
    completion = client.wait(operation)
    assert (completion.status, completion.information) == (STATUS_BUFFER_TOO_SMALL, 16)


@pytest.mark.fact("G14")
def test_a_synchronous_request_that_is_too_small_returns_the_size_needed(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    client = lab.client()
    handle = client.connect(synchronous=True)
    scripted.begin_sending(client.connection(handle).cookie, bytes(50))
    status, values = client.begin_get(handle, size=20).result()
    assert (status, values["information"]) == (STATUS_BUFFER_TOO_SMALL, 66)


@pytest.mark.fact("G16")
def test_a_cancelled_request_takes_no_message(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    one, two = client.post(handle), client.post(handle)
    assert client.cancel(handle, one) == STATUS_SUCCESS
    assert client.wait(one).status == STATUS_CANCELLED
    lab.run(scripted.send(shared, b"x"))
    assert client.wait(two).payload == b"x"
    assert client.cancel(handle, two) == STATUS_NOT_FOUND


@pytest.mark.fact("G16")
def test_a_cancel_without_an_operation_cancels_all_of_the_process(
    lab: Lab, client: Client, handle: int
) -> None:
    operations = [client.post(handle) for _ in range(3)]
    assert client.cancel(handle) == STATUS_SUCCESS
    assert [client.wait(o).status for o in operations] == [STATUS_CANCELLED] * 3
    assert client.cancel(handle) == STATUS_NOT_FOUND


@pytest.mark.fact("G16")
def test_a_cancel_leaves_the_requests_of_other_processes_alone(lab: Lab, client: Client, handle: int) -> None:
    operation = client.post(handle)
    child = lab.client("child.exe")
    inherited = child.process.handles.insert(client.process.handles.get(handle))
    own = child.post(inherited)
    assert child.cancel(inherited, operation) == STATUS_NOT_FOUND
    assert child.cancel(inherited) == STATUS_SUCCESS
    assert child.wait(own).status == STATUS_CANCELLED
    assert client.wait(operation).status == STATUS_TIMEOUT


@pytest.mark.fact("G16")
def test_the_end_of_a_thread_cancels_its_synchronous_request(lab: Lab, scripted: ScriptedFilter) -> None:
    client = lab.client()
    handle = client.connect(synchronous=True)
    keeper = lab.client()
    keeper.process.handles.insert(client.process.handles.get(handle))  # the connection outlives the client
    holding, queueing = client.begin_get(handle), client.begin_get(handle)
    lab.settle()
    client.begin_exit().result()
    assert holding.value[0] == STATUS_CANCELLED
    assert queueing.value[0] == STATUS_CANCELLED
    assert not scripted.disconnects


@pytest.mark.fact("G17")
@pytest.mark.parametrize("status", [STATUS_PORT_DISCONNECTED, STATUS_CANCELLED])
def test_closing_the_handle_completes_pending_requests_as_the_policy_says(labs: Labs, status: int) -> None:
    lab = labs(policy=PortPolicy(purge_status=status))
    ScriptedFilter(lab).load()
    client = lab.client()
    handle = client.connect()
    operations = [client.post(handle) for _ in range(3)]
    client.close(handle)
    assert [client.wait(o).status for o in operations] == [status] * 3
    assert status in {STATUS_PORT_DISCONNECTED, STATUS_CANCELLED}


@pytest.mark.fact("G17")
def test_closing_a_synchronous_handle_ends_the_request_of_another_thread(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    client = lab.client()
    handle = client.connect(synchronous=True)
    getting = client.begin_get(handle)
    lab.settle()
    client.close(handle)
    assert getting.result()[0] == lab.policy.purge_status


@pytest.mark.fact("G18", "X3")
@pytest.mark.parametrize("unload", [True, False])
def test_the_driver_going_away_disconnects_pending_requests(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, unload: bool
) -> None:
    operation = client.post(handle)
    if unload:
        assert scripted.unload() == STATUS_SUCCESS
    else:
        lab.run(scripted.close_client(shared))
    completion = client.wait(operation)
    assert (completion.status, completion.information) == (STATUS_PORT_DISCONNECTED, 0)
    assert client.try_get(handle) == STATUS_PORT_DISCONNECTED
    assert client.close(handle) == STATUS_SUCCESS


@pytest.mark.fact("G20")
def test_a_synchronous_failure_leaves_no_operation(
    lab: Lab, client: Client, handle: int, shared: int
) -> None:
    before = dict(lab.manager.operations)
    status, values = client.call(port_services.get_message, handle=handle, size=0)
    assert (status, values) == (STATUS_INVALID_PARAMETER, {})
    assert lab.manager.operations == before


@pytest.mark.fact("G22")
def test_the_posted_requests_are_the_window_of_the_sender(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    for _ in range(3):
        client.post(handle)
    statuses = [lab.run(scripted.send(shared, b"x", timeout=0)).status for _ in range(5)]
    assert statuses == [STATUS_SUCCESS] * 3 + [STATUS_TIMEOUT] * 2


@pytest.mark.fact("G23", "S7")
def test_a_message_delivered_to_a_client_that_dies_is_lost(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    client.post(handle)
    assert lab.run(scripted.send(shared, b"lost")).status == STATUS_SUCCESS
    client.begin_exit().result()
    again = lab.client()
    operation = again.post(again.connect())
    assert again.wait(operation).status == STATUS_TIMEOUT


def test_a_closed_handle_is_no_handle(lab: Lab, client: Client, handle: int) -> None:
    client.close(handle)
    assert client.try_get(handle) == STATUS_INVALID_HANDLE
    assert client.reply(handle, 1) == STATUS_INVALID_HANDLE
    assert client.send(handle, b"x")[0] == STATUS_INVALID_HANDLE
    assert client.cancel(handle) == STATUS_INVALID_HANDLE
    assert client.close(handle) == STATUS_INVALID_HANDLE
