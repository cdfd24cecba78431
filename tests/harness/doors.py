"""A guest whose address changes: ports of this host that lead to its own, until others take their place."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import replace

import pytest

from vm.emulated.machine import EmulatedMachine
from vm.machine import GuestAddress


class Doors:
    """Ports of this host that lead to others, until they are closed with everything that went through them."""

    def __init__(self, *targets: int) -> None:
        self.targets = targets
        self.entered = 0
        self._open: list[socket.socket] = []
        self.ports = tuple(self._door(target) for target in targets)

    def close(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _door(self, target: int) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        self._open.append(server)
        threading.Thread(target=self._serve, args=(server, target), daemon=True).start()
        return int(server.getsockname()[1])

    def _serve(self, server: socket.socket, target: int) -> None:
        with suppress(OSError):
            while True:
                here, _ = server.accept()
                self.entered += 1
                there = socket.create_connection(("127.0.0.1", target))
                self._open += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def through_doors(monkeypatch: pytest.MonkeyPatch) -> list[Doors]:
    """From now on emulated machines have an address behind doors; the last ones of the list are those that count."""
    doors: list[Doors] = []
    real = EmulatedMachine.address

    def behind_doors(machine: EmulatedMachine) -> GuestAddress:
        address = real(machine)
        assert address.ssh_port is not None
        if not doors:
            doors.append(Doors(address.winrm_port, address.ssh_port))
        winrm, ssh = doors[-1].ports
        return replace(address, winrm_port=winrm, ssh_port=ssh)

    monkeypatch.setattr(EmulatedMachine, "address", behind_doors)
    return doors


def move(doors: list[Doors]) -> None:
    """Open others and close those that are open, with everything that goes through them."""
    old = doors[-1]
    doors.append(Doors(*old.targets))
    old.close()
