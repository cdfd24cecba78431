"""FilterConnectCommunicationPort and ConnectNotify: facts C1 to C14, P23 to P25, G1 to G4."""

from __future__ import annotations

import pytest

from tests.vm.conftest import Labs
from tests.vm.port_lab import PLAIN_USER, PORT, SECONDS, Client, Gate, Lab
from tests.vm.scripted_filter import ConnectCall, MessageCall, ScriptedFilter
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.kernel import MachineCrashedError
from vm.emulated.kernel.objects import HandleEntry
from vm.emulated.kernel.security import (
    ADMINISTRATOR_TOKEN,
    ADMINISTRATORS,
    AUTHENTICATED_USERS,
    LAB_USER,
    SYSTEM_TOKEN,
    Ace,
    Impersonation,
    SecurityDescriptor,
    Token,
    encode,
)
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_CONNECTION_COUNT_LIMIT,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INTEGER_OVERFLOW,
    STATUS_INVALID_PARAMETER,
    STATUS_INVALID_PARAMETER_3,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_OBJECT_PATH_NOT_FOUND,
    STATUS_OBJECT_PATH_SYNTAX_BAD,
    STATUS_OBJECT_TYPE_MISMATCH,
    STATUS_PRIVILEGE_NOT_HELD,
    STATUS_SUCCESS,
    STATUS_TIMEOUT,
)
from vm.emulated.kernel.threads import Model

ALLOW, DENY = 0, 1
HIGHEST_USER_ADDRESS = 0x0000_7FFF_FFFE_FFFF


@pytest.mark.fact("C1", "C2")
def test_connect_notify_runs_in_the_thread_of_the_client_at_passive_level(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    seen: list[tuple[int, str, int]] = []

    def connect(call: ConnectCall) -> int:
        thread = lab.kernel.current
        seen.append((thread.process.id, thread.name, lab.kernel.engine.irql))
        return scripted.accept(call)

    scripted.on_connect = connect
    client = lab.client()
    job = client.begin_connect(context=b"abc")
    job.result()
    assert seen == [(client.process.id, job.thread.name, 0)]
    (call,) = scripted.connects
    assert (call.server_cookie, call.size) == (0x5E54, 3)


@pytest.mark.fact("C3")
def test_a_send_from_connect_notify_finds_nobody_and_times_out(lab: Lab, scripted: ScriptedFilter) -> None:
    statuses: list[int] = []

    def connect(call: ConnectCall) -> Model:
        scripted.accept(call)
        sent = yield from scripted.send(lab.kernel.memory.u64(call.cookie_slot), b"x", timeout=-SECONDS)
        statuses.append(sent.status)
        return STATUS_SUCCESS

    scripted.on_connect = connect
    assert lab.client().try_connect() == STATUS_SUCCESS
    assert statuses == [STATUS_TIMEOUT]
    assert lab.now == SECONDS


@pytest.mark.fact("C4")
def test_the_context_is_a_copy_in_kernel_memory(lab: Lab, scripted: ScriptedFilter) -> None:
    lab.client().connect(context=b"connection context")
    assert scripted.contexts == [b"connection context"]
    assert scripted.connects[0].context > HIGHEST_USER_ADDRESS


@pytest.mark.fact("C4")
def test_the_context_is_gone_after_connect_notify(lab: Lab, scripted: ScriptedFilter) -> None:
    def disconnect(cookie: int) -> int:
        lab.kernel.memory.read(scripted.connects[0].context, 1)
        return 0

    scripted.on_disconnect = disconnect
    client = lab.client()
    handle = client.connect(context=b"secret")
    with pytest.raises(MachineCrashedError):
        client.close(handle)
    report = lab.take_crash()
    assert report.code == bc.DRIVER_PAGE_FAULT_IN_FREED_SPECIAL_POOL
    assert "already freed" in report.rule


@pytest.mark.fact("C4")
def test_the_context_is_null_when_there_is_none(lab: Lab, scripted: ScriptedFilter) -> None:
    lab.client().connect()
    assert (scripted.connects[0].context, scripted.connects[0].size) == (0, 0)


@pytest.mark.fact("C5")
@pytest.mark.parametrize("cookie", [0, 0x1234_5678_9ABC_DEF0])
def test_the_cookie_comes_back_in_the_other_callbacks(
    lab: Lab, scripted: ScriptedFilter, cookie: int
) -> None:
    variable = scripted.new_variable()
    seen: list[int] = []

    def connect(call: ConnectCall) -> int:
        lab.kernel.memory.put64(variable, call.port)
        lab.kernel.memory.put64(call.cookie_slot, cookie)
        return STATUS_SUCCESS

    def message(call: MessageCall) -> int:
        seen.append(call.cookie)
        return STATUS_SUCCESS

    def disconnect(given: int) -> Model:
        seen.append(given)
        return (yield from scripted.close_client(variable))

    scripted.on_connect = connect
    scripted.on_disconnect = disconnect
    scripted.on_message = message
    client = lab.client()
    handle = client.connect()
    client.send(handle, b"x")
    client.close(handle)
    assert seen == [cookie, cookie]


@pytest.mark.fact("C6", "C7")
@pytest.mark.parametrize(
    "status",
    [
        STATUS_ACCESS_DENIED,
        STATUS_INSUFFICIENT_RESOURCES,
        STATUS_PRIVILEGE_NOT_HELD,
        STATUS_INVALID_PARAMETER_3,
        STATUS_FLT_DELETING_OBJECT,
    ],
)
def test_a_failure_of_connect_notify_refuses_the_connection_without_a_disconnect(
    lab: Lab, scripted: ScriptedFilter, status: int
) -> None:
    scripted.on_connect = lambda call: status
    client = lab.client()
    assert client.begin_connect().result() == (status, {})
    assert lab.events == ["ConnectNotify"]
    assert not client.process.handles.entries
    assert scripted.unload() == STATUS_SUCCESS
    assert "DisconnectNotify" not in lab.events


@pytest.mark.fact("C7")
def test_closing_the_port_of_a_connection_one_refuses_is_a_broken_rule(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    def connect(call: ConnectCall) -> Model:
        yield from scripted.close_client(scripted.new_variable(call.port))
        return STATUS_ACCESS_DENIED

    scripted.on_connect = connect
    assert lab.client().try_connect() == STATUS_ACCESS_DENIED
    (violation,) = lab.take_violations()
    assert violation.rule == "client-port-closed-in-connect"
    assert violation.driver == scripted.name
    assert PORT in violation.message


@pytest.mark.fact("C7")
def test_the_port_of_a_refused_connection_cannot_be_used(lab: Lab, scripted: ScriptedFilter) -> None:
    scripted.on_connect = lambda call: STATUS_ACCESS_DENIED
    lab.client().try_connect()
    stale = scripted.new_variable(scripted.connects[0].port)
    with pytest.raises(MachineCrashedError):
        lab.run(scripted.send(stale, b"x"))
    report = lab.take_crash()
    assert report.code == bc.REFERENCE_BY_POINTER
    assert "FltSendMessage" in report.rule
    assert "no client port (any more)" in report.rule


@pytest.mark.fact("C7")
def test_a_sender_on_a_connection_that_is_refused_comes_back(lab: Lab, scripted: ScriptedFilter) -> None:
    gate = Gate(lab)

    def connect(call: ConnectCall) -> Model:
        scripted.accept(call)
        yield from gate.wait()
        return STATUS_ACCESS_DENIED

    scripted.on_connect = connect
    job = lab.client().begin_connect()
    lab.settle()
    shared = scripted.model.client_ports[0]
    variable = scripted.new_variable(shared.object.address)
    sender = scripted.begin_sending(variable)
    lab.settle()
    gate.release()
    assert job.result()[0] == STATUS_ACCESS_DENIED
    assert sender.result().status == 0xC000_0037


@pytest.mark.fact("C8")
def test_connections_beyond_the_maximum_are_refused_without_asking_the_driver(lab: Lab) -> None:
    scripted = ScriptedFilter(lab, maximum=2).load()
    client = lab.client()
    client.connect()
    client.connect()
    assert client.try_connect() == STATUS_CONNECTION_COUNT_LIMIT
    assert len(scripted.connects) == 2


@pytest.mark.fact("C9")
def test_a_slot_is_free_only_after_disconnect_notify_has_returned(lab: Lab) -> None:
    scripted = ScriptedFilter(lab, maximum=1).load()
    gate = Gate(lab)

    def disconnect(cookie: int) -> Model:
        yield from scripted.close_client(cookie)
        yield from gate.wait()
        return 0

    scripted.on_disconnect = disconnect
    client, other = lab.client(), lab.client()
    closing = client.begin_close(client.connect())
    lab.settle()
    assert gate.reached
    assert other.try_connect() == STATUS_CONNECTION_COUNT_LIMIT
    gate.release()
    assert closing.result()[0] == STATUS_SUCCESS
    assert other.try_connect() == STATUS_SUCCESS


@pytest.mark.fact("C9")
def test_closing_the_client_port_alone_does_not_free_the_slot(lab: Lab) -> None:
    scripted = ScriptedFilter(lab, maximum=1).load()
    client = lab.client()
    handle = client.connect()
    lab.run(scripted.close_client(client.connection(handle).cookie))
    assert client.try_connect() == STATUS_CONNECTION_COUNT_LIMIT
    client.close(handle)
    assert client.try_connect() == STATUS_SUCCESS


@pytest.mark.fact("C10")
def test_connect_notify_runs_inside_a_critical_region(lab: Lab, scripted: ScriptedFilter) -> None:
    seen: list[int] = []

    def connect(call: ConnectCall) -> int:
        seen.append(lab.kernel.current.critical_region)
        return scripted.accept(call)

    scripted.on_connect = connect
    job = lab.client().begin_connect()
    job.result()
    assert seen == [1]
    assert job.thread.critical_region == 0


@pytest.mark.fact("C11")
@pytest.mark.parametrize("close_first", [True, False])
def test_a_connect_during_unload_fails(labs: Labs, close_first: bool) -> None:
    lab = labs()
    scripted = ScriptedFilter(lab).load()
    gate = Gate(lab)

    def unload(flags: int) -> Model:
        if close_first:
            yield from scripted.close_server_port()
        yield from scripted.unregister()
        return STATUS_SUCCESS

    def teardown(reason: int) -> Model:
        yield from gate.wait()
        return 0

    scripted.on_unload = unload
    scripted.on_teardown_start = teardown
    job = scripted.begin_unload()
    lab.settle()
    status = lab.client().try_connect()
    assert status in {STATUS_FLT_DELETING_OBJECT, STATUS_OBJECT_NAME_NOT_FOUND}
    assert status == (STATUS_OBJECT_NAME_NOT_FOUND if close_first else STATUS_FLT_DELETING_OBJECT)
    gate.release()
    lab.settle()
    if not close_first:
        assert [v.rule for v in lab.take_violations()] == ["unload-blocked"]
        lab.run(scripted.close_server_port())
    assert job.result() == STATUS_SUCCESS


@pytest.mark.fact("C11", "D10")
def test_an_unload_waits_for_a_running_connect_notify(lab: Lab, scripted: ScriptedFilter) -> None:
    gate = Gate(lab)

    def connect(call: ConnectCall) -> Model:
        yield from gate.wait()
        return scripted.accept(call)

    scripted.on_connect = connect
    connecting = lab.client().begin_connect()
    lab.settle()
    unload = scripted.begin_unload()
    lab.pass_time(SECONDS)
    assert not unload.done
    gate.release()
    assert unload.result() == STATUS_SUCCESS
    assert connecting.result()[0] == STATUS_SUCCESS
    assert lab.events.index("DisconnectNotify") < lab.events.index("unregistered")


@pytest.mark.fact("C12")
def test_of_two_connects_at_the_last_slot_exactly_one_wins(labs: Labs) -> None:
    orders = set()
    for seed in range(12):
        lab = labs(seed=seed)
        ScriptedFilter(lab, maximum=1).load()
        clients = [lab.client(), lab.client()]
        jobs = [client.begin_connect() for client in clients]
        statuses = [job.result()[0] for job in jobs]
        assert sorted(statuses) == [STATUS_SUCCESS, STATUS_CONNECTION_COUNT_LIMIT]
        orders.add(tuple(statuses))
    assert len(orders) == 2, "the schedules of all seeds were the same"


@pytest.mark.fact("C12")
def test_an_attempt_counts_until_it_is_refused(lab: Lab) -> None:
    scripted = ScriptedFilter(lab, maximum=1).load()
    gate = Gate(lab)

    def connect(call: ConnectCall) -> Model:
        yield from gate.wait()
        return STATUS_ACCESS_DENIED

    scripted.on_connect = connect
    first = lab.client().begin_connect()
    lab.settle()
    assert lab.client().try_connect() == STATUS_CONNECTION_COUNT_LIMIT
    gate.release()
    assert first.result()[0] == STATUS_ACCESS_DENIED
    scripted.on_connect = None
    assert lab.client().try_connect() == STATUS_SUCCESS


@pytest.mark.fact("C13")
@pytest.mark.parametrize("size", [1, 7, 8, 0x1000, 0x1001, 0xFFE7])
def test_a_context_arrives_intact_up_to_its_maximum(lab: Lab, scripted: ScriptedFilter, size: int) -> None:
    context = bytes(n * 7 & 0xFF for n in range(size))
    lab.client().connect(context=context)
    assert scripted.contexts == [context]


@pytest.mark.fact("C13")
@pytest.mark.parametrize("size", [0xFFE8, 0xFFFF])
def test_a_larger_context_overflows_the_length_of_the_extended_attribute(
    lab: Lab, scripted: ScriptedFilter, size: int
) -> None:
    assert lab.client().try_connect(context=bytes(size)) == STATUS_INTEGER_OVERFLOW
    assert not scripted.connects


@pytest.mark.fact("C14")
@pytest.mark.parametrize(("context", "size"), [(b"", 0), (None, 5)])
def test_context_and_size_are_given_both_or_not_at_all(
    lab: Lab, scripted: ScriptedFilter, context: bytes | None, size: int
) -> None:
    assert lab.client().try_connect(context=context, size=size) == STATUS_INVALID_PARAMETER
    assert not scripted.connects


@pytest.mark.fact("G1")
def test_a_failed_connect_gives_no_handle(lab: Lab, scripted: ScriptedFilter) -> None:
    assert lab.client().begin_connect("\\Missing").result() == (STATUS_OBJECT_NAME_NOT_FOUND, {})


@pytest.mark.fact("G3")
@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("\\Missing", STATUS_OBJECT_NAME_NOT_FOUND),
        ("ScriptedPort", STATUS_OBJECT_PATH_SYNTAX_BAD),
        ("\\Nowhere\\ScriptedPort", STATUS_OBJECT_PATH_NOT_FOUND),
        ("\\SomethingElse", STATUS_OBJECT_TYPE_MISMATCH),
    ],
)
def test_a_bad_name_is_refused_by_the_object_manager(
    lab: Lab, scripted: ScriptedFilter, name: str, status: int
) -> None:
    lab.kernel.objects.create("Event", None, name="\\SomethingElse")
    assert lab.client().try_connect(name) == status


@pytest.mark.fact("G4")
@pytest.mark.parametrize("sensitive", [True, False])
def test_the_case_of_a_name_at_connect_is_a_choice_of_the_policy(labs: Labs, sensitive: bool) -> None:
    lab = labs(policy=PortPolicy(case_sensitive_names=sensitive))
    ScriptedFilter(lab).load()
    client = lab.client()
    assert client.try_connect(PORT) == STATUS_SUCCESS
    assert client.try_connect(PORT.lower()) == (STATUS_OBJECT_NAME_NOT_FOUND if sensitive else STATUS_SUCCESS)


# Access


def connect_with(
    lab: Lab, token: Token, aces: tuple[Ace, ...] | None, impersonate: Token | None = None
) -> int:
    ScriptedFilter(lab, aces=aces).load()
    client = lab.client(token=token)
    job = client.begin_connect()
    if impersonate is not None:
        job.thread.impersonation = Impersonation(impersonate)
    return int(job.result()[0])


@pytest.mark.fact("P20")
@pytest.mark.parametrize(
    ("token", "status"),
    [
        (ADMINISTRATOR_TOKEN, STATUS_SUCCESS),
        (SYSTEM_TOKEN, STATUS_SUCCESS),
        (PLAIN_USER, STATUS_ACCESS_DENIED),
    ],
)
def test_the_default_descriptor_decides_who_may_connect(lab: Lab, token: Token, status: int) -> None:
    assert connect_with(lab, token, None) == status


@pytest.mark.fact("P23")
@pytest.mark.parametrize(
    ("mask", "status"),
    [(0x1, STATUS_ACCESS_DENIED), (0x1F0000, STATUS_ACCESS_DENIED), (0x1F0001, STATUS_SUCCESS)],
)
def test_a_connect_asks_for_all_access(lab: Lab, mask: int, status: int) -> None:
    assert connect_with(lab, PLAIN_USER, (Ace(ALLOW, mask, AUTHENTICATED_USERS),)) == status


@pytest.mark.fact("P23")
@pytest.mark.parametrize(
    ("aces", "status"),
    [
        (
            (Ace(DENY, 0x1, AUTHENTICATED_USERS), Ace(ALLOW, 0x1F0001, AUTHENTICATED_USERS)),
            STATUS_ACCESS_DENIED,
        ),
        ((Ace(ALLOW, 0x1F0001, AUTHENTICATED_USERS), Ace(DENY, 0x1, AUTHENTICATED_USERS)), STATUS_SUCCESS),
        ((Ace(DENY, 0x1F0001, LAB_USER), Ace(ALLOW, 0x1F0001, AUTHENTICATED_USERS)), STATUS_SUCCESS),
        ((Ace(ALLOW, 0x1F0000, AUTHENTICATED_USERS), Ace(ALLOW, 0x1, PLAIN_USER.user)), STATUS_SUCCESS),
        ((), STATUS_ACCESS_DENIED),
    ],
)
def test_entries_count_in_their_order(lab: Lab, aces: tuple[Ace, ...], status: int) -> None:
    assert connect_with(lab, PLAIN_USER, aces) == status


@pytest.mark.fact("P24")
def test_an_administrator_who_is_not_elevated_is_refused(lab: Lab) -> None:
    assert connect_with(lab, ADMINISTRATOR_TOKEN.restricted(), None) == STATUS_ACCESS_DENIED


@pytest.mark.fact("P24")
def test_a_thread_that_impersonates_a_filtered_token_is_refused(lab: Lab) -> None:
    filtered = ADMINISTRATOR_TOKEN.restricted()
    assert connect_with(lab, ADMINISTRATOR_TOKEN, None, impersonate=filtered) == STATUS_ACCESS_DENIED


@pytest.mark.fact("P24")
def test_a_deny_only_group_still_denies(lab: Lab) -> None:
    aces = (Ace(DENY, 0x1, ADMINISTRATORS), Ace(ALLOW, 0x1F0001, AUTHENTICATED_USERS))
    assert connect_with(lab, ADMINISTRATOR_TOKEN.restricted(), aces) == STATUS_ACCESS_DENIED


def connect_to(lab: Lab, descriptor: bytes | None, client: Client) -> int:
    """The status of a connect to a port with this descriptor (None: none at all)."""
    scripted = ScriptedFilter(lab).load()

    def create() -> Model:
        block = 0
        if descriptor is not None:
            block = lab.kernel.pool.allocate(len(descriptor), "Test", owner="test")
            lab.kernel.memory.write(block, descriptor)
        out = scripted.new_variable()
        assert (yield from scripted.create_port("\\Open", out=out, descriptor=block)) == STATUS_SUCCESS
        return out

    lab.run(create())
    return client.try_connect("\\Open")


@pytest.mark.fact("P25")
@pytest.mark.parametrize("null_dacl", [True, False])
def test_a_port_without_a_list_lets_administrators_in_and_others_perhaps(lab: Lab, null_dacl: bool) -> None:
    descriptor = encode(SecurityDescriptor(None)) if null_dacl else None
    plain = lab.client(token=PLAIN_USER)
    assert connect_to(lab, descriptor, plain) in {STATUS_SUCCESS, STATUS_ACCESS_DENIED}
    assert lab.client().try_connect("\\Open") == STATUS_SUCCESS


@pytest.mark.fact("P25")
def test_a_descriptor_that_is_none_fails_the_creation(lab: Lab, scripted: ScriptedFilter) -> None:
    block = lab.kernel.pool.allocate(20, "Test", owner="test")
    assert (
        lab.run(scripted.create_port("\\Bad", out=scripted.new_variable(), descriptor=block)) == 0xC000_0079
    )


def test_a_handle_of_something_else_takes_no_messages(lab: Lab, scripted: ScriptedFilter) -> None:
    client = lab.client()
    event = lab.kernel.objects.create("Event", None)
    handle = client.process.handles.insert(HandleEntry(event, 0x1F0003))
    assert client.try_get(handle) == STATUS_INVALID_PARAMETER
    assert client.reply(handle, 1) == STATUS_INVALID_PARAMETER
