"""The command line: errors are one sentence, exit statuses tell, nothing prints a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60


def invoke(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", "--search-root", str(ROOT), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )


def test_every_verb_of_the_documents_is_a_task_with_a_sentence_of_help() -> None:
    listed = json.loads(invoke("--list", "--list-format=json").stdout)
    tasks = {task["name"]: task["help"] for task in listed["tasks"]}
    tasks |= {
        f"{part['name']}.{task['name']}": task["help"]
        for part in listed["collections"]
        for task in part["tasks"]
    }

    documented = set(re.findall(r"\./inv ([a-z][a-z.]*)", (ROOT / "README.md").read_text(encoding="utf-8")))
    usage = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    table = usage.split("## Verbs")[1].split("## Exit status")[0]
    for cell in re.findall(r"^\| ((?:`[a-z.]+`(?:, )?)+) \|", table, re.MULTILINE):
        documented |= set(re.findall(r"`([a-z.]+)`", cell))

    assert documented <= set(tasks)
    assert set(tasks) <= documented, "a task that no document mentions"
    assert all(help.endswith((".", "machine.")) for help in tasks.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["test", "--machine", "emulatet"], "there is no machine 'emulatet' in harness.toml"),
        (["deploy", "--machine", "emulatet"], "did you mean 'emulated'?"),
        (["test", "--driver", "uplink"], "there is no driver 'uplink' in harness.toml"),
        (["build", "--toolchain", "wkd"], "there is no toolchain 'wkd'"),
        (["build", "--configuration", "releas"], "did you mean 'release'?"),
        (["vm.start", "--machine", "x"], "there is no machine 'x'"),
        (["frobnicate"], "No idea what 'frobnicate' is!"),
        (["test", "--frobnicate"], "No idea what '--frobnicate' is!"),
        (["test", "--select", 'a"b'], "does not pass through cmd.exe"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(arguments: list[str], sentence: str) -> None:
    done = invoke(*arguments)

    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) <= 2


def test_the_list_of_tasks_does_not_load_what_only_machines_need() -> None:
    script = (
        "import sys; sys.path.insert(0, '.'); import tasks\n"
        "heavy = {'winrm', 'paramiko', 'unicorn', 'cryptography', 'requests'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=True
    )

    assert done.stdout.strip() == "[]"


def test_tasks_work_from_any_directory(tmp_path: Path) -> None:
    done = invoke("doctor", "--json", cwd=tmp_path)

    findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["host.configuration"]["severity"] == "ok"
    assert findings["host.python"]["severity"] == "ok"


def test_the_doctor_fails_for_a_machine_that_does_not_exist() -> None:
    done = invoke("doctor", "--machine", "emulatet")

    assert done.returncode == 1
    assert "mend: did you mean 'emulated'?" in done.stdout


def test_a_task_that_is_interrupted_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('real_tasks', {str(ROOT / 'tasks.py')!r})\n"
        "real = importlib.util.module_from_spec(spec); spec.loader.exec_module(real)\n"
        "import os, signal\n"
        "@real.task()\n"
        "def stuck(_):\n"
        "    '''Interrupts itself.'''\n"
        "    os.kill(os.getpid(), signal.SIGTERM if 'TERM' in os.environ else signal.SIGINT)\n"
        "    signal.pause()\n",
        encoding="utf-8",
    )
    for extra, status in (({}, 130), ({"TERM": "1"}, 143)):
        environment = {name: value for name, value in os.environ.items() if name != "TERM"} | extra
        done = subprocess.run(
            [sys.executable, "-m", "invoke", "stuck"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == status
        assert done.stderr.strip() == "interrupted"


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_while_everything_is_still_being_imported_is_quiet() -> None:
    script = (
        "import os, signal, sys, importlib.abc, runpy\n"
        "class Interrupt(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'invoke':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "runpy.run_module('harness', run_name='__main__', alter_sys=True)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )

    assert done.returncode == 130
    assert done.stderr == "" and done.stdout == ""
