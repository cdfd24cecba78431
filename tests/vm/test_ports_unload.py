"""Unloading with ports and connections: facts X5 to X13, D9, D10."""

from __future__ import annotations

import pytest

from tests.vm.conftest import Labs
from tests.vm.port_lab import SECONDS, Client, Gate, Job, Lab, inside_callback, pause
from tests.vm.scripted_filter import MessageCall, ScriptedFilter
from vm.emulated.fltmgr.manager import UNLOAD_PATIENCE
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.kernel import DeadlockError, MachineCrashedError
from vm.emulated.kernel.status import (
    STATUS_CANCELLED,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_DO_NOT_DETACH,
    STATUS_PORT_DISCONNECTED,
    STATUS_SUCCESS,
    STATUS_TIMEOUT,
    STATUS_UNSUCCESSFUL,
)
from vm.emulated.kernel.threads import Call, Model


@pytest.fixture
def client(lab: Lab, scripted: ScriptedFilter) -> Client:
    return lab.client()


@pytest.fixture
def handle(client: Client) -> int:
    return client.connect()


@pytest.fixture
def shared(client: Client, handle: int) -> int:
    return client.connection(handle).cookie


@pytest.mark.fact("X6", "X7", "D9", "D10", "D1")
def test_an_unload_ends_connections_after_the_instances_in_its_own_thread(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int
) -> None:
    threads: list[str] = []

    def disconnect(cookie: int) -> Model:
        threads.append(lab.kernel.current.name)
        return (yield from scripted.close_client(cookie))

    scripted.on_disconnect = disconnect
    lab.events.clear()
    unload = scripted.begin_unload()
    assert unload.result() == STATUS_SUCCESS
    assert lab.events == [
        "FilterUnload",
        "server port closed",
        "InstanceTeardownStart",
        "InstanceTeardownComplete",
        "InstanceTeardownStart",
        "InstanceTeardownComplete",
        "DisconnectNotify",
        "client port closed",
        "unregistered",
    ]
    assert threads == [unload.thread.name]
    assert client.close(handle) == STATUS_SUCCESS
    assert lab.events[-1] == "unregistered"


@pytest.mark.fact("X7", "X12")
def test_references_are_waited_for_between_instances_and_connections(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int
) -> None:
    lab.run(scripted.call("FltObjectReference", scripted.address))
    unload = scripted.begin_unload()
    lab.pass_time(SECONDS)
    assert lab.events[-1] == "InstanceTeardownComplete"
    assert not unload.done
    assert lab.run(scripted.call("FltObjectReference", scripted.address)) == STATUS_FLT_DELETING_OBJECT
    lab.run(scripted.call("FltObjectDereference", scripted.address))
    assert unload.result() == STATUS_SUCCESS
    assert lab.events[-3:] == ["DisconnectNotify", "client port closed", "unregistered"]


@pytest.mark.fact("X12", "X13")
def test_a_reference_that_is_never_dropped_blocks_the_unload_and_is_named(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    lab.run(scripted.call("FltObjectReference", scripted.address))
    unload = scripted.begin_unload()
    lab.pass_time(UNLOAD_PATIENCE - 1)
    assert not lab.kernel.violations
    with pytest.raises(DeadlockError, match="an FltObjectReference of the filter 'Scripted' without"):
        unload.result()
    (violation,) = lab.take_violations()
    assert (violation.rule, violation.driver) == ("unload-blocked", scripted.name)
    assert "an FltObjectReference of the filter 'Scripted' without" in violation.message


@pytest.mark.fact("X12")
def test_dropping_a_reference_that_nobody_holds_stops_the_machine(lab: Lab, scripted: ScriptedFilter) -> None:
    with pytest.raises(MachineCrashedError):
        lab.run(scripted.call("FltObjectDereference", scripted.address))
    report = lab.take_crash()
    assert report.code == bc.REFERENCE_BY_POINTER
    assert "a reference on the filter 'Scripted' was dropped that nobody holds" in report.rule


def block_a_callback(lab: Lab, scripted: ScriptedFilter, shared: int, **options: int) -> Job:
    """A pre-operation callback that waits in FltSendMessage."""
    instance = scripted.instance_on("D")
    send = scripted.send(shared, b"x", **options)
    job = lab.start(inside_callback(lab, instance, "PreOperation of IRP_MJ_CREATE", send), "opener")
    lab.settle()
    assert not job.done
    return job


@pytest.mark.fact("X8", "S15", "X13")
def test_a_callback_that_waits_for_ever_in_a_send_hangs_the_unload(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    block_a_callback(lab, scripted, shared)
    unload = scripted.begin_unload()
    with pytest.raises(DeadlockError, match="the teardown of instance 'Scripted Instance'"):
        unload.result()
    (violation,) = lab.take_violations()
    assert (violation.rule, violation.driver) == ("unload-blocked", scripted.name)
    assert "thread 'opener' is in PreOperation of IRP_MJ_CREATE, in FltSendMessage on" in violation.message
    assert not scripted.disconnects


@pytest.mark.fact("X8")
@pytest.mark.parametrize("cure", ["the driver closes the port", "the client exits", "the client reads"])
def test_the_hang_of_an_unload_behind_a_send_has_cures(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int, cure: str
) -> None:
    def unload_with_care(flags: int) -> Model:
        yield from scripted.close_server_port()
        yield from scripted.close_client(shared)
        yield from scripted.unregister()
        return STATUS_SUCCESS

    callback = block_a_callback(lab, scripted, shared)
    if cure == "the driver closes the port":
        scripted.on_unload = unload_with_care
    unload = scripted.begin_unload()
    lab.settle()
    if cure == "the client exits":
        assert not unload.done
        client.begin_exit()
    elif cure == "the client reads":
        assert not unload.done
        client.post(handle)
    assert unload.result() == STATUS_SUCCESS
    assert callback.value.status == (
        STATUS_SUCCESS if cure == "the client reads" else STATUS_PORT_DISCONNECTED
    )
    assert lab.now < UNLOAD_PATIENCE
    assert len(scripted.disconnects) == 1


@pytest.mark.fact("X8", "S2")
def test_a_callback_that_waits_with_a_timeout_delays_the_unload_only(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    callback = block_a_callback(lab, scripted, shared, timeout=-SECONDS)
    assert scripted.unload() == STATUS_SUCCESS
    assert callback.value.status == STATUS_TIMEOUT
    assert lab.now == SECONDS


@pytest.mark.fact("X7", "X8")
def test_a_worker_that_waits_in_a_send_is_woken_by_the_end_of_its_connection(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    worker = scripted.begin_sending(shared)
    lab.settle()

    def join(cookie: int) -> Model:
        while not worker.done:
            yield from pause(1)
        return (yield from scripted.close_client(cookie))

    scripted.on_disconnect = join
    assert scripted.unload() == STATUS_SUCCESS
    assert worker.value.status == STATUS_PORT_DISCONNECTED


@pytest.mark.fact("X8")
def test_a_worker_that_is_not_joined_before_the_image_goes_stops_the_machine(labs: Labs) -> None:
    crashes = []
    for seed in range(8):
        lab = labs(seed=seed)
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        shared = client.connection(client.connect()).cookie
        gate = Gate(lab)

        def routine(
            call: MessageCall, scripted: ScriptedFilter = scripted, shared: int = shared, gate: Gate = gate
        ) -> Model:
            yield from scripted.send(shared, b"x")
            yield from gate.wait()
            return STATUS_SUCCESS

        def thread(scripted: ScriptedFilter = scripted) -> Model:
            yield Call(scripted.callback("message"), (0,) * 6, "WorkerRoutine")

        scripted.on_message = routine  # any function of the image will do
        lab.start(thread(), "worker")
        lab.settle()
        with pytest.raises(MachineCrashedError):
            scripted.unload()
        crashes.append(lab.take_crash())
    assert {crash.code for crash in crashes} == {bc.DRIVER_UNLOADED_WITHOUT_CANCELLING_PENDING_OPERATIONS}
    assert all("was unloaded while thread 'worker' still runs Scripted+0x" in c.rule for c in crashes)


@pytest.mark.fact("D10", "D3")
def test_an_unload_waits_for_a_disconnect_notify_in_the_clients_thread(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int
) -> None:
    gate = Gate(lab)

    def disconnect(cookie: int) -> Model:
        yield from gate.wait()
        return (yield from scripted.close_client(cookie))

    scripted.on_disconnect = disconnect
    closing = client.begin_close(handle)
    lab.settle()
    unload = scripted.begin_unload()
    lab.settle()
    assert not unload.done
    gate.release()
    assert unload.result() == STATUS_SUCCESS
    assert closing.result()[0] == STATUS_SUCCESS
    assert len(scripted.disconnects) == 1


@pytest.mark.fact("M3", "D10")
def test_an_unload_waits_for_a_running_message(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int
) -> None:
    gate = Gate(lab)

    def message(call: MessageCall) -> Model:
        yield from gate.wait()
        return STATUS_SUCCESS

    scripted.on_message = message
    sending = client.begin_send(handle, b"x")
    lab.settle()
    unload = scripted.begin_unload()
    lab.settle()
    assert not unload.done
    assert not scripted.disconnects
    gate.release()
    assert unload.result() == STATUS_SUCCESS
    assert sending.result()[0] == STATUS_SUCCESS


@pytest.mark.fact("D3", "D10")
def test_an_unload_and_a_closing_client_give_one_disconnect_under_every_schedule(labs: Labs) -> None:
    orders = set()
    for seed in range(20):
        lab = labs(seed=seed)
        scripted = ScriptedFilter(lab).load()
        client = lab.client()
        handle = client.connect()
        sender = scripted.begin_sending(client.connection(handle).cookie)
        lab.settle()
        closing = client.begin_close(handle)
        unload = scripted.begin_unload()
        assert unload.result() == STATUS_SUCCESS
        assert closing.result()[0] == STATUS_SUCCESS
        assert sender.result().status == STATUS_PORT_DISCONNECTED
        assert len(scripted.disconnects) == 1
        orders.add(lab.events.index("DisconnectNotify") < lab.events.index("FilterUnload"))
    assert len(orders) == 2, "the schedules of all seeds were the same"


@pytest.mark.fact("D10")
def test_several_connections_each_get_their_disconnect_at_unload(lab: Lab, scripted: ScriptedFilter) -> None:
    clients = [lab.client() for _ in range(3)]
    handles = [client.connect() for client in clients]
    cookies = {c.connection(h).cookie for c, h in zip(clients, handles, strict=True)}
    assert scripted.unload() == STATUS_SUCCESS
    assert set(scripted.disconnects) == cookies
    assert len(scripted.disconnects) == 3


@pytest.mark.fact("X9")
def test_the_unload_callback_runs_in_a_system_thread_at_passive_level(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    seen: list[tuple[bool, int]] = []

    def unload(flags: int) -> Model:
        seen.append((lab.kernel.current.process.is_system, lab.kernel.engine.irql))
        return (yield from scripted.tear_down(flags))

    scripted.on_unload = unload
    assert scripted.unload() == STATUS_SUCCESS
    assert seen == [(True, 0)]


@pytest.mark.fact("X10", "L3")
def test_a_refused_unload_leaves_everything_running(
    lab: Lab, scripted: ScriptedFilter, client: Client, handle: int, shared: int
) -> None:
    scripted.on_unload = lambda flags: STATUS_FLT_DO_NOT_DETACH
    assert scripted.unload() == STATUS_FLT_DO_NOT_DETACH
    operation = client.post(handle)
    assert lab.run(scripted.send(shared, b"x")).status == STATUS_SUCCESS
    assert client.wait(operation).payload == b"x"
    assert lab.client().try_connect() == STATUS_SUCCESS
    scripted.on_unload = None
    assert scripted.unload() == STATUS_SUCCESS


@pytest.mark.fact("X10")
@pytest.mark.parametrize("mandatory", [True, False])
def test_the_unload_callback_is_told_whether_it_may_refuse(
    lab: Lab, scripted: ScriptedFilter, mandatory: bool
) -> None:
    seen: list[int] = []
    reasons: list[int] = []

    def unload(flags: int) -> Model:
        seen.append(flags)
        yield from scripted.tear_down(flags)
        return STATUS_FLT_DO_NOT_DETACH if flags else STATUS_SUCCESS

    scripted.on_unload = unload
    scripted.on_teardown_start = reasons.append
    assert scripted.unload(mandatory=mandatory) == STATUS_SUCCESS
    assert seen == [1 if mandatory else 0]
    assert reasons == [4 if mandatory else 2] * 2


@pytest.mark.fact("X10")
def test_a_refusal_after_unregistering_stops_the_machine(lab: Lab, scripted: ScriptedFilter) -> None:
    def unload(flags: int) -> Model:
        yield from scripted.tear_down(flags)
        return STATUS_UNSUCCESSFUL

    scripted.on_unload = unload
    with pytest.raises(MachineCrashedError):
        scripted.unload()
    assert "refused with STATUS_UNSUCCESSFUL after it had called FltUnregisterFilter" in lab.take_crash().rule


@pytest.mark.fact("X5")
def test_an_unload_that_forgets_to_unregister_stops_the_machine(lab: Lab, scripted: ScriptedFilter) -> None:
    scripted.on_unload = lambda flags: STATUS_SUCCESS
    with pytest.raises(MachineCrashedError):
        scripted.unload()
    report = lab.take_crash()
    assert report.code == bc.DRIVER_UNLOADED_WITHOUT_CANCELLING_PENDING_OPERATIONS
    assert "FltUnregisterFilter was not called" in report.rule


@pytest.mark.fact("X11", "L3")
@pytest.mark.parametrize("mandatory", [True, False])
def test_a_filter_without_an_unload_callback_cannot_be_unloaded(lab: Lab, mandatory: bool) -> None:
    scripted = ScriptedFilter(lab, unloadable=False).load()
    assert scripted.unload(mandatory=mandatory) == STATUS_FLT_DO_NOT_DETACH
    assert lab.client().try_connect() == STATUS_SUCCESS


@pytest.mark.fact("X11")
def test_a_filter_that_refuses_service_stop_can_still_be_unloaded_by_its_name(lab: Lab) -> None:
    scripted = ScriptedFilter(lab, registration_flags=1).load()
    assert scripted.unload(mandatory=True) & 0x8000_0000
    assert "FilterUnload" not in lab.events
    assert scripted.unload() == STATUS_SUCCESS


@pytest.mark.fact("X11")
def test_the_unload_callback_is_not_called_when_driver_entry_fails(lab: Lab) -> None:
    scripted = ScriptedFilter(lab)

    def entry() -> Model:
        yield from scripted.set_up()
        yield from scripted.tear_down()
        return STATUS_UNSUCCESSFUL

    scripted.on_entry = entry
    scripted.install()
    assert scripted.try_load() == STATUS_UNSUCCESSFUL
    assert "FilterUnload" not in lab.events
    assert scripted.driver.unloaded
    scripted.on_entry = None
    assert scripted.try_load() == STATUS_SUCCESS


@pytest.mark.fact("X11")
def test_a_failing_driver_entry_that_stays_registered_stops_the_machine(lab: Lab) -> None:
    scripted = ScriptedFilter(lab)

    def entry() -> Model:
        yield from scripted.set_up()
        return STATUS_UNSUCCESSFUL

    scripted.on_entry = entry
    scripted.install()
    with pytest.raises(MachineCrashedError):
        scripted.try_load()
    assert "still registered after a failed DriverEntry" in lab.take_crash().rule


@pytest.mark.fact("X12", "X7")
def test_an_unload_waits_for_a_callback_that_returns_soon(lab: Lab, scripted: ScriptedFilter) -> None:
    gate = Gate(lab)
    lab.start(inside_callback(lab, scripted.instance_on("E"), "PreOperation of IRP_MJ_READ", gate.wait()))
    lab.settle()
    unload = scripted.begin_unload()
    lab.settle()
    assert not unload.done
    assert "unregistered" not in lab.events
    gate.release()
    assert unload.result() == STATUS_SUCCESS


@pytest.mark.fact("L3")
def test_a_second_unload_during_the_first_is_refused(lab: Lab, scripted: ScriptedFilter) -> None:
    gate = Gate(lab)

    def unload(flags: int) -> Model:
        yield from gate.wait()
        return (yield from scripted.tear_down(flags))

    scripted.on_unload = unload
    first = scripted.begin_unload()
    lab.settle()
    assert scripted.unload() == STATUS_FLT_DELETING_OBJECT
    gate.release()
    assert first.result() == STATUS_SUCCESS


POLICIES = [
    PortPolicy(notify_after_kernel_close=notify, purge_status=purge, wake_senders_before_notify=wake)
    for notify in (True, False)
    for purge in (STATUS_PORT_DISCONNECTED, STATUS_CANCELLED)
    for wake in (True, False)
]


@pytest.mark.fact("D3", "D5", "D8", "G17", "X7")
@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_happens_at_once_everything_comes_back_and_ends_once(labs: Labs, policy: PortPolicy) -> None:
    for seed in range(5):
        lab = labs(seed=seed, policy=policy)
        scripted = ScriptedFilter(lab).load()

        def message(call: MessageCall, scripted: ScriptedFilter = scripted) -> Model:
            yield from scripted.send(call.cookie, b"from the callback")
            return STATUS_SUCCESS

        clients = [lab.client(f"client{n}.exe") for n in range(4)]
        handles = [client.connect(synchronous=n == 3) for n, client in enumerate(clients)]
        cookies = [c.connection(h).cookie for c, h in zip(clients, handles, strict=True)]
        workers: list[Job] = []

        def unload_with_care(
            flags: int,
            scripted: ScriptedFilter = scripted,
            workers: list[Job] = workers,
            cookies: tuple[int, ...] = tuple(cookies),
        ) -> Model:
            yield from scripted.close_server_port()
            for cookie in cookies:
                yield from scripted.close_client(cookie)
            while not all(worker.done for worker in workers):
                yield from pause(1)
            yield from scripted.unregister()
            return STATUS_SUCCESS

        scripted.on_message = message
        scripted.on_unload = unload_with_care
        jobs: list[Job] = []
        for client, handle, cookie in zip(clients, handles, cookies, strict=True):
            workers += [scripted.begin_sending(cookie, bytes(8 * n), timeout=-SECONDS) for n in range(2)]
            workers += [scripted.begin_sending(cookie, reply=8)]
            jobs += [client.begin_send(handle, b"up")]
            jobs += [client.begin_get(handle, size=size) for size in (20, 100)]
        workers.append(lab.start(scripted.close_client(cookies[0]), "closer"))
        jobs += [clients[1].begin_close(handles[1]), clients[2].begin_exit(), clients[3].begin_connect()]
        unload = scripted.begin_unload()
        assert unload.result() == STATUS_SUCCESS
        for job in (*workers, *jobs):
            job.result()
        for client in (clients[0], clients[3]):
            client.begin_exit().result()
        assert len(set(scripted.disconnects)) == len(scripted.disconnects) <= len(scripted.connects)
        if policy.notify_after_kernel_close:
            assert len(scripted.disconnects) == len(scripted.connects)
        assert not lab.kernel.pool.owned_by("fltmgr")
        assert not lab.manager.ports.connections
