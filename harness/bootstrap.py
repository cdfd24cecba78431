"""Makes `.venv` and installs the project into it; a script of its own that `inv` runs with any Python 3.11+.

Standard library only, because nothing is installed yet. The kernel's file lock keeps concurrent calls apart and dies
with its owner; the stamp is written last, so whatever was interrupted is made anew by the next call.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed-from"
LOCK = ROOT / ".cache" / "venv.lock"
PROJECT = ROOT / "pyproject.toml"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

INSTALL_SECONDS = 900
"""Enough for all downloads on a slow line; a hung package index must not hang a pipeline for ever."""


class BootstrapError(Exception):
    """The environment cannot be made; the message is for the user, the second argument a hint."""


def main(arguments: list[str]) -> int:
    """Bring `.venv` up to date; with `--check` only tell (exit status 0 = up to date)."""
    try:
        if "--check" in arguments:
            return 0 if up_to_date() else 1
        with only_one():
            if not up_to_date():
                install()
    except BootstrapError as error:
        print(f"error: {error.args[0]}\nhint: {error.args[1]}", file=sys.stderr)  # noqa: T201 - there is no console yet
        return 1
    except KeyboardInterrupt:
        print("interrupted; the next call starts over", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def stamp() -> bytes:
    """What the stamp holds when the environment fits: the checkout's path and the project file, as `inv` compares."""
    return os.fsencode(str(ROOT)) + b"\n" + PROJECT.read_bytes()


def up_to_date() -> bool:
    """True when `.venv` was completely installed from the present `pyproject.toml` in this very place."""
    try:
        return PYTHON.exists() and STAMP.read_bytes() == stamp()
    except OSError:
        return False


def install() -> None:
    """Install the project with its development tools into `.venv`.

    A complete environment whose project file changed is brought up to date in place, because other commands may be
    running from it. Everything else is made from nothing: a package that a killed installer left half copied would
    look installed for ever.
    """
    started = time.monotonic()
    complete = (
        PYTHON.exists() and STAMP.exists() and STAMP.read_bytes().startswith(os.fsencode(str(ROOT)) + b"\n")
    )
    STAMP.unlink(missing_ok=True)
    if complete:
        say("pyproject.toml changed, bringing .venv up to date ...")
    else:
        say("making .venv and installing the project, this takes a minute the first time ...")
        make_environment()
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    installed = run(
        [str(PYTHON), "-m", "pip", "install", *quiet, "-e", f"{ROOT}[dev]"], seconds=INSTALL_SECONDS
    )
    if installed.returncode != 0:
        remove(VENV)
        raise BootstrapError(
            f"the project's dependencies could not be installed:\n{last_lines(installed.stdout)}",
            "check the connection to the package index (pip config list), then run the command again",
        )
    STAMP.write_bytes(stamp())
    say(f"installed in {time.monotonic() - started:.0f} s")


def make_environment() -> None:
    """An empty virtual environment in place of whatever is there."""
    remove(VENV)
    # The resolved interpreter, so that .venv breaks visibly (and is made anew) when that version is uninstalled.
    base = os.path.realpath(sys.executable)
    made = run([base, "-I", "-m", "venv", str(VENV)], seconds=120)
    if made.returncode != 0:
        remove(VENV)
        raise venv_error(made.stdout)


def venv_error(output: str) -> BootstrapError:
    """What to install when `python -m venv` does not work: distributions pack it, or ensurepip, apart."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if "ensurepip" in output or "No module named venv" in output:
        return BootstrapError(
            f"this Python {version} cannot make virtual environments: its 'venv' or 'ensurepip' module is missing",
            f"install it: apt install python3-venv (or python{version}-venv) on Debian and Ubuntu,"
            " then run the command again",
        )
    return BootstrapError(
        f"'python -m venv' failed:\n{last_lines(output)}",
        f"look at '{sys.executable}', or set DOWNLINK_PYTHON",
    )


def run(command: list[str], *, seconds: int) -> subprocess.CompletedProcess[str]:
    """Run `command` with both outputs captured together; killed when this process is interrupted."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=seconds,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        remove(VENV)
        raise BootstrapError(
            f"'{' '.join(command[1:4])}' did not end within {seconds} s",
            "check the connection to the package index, then run the command again",
        ) from error


def remove(directory: Path) -> None:
    """Remove `directory` whole; the stamp goes first, so that half a removal is never taken for an environment."""
    try:
        (directory / STAMP.name).unlink(missing_ok=True)
        if directory.exists():
            shutil.rmtree(directory)
    except OSError as error:
        raise BootstrapError(
            f"'{directory.name}' cannot be replaced: {error.strerror}",
            "close what uses it, or remove it by hand",
        ) from error


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the lock of this checkout; waits for another call that is installing."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+b") as file:
        if not try_lock(file.fileno()):
            say("waiting for another call that is installing ...")
            deadline = time.monotonic() + INSTALL_SECONDS
            while not try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise BootstrapError(
                        "another call has been installing for too long", f"look who holds '{LOCK}'"
                    )
                time.sleep(0.1)  # polling is what both file-lock interfaces have in common
        yield


if sys.platform == "win32":
    import msvcrt

    def try_lock(descriptor: int) -> bool:
        """Take the lock if it is free; the system frees it when the process ends."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Take the lock if it is free; the system frees it when the process ends."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def last_lines(output: str, count: int = 12) -> str:
    """The end of a tool's output, indented: where installers say what was wrong."""
    lines = [line for line in output.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-count:]) or "  (it printed nothing)"


def say(text: str) -> None:
    """One line of progress, beside the output of the task itself."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
