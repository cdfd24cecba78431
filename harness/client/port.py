"""`Port`: one connection to a filter communication port, as a program uses it.

with Port.connect(r"\\DownlinkPort", context) as port:
    message = port.get_message(timeout=5)
"""

from __future__ import annotations

import contextlib
import struct
import threading
from dataclasses import dataclass, field
from typing import Final, Self

from harness.client import binding as bindings
from harness.client import hresult as hr
from harness.client.binding import Binding, Completion, PendingGet
from harness.client.errors import DisconnectedError, port_error

HEADER_BYTES: Final = 16
"""Size of FILTER_MESSAGE_HEADER and of FILTER_REPLY_HEADER, on x64 and x86 (fact Y4)."""

_MESSAGE_HEADER: Final = struct.Struct("<I4xQ")
_REPLY_HEADER: Final = struct.Struct("<i4xQ")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the driver: its payload, and what FILTER_MESSAGE_HEADER says (fact R4)."""

    data: bytes = field(repr=False)
    message_id: int
    """0 for a one-way message (fact S20)."""
    reply_length: int
    """What the driver expects as reply, header included; 0 for a one-way message."""


class Operation:
    """One pending FilterGetMessage. It outlives a `wait` that timed out: nothing is lost by waiting again."""

    def __init__(self, pending: PendingGet) -> None:
        self._pending = pending

    def wait(self, timeout: float | None = None) -> Message:
        """The message.

        Args:
            timeout: seconds; None waits without limit.

        Raises:
            TimeoutError: none came in time; the request is still pending.
            PortError: the request failed, for example `CancelledError` or `DisconnectedError`.
        """
        completion = self._pending.wait(timeout)
        if completion is None:
            raise TimeoutError(f"no message came within {timeout:g} s")
        return _message(completion)

    @property
    def done(self) -> bool:
        """True when the request has completed; does not wait."""
        return self._pending.wait(0) is not None

    def completion(self, timeout: float | None = None) -> Completion | None:
        """The bare completion, failed or not; None if the request is still pending."""
        return self._pending.wait(timeout)

    def cancel(self) -> bool:
        """Cancel this request; False when it had completed already. `wait` then tells how it ended."""
        return self._pending.cancel()


class Port:
    """A connection; made by `Port.connect`. Every method may be called from any thread."""

    def __init__(self, binding: Binding, handle: int, name: str, *, synchronous: bool) -> None:
        self._binding = binding
        self._handle: int | None = handle
        self._lock = threading.Lock()
        self.name = name
        self.synchronous = synchronous

    @classmethod
    def connect(
        cls,
        name: str,
        context: bytes | None = b"",
        *,
        synchronous: bool = False,
        context_size: int | None = None,
    ) -> Self:
        """FilterConnectCommunicationPort.

        Args:
            name: object name of the server port, for example "\\\\DownlinkPort"; the spelling matters (fact G4).
            context: connection context; empty or None for none.
            synchronous: FLT_PORT_FLAG_SYNC_HANDLE: one operation at a time on this handle (fact G12).
            context_size: the size to state, if it should not be that of the context (facts C13, C14).

        Raises:
            PortError: `NotFoundError`, `AccessDeniedError`, `ConnectionLimitError`, or what the driver refused with.
        """
        binding = bindings.current()
        size = len(context or b"") if context_size is None else context_size
        pointer = context if context is not None and (context or context_size is not None) else None
        handle = binding.connect(name, pointer, size, synchronous=synchronous)
        return cls(binding, handle, name, synchronous=synchronous)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else f"handle {self._handle:#x}"
        return f"Port('{self.name}', {state})"

    @property
    def handle(self) -> int:
        """The handle; raises `DisconnectedError` after `close`."""
        handle = self._handle
        if handle is None:
            raise DisconnectedError(hr.INVALID_HANDLE, "use of a closed port")
        return handle

    @property
    def closed(self) -> bool:
        return self._handle is None

    def begin_get(self, size: int = 65536 + HEADER_BYTES) -> Operation:
        """Post one FilterGetMessage with a buffer of `size` bytes, header included (fact G13).

        Raises:
            PortError: it was refused at once, for example `DisconnectedError` after an unload (fact X3).
        """
        return Operation(self._binding.begin_get(self.handle, size))

    def get_message(self, timeout: float | None = None, size: int = 65536 + HEADER_BYTES) -> Message:
        """Wait for one message.

        Args:
            timeout: seconds; None waits without limit.
            size: bytes of the buffer, header included.

        Raises:
            TimeoutError: none came; the request was cancelled, no message was lost.
            PortError: the request failed.
        """
        if self.synchronous:
            return self._get_synchronously(timeout, size)
        operation = self.begin_get(size)
        try:
            return operation.wait(timeout)
        except TimeoutError:
            # Whether the cancel or a message was faster, the completion tells; a message is not thrown away.
            operation.cancel()
            completion = operation.completion(bindings.OPERATION_SECONDS)
            if completion is not None and completion.hresult != hr.OPERATION_ABORTED:
                return _message(completion)
            raise

    def reply(self, message: Message, data: bytes = b"", status: int = 0) -> None:
        """FilterReplyMessage: answer a message.

        Args:
            message: the message answered.
            data: payload; its length is stated without any padding (fact R4).
            status: NTSTATUS that FltSendMessage shall return (fact S13).

        Raises:
            PortError: `NoWaiterError` for a one-way message, a late or a second reply (fact R2).
        """
        signed = status - (1 << 32) if status & 0x80000000 else status
        self.reply_raw(_REPLY_HEADER.pack(signed, message.message_id) + data)

    def reply_raw(self, data: bytes, size: int | None = None) -> None:
        """FilterReplyMessage with these very bytes as its buffer, and `size` as the size stated."""
        self._binding.reply(self.handle, data, len(data) if size is None else size)

    def send(
        self,
        data: bytes | None,
        output_size: int = 0,
        *,
        input_size: int | None = None,
        output_null: bool | None = None,
    ) -> bytes:
        """FilterSendMessage.

        Args:
            data: input buffer; None passes a NULL pointer.
            output_size: bytes of the output buffer.
            input_size: the input size to state, if it should not be that of `data`.
            output_null: pass NULL as output buffer; by default when `output_size` is 0.

        Returns:
            What the driver wrote into the output buffer.

        Raises:
            PortError: `NotPermittedError` on a one-way port (fact U3).
        """
        size = len(data or b"") if input_size is None else input_size
        null = output_size == 0 if output_null is None else output_null
        return self._binding.send(self.handle, data, size, output_size, output_null=null)

    def duplicate(self) -> Port:
        """DuplicateHandle: another handle to the same connection; the connection ends with the last one (D2)."""
        return type(self)(
            self._binding, self._binding.duplicate(self.handle), self.name, synchronous=self.synchronous
        )

    def cancel(self) -> bool:
        """CancelIoEx on all requests of this process on the handle; False if there were none (fact G16)."""
        return self._binding.cancel(self.handle)

    def close(self) -> None:
        """CloseHandle; a second call does nothing."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            self._binding.close(handle)

    def _get_synchronously(self, timeout: float | None, size: int) -> Message:
        expired = threading.Event()
        handle = self.handle

        def expire() -> None:
            expired.set()
            with contextlib.suppress(OSError):
                self._binding.cancel(handle)

        timer = threading.Timer(timeout, expire) if timeout is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            data = self._binding.get(handle, size)
        except OSError as error:
            if expired.is_set() and getattr(error, "hresult", None) == hr.OPERATION_ABORTED:
                raise TimeoutError(f"no message came within {timeout:g} s") from None
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return parse_message(data)


def parse_message(data: bytes) -> Message:
    """A message out of the filled part of a FilterGetMessage buffer.

    Raises:
        ValueError: shorter than the header.
    """
    if len(data) < HEADER_BYTES:
        raise ValueError(f"a message of {len(data)} bytes is shorter than its header of {HEADER_BYTES}")
    reply_length, message_id = _MESSAGE_HEADER.unpack_from(data)
    return Message(data[HEADER_BYTES:], message_id, reply_length)


def _message(completion: Completion) -> Message:
    if completion.hresult != hr.S_OK:
        raise port_error(completion.hresult, "FilterGetMessage", information=completion.information)
    return parse_message(completion.data)
