"""Hostile connection contexts: ten thousand of them, each accepted or refused exactly as the protocol says."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable
from typing import Final

import pytest

from harness.client import files
from harness.client import hresult as hr
from harness.client.binding import CONTEXT_BYTES_MAXIMUM
from harness.client.errors import PortError
from harness.client.listener import matching
from harness.client.port import Port
from harness.client.protocol import (
    CONNECT_LAYOUT,
    CONNECT_MAGIC,
    MASK_ALL,
    MASK_FILES,
    MESSAGE_BYTES_MAXIMUM,
    MESSAGE_BYTES_MINIMUM,
    PORT_NAME,
    QUEUE_BYTES_MAXIMUM,
    QUEUE_BYTES_MINIMUM,
    STATISTICS_INTERVAL_MAXIMUM,
    STATISTICS_INTERVAL_MINIMUM,
    VERSION,
    Connect,
    Kind,
)

CASES: Final = 10_000
SEED: Final = 0x4B4E4C44
LIMIT: Final = 8
FIELDS: Final = tuple(
    zip((0x00, 0x04, 0x06, 0x08, 0x0A, 0x0C, 0x10, 0x14, 0x18, 0x1C), "IHHHHIIIII", strict=True)
)
"""Offset and type of every field of DOWNLINK_CONNECT."""
FLAGS: Final = 0x7


def verdict(context: bytes) -> int:
    """What the protocol says to a context: the HRESULT, written from the header and not from the driver."""
    if len(context) < CONNECT_LAYOUT.size:
        return hr.INVALID_PARAMETER
    magic, size, low, high, prefix, mask, flags, queue, message, interval = CONNECT_LAYOUT.unpack_from(
        context
    )
    if magic != CONNECT_MAGIC or low > high:
        return hr.INVALID_PARAMETER
    if not low <= VERSION <= high:
        return hr.REVISION_MISMATCH
    sound = (
        size == len(context) == CONNECT_LAYOUT.size + prefix
        and prefix % 2 == 0
        and mask & ~MASK_ALL == 0
        and flags & ~FLAGS == 0
        and (queue == 0 or QUEUE_BYTES_MINIMUM <= queue <= QUEUE_BYTES_MAXIMUM)
        and (message == 0 or MESSAGE_BYTES_MINIMUM <= message <= MESSAGE_BYTES_MAXIMUM)
        and (interval == 0 or STATISTICS_INTERVAL_MINIMUM <= interval <= STATISTICS_INTERVAL_MAXIMUM)
    )
    return hr.S_OK if sound else hr.INVALID_PARAMETER


def good(chance: random.Random) -> bytes:
    """A context that is accepted."""
    prefix = "".join(chr(chance.randrange(0x10000)) for _ in range(chance.choice((0, 0, 1, 7, 40, 300))))
    # Units of a pair that stand side by side would be one character for Python; the driver does not care.
    units = prefix.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return Connect(
        event_mask=chance.choice((0, MASK_FILES, MASK_ALL, chance.randrange(0x80000) & MASK_ALL)),
        flags=chance.randrange(FLAGS + 1),
        path_prefix=units,
        queue_bytes=chance.choice((0, QUEUE_BYTES_MINIMUM, QUEUE_BYTES_MINIMUM + 8 * chance.randrange(100))),
        message_bytes=chance.choice((0, MESSAGE_BYTES_MINIMUM, chance.randrange(0x400, 0x8000))),
        statistics_interval_ms=chance.choice((0, STATISTICS_INTERVAL_MAXIMUM)),
        minimum_version=chance.choice((0, 1)),
        maximum_version=chance.choice((1, 2, 0xFFFF)),
    ).encode()


def boundary(chance: random.Random, context: bytes) -> bytes:
    """One field at or beside a bound of its own, of another field's, or of its type."""
    offset, layout = chance.choice(FIELDS)
    bits = 8 * struct.calcsize(layout)
    bounds = (
        0,
        1,
        len(context),
        CONNECT_LAYOUT.size,
        QUEUE_BYTES_MINIMUM,
        QUEUE_BYTES_MAXIMUM,
        MESSAGE_BYTES_MINIMUM,
        MESSAGE_BYTES_MAXIMUM,
        STATISTICS_INTERVAL_MINIMUM,
        STATISTICS_INTERVAL_MAXIMUM,
        MASK_ALL,
        FLAGS,
        1 << chance.randrange(bits),
        1 << (bits - 1),
        (1 << bits) - 1,
    )
    value = (chance.choice(bounds) + chance.choice((-2, -1, 0, 0, 1, 2))) % (1 << bits)
    return replaced(context, offset, layout, value)


def replaced(context: bytes, offset: int, layout: str, value: int) -> bytes:
    data = bytearray(context)
    struct.pack_into("<" + layout, data, offset, value)
    return bytes(data)


def truncated(chance: random.Random, context: bytes) -> bytes:
    return context[: chance.randrange(len(context))]


def lengthened(chance: random.Random, context: bytes) -> bytes:
    """More bytes than are stated, now and then as many as fit into a request at all."""
    more = chance.choice((1, 2, 8, 31, 32, 1000, CONTEXT_BYTES_MAXIMUM - len(context)))
    return context + chance.randbytes(more)


def resized(chance: random.Random, context: bytes) -> bytes:
    """A prefix of another length, odd ones too, with a Size that goes with it: only the parity may be wrong."""
    prefix = chance.randrange(200)
    data = context[: CONNECT_LAYOUT.size] + chance.randbytes(prefix)
    data = replaced(data, 0x04, "H", len(data))
    return replaced(data, 0x0A, "H", prefix)


def misstated(chance: random.Random, context: bytes) -> bytes:
    """Size and prefix length that agree with each other, or with the length, but not all three."""
    wrong = (len(context) + chance.choice((-4, -2, 2, 4, 0x8000))) % 0x10000
    data = replaced(context, chance.choice((0x04, 0x0A)), "H", wrong)
    return (
        replaced(data, 0x0A, "H", (wrong - CONNECT_LAYOUT.size) % 0x10000) if chance.random() < 0.5 else data
    )


def flipped(chance: random.Random, context: bytes) -> bytes:
    """A few bits of the head turned round."""
    data = bytearray(context)
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(CONNECT_LAYOUT.size)] ^= 1 << chance.randrange(8)
    return bytes(data)


def noise(chance: random.Random, context: bytes) -> bytes:
    """Nothing but random bytes, half of them behind the right magic."""
    data = chance.randbytes(chance.choice((0, 1, 31, 32, 33, 64, 500)))
    return context[:4] + data if chance.random() < 0.5 else data


MUTATIONS: Final[tuple[Callable[[random.Random, bytes], bytes], ...]] = (
    boundary,
    boundary,
    boundary,
    truncated,
    lengthened,
    resized,
    misstated,
    flipped,
    noise,
)


def hostile(chance: random.Random) -> bytes:
    """One context, mostly with one thing wrong, now and then with two; a few are still good."""
    context = chance.choice(MUTATIONS)(chance, good(chance))
    if chance.random() < 0.1 and len(context) >= CONNECT_LAYOUT.size:
        context = boundary(chance, context)
    return context


def attempt(context: bytes) -> int:
    """Connect, and leave at once if that succeeds; the HRESULT."""
    try:
        Port.connect(PORT_NAME, context).close()
    except PortError as error:
        return error.hresult
    return hr.S_OK


@pytest.mark.slow
@pytest.mark.fact("C4", "C6", "C7", "C13")
def test_no_context_out_of_ten_thousand_is_accepted_or_refused_by_mistake(listen, observer, scratch):
    chance = random.Random(SEED)
    outcomes: Counter[int] = Counter()
    for number in range(CASES):
        context = hostile(chance)
        wanted, got = verdict(context), attempt(context)
        assert got == wanted, (
            f"case {number}: 0x{got:08X} instead of 0x{wanted:08X} for {context[:64].hex()}, {len(context)} bytes"
        )
        outcomes[wanted] += 1

    # A fuzz that never comes near a good context, or never leaves it, tests nothing.
    assert outcomes.keys() == {hr.S_OK, hr.INVALID_PARAMETER, hr.REVISION_MISMATCH}
    assert outcomes[hr.S_OK] >= 200
    assert outcomes[hr.REVISION_MISMATCH] >= 100

    # Nobody but those who were let in has ever been reported, each of them with its end.
    seen: Counter[int] = Counter()
    while seen[Kind.CLIENT_DISCONNECTED] + observer.dropped_count < outcomes[hr.S_OK]:
        seen[observer.next().kind] += 1
    assert observer.dropped_count == 0
    assert seen == {Kind.CLIENT_CONNECTED: outcomes[hr.S_OK], Kind.CLIENT_DISCONNECTED: outcomes[hr.S_OK]}

    # No place was used up, and a connection works as ever.
    others = [listen() for _ in range(LIMIT - 1)]
    files.create(scratch / "a")
    for listener in others:
        listener.wait_for("the file", matching(Kind.FILE_OPENED, scratch.device("a")))
