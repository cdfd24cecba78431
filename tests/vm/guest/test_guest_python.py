"""The guest's Python: an interpreter of its own, in an environment of its own."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vm.emulated.guest import python_image
from vm.emulated.guest.processes import ProcessInformation, ProcessTable
from vm.emulated.guest.streams import CommandTerminatedError
from vm.errors import MachineError


def test_pytest_and_what_it_needs_are_there_and_nothing_else(python_prompt: Any) -> None:
    names = {distribution.name.lower() for distribution in python_image.distributions(["pytest"])}
    listed = python_prompt(
        'python -c "from importlib.metadata import distributions as d; print(*{i.name.lower() for i in d()})"'
    )
    assert set(listed.out.split()) == names
    assert {"pytest", "pluggy", "iniconfig"} <= names
    for module in ("unicorn", "paramiko", "winrm", "invoke", "vm", "harness"):
        assert "ModuleNotFoundError" in python_prompt(f'python -c "import {module}"').err


def test_nothing_of_the_hosts_environment_gets_in(
    python_prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    names = python_prompt('python -c "import os; print(*os.environ)"').out.split()
    assert set(names) <= {
        "PATH",
        "TEMP",
        "TMP",
        "TMPDIR",
        "COMPUTERNAME",
        "USERNAME",
        "DOWNLINK_EMULATED",
        "LC_CTYPE",
        "SYSTEMROOT",
        "WINDIR",
        "__CF_USER_TEXT_ENCODING",
    }
    assert "DOWNLINK_EMULATED" in names


def test_guest_paths_are_translated_on_the_way_in(python_prompt: Any) -> None:
    prompt = python_prompt
    prompt("mkdir lib\\pack& mkdir Out")
    prompt.path("lib/pack/__init__.py").write_text("ANSWER = 42\n")
    prompt.path("show.py").write_text("import sys, pack; print(pack.ANSWER, *sys.argv[1:], sep='|')\n")
    prompt("set PYTHONPATH=C:\\Work\\LIB;C:\\missing")
    root = prompt.guest.drive.root
    result = prompt(
        "python C:\\WORK\\show.py --junitxml=C:\\Work\\out\\new.xml out\\x::a[b\\c] a\\nb C:\\Work\\show.py::test"
    )
    assert result.out.strip().split("|") == [
        "42",
        f"--junitxml={root}/Work/Out/new.xml",
        f"{root}/Work/Out/x::a[b\\c]",
        "a\\nb",
        f"{root}/Work/show.py::test",
    ]
    code = prompt("python -c \"print(len('C:\\\\Work'), 'a\\tb')\"")
    assert code.out.strip() == "7 a\tb"
    assert "C:/1" in prompt("python -c C:/1").err
    prompt("set RESULTS=C:\\Work\\out")
    assert prompt("python -c \"import os; print(os.environ['RESULTS'])\"").out.strip() == f"{root}/Work/Out"
    assert prompt('cd Out& python -c "import os; print(os.getcwd())"').out.strip() == f"{root}/Work/Out"
    temp = prompt('python -c "import tempfile; print(tempfile.gettempdir())"').out.strip()
    assert Path(temp) == root / "Windows/Temp"


def test_exit_codes_and_streams_pass_through(python_prompt: Any) -> None:
    result = python_prompt(
        "python -c \"import sys; sys.stdout.write(sys.stdin.read().upper()); sys.stderr.write('e'); sys.exit(3)\"",
        stdin=b"abc",
    )
    assert (result.code, result.out, result.err) == (3, "ABC", "e")
    crash = python_prompt('python -c "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"')
    assert crash.code == 0xC0000005


def test_a_suite_runs_in_the_guest(python_prompt: Any) -> None:
    python_prompt.path("test_it.py").write_text("def test_yes(): pass\ndef test_no(): assert False\n")
    result = python_prompt(
        "python -m pytest -q -p no:cacheprovider --junitxml=C:\\Work\\junit.xml C:\\Work\\test_it.py"
    )
    assert result.code == 1
    assert "1 failed, 1 passed" in result.out
    assert 'tests="2"' in python_prompt.path("junit.xml").read_text()


def test_termination_ends_the_whole_tree(python_prompt: Any, wait_until: Any) -> None:
    prompt = python_prompt
    prompt.path("tree.py").write_text(
        "import subprocess, sys, time\n"
        "if len(sys.argv) == 1:\n"
        "    detached = subprocess.Popen([sys.executable, __file__, 'x'], start_new_session=True)\n"
        "    child = subprocess.Popen([sys.executable, __file__, 'x'])\n"
        "    print(detached.pid, child.pid, flush=True)\n"
        "    open('pids', 'w').write(f'{detached.pid} {child.pid}\\n')\n"
        "time.sleep(600)\n"
    )
    outcome: list[type[BaseException]] = []

    def work() -> None:
        try:
            prompt("python tree.py")
        except CommandTerminatedError:
            outcome.append(CommandTerminatedError)

    thread = threading.Thread(target=work)
    thread.start()
    file = prompt.path("pids")
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the tree")
    pids = [int(text) for text in file.read_text().split()]
    assert [item.image for item in prompt.guest.processes.running()] == ["python.exe"]
    prompt.cancellation.cancel()
    thread.join(10)
    assert outcome == [CommandTerminatedError]
    for pid in pids:
        wait_until(lambda pid=pid: not _alive(pid), f"the end of process {pid}")
    assert prompt.guest.processes.running() == []


def test_what_a_process_leaves_behind_ends_with_it(python_prompt: Any, wait_until: Any) -> None:
    began = time.monotonic()
    result = python_prompt(
        'python -c "import subprocess, sys; '
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); print(p.pid)\""
    )
    assert time.monotonic() - began < 10
    wait_until(lambda: not _alive(int(result.out)), "the end of the left-over process")


def test_tasklist_and_taskkill_reach_a_running_process(python_prompt: Any, wait_until: Any) -> None:
    prompt = python_prompt
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(prompt('python -c "import time; time.sleep(600)"').code)
    )
    thread.start()
    wait_until(lambda: prompt.guest.processes.running(), "the process")
    other = prompt.guest.processes.running()[0]
    assert f'"python.exe","{other.process_id}","Services","0"' in prompt("tasklist /fo csv /nh").out
    killed = prompt("taskkill /f /im python.exe")
    assert killed.code == 0
    assert killed.out.startswith(f'SUCCESS: The process "python.exe" with PID {other.process_id}')
    thread.join(10)
    assert codes == [1]


def test_a_client_of_the_kernel_is_shown_and_ended_only_if_the_guest_started_it(
    tmp_path: Path, wait_until: Any
) -> None:
    clients: list[ProcessInformation] = []
    table = ProcessTable(clients=lambda: clients)
    line = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0); print(p.pid, flush=True); p.wait()"
    head = table.start(
        [sys.executable, "-c", line],
        image="python.exe",
        command_line="",
        environment={},
        directory=tmp_path,
        merge_stderr=True,
    )
    child = int(head.stdout.readline())
    clients += [ProcessInformation(child, "child.exe"), ProcessInformation(os.getpid(), "liar.exe")]
    assert {item.image for item in table.running()} == {"python.exe", "child.exe", "liar.exe"}
    assert not table.kill(os.getpid())
    assert table.kill(child)
    assert table.finish(head) == 0
    assert not _alive(child)
    table.close()
    with pytest.raises(OSError, match="going down"):
        table.start(
            [sys.executable], image="", command_line="", environment={}, directory=tmp_path, merge_stderr=True
        )


def test_a_fresh_guest_gets_its_python_in_no_time(tmp_path: Path, prompt: Any) -> None:
    cache = prompt.guest.settings.cache_directory
    python_image.install(tmp_path / "first", cache)
    began = time.monotonic()
    program = python_image.install(tmp_path / "second", cache)
    assert time.monotonic() - began < 0.5
    assert program.exists()
    assert not any("site-packages/pip" in str(path) for path in (tmp_path / "second").rglob("pip"))


def test_a_package_that_the_host_lacks_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        MachineError, match="'no-such-package' that the guest's Python needs is not installed"
    ) as caught:
        python_image.install(tmp_path / "c", tmp_path / "cache", ["no-such-package"])
    assert caught.value.hint
    assert not (tmp_path / "c" / "Python").exists()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
