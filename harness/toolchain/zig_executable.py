"""The zig executable of the installed `ziglang` wheel: finding it, its versions, running one of its tools."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.toolchain.source import ToolchainVersions
from harness.toolchain.stale import write_atomically
from vm.deadline import Deadline
from vm.errors import BuildError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Zig:
    """The zig executable of the installed wheel, and how to run it."""

    executable: Path
    cache: Path

    @classmethod
    def find(cls, cache: Path) -> Zig:
        # Not `python -m ziglang`: that costs an interpreter start (0.15 s) for every compiler start.
        spec = importlib.util.find_spec("ziglang")
        if spec is None or not spec.submodule_search_locations:
            raise BuildError(
                "the toolchain 'zig' is not installed", hint="run 'python -m pip install ziglang'"
            )
        executable = Path(next(iter(spec.submodule_search_locations))) / (
            "zig.exe" if os.name == "nt" else "zig"
        )
        if not executable.is_file():
            raise BuildError(
                f"the package 'ziglang' has no executable at '{executable}'",
                hint="run 'python -m pip install --force-reinstall ziglang'",
            )
        return cls(executable, cache)

    @property
    def library(self) -> Path:
        return self.executable.parent / "lib"

    @cached_property
    def identity(self) -> str:
        """Changes when the wheel does; costs no process."""
        status = self.executable.stat()
        return f"{self.executable}|{status.st_size}|{status.st_mtime_ns}"

    def versions(self, deadline: Deadline) -> ToolchainVersions:
        """Versions of the wheel and of the clang in it; asked of the compiler once per installed wheel."""
        known = self.cache / "versions.json"
        try:
            raw = json.loads(known.read_text(encoding="utf-8"))
            if raw["identity"] == self.identity:
                return {str(name): str(version) for name, version in raw["versions"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        printed = self.run(["clang", "--version"], "ask clang for its version", deadline)
        match = re.search(r"clang version (\S+)", printed)
        versions = {
            "ziglang": importlib.metadata.version("ziglang"),
            "clang": match[1] if match else "unknown",
        }
        write_atomically(known, json.dumps({"identity": self.identity, "versions": versions}).encode())
        return versions

    def run(
        self, arguments: Sequence[str], what: str, deadline: Deadline, *, directory: Path | None = None
    ) -> str:
        """Run `zig <arguments>` and return what it printed; raise `BuildError` with that if it failed."""
        environment = {
            **os.environ,
            "ZIG_GLOBAL_CACHE_DIR": str(self.cache / "global"),
            "ZIG_LOCAL_CACHE_DIR": str(self.cache / "local"),
        }
        began = time.monotonic()
        deadline.check(f"the toolchain to {what}")
        try:
            done = subprocess.run(
                [str(self.executable), *arguments],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=min(deadline.remaining, 86400.0),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(
                f"the toolchain did not {what} in time", output=_text(error.output or b"")
            ) from error
        except OSError as error:
            raise BuildError(f"'{self.executable}' cannot be run: {error}") from error
        log.debug(
            "zig %s: %.3f s, exit status %d", " ".join(arguments), time.monotonic() - began, done.returncode
        )
        output = _text(done.stdout)
        if done.returncode != 0:
            raise BuildError(f"the toolchain could not {what}", output=output)
        return output


def _text(output: bytes) -> str:
    return output.decode("utf-8", errors="replace").replace("\r\n", "\n")
