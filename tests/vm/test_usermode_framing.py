"""The two ends of a frame, written in two rooms that may not import each other, held together."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.client import emulated_wire
from vm.emulated.usermode import framing
from vm.emulated.usermode.framing import FrameReader, MalformedFrameError
from vm.emulated.usermode.values import plain

NAMES = st.text(max_size=8)
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.text(st.characters(), max_size=20)
ARGUMENTS = st.dictionaries(NAMES, PLAIN | st.binary(max_size=300), max_size=6)


def read(data: bytes) -> framing.Request | None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        return FrameReader(ours).read()


@given(st.text(max_size=10), ARGUMENTS)
@settings(deadline=None)
def test_what_a_client_sends_is_what_the_machine_reads(service: str, arguments: dict[str, object]) -> None:
    request = read(emulated_wire.encode(service, arguments))
    assert request is not None
    assert (request.service, request.arguments) == (service, arguments)


@given(st.integers(0, 2**32 - 1), ARGUMENTS)
@settings(deadline=None)
def test_both_ends_write_the_same_frame(status: int, values: dict[str, object]) -> None:
    assert framing.encode(status, values) == emulated_wire.encode(status, values)


@given(st.binary(max_size=64))
@settings(deadline=None)
def test_random_bytes_are_a_request_an_end_or_malformed_and_nothing_else(data: bytes) -> None:
    try:
        read(data)
    except MalformedFrameError:
        return


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=10))
@settings(deadline=None)
def test_any_json_is_a_request_or_malformed_and_nothing_else(header: object) -> None:
    data = json.dumps(header).encode()
    try:
        read(struct.pack("<II", len(data), 0) + data)
    except MalformedFrameError:
        return


def test_several_requests_in_one_packet_are_read_one_by_one() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(emulated_wire.encode("one", {"a": b"x" * 10}) + emulated_wire.encode("two", {}))
        theirs.shutdown(socket.SHUT_WR)
        reader = FrameReader(ours)
        services = []
        while (request := reader.read()) is not None:
            services.append(request.service)
    assert services == ["one", "two"]


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 20, -1])
def test_a_connection_that_ends_within_a_frame_is_an_end(cut: int) -> None:
    assert read(emulated_wire.encode("service", {"data": b"12345"})[:cut]) is None


@dataclass(frozen=True, slots=True)
class Inner:
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner
    number: int


def test_what_services_return_is_made_plain_all_the_way_down() -> None:
    assert plain([Outer(Inner(("a", "b")), 7)]) == [{"inner": {"names": ["a", "b"]}, "number": 7}]
    assert plain({"x": (1, None)}) == {"x": [1, None]}
    assert plain(b"bytes") == b"bytes"
