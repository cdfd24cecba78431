"""A suite and the command that runs it in the guest: the same for a command that is held on to and for a task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.deployment.plan import GUEST_ROOT
from harness.remote.quoting import quotable
from harness.runs import upload
from vm.errors import ConfigurationError

WORKING_DIRECTORY = str(GUEST_ROOT / str(upload.LIBRARY))
"""Where `python -m` imports from: harness.client and the plugin, nothing else."""

OUTPUT_FILE = "output.txt"
ERRORS_FILE = "errors.txt"
EVENTS_FILE = "events.jsonl"

_EXIT_PROBLEMS = {
    3: "pytest in the guest failed internally; look at guest-output.txt",
    4: "pytest in the guest refused its command line; look at guest-output.txt",
}
_EXIT_NO_TESTS = 5
_EXIT_TOLD = (0, 1, 2)
"""All passed, some failed, interrupted in the guest: the events tell which."""


@dataclass(frozen=True, slots=True)
class SuiteRequest:
    """What to run: the suite's directory on the host, a selection (None = everything), a limit per test."""

    root: Path
    suites: Path
    select: str | None
    test_seconds: int


@dataclass(frozen=True, slots=True)
class SuiteEnd:
    """How pytest in the guest ended: its exit code (unsigned) and what it wrote to standard error."""

    exit_code: int
    errors: str

    @property
    def selected_nothing(self) -> bool:
        """No test of those that pytest looked at matched the selection."""
        return self.exit_code == _EXIT_NO_TESTS

    @property
    def problem(self) -> str | None:
        """What went wrong outside of any test, None when the events say everything."""
        if "\nTimeout (" in f"\n{self.errors}":
            return f"a test took too long and was ended:\n{self.errors.strip()}"
        if self.exit_code in _EXIT_TOLD:
            return None
        if self.selected_nothing:
            return "no test matches the selection"
        if self.exit_code in _EXIT_PROBLEMS:
            said = next((line for line in self.errors.splitlines() if line.startswith("ERROR:")), "")
            return said.removeprefix("ERROR:").strip() or _EXIT_PROBLEMS[self.exit_code]
        trace = self.errors.strip()
        return f"pytest in the guest ended with 0x{self.exit_code:X}" + (f":\n{trace}" if trace else "")


def check_selection(select: str | None) -> None:
    """Refuse a selection that cannot reach the guest unchanged; raises `ConfigurationError`."""
    if select is not None and not quotable(select):
        raise ConfigurationError(
            f"the selection {select!r} has a character that does not pass through cmd.exe",
            hint='leave out double quotes and percent signs: --select "not slow"',
        )


def results_directory(run: str) -> str:
    """Where the guest keeps what a run of that name writes, relative to the working directory."""
    return f"../{upload.RESULTS}/{run}"


def pytest_arguments(
    request: SuiteRequest, prefix: str, run: str, files: tuple[str, ...] = (), *, sync: bool = False
) -> list[str]:
    """What Python in the guest is started with.

    Args:
        request: what to run.
        prefix: what each event's line starts with.
        run: name of the run's directory.
        files: test files of the suite, by their names; all of them if there are none.
        sync: write each event through to the disk before the test goes on.
    """
    # Relative with slashes: the same on Windows and where the emulated guest keeps its C: drive.
    suites = f"../{upload.SUITES}"
    return [
        *("-m", "pytest", "-q", "--no-header", "--no-summary", "--color=no", "--tb=short"),
        *("-p", "no:cacheprovider", "-p", "guest_plugin"),
        *("-c", f"{suites}/pytest.ini", f"--rootdir={suites}"),
        *(f"--event-prefix={prefix}", f"--event-file={results_directory(run)}/{EVENTS_FILE}"),
        *(("--event-sync",) if sync else ()),
        f"--test-seconds={request.test_seconds}",
        *((f"--select={request.select}",) if request.select else ()),
        *([f"{suites}/{file}" for file in files] or [suites]),
    ]
