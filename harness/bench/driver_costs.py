"""Benchmarks of the driver in counts: instructions, kernel calls and bytes copied per write event."""

from __future__ import annotations

from pathlib import Path

from harness.bench import Measurement

_CONNECTIONS = (1, 4, 8)
_INSTRUCTIONS_LIMIT = 3000
_CALLS_LIMIT = 12
_NO_PREEMPTION = (1_000_000_000, 1_000_000_000)


def write_event(root: Path) -> list[Measurement]:
    """One write through a handle whose first write it is, reported to 1, 4 and 8 sleeping connections.

    The counts are those of the requestor's thread, which the driver delays, and of its workers until every connection
    has its message. The same sources give the same counts on every host.
    """
    from harness.builds import prepare
    from harness.client.protocol import MASK_FILES, Connect
    from harness.config import load
    from vm.emulated.kernel.scheduler import Preemption
    from vm.emulated.library import LibraryMachine
    from vm.emulated.meter import Meter

    image = prepare(load(root), None, None, "release")().image.read_bytes()
    context = Connect(event_mask=MASK_FILES).encode()
    found: list[Measurement] = []
    for connections in _CONNECTIONS:
        undisturbed = Preemption(instructions=_NO_PREEMPTION, exports=_NO_PREEMPTION)
        with LibraryMachine(preemption=undisturbed) as machine:
            machine.load("Downlink", image)
            meter = Meter(machine.kernel, "downlink")
            for _ in range(connections):
                client = machine.client()
                connected = client.must(
                    "connect_port", name=r"\DownlinkPort", context=context, context_size=len(context)
                )
                for _ in range(3):
                    client.must("get_message", handle=connected["handle"], size=0x10000)
            worker = machine.client()
            opened = worker.must(
                "create_file",
                path=r"D:\a",
                access=0xC011_0000,
                share=7,
                disposition=2,
                options=0x40,
                attributes=0x80,
            )
            machine.settle()
            with meter.counting() as costs:
                worker.must("write_file", handle=opened["handle"], offset=0, data=b"x")
                machine.settle()
        one = connections == 1
        title = f"{connections} connection{'' if one else 's'}"
        found += [
            Measurement(
                "write event",
                f"instructions, {title}",
                costs.instructions,
                "",
                limit=_INSTRUCTIONS_LIMIT if one else None,
            ),
            Measurement(
                "write event",
                f"kernel calls, {title}",
                costs.call_count,
                "",
                limit=_CALLS_LIMIT if one else None,
            ),
            Measurement("write event", f"bytes copied, {title}", costs.bytes_copied, ""),
            Measurement(
                "write event", f"instructions of the workers, {title}", costs.worker_instructions, ""
            ),
            Measurement(
                "write event", f"kernel calls of the workers, {title}", costs.worker_calls.total(), ""
            ),
            Measurement(
                "write event",
                f"messages sent, {title}",
                costs.worker_calls["FltSendMessage"],
                "",
                limit=connections,
            ),
            Measurement(
                "write event", f"bytes copied by the workers, {title}", costs.worker_bytes_copied, ""
            ),
        ]
    return found
