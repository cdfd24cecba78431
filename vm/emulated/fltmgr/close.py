"""The end of file objects: IRP_MJ_CLEANUP at the last handle, IRP_MJ_CLOSE at the last reference, the lazy writer."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vm.emulated.cpu.memory import PAGE_SIZE, pages
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.contexts import release_file_contexts
from vm.emulated.fltmgr.file_objects import FileObject, free_file_object, unbind
from vm.emulated.fltmgr.io import send
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.fltmgr.mdl import free_mdl, mdl_of_kernel_buffer
from vm.emulated.fltmgr.names import forget_cached
from vm.emulated.fltmgr.requests import make_request
from vm.emulated.kernel.threads import KERNEL_MODE, PASSIVE_LEVEL, GuestFrame, Model, ModelFrame

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

LAZY_WRITE_BYTES_MAXIMUM = 1 << 20
"""Most bytes in one paging write."""


def last_handle(k: Kernel, file: FileObject) -> Model:
    """The last handle is closed: cleanup, and the close too if nobody else refers to the file object."""
    yield from cleanup(k, file)
    if file.object.references == 1:
        yield from close(k, file)


def last_reference(k: Kernel, file: FileObject) -> None:
    """The last reference is gone. Called where nothing may block: the close runs in the dereferencing thread if it
    can, else in a system thread."""
    if file.closed or file.opened is None:
        _forget(k, file)
        return
    thread = k.scheduler.current
    work = _close_and_forget(k, file)
    if (
        thread is not None
        and thread.frames
        and isinstance(thread.frames[-1], GuestFrame)
        and k.engine.irql == PASSIVE_LEVEL
    ):
        thread.frames.append(ModelFrame(work, "IRP_MJ_CLOSE"))
    else:
        k.start_system_thread(work, "IRP_MJ_CLOSE")


def drop_reference(k: Kernel, file: FileObject) -> Model:
    """Drop a reference in a generator; the last one sends cleanup (if no handle did) and close in this thread."""
    if file.object.references == 1:
        if not file.cleaned_up and file.opened is not None:
            yield from cleanup(k, file)
        if file.object.references == 1 and not file.closed:
            yield from close(k, file)
    k.objects.dereference(file.object)


def cleanup(k: Kernel, file: FileObject) -> Model:
    """Send IRP_MJ_CLEANUP."""
    if file.cleaned_up or file.opened is None:
        return
    yield from _send(k, file, n.IRP_MJ_CLEANUP, 0)
    file.cleaned_up = True
    file.change_flags(add=n.FO_CLEANUP_COMPLETE)
    if file.written and io_state(k).settings.lazy_writer:
        k.objects.reference(file.object)
        k.start_system_thread(_write_behind(k, file), "lazy writer")


def close(k: Kernel, file: FileObject) -> Model:
    """Send IRP_MJ_CLOSE and let the contexts of the file object go."""
    if file.closed:
        return
    file.closed = True
    if file.opened is None:
        return
    yield from _send(k, file, n.IRP_MJ_CLOSE, n.IRP_CLOSE_OPERATION)
    yield from release_file_contexts(k, file)
    unbind(k, file)


def cancel_open(k: Kernel, file: FileObject) -> Model:
    """FltCancelFileOpen: the file system closes what it has opened; no filter sees a cleanup or close."""
    file.cancelled = True
    file.closed = True
    file.change_flags(add=n.FO_FILE_OPEN_CANCELLED)
    opened = file.opened
    if opened is not None:
        file.volume.file_system.cleanup(opened)
    file.cleaned_up = True
    yield from release_file_contexts(k, file)
    unbind(k, file)
    file.opened = None


def _close_and_forget(k: Kernel, file: FileObject) -> Model:
    yield from cleanup(k, file)
    yield from close(k, file)
    _forget(k, file)


def _forget(k: Kernel, file: FileObject) -> None:
    io_state(k).files.pop(file.address, None)
    forget_cached(k, file)
    free_file_object(k, file)


def _send(k: Kernel, file: FileObject, major: int, irp_flags: int) -> Model:
    request = make_request(
        k,
        major=major,
        volume=file.volume,
        file_object=file.address,
        thread=k.current,
        parameters=bytes(48),
        irp_flags=irp_flags | n.IRP_SYNCHRONOUS_API,
        mode=KERNEL_MODE,
        top=file.top,
    )
    yield from send(k, request)


def _write_behind(k: Kernel, file: FileObject) -> Model:
    """Write the pages of a file that was written through the cache, as the lazy writer does after the cleanup."""
    opened = file.opened
    file.written = False
    if opened is not None:
        size = opened.stream.size
        for offset in range(0, size, LAZY_WRITE_BYTES_MAXIMUM):
            yield from _paging_write(k, file, offset, min(LAZY_WRITE_BYTES_MAXIMUM, size - offset))
    yield from drop_reference(k, file)


def _paging_write(k: Kernel, file: FileObject, offset: int, count: int) -> Model:
    assert file.opened is not None
    length = pages(count) * PAGE_SIZE
    buffer = k.pool.allocate(length, "CcBf", owner="nt", aligned=True)
    stream = file.opened.stream
    k.memory.write(buffer, bytes(stream.data[offset : offset + count]))
    mdl = mdl_of_kernel_buffer(k, buffer, length)
    request = make_request(
        k,
        major=n.IRP_MJ_WRITE,
        volume=file.volume,
        file_object=file.address,
        thread=k.current,
        parameters=struct.pack("<I4xI4xqQQ8x", length, 0, offset, buffer, mdl),
        irp_flags=n.IRP_PAGING_IO | n.IRP_NOCACHE | n.IRP_WRITE_OPERATION,
        mode=KERNEL_MODE,
        top=file.top,
    )
    yield from send(k, request)
    free_mdl(k, mdl)
    k.pool.free(buffer)
