"""Writes `docs/troubleshooting.md` from the table."""

from __future__ import annotations

from pathlib import Path

from harness.symptoms.document import PATH, document

if __name__ == "__main__":
    target = Path(__file__).resolve().parents[2] / PATH
    target.write_text(document(), encoding="utf-8", newline="\n")
