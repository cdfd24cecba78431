"""Which room may import which: the arrows of docs/architecture.md that nothing else holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def imports(directory: str) -> Iterator[tuple[str, str]]:
    """File and module of every import below a directory, wherever in the file it stands."""
    for path in sorted((ROOT / directory).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                yield str(path.relative_to(ROOT)), name


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("vm", ("harness", "tasks", "tests")),
        ("vm/inf", ("vm.emulated", "vm.machine", "vm.registry", "vm.errors")),
        ("vm/emulated/image", ("vm.emulated.kernel", "vm.emulated.guest", "vm.emulated.fltmgr", "vm.inf")),
    ],
)
def test_a_room_does_not_import_what_stands_above_it(room: str, forbidden: tuple[str, ...]) -> None:
    found = list(imports(room))

    assert len(found) > 10
    wrong = [
        (file, name)
        for file, name in found
        if any(name == above or name.startswith(f"{above}.") for above in forbidden)
    ]
    assert wrong == []
