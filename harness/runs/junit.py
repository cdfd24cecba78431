"""`junit.xml` from the results of a run, in the form that CI systems read."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from harness.runs.results import Outcome, Results, TestResult

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FAILURES = (Outcome.FAILED, Outcome.XPASSED)
_ERRORS = (Outcome.ERROR, Outcome.CRASHED, Outcome.INTERRUPTED)
_SKIPPED = (Outcome.SKIPPED, Outcome.XFAILED, Outcome.NOT_RUN)


def write(results: Results, path: Path) -> None:
    """Write `results` to `path`; what XML cannot hold is shown as `\\xNN`."""
    machine = str(results.head.get("machine", ""))
    problems = [
        *results.problems,
        *(f"bugcheck {crash['name']}: {crash['rule'] or ''}" for crash in results.crashes),
        *(f"{violation['rule']}: {violation['message']}" for violation in results.violations),
    ]
    suite = ElementTree.Element(
        "testsuite",
        name="downlink",
        hostname=machine,
        timestamp=str(results.head.get("time", "")),
        tests=str(len(results.tests) + len(problems)),
        failures=str(results.count(*_FAILURES)),
        errors=str(results.count(*_ERRORS) + len(problems)),
        skipped=str(results.count(*_SKIPPED)),
        time=f"{sum(test.seconds for test in results.tests):.3f}",
    )
    _properties(suite, [("machine", machine), *_head_properties(results)])
    for test in results.tests:
        _case(suite, test, results)
    for number, problem in enumerate(problems, 1):
        case = ElementTree.SubElement(
            suite, "testcase", classname="machine", name=f"condition {number}", time="0"
        )
        ElementTree.SubElement(case, "error", message=_clean(problem)).text = _clean(problem)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    draft = path.with_suffix(".part")
    ElementTree.ElementTree(root).write(draft, encoding="utf-8", xml_declaration=True)
    draft.replace(path)


def _case(suite: ElementTree.Element, test: TestResult, results: Results) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_clean(test.file.removesuffix(".py").replace("/", ".")),
        name=_clean(test.name),
        time=f"{test.seconds:.3f}",
    )
    others = [(name, value) for name, value in test.properties if name != "fact"]
    _properties(case, [*(("fact", fact) for fact in test.facts), *others])
    if test.outcome in _FAILURES:
        _detail(case, "failure", _last_line(test.text) or test.reason, test.text)
    elif test.outcome in _ERRORS:
        crash = results.crashes[0] if results.crashes and test.outcome is Outcome.CRASHED else None
        message = (
            f"the machine crashed: {crash['name']}" if crash else _last_line(test.text) or test.outcome.value
        )
        _detail(case, "error", message, test.text or message)
    elif test.outcome in _SKIPPED:
        _detail(case, "skipped", test.reason or test.outcome.value, "")
    for name, text in test.sections:
        tag = "system-err" if "stderr" in name else "system-out"
        ElementTree.SubElement(case, tag).text = _clean(f"{name}\n{text}")


def _head_properties(results: Results) -> list[tuple[str, str]]:
    return [
        (name, str(results.head[name])) for name in ("driver", "toolchain", "package") if name in results.head
    ]


def _properties(parent: ElementTree.Element, properties: list[tuple[str, str]]) -> None:
    if properties:
        element = ElementTree.SubElement(parent, "properties")
        for name, value in properties:
            ElementTree.SubElement(element, "property", name=_clean(name), value=_clean(value))


def _detail(case: ElementTree.Element, tag: str, message: str, text: str) -> None:
    ElementTree.SubElement(case, tag, message=_clean(message)).text = _clean(text) or None


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()
    return lines[0].removeprefix("E").strip() if lines else ""


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
