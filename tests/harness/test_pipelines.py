"""The pipelines: valid by the published schemas, and every command in them a task with options that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from invoke.exceptions import ParseError
from invoke.parser import Parser

import tasks
from harness import config, secrets
from tests.lint import pipelines
from tests.lint.pipelines import Job

ROOT = Path(__file__).resolve().parents[2]
JOBS = list(pipelines.jobs(ROOT))
STEPS = [step for job in JOBS for step in job.steps]
CALLS = sorted({(step.where, tuple(call)) for step in STEPS for call in pipelines.task_calls(step)})
WORKFLOWS = pipelines.workflows(ROOT)
HASH = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
LAB = ("win2022", "win2025", "win11")
AROUND_A_RUN_SECONDS = 420
"""What a run takes beside `runs.deadline_seconds`, at most: start, collection of evidence, unload, stop."""

OTHER_PROGRAMS = ("nuget", "git", "gh", "python", "echo", "if", "fi", "exit")


def validate(schema: str, document: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema", "--no-cache"),
            # The schema of Azure has patterns that are none in Unicode mode.
            *("--regex-variant", "nonunicode", "--builtin-schema", schema, str(document)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_fit_their_schema(path: Path) -> None:
    validate("vendor.github-workflows", path)


@pytest.mark.parametrize("path", pipelines.actions(ROOT), ids=lambda path: path.parent.name)
def test_actions_fit_their_schema(path: Path) -> None:
    validate("vendor.github-actions", path)


@pytest.mark.parametrize("path", pipelines.azure(ROOT), ids=lambda path: path.name)
def test_azure_pipelines_fit_their_schema(path: Path, tmp_path: Path) -> None:
    document = tmp_path / "pipeline.json"
    document.write_text(json.dumps(_numbers(pipelines.expanded(path))), encoding="utf-8")

    validate("vendor.azure-pipelines", document)


def test_a_wrong_pipeline_is_seen(tmp_path: Path) -> None:
    document = tmp_path / "pipeline.json"
    document.write_text(json.dumps({"jobs": [{"job": "a", "stepps": []}]}), encoding="utf-8")

    with pytest.raises(AssertionError):
        validate("vendor.azure-pipelines", document)


@pytest.mark.parametrize(
    ("where", "call"), CALLS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value
)
def test_every_command_is_a_task_with_options_that_exist(where: str, call: tuple[str, ...]) -> None:
    parse(list(call))


@pytest.mark.parametrize("wrong", (["tset"], ["test", "--machin", "local"], ["build", "--toolchain"]))
def test_a_command_that_is_no_task_is_seen(wrong: list[str]) -> None:
    with pytest.raises(ParseError):
        parse(wrong)


def parse(call: list[str]) -> dict[str, Any]:
    """The options of a call, by invoke itself; raises `ParseError`."""
    parsed = Parser(contexts=tasks.ns.to_contexts()).parse_argv(call)
    assert len(parsed) == 1 and not parsed.unparsed, f"'{' '.join(call)}' is not one task"
    return {name: argument.value for name, argument in parsed[0].args.items()}


@pytest.mark.parametrize(
    ("where", "call"), CALLS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value
)
def test_every_value_of_an_option_exists(where: str, call: tuple[str, ...]) -> None:
    settings = config.load(ROOT)
    known = {
        "toolchain": config.TOOLCHAINS,
        "configuration": config.CONFIGURATIONS,
        "architecture": ("x64", "arm64"),
        "checkpoint": ("clean", "verifier"),
        "machine": (*settings.machines, *LAB, "${matrix.machine}"),
        "driver": tuple(settings.drivers),
    }
    for name, value in parse(list(call)).items():
        if value and name in known:
            assert value in known[name], f"--{name} {value}"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.where)
def test_steps_run_tasks_and_nothing_else_worth_a_task(job: Job) -> None:
    for step in job.steps:
        for line in step.lines:
            program = line.split()[0]
            assert program in ("./inv", ".\\inv.cmd", *OTHER_PROGRAMS), line
        # PowerShell, the shell on hosted Windows, goes on after a program that failed.
        if any(".cmd" in line for line in step.lines):
            assert len(step.lines) == 1, step.where


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.where)
def test_deadlines_are_nested(job: Job) -> None:
    runs = config.load(ROOT).runs
    assert runs.test_seconds < runs.deadline_seconds
    for step in job.steps:
        assert step.minutes, f"'{step.lines[0]}' of {step.where} has no limit"
        for call in pipelines.task_calls(step):
            if call[0] == "test":
                assert step.minutes * 60 > runs.deadline_seconds + AROUND_A_RUN_SECONDS
    assert job.minutes > sum(step.minutes for step in job.steps), job.where


def test_actions_are_pinned_by_commit_with_the_version_beside_it() -> None:
    used = [
        (path.name, line.split("uses:")[1].strip())
        for path in (*WORKFLOWS, *pipelines.actions(ROOT))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(- )?uses:", line)
    ]
    foreign = [(file, name) for file, name in used if not name.startswith("./ci/github/")]

    assert foreign
    assert [(file, name) for file, name in foreign if not HASH.fullmatch(name)] == []
    versions: dict[str, set[str]] = {}
    for _, name in foreign:
        versions.setdefault("/".join(name.split("@")[0].split("/")[:2]), set()).add(name.split("@")[1])
    assert all(len(found) == 1 for found in versions.values()), versions


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_least_permissions_and_keep_no_credentials(path: Path) -> None:
    workflow = pipelines.load(path)
    allowed = {"codeql.yml": {"security-events"}, "wdk.yml": {"contents", "pull-requests", "actions"}}.get(
        path.name, set()
    )

    assert workflow["permissions"] == {"contents": "read"}
    # 'on' is a truth value to YAML 1.1.
    triggers = workflow.get("on", workflow.get(True))
    assert "pull_request_target" not in triggers and "workflow_run" not in triggers
    for job in workflow["jobs"].values():
        written = {name for name, right in job.get("permissions", {}).items() if right == "write"}
        assert written <= allowed
        for step in job["steps"]:
            if "checkout@" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize(
    "path", (*WORKFLOWS, *pipelines.actions(ROOT)), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_nothing_that_others_write_gets_into_a_command(path: Path) -> None:
    """Titles, branches and inputs are text of others: they go through the environment (script injection)."""
    text = path.read_text(encoding="utf-8")
    commands = re.findall(r"^\s*(?:- )?run: (?:[|>]-?\n((?:\s{10,}.*\n)+)|(.*))", text, re.MULTILINE)
    for block, line in commands:
        for expression in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", block or line):
            assert expression.startswith("matrix."), expression


def test_our_own_hardware_runs_nothing_of_forks() -> None:
    workflow = pipelines.load(ROOT / pipelines.WORKFLOWS / "hyperv.yml")
    for job in workflow["jobs"].values():
        if "self-hosted" in job["runs-on"]:
            assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"]
            assert job["environment"]
            assert job["concurrency"] == {"group": "vm-${{ matrix.machine }}", "cancel-in-progress": False}
            assert "vm-${{ matrix.machine }}" in job["runs-on"]
    elsewhere = [path.name for path in WORKFLOWS if "self-hosted" in path.read_text(encoding="utf-8")]
    assert elsewhere == ["hyperv.yml"]
    for stage in pipelines.expanded(ROOT / "ci/azure/azure-pipelines.yml")["stages"]:
        if any("name" in job["pool"] for job in stage["jobs"]):
            assert "ne(variables['System.PullRequest.IsFork'], 'True')" in stage["condition"]


def test_both_systems_have_the_same_lab_and_each_job_the_secret_of_its_machine() -> None:
    workflow = pipelines.load(ROOT / pipelines.WORKFLOWS / "hyperv.yml")
    (job,) = workflow["jobs"].values()
    rows = {row["machine"]: row["windows"] for row in job["strategy"]["matrix"]["include"]}
    stage = pipelines.expanded(ROOT / "ci/azure/azure-pipelines.yml")["stages"][-1]

    assert tuple(rows) == LAB
    assert {each["job"]: each["displayName"] for each in stage["jobs"]} == rows
    names = {machine: secrets.variable(f"{machine}.password") for machine in LAB}
    assert set(job["env"]) == set(names.values())
    for machine, name in names.items():
        assert job["env"][name] == f"${{{{ matrix.machine == '{machine}' && secrets.{name} || '' }}}}"
    for each in stage["jobs"]:
        given = {key for step in each["steps"] for key in step.get("env", {})}
        assert given == {names[each["job"]]}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_job_made_is_kept_also_when_it_failed(path: Path) -> None:
    for name, job in pipelines.load(path)["jobs"].items():
        makes = any(re.search(r"inv(\.cmd)? (build|test)\b", step.get("run", "")) for step in job["steps"])
        if makes:
            last = job["steps"][-1]
            assert last["uses"] == "./ci/github/keep" and last["if"] == "always()", f"{path.name}: {name}"


def test_azure_keeps_what_a_job_made_also_when_it_failed() -> None:
    for stage in pipelines.expanded(ROOT / "ci/azure/azure-pipelines.yml")["stages"]:
        for job in stage["jobs"]:
            if any(re.search(r"inv(\.cmd)? (build|test)\b", step.get("script", "")) for step in job["steps"]):
                kept = [step for step in job["steps"] if step.get("task", "").startswith("Publish")]
                assert len(kept) == 2
                assert all(step["condition"] == "always()" for step in kept)


def test_nothing_lies_in_ci_that_is_not_run_from_there() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "ci"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    files = {ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    used = {*pipelines.azure(ROOT)}
    used |= {template for path in pipelines.azure(ROOT) for template in pipelines.templates(path)}
    callers = [*WORKFLOWS, *pipelines.actions(ROOT), *(ROOT / "harness" / "ci").glob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in callers)
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if name in text or (
            path.name == "action.yml" and f"uses: ./{path.parent.relative_to(ROOT).as_posix()}" in text
        ):
            used.add(path)

    assert files
    assert sorted(files - used) == []


def test_caches_change_with_what_they_hold() -> None:
    for path in (*WORKFLOWS, *pipelines.actions(ROOT)):
        text = path.read_text(encoding="utf-8")
        for key in re.findall(r"^\s+key: (.*)$", text, re.MULTILINE):
            assert "hashFiles(" in key
        assert text.count("cache: pip") == text.count("cache-dependency-path: pyproject.toml")


def test_every_supported_python_is_tested_on_both_systems() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first = project["requires-python"].removeprefix(">=")
    versions = pipelines.load(WORKFLOWS[0])["jobs"]["linux"]["strategy"]["matrix"]["python"]
    rows = pipelines.expanded(ROOT / "ci/azure/azure-pipelines.yml")["stages"][0]["jobs"][0]["strategy"][
        "matrix"
    ]

    assert versions[0] == first
    assert [row["python"] for row in rows.values()] == versions


def _numbers(value: Any) -> Any:
    """The published schema wants whole numbers in steps with 'task', and text everywhere else."""
    if isinstance(value, dict):
        return {
            key: int(child) if key == "timeoutInMinutes" and "task" in value else _numbers(child)
            for key, child in value.items()
        }
    return [_numbers(child) for child in value] if isinstance(value, list) else value
