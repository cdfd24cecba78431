"""The binding to Windows, driven on any system: structures by size and offset, calls against functions of our own."""

from __future__ import annotations

import ctypes
import struct
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from harness.client import errors, files, windows_api, windows_filters, windows_processes, windows_services
from harness.client import fileinformation as info
from harness.client import hresult as hr
from harness.client.operator_thread import Operator
from harness.client.port import Port
from harness.client.windows import WindowsBinding
from harness.client.windows_files import parse_directory


class FakeWindows:
    """Functions that record how they were called and answer what a test has put there."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.answers: dict[str, Callable[..., int] | int] = {
            "CreateEventW": 0x700,
            "GetCurrentProcess": 0xFFFFFFFFFFFFFFFF,
            "CloseHandle": 1,
        }
        self.error = 0
        libraries = {
            library: SimpleNamespace(**{name: self._function(name) for name in functions})
            for library, functions in windows_api.PROTOTYPES.items()
        }
        self.libraries = windows_api.Libraries(**libraries, last_error=lambda: self.error)

    def _function(self, name: str) -> Callable[..., int]:
        def function(*arguments: Any) -> int:
            # As ctypes does: too few, too many or unfit arguments are refused.
            _, *declared = next(f[name] for f in windows_api.PROTOTYPES.values() if name in f)
            assert len(arguments) == len(declared), f"{name} takes {len(declared)} arguments"
            for argument, kind in zip(arguments, declared, strict=True):
                kind.from_param(argument) if hasattr(kind, "from_param") else kind(argument)
            self.calls.append((name, arguments))
            answer = self.answers.get(name, 0)
            return answer(*arguments) if callable(answer) else answer

        return function

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


def target(argument: Any) -> Any:
    """What a `byref` points to."""
    return argument._obj


def signed(hresult: int) -> int:
    return hresult - (1 << 32) if hresult & 0x80000000 else hresult


@pytest.fixture
def windows() -> FakeWindows:
    return FakeWindows()


@pytest.fixture
def binding(windows: FakeWindows) -> WindowsBinding:
    return WindowsBinding(windows.libraries)


@pytest.mark.parametrize(
    ("structure", "size", "offsets"),
    [
        (windows_api.FilterMessageHeader, 16, {"ReplyLength": 0, "MessageId": 8}),
        (windows_api.FilterReplyHeader, 16, {"Status": 0, "MessageId": 8}),
        (windows_api.Overlapped, 32, {"Internal": 0, "InternalHigh": 8, "Offset": 16, "hEvent": 24}),
        (windows_api.UnicodeString, 16, {"Length": 0, "MaximumLength": 2, "Buffer": 8}),
        (windows_api.ObjectAttributes, 48, {"RootDirectory": 8, "ObjectName": 16, "Attributes": 24}),
        (windows_api.IoStatusBlock, 16, {"Status": 0, "Information": 8}),
        (windows_api.SidAndAttributes, 16, {"Sid": 0, "Attributes": 8}),
        (windows_api.TokenPrivileges, 16, {"Luid": 4, "Attributes": 12}),
        (windows_api.ServiceStatus, 28, {"dwCurrentState": 4, "dwWin32ExitCode": 12, "dwWaitHint": 24}),
        (
            windows_api.FilterAggregateStandard,
            0x1C,
            {"MiniFilterFlags": 8, "FrameID": 0xC, "NumberOfInstances": 0x10, "FilterNameLength": 0x14}
            | {
                "FilterNameBufferOffset": 0x16,
                "FilterAltitudeLength": 0x18,
                "FilterAltitudeBufferOffset": 0x1A,
            },
        ),
        (
            windows_api.InstanceAggregateStandard,
            0x28,
            {"VolumeFileSystemType": 0x10, "InstanceNameLength": 0x14, "AltitudeBufferOffset": 0x1A}
            | {"VolumeNameLength": 0x1C, "FilterNameBufferOffset": 0x22, "SupportedFeatures": 0x24},
        ),
        (windows_api.FilterVolumeStandard, 0x14, {"FileSystemType": 0xC, "FilterVolumeName": 0x12}),
    ],
)
def test_structures_have_the_sizes_and_offsets_of_the_headers(
    structure: type[ctypes.Structure], size: int, offsets: dict[str, int]
) -> None:
    assert ctypes.sizeof(structure) == size
    assert {name: getattr(structure, name).offset for name in offsets} == offsets


def test_a_rename_has_the_layout_of_file_rename_information() -> None:
    data = info.name_information("\\??\\D:\\new", replace=True)
    assert (data[0], data[8:16], struct.unpack_from("<I", data, 0x10)) == (1, bytes(8), (20,))
    assert data[0x14:].decode("utf-16-le") == "\\??\\D:\\new"
    assert len(info.name_information("a", replace=False)) == 0x18


def test_basic_and_standard_information_have_their_windows_sizes() -> None:
    assert (info.BasicInformation.SIZE, info.StandardInformation.SIZE) == (40, 24)
    assert info.BasicInformation.decode(info.BasicInformation(1, 2, 3, 4, 5).encode()).attributes == 5


def test_a_connection_passes_name_options_context_and_a_size_of_16_bits(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    def connect(name: str, options: int, context: Any, size: int, security: Any, handle: Any) -> int:
        target(handle).value = 0x123
        return 0

    windows.answers["FilterConnectCommunicationPort"] = connect
    assert binding.connect("\\Port", b"context", 7, synchronous=True) == 0x123
    name, options, context, size, security, _ = windows.called("FilterConnectCommunicationPort")[0]
    assert (name, options, context.raw, size, security) == ("\\Port", 1, b"context", 7, None)


def test_a_connection_without_context_passes_null(windows: FakeWindows, binding: WindowsBinding) -> None:
    binding.connect("\\Port", None, 0, synchronous=False)
    assert windows.called("FilterConnectCommunicationPort")[0][1:4] == (0, None, 0)


def test_a_context_size_beyond_a_word_is_refused_before_it_is_cut(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    with pytest.raises(errors.PortError, match="0x80070216"):
        binding.connect("\\Port", bytes(0x10000), 0x10000, synchronous=False)
    assert not windows.called("FilterConnectCommunicationPort")


def test_a_refused_connection_raises_the_exception_of_its_hresult(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    windows.answers["FilterConnectCommunicationPort"] = signed(hr.CONNECTION_COUNT_LIMIT)
    with pytest.raises(errors.ConnectionLimitError):
        binding.connect("\\Port", None, 0, synchronous=False)


def test_a_request_is_posted_with_an_overlapped_that_has_its_own_event(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    windows.answers["FilterGetMessage"] = signed(hr.IO_PENDING)
    pending = binding.begin_get(0x10, 100)
    handle, buffer, size, overlapped = windows.called("FilterGetMessage")[0]
    assert (handle, len(buffer), size, target(overlapped).hEvent) == (0x10, 100, 100, 0x700)
    assert pending in binding.in_flight


def test_a_message_comes_with_the_bytes_that_were_transferred(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    windows.answers["FilterGetMessage"] = signed(hr.IO_PENDING)
    pending = binding.begin_get(0x10, 100)
    windows.answers["WaitForSingleObject"] = windows_api.WAIT_TIMEOUT
    assert pending.wait(0.5) is None
    assert windows.called("WaitForSingleObject")[-1] == (0x700, 500)
    windows.called("FilterGetMessage")[0][1].value = b"0123456789"

    def result(handle: int, overlapped: Any, transferred: Any, wait: int) -> int:
        target(transferred).value = 4
        return 1

    windows.answers |= {"WaitForSingleObject": 0, "GetOverlappedResult": result}
    completion = pending.wait(None)
    assert completion is not None
    assert (completion.hresult, completion.information, completion.data) == (0, 4, b"0123")
    assert windows.called("WaitForSingleObject")[-1] == (0x700, windows_api.INFINITE)
    assert windows.called("CloseHandle") == [(0x700,)]
    assert not binding.in_flight
    assert pending.wait(0) is completion


@pytest.mark.parametrize(("error", "kind"), [(995, "CANCELLED"), (122, "SMALL"), (6, "DISCONNECTED")])
def test_a_failed_completion_carries_the_win32_error_as_hresult(
    windows: FakeWindows, binding: WindowsBinding, error: int, kind: str
) -> None:
    windows.answers["FilterGetMessage"] = signed(hr.IO_PENDING)
    pending = binding.begin_get(0x10, 100)
    target(windows.called("FilterGetMessage")[0][3]).InternalHigh = 116
    windows.answers |= {"WaitForSingleObject": 0, "GetOverlappedResult": 0}
    windows.error = error
    completion = pending.wait(1)
    assert completion is not None
    assert (completion.hresult, completion.information, completion.data) == (0x80070000 | error, 116, b"")


def test_a_request_refused_at_once_leaves_nothing_behind(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    windows.answers["FilterGetMessage"] = signed(hr.INVALID_HANDLE)
    with pytest.raises(errors.DisconnectedError):
        binding.begin_get(0x10, 100)
    assert not binding.in_flight
    assert windows.called("CloseHandle") == [(0x700,)]


def test_cancelling_names_the_request_or_all_and_tells_when_there_was_none(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    windows.answers |= {"FilterGetMessage": signed(hr.IO_PENDING), "CancelIoEx": 1}
    pending = binding.begin_get(0x10, 100)
    assert pending.cancel()
    assert binding.cancel(0x10)
    one, everything = windows.called("CancelIoEx")
    assert target(one[1]) is target(windows.called("FilterGetMessage")[0][3])
    assert everything == (0x10, None)
    windows.answers["CancelIoEx"] = 0
    windows.error = 1168
    assert not binding.cancel(0x10)


def test_sending_passes_the_sizes_that_were_stated_and_buffers_that_hold_them(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    def send(handle: int, source: Any, size: int, output: Any, output_size: int, returned: Any) -> int:
        output.raw = b"answer".ljust(len(output), b"\0")
        target(returned).value = 6
        return 0

    windows.answers["FilterSendMessage"] = send
    assert binding.send(0x10, b"ab", 100, 16, output_null=False) == b"answer"
    _, source, size, output, output_size, _ = windows.called("FilterSendMessage")[0]
    assert (len(source), source.raw[:2], size, len(output), output_size) == (100, b"ab", 100, 16, 16)


def test_sending_null_passes_null(windows: FakeWindows, binding: WindowsBinding) -> None:
    windows.answers["FilterSendMessage"] = signed(hr.INVALID_FUNCTION)
    with pytest.raises(errors.NotPermittedError):
        binding.send(0x10, None, 16, 4096, output_null=True)
    assert windows.called("FilterSendMessage")[0][1:5] == (None, 16, None, 4096)


def test_a_reply_is_a_header_of_16_bytes_and_the_bare_payload(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    from harness.client.port import Message

    port = Port(binding, 0x10, "\\Port", synchronous=False)
    port.reply(Message(b"", 0x1122334455667788, 0), b"x", 0xC0000022)
    _, buffer, size = windows.called("FilterReplyMessage")[0]
    assert size == 17, "the padding of the structure must not be counted (fact R4)"
    assert struct.unpack_from("<iQ", buffer.raw[:4] + buffer.raw[8:16]) == (
        0xC0000022 - 2**32,
        0x1122334455667788,
    )
    port.reply_raw(bytes(16), 3)
    assert windows.called("FilterReplyMessage")[1][2] == 3


def test_a_duplicate_is_made_within_the_process_with_the_same_access(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    def duplicate(source: int, handle: int, to: int, copy: Any, *rest: int) -> int:
        target(copy).value = handle + 4
        return 1

    windows.answers["DuplicateHandle"] = duplicate
    assert binding.duplicate(0x10) == 0x14
    assert windows.called("DuplicateHandle")[0][4:] == (0, 0, windows_api.DUPLICATE_SAME_ACCESS)


def test_a_filter_is_loaded_with_its_privilege_enabled_first(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    windows.answers |= {"OpenProcessToken": 1, "LookupPrivilegeValueW": 1, "AdjustTokenPrivileges": 1}
    binding.filter_load("Downlink")
    binding.filter_unload("Downlink")
    names = [name for name, _ in windows.calls if name.startswith(("Adjust", "Filter"))]
    assert names == ["AdjustTokenPrivileges", "FilterLoad", "FilterUnload"]


def test_a_privilege_that_the_token_does_not_have_is_an_error(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    windows.answers |= {"OpenProcessToken": 1, "LookupPrivilegeValueW": 1, "AdjustTokenPrivileges": 1}
    windows.error = 1300
    with pytest.raises(errors.PortError, match="SeLoadDriverPrivilege"):
        binding.filter_load("Downlink")


SERVICE_STOP_PENDING = 3


@pytest.fixture
def service(windows: FakeWindows) -> list[int]:
    """A service that can be stopped: the states that it will be in, one after the other."""
    states = [windows_api.SERVICE_STOPPED]

    def state(*arguments: Any) -> int:
        target(arguments[-1]).dwCurrentState = states.pop(0)
        return 1

    windows.answers |= {"OpenSCManagerW": 0x10, "OpenServiceW": 0x20}
    windows.answers |= dict.fromkeys(("ControlService", "QueryServiceStatus"), state)
    return states


def test_a_service_is_stopped_with_the_least_rights_and_its_handles_are_closed(
    windows: FakeWindows, binding: WindowsBinding, service: list[int]
) -> None:
    binding.service_stop("Downlink")
    assert windows.called("OpenSCManagerW") == [(None, None, 0x1)]
    assert windows.called("OpenServiceW") == [(0x10, "Downlink", 0x24)]
    assert [call[:2] for call in windows.called("ControlService")] == [(0x20, 1)]
    assert windows.called("CloseServiceHandle") == [(0x20,), (0x10,)]


def test_a_service_that_is_still_stopping_is_waited_for(
    windows: FakeWindows, binding: WindowsBinding, service: list[int]
) -> None:
    service[:] = [SERVICE_STOP_PENDING, SERVICE_STOP_PENDING, windows_api.SERVICE_STOPPED]
    binding.service_stop("Downlink")
    assert len(windows.called("QueryServiceStatus")) == 2
    assert not service


def test_a_service_that_does_not_stop_is_given_up_with_its_state(
    windows: FakeWindows, service: list[int]
) -> None:
    service[:] = [SERVICE_STOP_PENDING] * 1000
    with pytest.raises(
        errors.OperationTimeoutError, match=r"'Downlink' has not stopped within 0\.1 s; its state is 3"
    ):
        windows_services.stop(windows.libraries, "Downlink", seconds=0.1)
    assert windows.called("CloseServiceHandle") == [(0x20,), (0x10,)]


@pytest.mark.parametrize(
    ("function", "error", "closed"),
    [
        ("OpenSCManagerW", 5, 0),
        ("OpenServiceW", 1060, 1),
        ("ControlService", 1062, 2),
        ("ControlService", 1052, 2),
    ],
)
def test_a_service_that_cannot_be_stopped_is_an_error_of_the_step_that_failed(
    windows: FakeWindows, binding: WindowsBinding, service: list[int], function: str, error: int, closed: int
) -> None:
    windows.answers[function] = 0
    windows.error = error
    with pytest.raises(errors.PortError) as caught:
        binding.service_stop("Downlink")
    assert caught.value.hresult == hr.from_win32(error)
    assert caught.value.operation == function.removesuffix("W")
    assert isinstance(caught.value, errors.NotFoundError) == (error == 1060)
    assert len(windows.called("CloseServiceHandle")) == closed


def test_a_restricted_token_denies_administrators_and_is_closed_again(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    names = ("CreateWellKnownSid", "OpenProcessToken", "CreateRestrictedToken", "ImpersonateLoggedOnUser")
    windows.answers |= dict.fromkeys((*names, "RevertToSelf"), 1)
    threads: list[int] = []
    windows.answers["ImpersonateLoggedOnUser"] = lambda token: threads.append(threading.get_ident()) or 1
    windows.answers["FilterConnectCommunicationPort"] = lambda *_: threads.append(threading.get_ident()) or 0
    binding.impersonate("restricted")
    binding.connect("\\Port", None, 0, synchronous=False)
    binding.impersonate("none")
    assert windows.called("CreateWellKnownSid")[0][0] == windows_api.WIN_BUILTIN_ADMINISTRATORS_SID
    assert windows.called("CreateRestrictedToken")[0][1:3] == (windows_api.DISABLE_MAX_PRIVILEGE, 1)
    assert len(windows.called("CloseHandle")) == 2
    assert len(set(threads)) == 1, "the connection must be made on the thread that impersonates"


def unicode(text: str) -> bytes:
    return text.encode("utf-16-le")


def test_filters_are_read_entry_by_entry_without_the_legacy_ones() -> None:
    def entry(name: str, altitude: str, flags: int, *, last: bool) -> bytes:
        names = unicode(name) + unicode(altitude)
        lengths = (len(unicode(name)), 0x1C, len(unicode(altitude)), 0x1C + len(unicode(name)))
        size = (0x1C + len(names) + 7) & ~7
        head = struct.pack("<IIIIIHHHH", 0 if last else size, flags, 0, 1, 2, *lengths)
        return (head + names).ljust(size, b"\0")

    data = entry("One", "385100.7", 1, last=False) + entry("Old", "", 2, last=False)
    data += entry("Three", "20000", 1, last=True)
    found = windows_filters.parse_filters(data)
    assert [(f.name, f.altitude, f.instances, f.frame) for f in found] == [
        ("One", "385100.7", 2, 1),
        ("Three", "20000", 2, 1),
    ]


def test_instances_and_volumes_are_read_by_their_offsets() -> None:
    texts = [unicode(text) for text in ("Instance", "370000", "\\Device\\V2", "Filter")]
    fields, position = [], 0x28
    for text in texts:
        fields += [len(text), position]
        position += len(text)
    data = struct.pack("<IIIIIHHHHHHHHI", 0, 1, 0, 0, 2, *fields, 0) + b"".join(texts)
    (instance,) = windows_filters.parse_instances(data)
    assert (instance.instance, instance.altitude, instance.volume, instance.filter) == (
        "Instance",
        "370000",
        "\\Device\\V2",
        "Filter",
    )
    volume = struct.pack("<IIIIH", 0, 0, 0, 2, 20) + unicode("\\Device\\V2")
    assert windows_filters.parse_volumes(volume) == [("\\Device\\V2", "NTFS")]


def test_a_list_goes_on_until_there_are_no_more_and_a_small_buffer_is_enlarged(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    name = unicode("\\Device\\V2")
    answers = iter([hr.INSUFFICIENT_BUFFER, 0])

    def first(kind: int, buffer: Any, size: int, returned: Any, handle: Any) -> int:
        result = next(answers)
        target(returned).value = 8000
        if result == 0:
            assert size == 8000
            data = struct.pack("<IIIIH", 0, 0, 0, 2, len(name)) + name
            buffer[: len(data)] = data
            target(returned).value = len(data)
            target(handle).value = 0x55
        return signed(result)

    windows.answers |= {
        "FilterVolumeFindFirst": first,
        "FilterVolumeFindNext": signed(hr.NO_MORE_ITEMS),
        "FilterGetDosName": signed(hr.FILE_NOT_FOUND),
    }
    (volume,) = binding.volumes()
    assert (volume.device_name, volume.dos_name) == ("\\Device\\V2", None)
    assert windows.called("FilterVolumeFindClose") == [(0x55,)]


def test_no_volumes_at_all_are_an_empty_list(windows: FakeWindows, binding: WindowsBinding) -> None:
    windows.answers["FilterVolumeFindFirst"] = signed(hr.NO_MORE_ITEMS)
    assert binding.volumes() == []


def test_a_file_is_created_with_the_numbers_of_nt_and_a_dos_path_is_made_an_nt_path(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    names: list[str] = []

    def create(handle: Any, access: int, attributes: Any, block: Any, *rest: Any) -> int:
        text = target(attributes).ObjectName.contents
        names.append(ctypes.string_at(text.Buffer, text.Length).decode("utf-16-le"))
        target(handle).value, target(block).Information = 0x44, files.CREATED
        return 0

    windows.answers["NtCreateFile"] = create
    assert binding.create_file("C:\\ä", 0x120116, 7, files.CREATE, 0x60, 0x80) == (0x44, files.CREATED)
    binding.create_file("\\Device\\V2\\b", 0x120116, 7, files.CREATE, 0x60, 0x80)
    assert names == ["\\??\\C:\\ä", "\\Device\\V2\\b"]
    assert windows.called("NtCreateFile")[0][5:9] == (0x80, 7, files.CREATE, 0x60)


def test_a_failed_file_operation_carries_its_status(windows: FakeWindows, binding: WindowsBinding) -> None:
    windows.answers["NtCreateFile"] = signed(0xC0000043)
    with pytest.raises(errors.FileError, match="STATUS_SHARING_VIOLATION") as caught:
        binding.create_file("C:\\a", 1, 0, 1, 0, 0)
    assert caught.value.status == 0xC0000043


def test_reading_at_the_end_of_a_file_is_empty_and_an_offset_is_passed_by_reference(
    windows: FakeWindows, binding: WindowsBinding
) -> None:
    windows.answers["NtReadFile"] = signed(0xC0000011)
    assert binding.read_file(0x44, 1 << 33, 10) == b""
    assert target(windows.called("NtReadFile")[0][7]).value == 1 << 33
    assert binding.read_file(0x44, None, 10) == b""
    assert windows.called("NtReadFile")[1][7] is None


def test_a_directory_is_read_entry_by_entry() -> None:
    def entry(name: str, size: int, attributes: int, identity: int, *, last: bool) -> bytes:
        text = unicode(name)
        length = (0x68 + len(text) + 7) & ~7
        head = struct.pack(
            "<II6qIII", 0 if last else length, 0, 0, 0, 0, 0, size, 0, attributes, len(text), 0
        )
        return (head.ljust(96, b"\0") + struct.pack("<q", identity) + text).ljust(length, b"\0")

    data = entry(".", 0, 0x10, 5, last=False) + entry("ein Name", 1234, 0x20, 0x1234567890, last=True)
    assert parse_directory(data) == [(".", 0x10, 0, 5), ("ein Name", 0x20, 1234, 0x1234567890)]


def test_a_drive_letter_becomes_its_device(windows: FakeWindows, binding: WindowsBinding) -> None:
    def query(drive: str, buffer: Any, size: int) -> int:
        data = unicode("\\Device\\HarddiskVolume3\0\0")
        buffer[: len(data)] = data
        return 24

    windows.answers["QueryDosDeviceW"] = query
    assert binding.device_path("C:\\Temp\\x") == "\\Device\\HarddiskVolume3\\Temp\\x"


def test_a_process_is_suspended_and_resumed_by_its_id(windows: FakeWindows) -> None:
    windows.answers["OpenProcess"] = 0x99
    windows_processes.suspend(4711, windows.libraries)
    windows_processes.resume(4711, windows.libraries)
    assert [name for name, _ in windows.calls] == [
        "OpenProcess",
        "NtSuspendProcess",
        "CloseHandle",
        "OpenProcess",
        "NtResumeProcess",
        "CloseHandle",
    ]
    assert windows.called("OpenProcess")[0] == (windows_api.PROCESS_SUSPEND_RESUME, 0, 4711)


def test_a_system_call_that_hangs_is_left_behind_and_the_next_one_runs() -> None:
    operator = Operator()
    release = threading.Event()
    started = time.monotonic()
    with pytest.raises(errors.OperationTimeoutError, match="NtWriteFile"):
        operator.run("NtWriteFile", release.wait, seconds=0.05)
    assert operator.run("NtReadFile", lambda: 7, seconds=5) == 7
    assert time.monotonic() - started < 5
    release.set()


def test_an_error_of_a_system_call_reaches_its_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        Operator().run("x", lambda: 1 // 0, seconds=5)


def test_each_calling_thread_keeps_one_helper_of_its_own() -> None:
    operator = Operator()
    mine = {operator.run("x", threading.get_ident, seconds=5) for _ in range(3)}
    others: set[int] = set()
    held = threading.Event()

    def other() -> None:
        others.add(operator.run("x", threading.get_ident, seconds=5))
        held.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    while not others:
        assert thread.is_alive()
    assert len(mine) == 1
    assert not mine & others
    held.set()
    thread.join(5)


def test_a_helper_ends_with_the_thread_that_it_serves() -> None:
    operator = Operator()
    helpers: list[threading.Thread] = []

    def call() -> None:
        helpers.append(operator.run("x", threading.current_thread, seconds=5))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(5)
    helpers[0].join(5)
    assert not helpers[0].is_alive()


def test_without_windows_the_libraries_cannot_be_loaded() -> None:
    if hasattr(ctypes, "WinDLL"):
        pytest.skip("this is Windows")
    with pytest.raises(OSError, match="Windows"):
        windows_api.load()


def test_every_module_of_the_client_can_be_imported_on_any_system() -> None:
    import importlib
    import pkgutil

    import harness.client

    names = [module.name for module in pkgutil.iter_modules(harness.client.__path__)]
    assert len(names) > 15
    for name in names:
        importlib.import_module(f"harness.client.{name}")


def test_the_client_imports_only_itself_and_the_standard_library() -> None:
    import ast
    import sys
    from pathlib import Path

    import harness.client

    for path in Path(harness.client.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                allowed = name.partition(".")[0] in sys.stdlib_module_names or name.startswith(
                    "harness.client"
                )
                assert allowed, f"'{path.name}' imports '{name}'"
