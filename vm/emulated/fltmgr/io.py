"""The way of a request: down through the pre-operation callbacks, to the file system, up through the post-operation
callbacks, with every result a callback may give and the rules that go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.fltmgr.model import INSTANCE_TYPE, Instance, Operation
from vm.emulated.fltmgr.operations import perform
from vm.emulated.fltmgr.requests import (
    IOPB_INSTANCE,
    IOPB_SIZE,
    UNSET_STATUS,
    Pended,
    Phase,
    PostEntry,
    Request,
    Walk,
    instances_below,
    release_request,
)
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.status import (
    STATUS_FLT_DISALLOW_FAST_IO,
    STATUS_FLT_POST_OPERATION_CLEANUP,
    nt_success,
    status_name,
)
from vm.emulated.kernel.threads import DISPATCH_LEVEL, Block, Call, KThread, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

(
    SUCCESS_WITH_CALLBACK,
    SUCCESS_NO_CALLBACK,
    PENDING,
    DISALLOW_FASTIO,
    COMPLETE,
    SYNCHRONIZE,
    DISALLOW_FSFILTER_IO,
) = range(7)
"""FLT_PREOP_*."""
FINISHED_PROCESSING, MORE_PROCESSING_REQUIRED, POST_DISALLOW_FSFILTER_IO = range(3)
"""FLT_POSTOP_*."""
POST_OPERATION_DRAINING = 0x1
SKIP_PAGING_IO, SKIP_CACHED_IO, SKIP_NON_DASD_IO, SKIP_NON_CACHED_NON_PAGING_IO = 1, 2, 4, 8
"""FLTFL_OPERATION_REGISTRATION_SKIP_*."""

_DATA_TRANSFER = frozenset((n.IRP_MJ_READ, n.IRP_MJ_WRITE))
_RESULT_NAMES = (
    "FLT_PREOP_SUCCESS_WITH_CALLBACK",
    "FLT_PREOP_SUCCESS_NO_CALLBACK",
    "FLT_PREOP_PENDING",
    "FLT_PREOP_DISALLOW_FASTIO",
    "FLT_PREOP_COMPLETE",
    "FLT_PREOP_SYNCHRONIZE",
    "FLT_PREOP_DISALLOW_FSFILTER_IO",
)


def send(k: Kernel, request: Request, *, keep: bool = False) -> Model:
    """Send a request and wait for its end; returns (status, information).

    Args:
        keep: leave the callback data to its owner instead of freeing it.
    """
    yield from run_walk(k, request)
    result = request.status, request.information
    if keep:
        request.cleared = True
    else:
        release_request(k, request)
    return result


def run_walk(k: Kernel, request: Request) -> Model:
    """Run the innermost passage of a request to its end, in the running thread as far as callbacks allow."""
    walk = request.walk
    yield from _advance(k, request, walk)
    while not walk.done:
        thread = k.current
        if walk.resume_in is thread:
            walk.resume_in = None
            yield from _advance(k, request, walk)
            continue
        walk.waiter = thread
        yield Block(f"{n.operation_name(request.major)}, which {_holder(k, walk)} has pended")
        walk.waiter = None


def _holder(k: Kernel, walk: Walk) -> str:
    pended = walk.pended
    if pended is None:
        return "a filter"
    address = pended.operation.post if pended.is_post else pended.operation.pre
    return function_name(k, address)


def _advance(k: Kernel, request: Request, walk: Walk) -> Model:
    """Go on until the passage is done, pended, or has to go on in another thread."""
    while True:
        if walk.phase is Phase.DOWN:
            if walk.index == len(walk.instances):
                status, information = perform(k, request)
                request.set_status(status, information)
                walk.phase = Phase.UP
                continue
            position = walk.index
            walk.index += 1
            going = yield from _pre(k, request, walk, walk.instances[position], position)
            if not going:
                return
        elif walk.posts:
            entry = walk.posts[-1]
            if entry.thread is not None and entry.thread is not k.current:
                walk.resume_in = entry.thread
                if walk.waiter is not None:
                    k.scheduler.wake(walk.waiter, None)
                return
            walk.posts.pop()
            going = yield from _post(k, request, walk, entry)
            if not going:
                return
        else:
            walk.done = True
            if walk.waiter is not None:
                k.scheduler.wake(walk.waiter, None)
            return


def _skipped(request: Request, operation: Operation) -> bool:
    """The skip flags of the operation registration (fltKernel.h)."""
    flags = operation.flags
    if not flags:
        return False
    irp_flags = request.irp_flags
    paging = bool(irp_flags & n.IRP_PAGING_IO)
    if flags & SKIP_PAGING_IO and paging:
        return True
    file = request.file
    if flags & SKIP_NON_DASD_IO and not (file is not None and file.is_volume_open):
        return True
    if request.major not in _DATA_TRANSFER:
        return False
    cached = request.fast_io or not irp_flags & n.IRP_NOCACHE
    if flags & SKIP_CACHED_IO and cached:
        return True
    return bool(flags & SKIP_NON_CACHED_NON_PAGING_IO and not cached and not paging)


# Pre-operation callbacks


def _pre(k: Kernel, request: Request, walk: Walk, instance: Instance, position: int) -> Model:
    """Call one instance; False if the passage does not go on in this thread now."""
    operation = instance.filter.registration.operations.get(request.major)
    if operation is None or instance.tearing_down or _skipped(request, operation):
        return True
    memory = k.memory
    slot = request.slot_of(position)
    memory.put64(request.iopb + IOPB_INSTANCE, instance.address)
    context_address = request.fill_slot(slot, instance)
    before = request.read_parameters()
    instance.callbacks_running += 1
    if not operation.pre:
        _expect_post(k, request, walk, instance, operation, 0, before, slot, synchronize=False)
        return True
    request.change_flags(remove=n.FLTFL_CALLBACK_DATA_DIRTY)
    request.set_status(UNSET_STATUS)
    thread = k.current
    pended = walk.pended = Pended(instance, operation, before, slot, thread, is_post=False)
    result = yield from _call(
        k,
        thread,
        operation.pre,
        (request.data, slot, context_address),
        callback_name(k, operation.pre, request.major),
    )
    if result == PENDING:
        if request.fast_io:
            raise _broken(k, request, operation.pre, "returned FLT_PREOP_PENDING for a fast I/O operation")
        if pended.completed is None:
            pended.returned = True
            return False
        result, context = pended.completed
    else:
        if pended.completed is not None:
            raise _broken(
                k,
                request,
                operation.pre,
                f"called FltCompletePendedPreOperation but returned {_result_name(result)} instead of FLT_PREOP_PENDING",
            )
        context = memory.u64(context_address)
    walk.pended = None
    _apply(k, request, walk, pended, result, context)
    if instance.tearing_down:
        yield from _drain_from(k, request, walk, instance)
    return True


def _apply(k: Kernel, request: Request, walk: Walk, pended: Pended, result: int, context: int) -> None:
    """Act on the result of a pre-operation callback."""
    instance, operation = pended.instance, pended.operation
    if result > DISALLOW_FSFILTER_IO:
        raise _broken(
            k, request, operation.pre, f"returned {result:#x}, which is no FLT_PREOP_CALLBACK_STATUS"
        )
    if result in (SUCCESS_WITH_CALLBACK, SYNCHRONIZE):
        if not operation.post:
            raise _broken(
                k,
                request,
                operation.pre,
                f"returned {_result_name(result)}, but no post-operation callback is registered",
            )
        _accept_parameters(k, request, walk, pended)
        _expect_post(
            k,
            request,
            walk,
            instance,
            operation,
            context,
            pended.parameters,
            pended.slot,
            synchronize=result == SYNCHRONIZE,
        )
        return
    if context:
        raise _broken(
            k,
            request,
            operation.pre,
            f"set a completion context ({context:#x}) and returned {_result_name(result)}: "
            "no post-operation callback will get it, it leaks",
        )
    if result == DISALLOW_FSFILTER_IO:
        raise _broken(
            k,
            request,
            operation.pre,
            "returned FLT_PREOP_DISALLOW_FSFILTER_IO for an operation of another kind",
        )
    if result == DISALLOW_FASTIO:
        if not request.fast_io:
            raise _broken(
                k,
                request,
                operation.pre,
                "returned FLT_PREOP_DISALLOW_FASTIO for an operation that is not fast I/O",
            )
        request.set_status(STATUS_FLT_DISALLOW_FAST_IO)
        walk.phase = Phase.UP
    elif result == COMPLETE:
        _check_completion(k, request, operation)
        walk.phase = Phase.UP
    else:
        _accept_parameters(k, request, walk, pended)
    leave(k, instance)


def _check_completion(k: Kernel, request: Request, operation: Operation) -> None:
    status = request.status
    if status == UNSET_STATUS:
        raise _broken(
            k, request, operation.pre, "returned FLT_PREOP_COMPLETE without setting Data->IoStatus.Status"
        )
    if request.major in (n.IRP_MJ_CLEANUP, n.IRP_MJ_CLOSE) and not nt_success(status):
        raise _broken(
            k,
            request,
            operation.pre,
            f"completed the operation with {status_name(status)}; a cleanup or close cannot fail",
        )


def _accept_parameters(k: Kernel, request: Request, walk: Walk, pended: Pended) -> None:
    """Changed parameters count if the callback data was marked dirty, otherwise they are put back."""
    now = request.read_parameters()
    if now == pended.parameters:
        return
    if not request.flags & n.FLTFL_CALLBACK_DATA_DIRTY:
        k.violate(
            "callback-data-not-dirty",
            f"{callback_name(k, pended.operation.pre, request.major)} changed Data->Iopb without "
            "FltSetCallbackDataDirty: the change is lost",
            pended.instance.filter.driver.name,
        )
        k.memory.write(request.iopb, pended.parameters)
        return
    target = k.memory.u64(request.iopb + IOPB_INSTANCE)
    if target != pended.instance.address:
        other: Instance = k.objects.get(target, INSTANCE_TYPE).body
        if other.filter is not pended.instance.filter:
            raise _broken(
                k, request, pended.operation.pre, "set Iopb->TargetInstance to an instance of another filter"
            )
        request.volume = other.volume
        walk.instances[walk.index :] = instances_below(other.volume, other)
        request.make_slots(len(walk.instances))


def _expect_post(
    k: Kernel,
    request: Request,
    walk: Walk,
    instance: Instance,
    operation: Operation,
    context: int,
    parameters: bytes,
    slot: int,
    *,
    synchronize: bool,
) -> None:
    if not operation.post:
        leave(k, instance)
        return
    # Creates are synchronised by the Filter Manager itself: their callbacks share the requestor's thread.
    bound = synchronize or request.major == n.IRP_MJ_CREATE
    thread = request.thread if bound else None
    walk.posts.append(PostEntry(instance, operation, context, parameters, slot, thread))


def complete_pended_pre(k: Kernel, request: Request, result: int, context: int) -> Model:
    """FltCompletePendedPreOperation: the request goes on in the running thread."""
    walk = request.walk
    pended = walk.pended
    if pended is None or pended.is_post or pended.completed is not None:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0060,
            request.data,
            rule=f"FltCompletePendedPreOperation was called for a {n.operation_name(request.major)} that is not pended",
        )
    if result not in (SUCCESS_WITH_CALLBACK, SUCCESS_NO_CALLBACK, COMPLETE, SYNCHRONIZE):
        raise _broken(
            k,
            request,
            pended.operation.pre,
            f"pended the operation, which was then completed with {_result_name(result)}: FltCompletePendedPreOperation "
            "takes SUCCESS_WITH_CALLBACK, SUCCESS_NO_CALLBACK or COMPLETE",
        )
    if not pended.returned:
        pended.completed = (result, context)
        return
    walk.pended = None
    _apply(k, request, walk, pended, result, context)
    if pended.instance.tearing_down:
        yield from _drain_from(k, request, walk, pended.instance)
    yield from _advance(k, request, walk)


# Post-operation callbacks


def _post(k: Kernel, request: Request, walk: Walk, entry: PostEntry) -> Model:
    """Call one post-operation callback; False if it has pended the completion."""
    operation = entry.operation
    k.memory.write(request.iopb, entry.parameters)
    request.change_flags(add=n.FLTFL_CALLBACK_DATA_POST_OPERATION, remove=n.FLTFL_CALLBACK_DATA_DIRTY)
    thread = k.current
    pended = walk.pended = Pended(
        entry.instance, operation, entry.parameters, entry.slot, thread, is_post=True
    )
    raised = (
        request.major in _DATA_TRANSFER
        and not request.fast_io
        and entry.thread is None
        and io_state(k).settings.completion_irql
    )
    if raised:
        k.engine.irql = DISPATCH_LEVEL
    before = request.status
    result = yield from _call(
        k,
        thread,
        operation.post,
        (request.data, entry.slot, entry.context, 0),
        callback_name(k, operation.post, request.major),
    )
    if raised:
        k.engine.irql = 0
    if result == MORE_PROCESSING_REQUIRED:
        if request.fast_io:
            raise _broken(
                k,
                request,
                operation.post,
                "returned FLT_POSTOP_MORE_PROCESSING_REQUIRED for a fast I/O operation",
            )
        if pended.completed is None:
            pended.returned = True
            return False
    elif result != FINISHED_PROCESSING:
        raise _broken(
            k, request, operation.post, f"returned {result:#x}, which is no FLT_POSTOP_CALLBACK_STATUS"
        )
    elif pended.completed is not None:
        raise _broken(
            k,
            request,
            operation.post,
            "called FltCompletePendedPostOperation but returned FLT_POSTOP_FINISHED_PROCESSING",
        )
    walk.pended = None
    _finish_post(k, request, entry.instance, operation, before)
    return True


def _finish_post(k: Kernel, request: Request, instance: Instance, operation: Operation, before: int) -> None:
    if request.major == n.IRP_MJ_CREATE and nt_success(before) and not nt_success(request.status):
        file = request.file
        if file is not None and file.opened is not None and not file.cancelled:
            raise _broken(
                k,
                request,
                operation.post,
                f"failed a create with {status_name(request.status)} that the file system had opened, without "
                "FltCancelFileOpen: the file system never closes it",
            )
    leave(k, instance)


def complete_pended_post(k: Kernel, request: Request) -> Model:
    """FltCompletePendedPostOperation: completion goes on in the running thread."""
    walk = request.walk
    pended = walk.pended
    if pended is None or not pended.is_post or pended.completed is not None:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0061,
            request.data,
            rule=f"FltCompletePendedPostOperation was called for a {n.operation_name(request.major)} whose completion is not pended",
        )
    if not pended.returned:
        pended.completed = (FINISHED_PROCESSING, 0)
        return
    walk.pended = None
    leave(k, pended.instance)
    yield from _advance(k, request, walk)


def drain_instance(k: Kernel, instance: Instance) -> Model:
    """Call the post-operation callbacks that an instance still expects with FLTFL_POST_OPERATION_DRAINING.

    For the teardown of an instance: operations that are still below it complete without it.
    """
    for request in list(io_state(k).requests.values()):
        for walk in list(request.walks):
            yield from _drain_from(k, request, walk, instance)


def _drain_from(k: Kernel, request: Request, walk: Walk, instance: Instance) -> Model:
    for entry in [e for e in walk.posts if e.instance is instance]:
        if entry in walk.posts:
            walk.posts.remove(entry)
            yield from _drain(k, request, entry)


def _drain(k: Kernel, request: Request, entry: PostEntry) -> Model:
    """One draining call, on a copy of the callback data: the operation itself is not over."""
    memory = k.memory
    copy = k.pool.allocate(0x60 + IOPB_SIZE + 0x40, "FMdr", owner="fltmgr")
    memory.write(copy, memory.read(request.data, 0x58))
    memory.put64(copy + 0x10, copy + 0x60)
    memory.write(copy + 0x60, entry.parameters)
    memory.put32(
        copy, request.flags | n.FLTFL_CALLBACK_DATA_DRAINING_IO | n.FLTFL_CALLBACK_DATA_POST_OPERATION
    )
    memory.put32(copy + 0x18, STATUS_FLT_POST_OPERATION_CLEANUP)
    related = copy + 0x60 + IOPB_SIZE + 8
    memory.write(related, memory.read(entry.slot, 0x30))
    operation = entry.operation
    result = yield from _call(
        k,
        k.current,
        operation.post,
        (copy, related, entry.context, POST_OPERATION_DRAINING),
        callback_name(k, operation.post, request.major) + ", draining",
    )
    if result != FINISHED_PROCESSING:
        raise _broken(
            k,
            request,
            operation.post,
            f"returned {result:#x} while draining; only FLT_POSTOP_FINISHED_PROCESSING will do",
        )
    k.pool.free(copy, "FMdr")
    leave(k, entry.instance)


def reissue(k: Kernel, request: Request, instance: Instance) -> Model:
    """FltReissueSynchronousIo: send the request once more to the instances below `instance`."""
    outer = request.walk
    below = [i for i in outer.instances[outer.instances.index(instance) + 1 :] if not i.tearing_down]
    skipped = len(outer.instances) - len(below)
    inner = Walk([*outer.instances[:skipped], *below], index=skipped)
    request.walks.append(inner)
    request.walk = inner
    request.change_flags(add=n.FLTFL_CALLBACK_DATA_REISSUED_IO, remove=n.FLTFL_CALLBACK_DATA_POST_OPERATION)
    yield from run_walk(k, request)
    request.walks.remove(inner)
    request.walk = outer
    request.change_flags(add=n.FLTFL_CALLBACK_DATA_POST_OPERATION)


# Callbacks


def _call(k: Kernel, thread: KThread, address: int, arguments: tuple[int, ...], name: str) -> Model:
    """Call a callback with its name on the thread, so that rules can tell that the thread is inside it."""
    thread.io_callbacks.append(name)
    irql = k.engine.irql
    result: int = yield Call(address, arguments, name)
    thread.io_callbacks.pop()
    if k.engine.irql != irql:
        raise Bugcheck(
            bc.IRQL_UNEXPECTED_VALUE,
            irql,
            k.engine.irql,
            address,
            rule=f"{name} was called at IRQL {irql} and returned at IRQL {k.engine.irql}",
        )
    return result & 0xFFFF_FFFF


def leave(k: Kernel, instance: Instance) -> None:
    """A callback of the instance, with its post-operation callback, is over; wakes a teardown that waits for it."""
    instance.callbacks_running -= 1
    if not instance.callbacks_running:
        for thread in instance.waiting:
            k.scheduler.wake(thread, None)
        instance.waiting.clear()


def function_name(k: Kernel, address: int) -> str:
    """The function at an address as it reads in a message, without offset and file."""
    names = io_state(k).names
    name = names.get(address)
    if name is None:
        text = k.describe(address).partition(" (")[0].removesuffix("+0x0")
        name = names[address] = text.rpartition("!")[2]
    return name


def callback_name(k: Kernel, address: int, major: int) -> str:
    """ "DownlinkPreCreate of IRP_MJ_CREATE"."""
    return f"{function_name(k, address)} of {n.operation_name(major)}"


def _result_name(result: int) -> str:
    return _RESULT_NAMES[result] if result < len(_RESULT_NAMES) else f"{result:#x}"


def _broken(k: Kernel, request: Request, callback: int, what: str) -> Bugcheck:
    return Bugcheck(
        bc.FLTMGR_FILE_SYSTEM,
        0x66,
        request.data,
        callback,
        request.major,
        rule=f"{callback_name(k, callback, request.major)} {what}",
    )
