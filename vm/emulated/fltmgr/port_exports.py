"""What drivers import for communication ports: create, close, send, and the default security descriptor."""

from __future__ import annotations

from vm.emulated.exports.declare import (
    ACCESS_MASK,
    FLTMGR,
    LONG,
    NTSTATUS,
    PLARGE_INTEGER,
    POBJECT_ATTRIBUTES,
    PULONG,
    PVOID,
    ULONG,
    VOID,
    export,
)
from vm.emulated.fltmgr import model
from vm.emulated.fltmgr import ports as ports_model
from vm.emulated.fltmgr.manager import manager_of
from vm.emulated.fltmgr.model import CLIENT_PORT_TYPE, FILTER_TYPE, SERVER_PORT_TYPE
from vm.emulated.fltmgr.ports import MESSAGE_HEADER, Connection, SendWait
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel import security
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_FLT_DELETING_OBJECT,
    STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER,
    STATUS_PORT_DISCONNECTED,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, PASSIVE_LEVEL, Model

OBJ_KERNEL_HANDLE = 0x200
OA_NAME, OA_ATTRIBUTES, OA_SECURITY = 0x10, 0x18, 0x20
"""Offsets in OBJECT_ATTRIBUTES (x64)."""
FLT_PORT_ALL_ACCESS = 0x1F0001
SECURITY_DESCRIPTOR_TAG = "FMsd"

PFLT_FILTER = PVOID
PFLT_PORT = PVOID


@export(FLTMGR, irql=APC_LEVEL)
def FltBuildDefaultSecurityDescriptor(
    k: Kernel, SecurityDescriptor: PVOID, DesiredAccess: ACCESS_MASK
) -> NTSTATUS:
    """Facts P20 to P22: SYSTEM and Administrators; paged pool; freed by FltFreeSecurityDescriptor."""
    data = security.encode(security.default_descriptor(DesiredAccess))
    owner, site = k.caller()
    if k.pool.refuse is not None and k.pool.refuse(len(data), SECURITY_DESCRIPTOR_TAG, owner):
        return STATUS_INSUFFICIENT_RESOURCES
    block = k.pool.allocate(len(data), SECURITY_DESCRIPTOR_TAG, owner=owner, site=site, paged=True)
    k.memory.write(block, data)
    k.memory.put64(SecurityDescriptor, block)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
def FltFreeSecurityDescriptor(k: Kernel, SecurityDescriptor: PVOID) -> VOID:
    k.pool.free(SecurityDescriptor, SECURITY_DESCRIPTOR_TAG, site=k.caller()[1])


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltCreateCommunicationPort(
    k: Kernel,
    Filter: PFLT_FILTER,
    ServerPort: PVOID,
    ObjectAttributes: POBJECT_ATTRIBUTES,
    ServerPortCookie: PVOID,
    ConnectNotifyCallback: PVOID,
    DisconnectNotifyCallback: PVOID,
    MessageNotifyCallback: PVOID,
    MaxConnections: LONG,
) -> NTSTATUS:
    """Facts P1 to P12."""
    try:
        port = _create(
            k,
            k.objects.get(Filter, FILTER_TYPE).body,
            ObjectAttributes,
            (ServerPortCookie, ConnectNotifyCallback, DisconnectNotifyCallback, MessageNotifyCallback),
            MaxConnections,
        )
    except StatusError as error:
        return error.status
    k.memory.put64(ServerPort, port.object.address)
    return STATUS_SUCCESS


def _create(
    k: Kernel, owner: model.Filter, attributes: int, callbacks: tuple[int, int, int, int], maximum: int
) -> ports_model.ServerPort:
    memory = k.memory
    cookie, connect, disconnect, message = callbacks
    if not connect or not disconnect:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0050,
            owner.address,
            rule="FltCreateCommunicationPort was given a NULL connect or disconnect callback; both are mandatory (fact P9)",
        )
    if not memory.u32(attributes + OA_ATTRIBUTES) & OBJ_KERNEL_HANDLE or maximum <= 0:
        raise StatusError(STATUS_INVALID_PARAMETER)
    if owner.draining:
        raise StatusError(STATUS_FLT_DELETING_OBJECT)
    if ports_model.refused(k, 0x100, owner):
        raise StatusError(STATUS_INSUFFICIENT_RESOURCES)
    name_address = memory.u64(attributes + OA_NAME)
    name = memory.unicode_string(name_address) if name_address else ""
    descriptor_address = memory.u64(attributes + OA_SECURITY)
    descriptor = (
        security.decode(memory, descriptor_address)
        if descriptor_address
        else security.default_descriptor(FLT_PORT_ALL_ACCESS)
    )
    item = k.objects.create(SERVER_PORT_TYPE, None, name=name)
    port = ports_model.ServerPort(
        item, owner, name, descriptor, cookie, connect, disconnect, message, maximum
    )
    item.body = port
    owner.server_ports.append(port)
    manager_of(k).acquire_rundown(
        owner, f"the server port '{name}', which FltCloseCommunicationPort never closed"
    )
    return port


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltCloseCommunicationPort(k: Kernel, ServerPort: PFLT_PORT) -> VOID:
    """Fact X4: no new connections, existing ones stay."""
    item = k.objects.get(ServerPort, SERVER_PORT_TYPE)
    port: ports_model.ServerPort = item.body
    port.closed = True
    port.filter.server_ports.remove(port)
    k.objects.remove_name(item)
    manager_of(k).release_rundown(
        port.filter, f"the server port '{port.name}', which FltCloseCommunicationPort never closed"
    )
    k.objects.dereference(item)


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltCloseClientPort(k: Kernel, Filter: PFLT_FILTER, ClientPort: PVOID) -> VOID:
    """Fact X1: clears the shared variable and closes the kernel's end."""
    k.objects.get(Filter, FILTER_TYPE)
    address = k.memory.u64(ClientPort)
    if not address:
        return
    connection = _connection(k, address, "FltCloseClientPort")
    _check_shared(k, connection, ClientPort, "FltCloseClientPort")
    if connection.kernel_closed:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0051,
            address,
            rule=f"FltCloseClientPort was called twice for connection {connection.number}",
        )
    k.memory.put64(ClientPort, 0)
    manager_of(k).ports.close_kernel_end(connection)


@export(FLTMGR, irql=APC_LEVEL)
def FltSendMessage(
    k: Kernel,
    Filter: PFLT_FILTER,
    ClientPort: PVOID,
    SenderBuffer: PVOID,
    SenderBufferLength: ULONG,
    ReplyBuffer: PVOID,
    ReplyLength: PULONG,
    Timeout: PLARGE_INTEGER,
) -> Model:
    """Facts S1 to S27."""
    memory = k.memory
    ports = manager_of(k).ports
    ports.sends += 1
    k.objects.get(Filter, FILTER_TYPE)
    capacity = None
    if ReplyBuffer and ReplyLength:
        capacity = memory.u32(ReplyLength)
    if ReplyLength:
        memory.put32(ReplyLength, 0)
    address = memory.u64(ClientPort)
    if not address:
        return STATUS_PORT_DISCONNECTED
    connection = _connection(k, address, "FltSendMessage")
    _check_shared(k, connection, ClientPort, "FltSendMessage")
    if SenderBufferLength + MESSAGE_HEADER > 0xFFFF_FFFF or not SenderBuffer:
        return STATUS_INVALID_PARAMETER
    timeout = None
    if Timeout:
        value = memory.i64(Timeout)
        timeout = max(0, k.clock.due_of(value) - k.clock.interrupt_time)
    thread = k.current
    wait = SendWait(thread, SenderBuffer, SenderBufferLength, capacity)
    status = yield from ports.send(thread, connection, wait, timeout)
    if wait.reply is not None and capacity is not None:
        memory.write(ReplyBuffer, wait.reply)
        memory.put32(ReplyLength, len(wait.reply))
    return status


def _connection(k: Kernel, address: int, what: str) -> Connection:
    item = k.objects.by_address.get(address)
    if item is None or item.type != CLIENT_PORT_TYPE:
        raise Bugcheck(
            bc.REFERENCE_BY_POINTER,
            0,
            address,
            rule=f"{what} was given {address:#x}, which is no client port (any more): it was closed or disposed of",
        )
    connection: Connection = item.body
    return connection


def _check_shared(k: Kernel, connection: Connection, variable: int, what: str) -> None:
    """Fact X1: both functions need the address of one shared variable; a copy defeats their locking."""
    thread = k.current
    if thread.stack_limit <= variable < thread.stack_base:
        message = (
            f"{what} was given the address of a copy of the client port on the stack; it must be the shared variable "
            "(fact X1)"
        )
    elif connection.variable and connection.variable != variable:
        message = (
            f"{what} was given the client port of connection {connection.number} in a variable at {variable:#x}, but it was "
            f"used through the one at {connection.variable:#x} before; it must always be the same variable (fact X1)"
        )
    else:
        connection.variable = variable
        return
    k.violate("client-port-copy", message, connection.filter.driver.name)
