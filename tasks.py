"""The project's verbs. Each body is a few calls into `harness` and `vm`; `./inv --list` shows them all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task as invoke_task

from vm.errors import DownlinkError

if TYPE_CHECKING:
    from harness.config import Configuration
    from harness.package import Package

# Modules of the harness are imported where they are used: `./inv --list` must not pay for WinRM and SFTP.

ROOT = Path(__file__).resolve().parent


def task(**options: Any) -> Callable[[Callable[..., int | None]], Any]:
    """An invoke task whose errors are one sentence and whose interruption is quiet; its result is the exit status."""

    def decorate(body: Callable[..., int | None]) -> Any:
        @functools.wraps(body)
        def run(*arguments: Any, **values: Any) -> None:
            from harness import ci, interrupts

            try:
                with interrupts.signals_interrupt():
                    status = body(*arguments, **values)
            except DownlinkError as error:
                from harness.symptoms.advice import advise

                advise(error)
                raise Exit(ci.render(error), code=error.exit_status) from error
            except KeyboardInterrupt as interrupt:
                raise Exit("interrupted", code=interrupts.exit_status(interrupt)) from interrupt
            if status:
                raise Exit(code=status)

        return invoke_task(run, **options)

    return decorate


@task(
    help={
        "driver": "driver of harness.toml",
        "toolchain": "what compiles it: zig or, on Windows, wdk",
        "configuration": "debug or release",
        "architecture": "x64 (default) or arm64",
        "analyze": "run code analysis, too, with the rules for drivers (toolchain wdk)",
        "wdk": "where the WDK comes from: ewdk, vs or nuget; the first that has one if not given (toolchain wdk)",
    }
)
def build(
    _: Context,
    driver: str = "",
    toolchain: str = "",
    configuration: str = "",
    architecture: str = "",
    analyze: bool = False,
    wdk: str = "",
) -> None:
    """Build the driver into a package under out/; does nothing when it is up to date."""
    from harness.console import Console

    package = _builder(
        _configuration(), driver, toolchain, configuration, architecture, analyze=analyze, wdk=wdk
    )()
    Console().line(
        f"'{package.directory.relative_to(ROOT)}' is up to date: {', '.join(file.name for file in package.manifest.files)}"
    )


@task(
    help={
        "machine": "machine of harness.toml",
        "driver": "driver of harness.toml",
        "toolchain": "what compiles it: zig or, on Windows, wdk",
        "configuration": "debug or release",
    }
)
def deploy(
    _: Context, machine: str = "", driver: str = "", toolchain: str = "", configuration: str = ""
) -> None:
    """Build if stale, start the machine, load the driver in it and leave it running."""
    from harness import verbs
    from harness.console import Console

    settings = _configuration()
    choices = verbs.Choices(driver=driver or None, machine=machine or None)
    settings.machine(choices.machine)
    verbs.deploy(settings, choices, _builder(settings, driver, toolchain, configuration), Console())


@task(
    help={
        "machine": "machine of harness.toml",
        "driver": "driver of harness.toml",
        "select": "marks or names: 'not slow', 'connect and not limit'",
        "workers": "share the suite between so many clones of the machine",
        "checkpoint": "restore this checkpoint instead of the machine's own, as in 'verifier'",
        "resume": "follow the latest run, whose suite goes on in the guest, to its end",
        "toolchain": "what compiles the driver: zig or, on Windows, wdk",
        "configuration": "debug or release",
    }
)
def test(
    _: Context,
    machine: str = "",
    driver: str = "",
    select: str = "",
    workers: int = 1,
    checkpoint: str = "",
    resume: bool = False,
    toolchain: str = "",
    configuration: str = "",
) -> int:
    """Build, start a fresh machine, deploy, run the suites inside it and report."""
    from harness import verbs
    from harness.ci import report
    from harness.console import Console

    settings = _configuration()
    choices = verbs.Choices(
        driver=driver or None,
        machine=machine or None,
        select=select or None,
        workers=workers,
        checkpoint=checkpoint or None,
    )
    console = Console()
    with report.session(console, settings):
        if resume:
            return verbs.resume(settings, console, choices)
        settings.machine(choices.machine)
        return verbs.test(settings, choices, _builder(settings, driver, toolchain, configuration), console)


@task(
    optional=["statistics"],
    help={
        "machine": "machine of harness.toml",
        "driver": "driver of harness.toml",
        "kind": "kinds of events, as in 'opened,written'; all that concern files if not given",
        "path": r"only what happens at or below this path of the guest, as in 'D:\dir'",
        "json": "print one JSON object per line",
        "statistics": "show the connection's counters, too, every second or every so many seconds",
        "failed": "show operations that failed, too",
    },
)
def listen(
    _: Context,
    machine: str = "",
    driver: str = "",
    kind: str = "",
    path: str = "",
    json: bool = False,
    statistics: str = "",
    failed: bool = False,
) -> int:
    """Show what the driver in a machine reports, one line per event as it happens, until Ctrl-C."""
    from harness import listen as listening
    from harness.console import Console

    settings = _configuration()
    chosen = settings.driver(driver or None)
    wanted = listening.request(chosen, kinds=kind, path=path, statistics=statistics, failed=failed)
    return listening.listen(settings, machine or None, chosen, wanted, Console(), as_json=json)


@task(
    help={
        "others": "files of other hosts to compare with, separated by commas",
        "all": "show every fact, not only doubtful ones and differences",
        "json": "print what each machine says as JSON",
    }
)
def facts(_: Context, others: str = "", all: bool = False, json: bool = False) -> None:
    """Compare what machines say about the facts that the suites assert of Windows."""
    from harness import facts as comparison
    from harness.console import Console

    further = [Path(name.strip()) for name in others.split(",") if name.strip()]
    directory = _configuration().runs.directory
    comparison.show(directory, further, Console(), everything=all, as_json=json)


@task()
def check(_: Context) -> int:
    """Run the project's own tests: ruff, its formatter, clang-format, mypy and pytest on the host."""
    from harness import check as checks
    from harness.console import Console

    return checks.run(ROOT, Console())


@task(
    help={
        "machine": "machine of harness.toml",
        "fix": "mend what is harmless to mend (clock, quotas, certificate, directories, ...), then look again",
        "strict": "warnings count for the exit status, too",
        "json": "print one JSON object",
    }
)
def doctor(_: Context, machine: str = "", fix: bool = False, strict: bool = False, json: bool = False) -> int:
    """Check host, toolchain, machine and guest; one line each, with the command that mends it."""
    from harness import doctor as doctors
    from harness.console import Console

    return doctors.run(ROOT, machine or None, Console(), as_json=json, fix=fix, strict=strict)


@task(help={"only": "part of the name of the benchmarks to run", "output": "the JSON file that is written"})
def bench(_: Context, only: str = "", output: str = "bench.json") -> int:
    """Measure, as ratios side by side, and write the numbers to a JSON file."""
    from harness import bench as benchmarks
    from harness.console import Console

    return benchmarks.run(ROOT, only, ROOT / output, Console())


@task()
def clean(_: Context) -> None:
    """Remove what was built (out/, .cache/); never touches a machine or a run."""
    import shutil

    shutil.rmtree(ROOT / "out", ignore_errors=True)
    for path in (ROOT / ".cache").glob("*"):
        # The certificate stays: machines trust it. So does the lock that inv may be holding.
        if path.is_dir() and path.name != "signing":
            shutil.rmtree(path, ignore_errors=True)


@task(
    help={
        "machine": "machine of harness.toml",
        "iso": "Windows ISO, a path on the machine's host",
        "vhdx": "virtual disk with a generalised Windows, a path on the machine's host",
        "edition": "name or number of the edition on the ISO",
    }
)
def create(_: Context, machine: str = "", iso: str = "", vhdx: str = "", edition: str = "") -> None:
    """Make the machine, from an image where its kind needs one, with its checkpoints."""
    from harness import provisioning
    from harness.console import Console
    from vm.managed import Source

    source = Source(iso=iso, vhdx=vhdx, edition=edition)
    provisioning.create(_configuration(), machine or None, source, Console())


@task(help={"machine": "machine of harness.toml", "name": "name of the new checkpoint"})
def checkpoint(_: Context, machine: str = "", name: str = "") -> None:
    """Take a checkpoint of the machine as it is."""
    from harness import provisioning
    from harness.console import Console

    provisioning.checkpoint(_configuration(), machine or None, name, Console())


@task(name="list", help={"machine": "this machine only, with its checkpoints"})
def list_machines(_: Context, machine: str = "") -> None:
    """List the machines with their states and checkpoints."""
    from harness import provisioning
    from harness.console import Console

    provisioning.show(_configuration(), machine or None, Console())


@task(help={"machine": "machine of harness.toml", "yes": "do not ask"})
def destroy(_: Context, machine: str = "", yes: bool = False) -> None:
    """Remove the machine, its checkpoints and its disks; refuses what was not made here."""
    from harness import provisioning
    from harness.console import Console

    provisioning.destroy(_configuration(), machine or None, yes, Console())


@task(help={"machine": "machine of harness.toml"})
def start(_: Context, machine: str = "") -> None:
    """Start the machine and leave it running."""
    _vm("start", machine)


@task(help={"machine": "machine of harness.toml"})
def stop(_: Context, machine: str = "") -> None:
    """Stop the machine; nothing of it is left running."""
    _vm("stop", machine)


@task(help={"machine": "machine of harness.toml"})
def restore(_: Context, machine: str = "") -> None:
    """Put the machine back to its clean state and start it."""
    _vm("restore", machine)


@task(
    help={
        "machine": "machine of harness.toml",
        "command": "run this one command instead of asking for commands",
    }
)
def shell(_: Context, machine: str = "", command: str = "") -> int:
    """Run commands in the guest, as cmd.exe there would."""
    from harness import lifecycle
    from harness.console import Console

    return lifecycle.shell(_configuration(), machine or None, command, Console())


@task()
def testsigning(_: Context) -> None:
    """Ask whether this Windows loads test-signed drivers, and hand the answer to the pipeline."""
    from harness.ci import systems
    from harness.ci import testsigning as asking
    from harness.console import Console

    asking.tell(Console(), systems.detect(), asking.ask())


@task()
def scripts(_: Context) -> int:
    """Look at every PowerShell file with PowerShell's parser and PSScriptAnalyzer; on Windows."""
    from harness.ci import scripts as looking
    from harness.ci import systems
    from harness.console import Console

    return looking.run(ROOT, Console(), systems.detect())


@task(help={"bump": "move the pins to what is newer within their line"})
def wdk(_: Context, bump: bool = False) -> None:
    """Compare the pinned WDK with the published ones, and hand the answer to the pipeline."""
    from harness.ci import systems
    from harness.ci import wdk as pins
    from harness.console import Console

    found, console = pins.look(ROOT), Console()
    pins.tell(console, systems.detect(), found)
    for name in pins.bump(ROOT, found) if bump else ():
        console.line(f"changed '{name}'")


def _vm(verb: str, machine: str) -> None:
    from harness import lifecycle
    from harness.console import Console

    lifecycle.VERBS[verb](_configuration(), machine or None, Console())


def _configuration() -> Configuration:
    from harness import config

    return config.load(ROOT)


def _builder(
    settings: Configuration,
    driver: str,
    toolchain: str,
    configuration: str,
    architecture: str = "",
    *,
    analyze: bool = False,
    wdk: str = "",
) -> Callable[[], Package]:
    """The build with these options, checked now and run later."""
    from harness import builds

    return builds.prepare(
        settings,
        driver or None,
        toolchain or None,
        configuration or None,
        architecture or None,
        analyze=analyze,
        wdk=wdk or None,
    )


ns = Collection(build, deploy, test, listen, facts, check, doctor, bench, clean)
ns.add_collection(Collection("vm", create, start, stop, restore, checkpoint, list_machines, destroy, shell))
ns.add_collection(Collection("ci", testsigning, scripts, wdk))
