"""FltCreateCommunicationPort and security descriptors: facts P1 to P12 and P20 to P22."""

from __future__ import annotations

import pytest

from tests.vm.conftest import Labs
from tests.vm.port_lab import PORT, Lab
from tests.vm.scripted_filter import ScriptedFilter
from vm.emulated.fltmgr.model import SERVER_PORT_TYPE
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel import security
from vm.emulated.kernel.kernel import DeadlockError, MachineCrashedError
from vm.emulated.kernel.status import (
    STATUS_FLT_DELETING_OBJECT,
    STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_PATH_NOT_FOUND,
    STATUS_OBJECT_PATH_SYNTAX_BAD,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, Model

OTHER = "\\OtherPort"


def create_and_close(scripted: ScriptedFilter, name: str = OTHER, **options: int) -> Model:
    """Status of the creation of a second port, which is closed again."""
    out = scripted.new_variable()
    status = yield from scripted.create_port(name, out=out, **options)
    if status == STATUS_SUCCESS:
        yield from scripted.call("FltCloseCommunicationPort", scripted.lab.kernel.memory.u64(out))
    return status


def at_irql(lab: Lab, irql: int, work: Model) -> Model:
    lab.kernel.engine.irql = irql
    return (yield from work)


@pytest.mark.fact("P1")
@pytest.mark.parametrize("name", ["FltCloseCommunicationPort", "FltCloseClientPort"])
def test_ports_are_managed_at_passive_level_only(lab: Lab, scripted: ScriptedFilter, name: str) -> None:
    with pytest.raises(MachineCrashedError):
        lab.run(at_irql(lab, APC_LEVEL, scripted.call(name, scripted.address, 0)))
    assert f"{name} was called at IRQL 1" in lab.take_crash().rule


@pytest.mark.fact("P1")
def test_a_port_cannot_be_created_above_passive_level(lab: Lab, scripted: ScriptedFilter) -> None:
    with pytest.raises(MachineCrashedError):
        lab.run(at_irql(lab, APC_LEVEL, scripted.create_port(OTHER, descriptor=0)))
    report = lab.take_crash()
    assert report.code == bc.DRIVER_VERIFIER_DETECTED_VIOLATION
    assert "FltCreateCommunicationPort was called at IRQL 1" in report.rule


@pytest.mark.fact("P2")
def test_the_parameters_of_a_port_reach_its_callbacks(lab: Lab, scripted: ScriptedFilter) -> None:
    client = lab.client()
    handle = client.connect()
    (call,) = scripted.connects
    assert call.server_cookie == 0x5E54
    client.send(handle, b"x")
    client.close(handle)
    assert lab.events == ["ConnectNotify", "MessageNotify", "DisconnectNotify", "client port closed"]


@pytest.mark.fact("P3", "P4")
@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        (0x40, STATUS_INVALID_PARAMETER),
        (0, STATUS_INVALID_PARAMETER),
        (0x200, STATUS_SUCCESS),
        (0x240, STATUS_SUCCESS),
        (0x1200, STATUS_SUCCESS),
    ],
)
def test_a_port_needs_a_kernel_handle_and_nothing_else(
    lab: Lab, scripted: ScriptedFilter, attributes: int, status: int
) -> None:
    assert lab.run(create_and_close(scripted, attributes=attributes)) == status


@pytest.mark.fact("P5")
@pytest.mark.parametrize(
    ("maximum", "status"),
    [
        (0, STATUS_INVALID_PARAMETER),
        (-1, STATUS_INVALID_PARAMETER),
        (-(1 << 31), STATUS_INVALID_PARAMETER),
        (1, STATUS_SUCCESS),
        ((1 << 31) - 1, STATUS_SUCCESS),
    ],
)
def test_a_port_takes_at_least_one_connection(
    lab: Lab, scripted: ScriptedFilter, maximum: int, status: int
) -> None:
    assert lab.run(create_and_close(scripted, maximum=maximum)) == status


@pytest.mark.fact("P6")
@pytest.mark.parametrize(
    ("name", "status"),
    [
        (PORT, STATUS_OBJECT_NAME_COLLISION),
        (PORT.upper(), STATUS_OBJECT_NAME_COLLISION),
        ("\\FileSystem\\Filters", STATUS_OBJECT_NAME_COLLISION),
        ("\\FileSystem\\Filters\\Port", STATUS_SUCCESS),
        ("\\Nowhere\\Port", STATUS_OBJECT_PATH_NOT_FOUND),
        ("NoBackslash", STATUS_OBJECT_PATH_SYNTAX_BAD),
    ],
)
def test_the_name_of_a_port_is_unique_in_the_namespace(
    lab: Lab, scripted: ScriptedFilter, name: str, status: int
) -> None:
    assert lab.run(create_and_close(scripted, name)) == status


@pytest.mark.fact("P6")
def test_a_name_is_free_again_once_its_port_is_closed(lab: Lab, scripted: ScriptedFilter) -> None:
    assert lab.run(create_and_close(scripted)) == STATUS_SUCCESS
    assert lab.run(create_and_close(scripted)) == STATUS_SUCCESS


@pytest.mark.fact("P6")
def test_a_failed_creation_leaves_nothing_behind(lab: Lab, scripted: ScriptedFilter) -> None:
    before = scripted.model.rundown
    lab.run(create_and_close(scripted, PORT))
    assert scripted.model.rundown == before
    assert scripted.unload() == STATUS_SUCCESS


@pytest.mark.fact("P7")
def test_ports_appear_in_the_namespace_with_the_type_of_server_ports(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    assert (PORT[1:], SERVER_PORT_TYPE) in lab.kernel.objects.names("\\")
    client = lab.client()
    connection = client.connection(client.connect())
    assert connection.object.type == "FilterCommunicationPort"


@pytest.mark.fact("P8")
def test_a_filter_that_is_torn_down_cannot_create_ports(lab: Lab, scripted: ScriptedFilter) -> None:
    statuses: list[int] = []

    def teardown(reason: int) -> Model:
        statuses.append((yield from scripted.create_port(OTHER)))
        return 0

    scripted.on_teardown_start = teardown
    assert scripted.unload() == STATUS_SUCCESS
    assert set(statuses) == {STATUS_FLT_DELETING_OBJECT}


@pytest.mark.fact("P8")
def test_the_creation_of_a_port_can_fail_for_want_of_memory(lab: Lab, scripted: ScriptedFilter) -> None:
    asked: list[str] = []

    def refuse(size: int, tag: str, driver: str) -> bool:
        asked.append(driver)
        return tag != "FMsd"

    lab.kernel.pool.refuse = refuse
    assert lab.run(create_and_close(scripted)) == STATUS_INSUFFICIENT_RESOURCES
    assert set(asked) == {scripted.name}


@pytest.mark.fact("P9")
@pytest.mark.parametrize("missing", ["connect", "disconnect"])
def test_a_port_without_its_mandatory_callbacks_stops_the_machine(
    lab: Lab, scripted: ScriptedFilter, missing: str
) -> None:
    if missing == "disconnect":
        scripted.callback = lambda name: 0 if name == missing else scripted.driver.base  # type: ignore[method-assign]
    with pytest.raises(MachineCrashedError):
        lab.run(scripted.create_port(OTHER, connect=0 if missing == "connect" else None, descriptor=0))
    assert "mandatory (fact P9)" in lab.take_crash().rule


@pytest.mark.fact("P10", "M4")
def test_the_message_callback_is_optional(lab: Lab) -> None:
    scripted = ScriptedFilter(lab, message=False).load()
    client = lab.client()
    status, _ = client.send(client.connect(), b"x")
    assert status & 0x8000_0000
    assert "MessageNotify" not in lab.events
    assert scripted.unload() == STATUS_SUCCESS


@pytest.mark.fact("P11", "X5")
def test_an_unload_waits_for_a_server_port_that_was_never_closed_and_names_it(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    def careless(flags: int) -> Model:
        yield from scripted.unregister()
        return STATUS_SUCCESS

    scripted.on_unload = careless
    unload = scripted.begin_unload()
    with pytest.raises(DeadlockError, match="ScriptedPort"):
        unload.result()
    (violation,) = lab.take_violations()
    assert violation.rule == "unload-blocked"
    assert violation.driver == scripted.name
    assert PORT in violation.message
    assert "unregistered" not in lab.events


@pytest.mark.fact("P11")
def test_closing_the_server_port_lets_a_waiting_unload_go_on(lab: Lab, scripted: ScriptedFilter) -> None:
    def late(flags: int) -> Model:
        yield from scripted.unregister()
        return STATUS_SUCCESS

    scripted.on_unload = late
    unload = scripted.begin_unload()
    lab.settle()
    assert not unload.done
    lab.run(scripted.close_server_port())
    assert unload.result() == STATUS_SUCCESS
    assert [v.rule for v in lab.take_violations()] == ["unload-blocked"]


@pytest.mark.fact("P12")
@pytest.mark.parametrize("port_first", [True, False])
def test_a_port_may_be_created_before_or_after_filtering_starts(labs: Labs, port_first: bool) -> None:
    lab = labs()
    scripted = ScriptedFilter(lab)

    def entry() -> Model:
        yield from scripted.register()
        if not port_first:
            yield from scripted.call("FltStartFiltering", scripted.address)
        status = yield from scripted.create_port()
        if port_first:
            status |= yield from scripted.call("FltStartFiltering", scripted.address)
        return status

    scripted.on_entry = entry
    scripted.load()
    client = lab.client()
    assert client.try_connect() == STATUS_SUCCESS


@pytest.mark.fact("P20", "P21")
def test_the_default_descriptor_admits_the_system_and_administrators_only(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    address = lab.run(scripted.build_descriptor())
    found = security.decode(lab.kernel.memory, address)
    assert found.dacl == (
        security.Ace(0, 0x1F0001, security.SYSTEM),
        security.Ace(0, 0x1F0001, security.ADMINISTRATORS),
    )
    block = lab.kernel.pool.block_of(address)
    assert block is not None
    assert block.paged
    lab.run(scripted.call("FltFreeSecurityDescriptor", address))


@pytest.mark.fact("P20")
def test_the_default_descriptor_can_fail_for_want_of_memory(lab: Lab, scripted: ScriptedFilter) -> None:
    lab.kernel.pool.refuse = lambda size, tag, driver: True
    status = lab.run(
        scripted.call("FltBuildDefaultSecurityDescriptor", scripted.new_variable(), 0x1F0001), "driver"
    )
    assert status == STATUS_INSUFFICIENT_RESOURCES


@pytest.mark.fact("P20")
@pytest.mark.parametrize("irql", [APC_LEVEL, DISPATCH_LEVEL])
def test_the_default_descriptor_is_built_at_apc_level_at_most(
    lab: Lab, scripted: ScriptedFilter, irql: int
) -> None:
    def build() -> Model:
        lab.kernel.engine.irql = irql
        address = yield from scripted.build_descriptor()
        yield from scripted.call("FltFreeSecurityDescriptor", address)
        lab.kernel.engine.irql = 0

    if irql <= APC_LEVEL:
        lab.run(build())
        return
    with pytest.raises(MachineCrashedError):
        lab.run(build())
    assert "at IRQL 2" in lab.take_crash().rule


@pytest.mark.fact("P22")
def test_the_descriptor_may_be_freed_directly_after_the_creation(lab: Lab, scripted: ScriptedFilter) -> None:
    def create() -> Model:
        out = scripted.new_variable()
        address = yield from scripted.build_descriptor()
        yield from scripted.create_port(OTHER, out=out, descriptor=address)
        yield from scripted.call("FltFreeSecurityDescriptor", address)
        return out

    out = lab.run(create())
    assert lab.client().try_connect(OTHER) == STATUS_SUCCESS
    lab.run(scripted.call("FltCloseCommunicationPort", lab.kernel.memory.u64(out)))


@pytest.mark.fact("P22")
def test_a_descriptor_that_is_never_freed_is_found_at_unload(lab: Lab, scripted: ScriptedFilter) -> None:
    lab.run(scripted.build_descriptor())
    with pytest.raises(MachineCrashedError):
        scripted.unload()
    assert "'FMsd'" in lab.take_crash().rule


@pytest.mark.fact("P22")
def test_a_descriptor_that_is_freed_twice_stops_the_machine(lab: Lab, scripted: ScriptedFilter) -> None:
    address = lab.run(scripted.build_descriptor())
    lab.run(scripted.call("FltFreeSecurityDescriptor", address))
    with pytest.raises(MachineCrashedError):
        lab.run(scripted.call("FltFreeSecurityDescriptor", address))
    assert lab.take_crash().code == bc.BAD_POOL_CALLER
