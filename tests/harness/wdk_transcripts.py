"""A Windows that is made of transcripts: a made-up file tree, variables, and what each tool answers to which call.

A transcript is a JSON file in `tests/harness/transcripts/`:

    {
      "source": "documentation",            or "recorded": from a real Windows
      "environment": {"PATH": "..."},
      "tree": {"C:\\\\...\\\\vswhere.exe": "", ...},   paths of files, and their text
      "calls": [
        {
          "tool": "msbuild",                without directory and .exe, in any case
          "arguments": ["/p:OutDir=(?P<out>.+)", ...],
          "exit_code": 0, "stdout": "...", "stderr": "...",
          "files": {"{out}downlink.sys": {"artefact": "image"}, "{out}x.txt": "text"},
          "remove": ["{out}x.txt"],
          "repeat": false
        }
      ]
    }

Each pattern of `arguments` must fit one argument as a whole (case does not matter); other arguments may be there. Named
groups of all patterns are put into the texts and paths of the row. The first row that fits and has not been used
answers; `repeat` rows answer as often as they are asked. A call that no row expects fails the test, and so does
`finish()` when rows are left over.

No transcript of this directory was recorded on Windows so far unless its `source` says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from harness.toolchain.wdk.provider import ToolResult, Variables, fits, shown_command, tool_name
from vm.deadline import Deadline

TRANSCRIPTS = Path(__file__).parent / "transcripts"


class UnexpectedCallError(AssertionError):
    """A tool was called in a way that no row expects, or a row was not used."""


@dataclass(slots=True)
class Row:
    """One answer of one tool; see the module's docstring."""

    tool: str
    arguments: tuple[str, ...] = ()
    exit_code: int = 0
    stdout: str = ""
    stderr: str = ""
    files: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    repeat: bool = False
    used: int = 0

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Row:
        unknown = set(raw) - {
            "tool",
            "arguments",
            "exit_code",
            "stdout",
            "stderr",
            "files",
            "remove",
            "repeat",
        }
        assert not unknown, f"a row has unknown keys: {unknown}"
        return cls(
            raw["tool"],
            tuple(raw.get("arguments", ())),
            int(raw.get("exit_code", 0)),
            _text(raw.get("stdout", "")),
            _text(raw.get("stderr", "")),
            dict(raw.get("files", {})),
            tuple(raw.get("remove", ())),
            bool(raw.get("repeat", False)),
        )

    def match(self, tool: str | PurePath, arguments: Sequence[str]) -> dict[str, str] | None:
        """The named groups if this row answers the call."""
        if tool_name(tool).lower() != self.tool.lower() or (self.used and not self.repeat):
            return None
        groups: dict[str, str] = {}
        for pattern in self.arguments:
            for argument in arguments:
                found = re.fullmatch(pattern, argument, re.IGNORECASE)
                if found:
                    groups.update({name: value or "" for name, value in found.groupdict().items()})
                    break
            else:
                return None
        return groups


@dataclass(frozen=True, slots=True)
class Call:
    """One call that was made, for assertions."""

    tool: str
    path: str
    arguments: tuple[str, ...]
    directory: Path | None
    environment: Mapping[str, str] | None
    stdin: bytes


class TranscriptProvider:
    """A `Provider` whose Windows is made of transcripts.

    Args:
        tree: Windows paths of files with their text; directories are there when something lies in them.
        environment: variables.
        rows: answers of tools, in the order in which they are tried.
        artefacts: content for files that rows write, by the name that they give it.
        is_windows: False for a host that is none.

    Paths that are not of Windows are those of this host: rows write to them and `exists` looks at them.
    """

    def __init__(
        self,
        tree: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        rows: Iterable[Row] = (),
        *,
        artefacts: Mapping[str, bytes] | None = None,
        is_windows: bool = True,
    ) -> None:
        self.tree: dict[PureWindowsPath, bytes] = {
            PureWindowsPath(path): text.encode() for path, text in (tree or {}).items()
        }
        self.rows = list(rows)
        self.calls: list[Call] = []
        self._environment = Variables(environment or {})
        self._artefacts = dict(artefacts or {})
        self._is_windows = is_windows

    @classmethod
    def load(cls, *names: str, artefacts: Mapping[str, bytes] | None = None) -> TranscriptProvider:
        """Transcripts by name, one after the other."""
        tree: dict[str, str] = {}
        environment: dict[str, str] = {}
        rows: list[Row] = []
        for name in names:
            raw = json.loads((TRANSCRIPTS / f"{name}.json").read_text(encoding="utf-8"))
            assert raw["source"] in ("documentation", "recorded"), f"{name}: where does it come from?"
            tree |= {path: _text(text) for path, text in raw.get("tree", {}).items()}
            environment |= raw.get("environment", {})
            rows += [Row.read(row) for row in raw.get("calls", ())]
        return cls(tree, environment, rows, artefacts=artefacts)

    @property
    def is_windows(self) -> bool:
        return self._is_windows

    @property
    def environment(self) -> Mapping[str, str]:
        return self._environment

    def run(
        self,
        tool: str | PurePath,
        arguments: Sequence[str],
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        deadline: Deadline,
        stdin: bytes = b"",
    ) -> ToolResult:
        command = shown_command(tool, arguments)
        deadline.check(f"'{tool_name(tool)}' to be started")
        call = Call(tool_name(tool).lower(), str(tool), tuple(arguments), directory, environment, stdin)
        self.calls.append(call)
        for row in self.rows:
            groups = row.match(tool, arguments)
            if groups is None:
                continue
            row.used += 1
            for path in row.remove:
                self._remove(_fill(path, groups), directory)
            for path, content in row.files.items():
                self._write(_fill(path, groups), content, groups, directory)
            return ToolResult(
                command, row.exit_code, _fill(row.stdout, groups), _fill(row.stderr, groups), 0.01
            )
        expected = "\n".join(f"  {row.tool} {' '.join(row.arguments)}" for row in self.rows if not row.used)
        raise UnexpectedCallError(f"no row expects: {' '.join(command)}\nrows left:\n{expected or '  none'}")

    def find(self, name: str) -> PurePath | None:
        name = name if name.lower().endswith(".exe") else f"{name}.exe"
        for directory in self._environment.get("PATH", "").split(";"):
            path = PureWindowsPath(directory) / name
            if directory and path in self.tree:
                return path
        return None

    def exists(self, path: PurePath) -> bool:
        if isinstance(path, PureWindowsPath):
            return any(path == file or path in file.parents for file in self.tree)
        return Path(path).exists()

    def read_text(self, path: PurePath) -> str:
        if not isinstance(path, PureWindowsPath):
            return Path(path).read_text(encoding="utf-8-sig")
        if path not in self.tree:
            raise FileNotFoundError(path)
        return self.tree[path].decode("utf-8-sig")

    def glob(self, directory: PurePath, pattern: str) -> tuple[PurePath, ...]:
        if not isinstance(directory, PureWindowsPath):
            found = [entry.name for entry in Path(directory).iterdir()] if Path(directory).is_dir() else []
            return tuple(sorted(directory / name for name in found if fits(name, pattern)))
        inside = {
            directory / file.parts[len(directory.parts)] for file in self.tree if directory in file.parents
        }
        return tuple(sorted(entry for entry in inside if fits(entry.name, pattern)))

    def finish(self) -> None:
        """Every row has answered.

        Raises:
            UnexpectedCallError: one was not asked for.
        """
        unused = [
            f"{row.tool} {' '.join(row.arguments)}" for row in self.rows if not row.used and not row.repeat
        ]
        if unused:
            raise UnexpectedCallError("never called: " + "; ".join(unused))

    def called(self, tool: str) -> list[Call]:
        """All calls of one tool."""
        return [call for call in self.calls if call.tool == tool]

    def _write(
        self,
        path: str,
        content: str | Mapping[str, str],
        groups: Mapping[str, str],
        directory: Path | None,
    ) -> None:
        if isinstance(content, str):
            data = _fill(content, groups).encode()
        elif "artefact" in content:
            data = self._artefacts[content["artefact"]]
        else:
            data = self._read(_fill(content["copy"], groups), directory)
        if _of_windows(path):
            self.tree[PureWindowsPath(path)] = data
            return
        target = (directory or Path()) / path.replace("\\", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def _read(self, path: str, directory: Path | None) -> bytes:
        if _of_windows(path):
            return self.tree[PureWindowsPath(path)]
        return ((directory or Path()) / path.replace("\\", "/")).read_bytes()

    def _remove(self, path: str, directory: Path | None) -> None:
        if _of_windows(path):
            del self.tree[PureWindowsPath(path)]
        else:
            ((directory or Path()) / path.replace("\\", "/")).unlink()


def _of_windows(path: str) -> bool:
    return PureWindowsPath(path).drive != ""


def _fill(text: str, groups: Mapping[str, str]) -> str:
    """`{name}` of a named group; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda match: groups.get(match[1], match[0]), text)


def _text(raw: str | Sequence[str]) -> str:
    """A text, or its lines."""
    return raw if isinstance(raw, str) else "\n".join(raw) + "\n"
