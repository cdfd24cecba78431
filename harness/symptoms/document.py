"""`docs/troubleshooting.md`, made from the table."""

from __future__ import annotations

import re

from harness.symptoms import Place, Symptom, all_symptoms

PATH = "docs/troubleshooting.md"
COMMAND = "python -m harness.symptoms"

_HEAD = f"""# Troubleshooting

What is seen, why it is so, and what mends it. The hints that the harness prints come from the same table
(`harness/symptoms`); this page is made from it by `{COMMAND}`.

`./inv doctor --machine NAME` looks for most of it before a run does; `--fix` mends what is harmless to mend.
"""


def document() -> str:
    """The whole page."""
    parts = [_HEAD, "## Index\n"]
    by_place = [(place, [row for row in all_symptoms() if row.place is place]) for place in Place]
    by_place = [(place, rows) for place, rows in by_place if rows]
    for place, rows in by_place:
        parts.append(f"* [{place.value}](#{_anchor(place.value)}): {len(rows)}")
    parts.append("")
    parts.append("By number:")
    parts.append("")
    numbered = sorted((row for row in all_symptoms() if row.code is not None), key=_number)
    parts.append(", ".join(f"[{_shown(row)}](#{row.id})" for row in numbered))
    for place, rows in by_place:
        parts += ["", f"## {place.value}", "", "| seen | cause | cure |", "|---|---|---|"]
        parts += [_line(row) for row in rows]
    return "\n".join(parts) + "\n"


def _line(row: Symptom) -> str:
    cells = (f'<a id="{row.id}"></a>{_cell(row.seen)}', _cell(row.cause), _cell(row.cure))
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text of a table's cell: a bar would end it, angle brackets would be taken for HTML, asterisks for emphasis."""
    # A backslash before a letter is shown, one before punctuation is not.
    text = re.sub(r"\\(?=[^\w\s])", r"\\\\", text)
    for plain, escaped in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "\\|"),
        ("*", "\\*"),
        ("$", "\\$"),
    ):
        text = text.replace(plain, escaped)
    return text


def _anchor(heading: str) -> str:
    """The anchor that the usual renderers give a heading."""
    kept = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in " -")
    return kept.replace(" ", "-")


def _number(row: Symptom) -> tuple[int, str]:
    return row.code or 0, row.id


def _shown(row: Symptom) -> str:
    code = row.code or 0
    return f"{code}" if code < 0x10000 else f"0x{code:08X}"
