"""FltSendMessage without a reply: facts S1 to S11, S15 to S23, S25, S26. Time is the virtual clock's, so it is exact."""

from __future__ import annotations

import pytest

from tests.vm.conftest import Labs
from tests.vm.port_lab import SECONDS, Client, Lab, inside_callback
from tests.vm.scripted_filter import ScriptedFilter
from vm.emulated.fltmgr.port_services import cancel, get_message
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.kernel import DeadlockError, MachineCrashedError
from vm.emulated.kernel.status import (
    STATUS_BUFFER_TOO_SMALL,
    STATUS_CANCELLED,
    STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER,
    STATUS_PENDING,
    STATUS_PORT_DISCONNECTED,
    STATUS_SUCCESS,
    STATUS_THREAD_IS_TERMINATING,
    STATUS_TIMEOUT,
    nt_success,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, KThread, Model

HEADER = 16


@pytest.fixture
def client(lab: Lab, scripted: ScriptedFilter) -> Client:
    return lab.client()


@pytest.fixture
def handle(client: Client) -> int:
    """An asynchronous handle of the one connection."""
    return client.connect()


@pytest.fixture
def shared(client: Client, handle: int) -> int:
    """Address of the driver's variable with the client port."""
    return client.connection(handle).cookie


def at_irql(lab: Lab, irql: int, work: Model) -> Model:
    lab.kernel.engine.irql = irql
    result = yield from work
    lab.kernel.engine.irql = 0
    return result


@pytest.mark.fact("S1")
def test_a_message_is_sent_at_apc_level_at_most(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    client.post(handle)
    assert lab.run(at_irql(lab, APC_LEVEL, scripted.send(shared, b"x"))).status == STATUS_SUCCESS
    with pytest.raises(MachineCrashedError):
        lab.run(at_irql(lab, DISPATCH_LEVEL, scripted.send(shared, b"x")))
    assert "FltSendMessage was called at IRQL 2" in lab.take_crash().rule


@pytest.mark.fact("S2", "S6")
def test_without_a_timeout_a_sender_waits_for_a_late_reader(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    sender = scripted.begin_sending(shared)
    lab.pass_time(3600 * SECONDS)
    assert not sender.done
    operation = client.post(handle)
    assert sender.result().status == STATUS_SUCCESS
    assert client.wait(operation).payload == b"hello"


@pytest.mark.fact("S2")
def test_without_a_timeout_and_without_a_reader_nothing_ends_the_wait(
    lab: Lab, scripted: ScriptedFilter, client: Client, shared: int
) -> None:
    with pytest.raises(DeadlockError, match=r"FltSendMessage on <Connection 1 .*no reader"):
        scripted.begin_sending(shared).result()


@pytest.mark.fact("S2")
@pytest.mark.parametrize("reply", [None, 4])
def test_a_timeout_of_zero_polls(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, reply: int | None
) -> None:
    assert lab.run(scripted.send(shared, b"first", timeout=0, reply=reply)).status == STATUS_TIMEOUT
    operation = client.post(handle)
    sent = lab.run(scripted.send(shared, b"second", timeout=0, reply=reply))
    assert sent.status == (STATUS_SUCCESS if reply is None else STATUS_TIMEOUT)
    assert client.wait(operation).payload == b"second"
    assert lab.now == 0


@pytest.mark.fact("S2")
def test_a_negative_timeout_is_relative(lab: Lab, scripted: ScriptedFilter, shared: int) -> None:
    lab.pass_time(7 * SECONDS)
    assert lab.run(scripted.send(shared, b"x", timeout=-SECONDS)).status == STATUS_TIMEOUT
    assert lab.now == 8 * SECONDS


@pytest.mark.fact("S2")
@pytest.mark.parametrize("seconds", [5, -5])
def test_a_positive_timeout_is_absolute(
    lab: Lab, scripted: ScriptedFilter, shared: int, seconds: int
) -> None:
    lab.pass_time(7 * SECONDS)
    due = lab.kernel.clock.system_time + seconds * SECONDS
    assert lab.run(scripted.send(shared, b"x", timeout=due)).status == STATUS_TIMEOUT
    assert lab.now == (7 + max(0, seconds)) * SECONDS


@pytest.mark.fact("S3")
def test_delivery_and_reply_share_one_timeout(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    sender = scripted.begin_sending(shared, reply=4, timeout=-10 * SECONDS)
    lab.pass_time(7 * SECONDS)
    operation = client.post(handle)
    assert client.wait(operation).status == STATUS_SUCCESS
    lab.pass_time(3 * SECONDS - 1)
    assert not sender.done
    lab.pass_time(1)
    assert sender.value.status == STATUS_TIMEOUT


@pytest.mark.fact("S4", "S19")
def test_a_send_that_finds_no_memory_fails_and_leaves_the_request(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    operation = client.post(handle)
    lab.kernel.pool.refuse = lambda size, tag, driver: driver == scripted.name
    assert lab.run(scripted.send(shared, b"lost")).status == STATUS_INSUFFICIENT_RESOURCES
    assert client.wait(operation).status == STATUS_TIMEOUT
    lab.kernel.pool.refuse = None
    assert lab.run(scripted.send(shared, b"kept")).status == STATUS_SUCCESS
    assert client.wait(operation).payload == b"kept"


@pytest.mark.fact("S5")
def test_a_timeout_looks_like_success_to_nt_success(lab: Lab, scripted: ScriptedFilter, shared: int) -> None:
    status = lab.run(scripted.send(shared, b"x", timeout=-1)).status
    assert status == 0x102
    assert nt_success(status)


@pytest.mark.fact("S6")
def test_a_message_waits_in_the_senders_buffer(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    memory = lab.kernel.memory
    block = lab.kernel.pool.allocate(4, "Msg ", owner="test")
    memory.write(block, b"old!")
    sender = lab.start(scripted.call("FltSendMessage", scripted.address, shared, block, 4, 0, 0, 0))
    lab.settle()
    memory.write(block, b"new!")
    operation = client.post(handle)
    assert sender.result() == STATUS_SUCCESS
    assert client.wait(operation).payload == b"new!"


@pytest.mark.fact("S6", "S16")
def test_a_buffer_that_is_freed_while_its_sender_waits_stops_the_machine(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    block = lab.kernel.pool.allocate(4, "Msg ", owner="test")
    lab.start(scripted.call("FltSendMessage", scripted.address, shared, block, 4, 0, 0, 0))
    lab.settle()
    lab.kernel.pool.free(block)
    client.begin_get(handle)
    with pytest.raises(MachineCrashedError):
        lab.settle()
    report = lab.take_crash()
    assert report.code == bc.DRIVER_PAGE_FAULT_IN_FREED_SPECIAL_POOL
    assert "the delivery of a waiting FltSendMessage" in report.rule


@pytest.mark.fact("S6")
def test_every_connection_has_its_own_queue(lab: Lab, scripted: ScriptedFilter) -> None:
    one, two = lab.client(), lab.client()
    first, second = one.connect(), two.connect()
    operation = one.post(first)
    status = lab.run(scripted.send(two.connection(second).cookie, b"for two", timeout=0)).status
    assert status == STATUS_TIMEOUT
    assert one.wait(operation).status == STATUS_TIMEOUT


@pytest.mark.fact("S7")
def test_success_does_not_wait_until_the_client_looks(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    client.post(handle)
    assert lab.run(scripted.send(shared, b"x")).status == STATUS_SUCCESS
    assert lab.now == 0


@pytest.mark.fact("S9")
@pytest.mark.parametrize("senders_first", [True, False])
def test_a_disconnect_counts_more_than_a_reader(labs: Labs, senders_first: bool) -> None:
    for seed in range(8):
        lab = labs(seed=seed, policy=PortPolicy(wake_senders_before_notify=senders_first))
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        handle = client.connect()
        sender = scripted.begin_sending(client.connection(handle).cookie)
        lab.settle()
        operations: list[int] = []

        def post_and_close(
            k: object, thread: KThread, lab: Lab = lab, handle: int = handle, found: list[int] = operations
        ) -> Model:
            status, values = yield from get_message(lab.kernel, thread, handle=handle, size=100)
            assert status == STATUS_PENDING
            found.append(values["operation"])
            yield from lab.kernel.objects.close(thread.process.handles, handle)
            return STATUS_SUCCESS, {}

        client.call(post_and_close)
        assert sender.result().status == STATUS_PORT_DISCONNECTED
        assert client.wait(operations[0]).status == lab.policy.purge_status


@pytest.mark.fact("S10")
@pytest.mark.parametrize("reply", [None, 4])
def test_killing_the_sending_thread_ends_its_wait(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, reply: int | None
) -> None:
    def sending(k: object, thread: KThread) -> Model:
        return (yield from scripted.send(shared, b"x", reply=reply)), {}

    victim = lab.client("victim.exe")
    if reply is not None:
        client.post(handle)
    job = victim.begin(sending)
    lab.settle()
    assert not job.done
    victim.begin_exit().result()
    assert job.result()[0].status == STATUS_THREAD_IS_TERMINATING
    assert client.post(handle)  # nobody is queued any more
    assert lab.run(scripted.send(shared, b"y")).status == STATUS_SUCCESS


@pytest.mark.fact("S11")
def test_a_null_port_is_a_disconnected_one(lab: Lab, scripted: ScriptedFilter, shared: int) -> None:
    lab.run(scripted.close_client(shared))
    assert lab.kernel.memory.u64(shared) == 0
    assert lab.run(scripted.send(shared, b"x")).status == STATUS_PORT_DISCONNECTED


@pytest.mark.fact("S15", "X8")
def test_a_blocked_sender_holds_no_reference_on_the_filter(
    lab: Lab, scripted: ScriptedFilter, shared: int
) -> None:
    before = scripted.model.rundown
    sender = scripted.begin_sending(shared)
    lab.settle()
    assert scripted.model.rundown == before
    lab.run(scripted.close_client(shared))
    assert sender.result().status == STATUS_PORT_DISCONNECTED


@pytest.mark.fact("S16")
def test_messages_may_lie_on_the_kernel_stack(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    def from_stack() -> Model:
        address = lab.kernel.current.stack_limit + 0x100
        lab.kernel.memory.write(address, b"stack")
        return (yield from scripted.call("FltSendMessage", scripted.address, shared, address, 5, 0, 0, 0))

    operation = client.post(handle)
    assert lab.run(from_stack()) == STATUS_SUCCESS
    assert client.wait(operation).payload == b"stack"


@pytest.mark.fact("S17")
@pytest.mark.parametrize("length", [0xFFFF_FFF0, 0xFFFF_FFFF])
def test_a_length_that_overflows_with_the_header_is_refused(
    lab: Lab, scripted: ScriptedFilter, shared: int, length: int
) -> None:
    work = scripted.call("FltSendMessage", scripted.address, shared, scripted.new_variable(), length, 0, 0, 0)
    assert lab.run(work) == STATUS_INVALID_PARAMETER


@pytest.mark.fact("S17", "G13")
@pytest.mark.parametrize("room", [0, -1])
def test_a_request_holds_the_message_and_sixteen_bytes(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, room: int
) -> None:
    operation = client.post(handle, size=HEADER + 100 + room)
    status = lab.run(scripted.send(shared, bytes(100), timeout=0)).status
    assert status == (STATUS_SUCCESS if room == 0 else STATUS_TIMEOUT)
    assert client.wait(operation).status == (STATUS_SUCCESS if room == 0 else STATUS_BUFFER_TOO_SMALL)


@pytest.mark.fact("S18", "G14")
def test_a_request_that_is_too_small_completes_and_the_message_goes_on_waiting(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    small = client.post(handle, size=20)
    sender = scripted.begin_sending(shared, bytes(range(100)))
    lab.settle()
    completion = client.wait(small)
    assert (completion.status, completion.information) == (STATUS_BUFFER_TOO_SMALL, 116)
    assert not completion.data
    assert not sender.done
    large = client.post(handle, size=200)
    assert sender.result().status == STATUS_SUCCESS
    assert client.wait(large).payload == bytes(range(100))


@pytest.mark.fact("S18", "G14")
def test_a_request_is_pended_first_even_if_a_sender_waits_for_a_larger_one(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    sender = scripted.begin_sending(shared, bytes(100))
    lab.settle()
    small = client.post(handle, size=20)  # asserts STATUS_PENDING
    assert client.wait(small, None).status == STATUS_BUFFER_TOO_SMALL
    assert not sender.done
    lab.run(scripted.close_client(shared))
    assert sender.result().status == STATUS_PORT_DISCONNECTED


@pytest.mark.fact("S18")
def test_the_first_request_that_fits_is_taken(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    small, large, larger = (client.post(handle, size=size) for size in (20, 116, 500))
    assert lab.run(scripted.send(shared, bytes(100))).status == STATUS_SUCCESS
    assert client.wait(small).status == STATUS_TIMEOUT
    assert client.wait(large).status == STATUS_SUCCESS
    assert client.wait(larger).status == STATUS_TIMEOUT
    assert lab.run(scripted.send(shared, b"tiny")).status == STATUS_SUCCESS
    assert client.wait(small).payload == b"tiny"


@pytest.mark.fact("S18")
def test_of_several_requests_that_are_too_small_at_least_one_completes(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    first, second = client.post(handle, size=20), client.post(handle, size=20)
    assert lab.run(scripted.send(shared, bytes(100), timeout=-SECONDS)).status == STATUS_TIMEOUT
    assert client.wait(first).status == STATUS_BUFFER_TOO_SMALL
    assert client.wait(second).status in {STATUS_TIMEOUT, STATUS_BUFFER_TOO_SMALL}


@pytest.mark.fact("S18")
def test_a_message_is_lost_only_when_its_sender_times_out(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    client.post(handle, size=20)
    sender = scripted.begin_sending(shared, bytes(100), timeout=-5 * SECONDS)
    lab.pass_time(5 * SECONDS)
    assert sender.value.status == STATUS_TIMEOUT
    late = client.post(handle, size=500)
    lab.settle()
    assert client.wait(late).status == STATUS_TIMEOUT


@pytest.mark.fact("S18")
def test_the_timeout_goes_on_running_over_requests_that_are_too_small(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    sender = scripted.begin_sending(shared, bytes(100), timeout=-5 * SECONDS)
    for _ in range(4):
        lab.pass_time(SECONDS)
        client.post(handle, size=20)
        lab.settle()
    lab.pass_time(SECONDS - 1)
    assert not sender.done
    lab.pass_time(1)
    assert sender.value.status == STATUS_TIMEOUT


@pytest.mark.fact("S18")
def test_a_small_message_is_not_held_up_by_a_large_one(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    client.post(handle, size=20)
    client.post(handle, size=20)
    large = scripted.begin_sending(shared, bytes(100))
    lab.settle()
    assert lab.run(scripted.send(shared, b"tiny", timeout=0)).status == STATUS_SUCCESS
    assert not large.done
    client.post(handle, size=200)
    assert large.result().status == STATUS_SUCCESS


@pytest.mark.fact("S20", "S21")
def test_the_header_of_a_one_way_message_is_empty(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    operation = client.post(handle)
    lab.run(scripted.send(shared, b"one way"))
    completion = client.wait(operation)
    assert completion.data == bytes(HEADER) + b"one way"
    assert completion.information == HEADER + len(b"one way")


@pytest.mark.fact("S20")
def test_only_messages_that_expect_a_reply_consume_ids(lab: Lab, scripted: ScriptedFilter) -> None:
    one, two = lab.client(), lab.client()
    first, second = one.connect(), two.connect()
    seen: list[tuple[int, int]] = []
    for who, where, reply in ((one, first, 4), (one, first, None), (one, first, 6), (two, second, 0)):
        operation = who.post(where)
        scripted.begin_sending(who.connection(where).cookie, reply=reply)
        completion = who.wait(operation, None)
        seen.append((completion.reply_length, completion.message_id))
    assert seen == [(20, 1), (0, 0), (22, 2), (16, 1)]


@pytest.mark.fact("S21")
@pytest.mark.parametrize("length", [0, 1, 8, 0x1000, 0x2345])
def test_the_bytes_transferred_are_message_and_header(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, length: int
) -> None:
    operation = client.post(handle, size=0x4000)
    payload = bytes(n * 13 & 0xFF for n in range(length))
    assert lab.run(scripted.send(shared, payload)).status == STATUS_SUCCESS
    completion = client.wait(operation)
    assert (completion.information, completion.payload) == (length + HEADER, payload)


@pytest.mark.fact("S22")
def test_any_number_of_threads_send_at_once_each_into_a_request_of_its_own(labs: Labs) -> None:
    for seed in range(6):
        lab = labs(seed=seed)
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        handle = client.connect()
        shared = client.connection(handle).cookie
        senders = [scripted.begin_sending(shared, bytes((n,))) for n in range(8)]
        operations = [client.post(handle) for _ in range(8)]
        assert {job.result().status for job in senders} == {STATUS_SUCCESS}
        assert sorted(client.wait(o).payload for o in operations) == [bytes((n,)) for n in range(8)]


@pytest.mark.fact("S23")
def test_one_sender_is_served_in_order_of_sending_and_posting(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    def sequence() -> Model:
        statuses = set()
        for number in range(20):
            sent = yield from scripted.send(shared, bytes((number,)))
            statuses.add(sent.status)
        return statuses

    operations = [client.post(handle) for _ in range(10)]
    sender = lab.start(sequence())
    operations += [client.post(handle) for _ in range(10)]
    assert sender.result() == {STATUS_SUCCESS}
    assert [client.wait(o).payload for o in operations] == [bytes((n,)) for n in range(20)]


@pytest.mark.fact("S23")
def test_several_senders_keep_each_their_own_order_only(labs: Labs) -> None:
    mixtures = set()
    for seed in range(6):
        lab = labs(seed=seed)
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        handle = client.connect()
        shared = client.connection(handle).cookie

        def sequence(name: bytes, scripted: ScriptedFilter = scripted, shared: int = shared) -> Model:
            for number in range(5):
                yield from scripted.send(shared, name + bytes((number,)))

        jobs = [lab.start(sequence(name)) for name in (b"a", b"b", b"c")]
        received = [client.wait(client.post(handle), None).payload for _ in range(15)]
        for job in jobs:
            job.result()
        for name in b"abc":
            assert [p[1] for p in received if p[0] == name] == list(range(5))
        mixtures.add(b"".join(p[:1] for p in received))
    assert len(mixtures) > 1, "the schedules of all seeds were the same"


def test_of_several_blocked_senders_the_one_that_waited_longest_is_served_first(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    senders = []
    for number in range(3):
        senders.append(scripted.begin_sending(shared, bytes((number,))))
        lab.settle()
    for number in range(3):
        assert client.wait(client.post(handle), None).payload == bytes((number,))
        assert [sender.done for sender in senders] == [n <= number for n in range(3)]


@pytest.mark.fact("S25")
@pytest.mark.parametrize("reply", [None, 4])
def test_a_driver_that_forbids_itself_to_wait_on_the_io_path_is_held_to_it(
    lab: Lab, reply: int | None
) -> None:
    scripted = ScriptedFilter(lab, rules={"io_path_waits": "forbid"}).load()
    client = lab.client()
    handle = client.connect()
    shared = client.connection(handle).cookie
    instance = scripted.instance_on("D")
    if reply is not None:
        client.post(handle)
    poll = scripted.send(shared, b"x", timeout=0)  # a callback may look
    lab.run(inside_callback(lab, instance, "PreOperation of IRP_MJ_CREATE", poll))
    lab.run(scripted.send(shared, b"x", timeout=-SECONDS))  # and a worker may wait
    if reply is not None:
        client.post(handle)
    send = scripted.send(shared, b"x", reply=reply, timeout=-SECONDS)
    with pytest.raises(MachineCrashedError):
        lab.run(inside_callback(lab, instance, "PreOperation of IRP_MJ_CREATE", send))
    rule = lab.take_crash().rule
    assert "PreOperation of IRP_MJ_CREATE" in rule
    assert ("for a reader" if reply is None else "for a reply") in rule
    assert scripted.name in rule


@pytest.mark.fact("S26")
def test_a_client_that_posts_nothing_is_not_disconnected(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    assert lab.run(scripted.send(shared, b"x", timeout=-SECONDS)).status == STATUS_TIMEOUT
    assert lab.now == SECONDS
    lab.pass_time(3600 * SECONDS)
    assert not scripted.disconnects
    client.post(handle)
    assert lab.run(scripted.send(shared, b"x")).status == STATUS_SUCCESS


@pytest.mark.fact("G16", "S6")
def test_a_request_that_is_cancelled_under_a_woken_sender_leaves_the_sender_waiting(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    sender = scripted.begin_sending(shared)
    lab.settle()

    def post_and_cancel(k: object, thread: KThread) -> Model:
        _, values = yield from get_message(lab.kernel, thread, handle=handle, size=100)
        status, _ = yield from cancel(lab.kernel, thread, handle=handle)
        assert status == STATUS_SUCCESS
        return values["operation"], {}

    operation, _ = client.call(post_and_cancel)
    lab.settle()
    assert client.wait(operation).status == STATUS_CANCELLED
    assert not sender.done
    client.post(handle)
    assert sender.result().status == STATUS_SUCCESS


def test_a_sender_whose_message_is_bad_memory_stops_the_machine(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    client.post(handle)
    work = scripted.call("FltSendMessage", scripted.address, shared, 0xFFFF_B123_0000_0000, 4, 0, 0, 0)
    with pytest.raises(MachineCrashedError):
        lab.run(work)
    assert lab.take_crash().code == bc.PAGE_FAULT_IN_NONPAGED_AREA
