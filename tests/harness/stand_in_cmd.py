"""What stands in for cmd.exe where there is no Windows: `cmd /d /s /c "line"` runs the line in an emulated guest.

Everything that a child process has is handed on: standard input, both outputs as they arrive, the working directory
(a directory of this host that is one of the guest), variables that begin with DOWNLINK, and the exit code, of which a
POSIX host has room for 8 bits only: all of it goes into a file beside.
"""

from __future__ import annotations

import base64
import json
import os
import socketserver
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.log import Log
from harness.remote.channels import CommandResult, Commands
from harness.remote.local import LocalCommands
from vm.deadline import Deadline
from vm.errors import DownlinkError

_CODE_FILE = "STAND_IN_CODE"
_SECONDS = 120

_CLIENT = r"""
import base64, json, os, socket, sys
flags, line = sys.argv[1:-1], sys.argv[-1]
assert flags == ["/d", "/s", "/c"] and line[:1] == line[-1:] == '"', sys.argv
request = {
    "line": line[1:-1],
    "directory": os.getcwd(),
    "variables": {name: value for name, value in os.environ.items() if name.startswith("DOWNLINK")},
    "stdin": base64.b64encode(sys.stdin.buffer.read()).decode(),
}
with socket.create_connection(("127.0.0.1", PORT)) as connection, connection.makefile("rwb") as stream:
    stream.write(json.dumps(request).encode() + b"\n")
    stream.flush()
    code = 1
    for answer in map(json.loads, stream):
        for name, target in (("out", sys.stdout), ("err", sys.stderr)):
            target.buffer.write(answer.get(name, "").encode())
            target.flush()
        code = answer.get("code", code)
with open(os.environ["STAND_IN_CODE"], "w") as file:
    file.write(str(code))
sys.exit(code if code < 256 else 1)
"""


class StandIn:
    """An executable that is called as cmd.exe is, and the server that it hands its lines to.

    Args:
        path: where the executable is written.
        commands: what runs the lines.
        root: directory that is C: of the guest behind `commands`.
    """

    def __init__(self, path: Path, commands: Commands, root: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self._commands = commands
        self._root = root.resolve()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        text = _CLIENT.replace("PORT", str(self._server.server_address[1]))
        path.write_text(f"#!{sys.executable} -SE\n{text}", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()

    def run(self, request: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        """Run one line and tell its output and exit code."""
        self.lines.append(request["line"])
        here = Path(request["directory"]).resolve()
        below = here.relative_to(self._root).parts if self._root in (here, *here.parents) else None
        try:
            result = self._commands.run(
                request["line"],
                deadline=Deadline.after(seconds=_SECONDS),
                stdin=base64.b64decode(request["stdin"]),
                directory=None if below is None else "C:\\" + "\\".join(below),
                environment=request["variables"] or None,
                on_output=lambda text: tell({"out": text}),
            )
        except DownlinkError as error:
            tell({"err": error.message, "code": 0xFFFFFFFF})
        else:
            tell({"err": result.stderr, "code": result.exit_code})

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        stand_in = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                def tell(answer: dict[str, Any]) -> None:
                    self.wfile.write(json.dumps(answer).encode() + b"\n")
                    self.wfile.flush()

                stand_in.run(json.loads(self.rfile.readline()), tell)

        return Handler


class StandInCommands(LocalCommands):
    """`LocalCommands` with a stand-in for cmd.exe, whose exit codes have 32 bits."""

    def __init__(self, stand_in: StandIn, root: Path, *, machine: str, log: Log) -> None:
        super().__init__(machine=machine, log=log, program=(str(stand_in.path),), root=root)

    def run(
        self,
        command: Sequence[str] | str,
        *,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> CommandResult:
        descriptor, name = tempfile.mkstemp(prefix="stand-in-")
        os.close(descriptor)
        code = Path(name)
        try:
            result = super().run(command, environment={**(environment or {}), _CODE_FILE: name}, **options)
            said = code.read_text(encoding="ascii")
        finally:
            code.unlink()
        return replace(result, exit_code=int(said)) if said else result
